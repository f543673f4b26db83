"""OpenSLR-66: crowd-sourced recordings of Telugu sentences, 48 kHz, CC BY-SA 4.0 (He et al., LREC 2020)."""

import hashlib
import re
from collections.abc import Sequence

import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from jaxcodec.data import damage, recordings
from jaxcodec.data.recordings import PrepareOptions, Recording, StagedClip
from jaxcodec.data.speech import SpeechBuilder

URL = "https://www.openslr.org/resources/66"
GENDERS = ("female", "male")


class OpenSLR66(SpeechBuilder, skip_registration=True):
    """Telugu of OpenSLR-66, split by speaker; train has no sentence that validation or test has."""

    def __init__(self, options: PrepareOptions, data_dir: str | None = None):
        name = hashlib.sha256(repr(options).encode()).hexdigest()[:16]
        super().__init__(name, options, data_dir)

    def recordings(self, dl_manager: tfds.download.DownloadManager) -> Sequence[Recording]:
        """Downloads both archives and their line indices.

        Zip has a checksum of each file, which is verified. Checksums of the downloads are if `checksums.tsv` (as tfds
        writes it) lies beside this module; members that would leave their folder are not unpacked.
        """
        try:
            archives = dl_manager.download_and_extract({gender: f"{URL}/te_in_{gender}.zip" for gender in GENDERS})
            indices = dl_manager.download({gender: f"{URL}/line_index_{gender}.tsv" for gender in GENDERS})
        except Exception as error:  # tfds, requests and zipfile raise their own
            problem = damage.in_one_line(error)
            raise ValueError(
                f"cannot download and unpack {URL} ({problem}): delete {dl_manager.download_dir} to try anew"
            ) from error
        self._sentences = read_line_index("\n".join(epath.Path(index).read_text() for index in indices.values()))
        found = [file for gender in GENDERS for file in recordings.list_audio(archives[gender])]
        if unknown := sum(path.stem not in self._sentences for _, path in found):
            logging.warning(
                "%d of %d recordings have no line in the indices: sentences may be in two splits", unknown, len(found)
            )
        return [Recording(path, path.name, speaker_of(path.name)) for _, path in found]

    def splits(self, clips: Sequence[StagedClip]) -> dict[str, list[StagedClip]]:
        """By speaker, however few; then train loses the sentences that are spoken in validation or test."""
        fractions = self.options.validation_fraction, self.options.test_fraction
        chosen = recordings.split_of_groups({clip.speaker for clip in clips}, *fractions)
        splits = {clip.id: chosen[clip.speaker] for clip in clips}
        heard = {self._sentence(clip) for clip in clips if splits[clip.id] != "train"} - {None}
        kept = [clip for clip in clips if splits[clip.id] != "train" or self._sentence(clip) not in heard]
        logging.info("%d clips of train left out, their sentences are in validation or test", len(clips) - len(kept))
        return recordings.by_split(kept, splits)

    def _sentence(self, clip: StagedClip) -> str | None:
        return self._sentences.get(clip.id.split("#")[0].removesuffix(".wav"))


def speaker_of(file_name: str) -> str:
    """`tef_00432` of `tef_00432_01234567890.wav`; raises `ValueError` for a name of another form."""
    match = re.fullmatch(r"(te[fm]_\d+)_\d+\.wav", file_name)
    if match is None:
        raise ValueError(f"{file_name!r} is not named like a recording of OpenSLR-66 (te[fm]_SPEAKER_NUMBER.wav)")
    return match[1]


def read_line_index(text: str) -> dict[str, str]:
    """File stem to sentence without punctuation, from lines `stem <tab> ... <tab> sentence`."""
    rows = [line.split("\t") for line in text.splitlines() if "\t" in line]
    return {row[0].strip(): " ".join(re.findall(r"[\w\u0c00-\u0c7f]+", row[-1])) for row in rows}
