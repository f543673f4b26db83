"""tfds builders that turn recordings into array_record shards of int16 PCM at 16 kHz."""

import contextlib
import csv
import hashlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from jaxcodec.data import damage, recordings
from jaxcodec.data.recordings import PrepareOptions, Recording, StagedClip, Staging

SAMPLE_FOLDER = epath.Path(__file__).parent.parent / "datasets" / "sample"

# BYTES keeps the samples as one little-endian block of 2 bytes each; numpy alone decodes it.
FEATURES = tfds.features.FeaturesDict(
    {
        "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding=tfds.features.Encoding.BYTES),
        "length": np.int32,
        "speaker": tfds.features.Text(),
        "id": tfds.features.Text(),
    }
)


class SpeechBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Decodes, checks, cuts and splits the recordings that a subclass lists."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, name: str, options: PrepareOptions, data_dir: str | None):
        """`name` identifies the prepared copy."""
        self.options = options
        root = epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
        folder = root / self.name / name / str(self.VERSION)
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)  # tfds warns of every config that is made at run time
        try:
            with damage.explained(folder, folder) if folder.exists() else contextlib.nullcontext():
                super().__init__(config=tfds.core.BuilderConfig(name=name), data_dir=data_dir)
        finally:
            logging.set_verbosity(verbosity)

    def _info(self) -> tfds.core.DatasetInfo:
        metadata = tfds.core.MetadataDict(sample_rate=recordings.SAMPLE_RATE, skipped={})
        return tfds.core.DatasetInfo(builder=self, description=type(self).__doc__, features=FEATURES, metadata=metadata)

    def recordings(self, dl_manager: tfds.download.DownloadManager) -> Sequence[Recording]:
        """The files to prepare."""
        raise NotImplementedError

    def splits(self, clips: Sequence[StagedClip]) -> dict[str, list[StagedClip]]:
        """Clips by split, without empty splits."""
        return recordings.assign_splits(clips, self.options)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        files = self.recordings(dl_manager)
        tfds.disable_progress_bar()  # from here on there is one bar of our own, over the files
        staging = Staging(None if "://" in str(self.data_path) else str(self.data_path))
        clips, skipped = recordings.stage(files, self.options, staging)
        self.info.metadata["skipped"] = skipped
        return {split: self._generate_examples(members, staging) for split, members in self.splits(clips).items()}

    def _generate_examples(self, clips: Sequence[StagedClip], staging: Staging) -> Iterator[tuple[str, dict]]:
        for clip in clips:
            samples = staging.read(clip)
            yield clip.id, {"audio": samples, "length": clip.length, "speaker": clip.speaker, "id": clip.id}


class SpeechFolder(SpeechBuilder, skip_registration=True):
    """A folder tree of wav, flac, ogg, opus or mp3 files, local or remote."""

    def __init__(self, folder: str, options: PrepareOptions, data_dir: str | None = None):
        slug = re.sub(r"[^A-Za-z0-9_-]", "_", epath.Path(folder).name) or "root"
        self._folder = folder
        super().__init__(f"{slug}-{recordings.fingerprint(folder, options)}", options, data_dir)

    def recordings(self, dl_manager: tfds.download.DownloadManager) -> Sequence[Recording]:
        """Every audio file of the folder."""
        return recordings.find_recordings(self._folder)


class SpeechSample(SpeechBuilder, skip_registration=True):
    """The bundled corpus: recorded Russian and synthetic Telugu, 10 minutes of train and 1 of validation."""

    def __init__(self, options: PrepareOptions, data_dir: str | None = None):
        index = (SAMPLE_FOLDER / "index.tsv").read_bytes()  # it lists the checksum of every file
        name = hashlib.sha256(index + repr(options).encode()).hexdigest()[:16]
        super().__init__(name, options, data_dir)

    def recordings(self, dl_manager: tfds.download.DownloadManager) -> Sequence[Recording]:
        """The files that the index lists."""
        rows = csv.DictReader((SAMPLE_FOLDER / "index.tsv").read_text().splitlines(), delimiter="\t")
        return [Recording(SAMPLE_FOLDER / row["file"], row["file"], row["speaker"], row["split"]) for row in rows]
