"""OpenSLR-66: crowd-sourced recordings of Telugu sentences, 48 kHz, CC BY-SA 4.0 (He et al., LREC 2020)."""

import hashlib
import re
from collections.abc import Sequence

import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from jaxcodec.datasets import recordings
from jaxcodec.datasets.recordings import Clip, PrepareOptions, Recording
from jaxcodec.datasets.speech import SpeechBuilder, SpeechConfig

URL = "https://www.openslr.org/resources/66"
GENDERS = ("female", "male")


class OpenSLR66(SpeechBuilder, skip_registration=True):
    """Telugu of OpenSLR-66, split by speaker; train has no sentence that validation or test has."""

    def __init__(self, options: PrepareOptions, data_dir: str | None = None):
        name = hashlib.sha256(repr(options).encode()).hexdigest()[:16]
        super().__init__(SpeechConfig(name=name, options=options), data_dir)

    def recordings(self, dl_manager: tfds.download.DownloadManager) -> Sequence[Recording]:
        """Downloads both archives and their line indices."""
        archives = dl_manager.download_and_extract({gender: f"{URL}/te_in_{gender}.zip" for gender in GENDERS})
        indices = dl_manager.download({gender: f"{URL}/line_index_{gender}.tsv" for gender in GENDERS})
        self._sentences = {}
        for index in indices.values():
            self._sentences |= read_line_index(epath.Path(index).read_text())
        found = [file for gender in GENDERS for file in recordings.list_audio(archives[gender])]
        return [Recording(path, path.name, speaker_of(path.name)) for _, path in found]

    def splits(self, clips: Sequence[Clip]) -> dict[str, list[Clip]]:
        """By speaker, however few; then train loses the sentences that are spoken in validation or test."""
        options = self.builder_config.options
        chosen = recordings.split_of_groups(
            {clip.speaker for clip in clips}, options.validation_fraction, options.test_fraction
        )
        by_split = {split: [] for split in ("train", "validation", "test")}
        for clip in clips:
            by_split[chosen[clip.speaker]].append(clip)
        by_split["train"] = self._without_shared_sentences(by_split)
        return {split: members for split, members in by_split.items() if members}

    def _without_shared_sentences(self, by_split: dict[str, list[Clip]]) -> list[Clip]:
        heard = {self._sentence(clip) for clip in by_split["validation"] + by_split["test"]} - {None}
        kept = [clip for clip in by_split["train"] if self._sentence(clip) not in heard]
        logging.info(
            "%d clips of train left out, their sentences are in validation or test",
            len(by_split["train"]) - len(kept),
        )
        return kept

    def _sentence(self, clip: Clip) -> str | None:
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
