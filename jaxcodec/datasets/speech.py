"""tfds builders that turn recordings into array_record shards of int16 PCM at 16 kHz."""

import contextlib
import csv
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from jaxcodec.datasets import recordings
from jaxcodec.datasets.recordings import Clip, PrepareOptions, Recording, Staging

SAMPLE_FOLDER = epath.Path(__file__).parent / "sample"
VERSION = tfds.core.Version("1.0.0")

# BYTES keeps the samples as one little-endian block of 2 bytes each; numpy alone decodes it.
FEATURES = tfds.features.FeaturesDict(
    {
        "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding=tfds.features.Encoding.BYTES),
        "length": np.int32,
        "speaker": tfds.features.Text(),
        "id": tfds.features.Text(),
    }
)


@dataclasses.dataclass(eq=False)
class SpeechConfig(tfds.core.BuilderConfig):
    """Where the recordings are, and how they are prepared. `name` identifies the prepared copy."""

    folder: str = ""
    options: PrepareOptions = dataclasses.field(default_factory=PrepareOptions)


class SpeechBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Decodes, checks, cuts and splits the recordings that a subclass lists."""

    VERSION = VERSION

    def __init__(self, config: SpeechConfig, data_dir: str | None):
        with _without_warnings():  # tfds warns of every config that is made at run time
            super().__init__(config=config, data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        metadata = tfds.core.MetadataDict(sample_rate=recordings.SAMPLE_RATE, skipped={})
        return tfds.core.DatasetInfo(builder=self, description=type(self).__doc__, features=FEATURES, metadata=metadata)

    def recordings(self, dl_manager: tfds.download.DownloadManager) -> Sequence[Recording]:
        """The files to prepare."""
        raise NotImplementedError

    def splits(self, clips: Sequence[Clip]) -> dict[str, list[Clip]]:
        """Clips by split, without empty splits."""
        return recordings.assign_splits(clips, self.builder_config.options)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        files = self.recordings(dl_manager)
        tfds.disable_progress_bar()  # from here on there is one bar of our own, over the files
        remote = "://" in str(self.data_path)
        staging = Staging(None if remote else str(self.data_path))
        clips, skipped = recordings.stage(files, self.builder_config.options, staging)
        self.info.metadata["skipped"] = skipped
        return {split: self._generate_examples(members, staging) for split, members in self.splits(clips).items()}

    def _generate_examples(self, clips: Sequence[Clip], staging: Staging) -> Iterator[tuple[str, dict]]:
        for clip in clips:
            samples = staging.read(clip)
            yield clip.id, {"audio": samples, "length": clip.length, "speaker": clip.speaker, "id": clip.id}


class SpeechFolder(SpeechBuilder, skip_registration=True):
    """A folder tree of wav, flac, ogg, opus or mp3 files, local or remote."""

    def __init__(self, folder: str, options: PrepareOptions, data_dir: str | None = None):
        slug = re.sub(r"[^A-Za-z0-9_-]", "_", epath.Path(folder).name) or "root"
        name = f"{slug}-{recordings.fingerprint(folder, options)}"
        super().__init__(SpeechConfig(name=name, folder=folder, options=options), data_dir)

    def recordings(self, dl_manager: tfds.download.DownloadManager) -> Sequence[Recording]:
        """Every audio file of the folder."""
        return recordings.find_recordings(self.builder_config.folder)


class SpeechSample(SpeechBuilder, skip_registration=True):
    """The bundled corpus: recorded Russian and synthetic Telugu, 10 minutes of train and 1 of validation."""

    def __init__(self, options: PrepareOptions, data_dir: str | None = None):
        index = (SAMPLE_FOLDER / "index.tsv").read_bytes()  # it lists the checksum of every file
        name = hashlib.sha256(index + repr(options).encode()).hexdigest()[:16]
        super().__init__(SpeechConfig(name=name, options=options), data_dir)

    def recordings(self, dl_manager: tfds.download.DownloadManager) -> Sequence[Recording]:
        """The files that the index lists."""
        with (SAMPLE_FOLDER / "index.tsv").open() as lines:
            rows = list(csv.DictReader(lines, delimiter="\t"))
        return [Recording(SAMPLE_FOLDER / row["file"], row["file"], row["speaker"], row["split"]) for row in rows]


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
