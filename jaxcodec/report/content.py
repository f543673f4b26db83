"""What the page to listen on shows: clips, what the codec and Opus make of them, measures, results."""

import importlib.resources
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jaxcodec import audio, bundled, evaluation, inference, quantizers
from jaxcodec.evaluation import alignment, opus, scoring
from jaxcodec.inference import files

NUM_CLIPS = 12
MAX_SECONDS = 8  # of a clip; the page carries every version of it
SHOWN = ("snr", "segmental_snr", "pesq_wb", "estoi", "visqol")  # measures beside each version
HEARD = SHOWN[2:]  # those that model the ear
MEASURED = ("snr", "segmental_snr", "si_sdr", *HEARD)  # and in tables and plots
ORIGINAL, OURS, OPUS = "original", "jaxcodec", "Opus"
TIMES = "\N{MULTIPLICATION SIGN}"


class Clip(NamedTuple):
    """A recording to listen to."""

    name: str  # path below its folder; the first part of it is taken for the speaker
    audio: np.ndarray  # float32 (S,)


class Version(NamedTuple):
    """All clips as one system renders them at one setting."""

    system: str
    setting: str
    audio: list[np.ndarray]  # (S,) of each clip
    num_bytes: list[int]
    payload_bytes: list[int] | None = None  # without a container, where that makes a difference

    @property
    def label(self) -> str:
        """What the page calls it."""
        return f"{self.system} {self.setting}" if self.setting else self.system.capitalize()


class Rendered(NamedTuple):
    """What is known of the versions: themselves, a row a clip and version with its measures, remarks."""

    versions: list[Version]
    rows: list[dict]
    missing: list[str]  # what the page should have and has not
    remarks: list[str]


def bundled_clips(sample_rate: int = 16000) -> tuple[list[Clip], str]:
    """A dozen of the bundled validation clips, every speaker among them, and the notice that goes with their recordings."""
    sample = importlib.resources.files("jaxcodec").joinpath("datasets", "sample")
    with importlib.resources.as_file(sample) as folder:
        paths = {str(path.relative_to(folder / "validation")): path for path in (folder / "validation").rglob("*.flac")}
        names = sorted(paths, key=lambda name: (not name.startswith("festvox"), name))  # the human voice first
        clips = [Clip(name, audio.load(paths[name], sample_rate)) for name in spread(names)]
    return clips, sample.joinpath("NOTICE.md").read_text()


def spread(names: Sequence[str], count: int = NUM_CLIPS) -> list[str]:
    """At most `count` of `names`, as even over their first folders as can be, in their order."""
    by_speaker: dict[str, list[str]] = {}
    for name in names:
        by_speaker.setdefault(speaker(name), []).append(name)
    ranked = [(rank, name) for group in by_speaker.values() for rank, name in enumerate(group)]
    chosen = {name for _, name in sorted(ranked, key=lambda pair: pair[0])[:count]}
    return [name for name in names if name in chosen]


def cut(clips: Iterable[Clip], sample_rate: int) -> list[Clip]:
    """Clips of at most `MAX_SECONDS`."""
    return [clip._replace(audio=clip.audio[: MAX_SECONDS * sample_rate]) for clip in clips]


def render(
    codec: inference.TrainedCodec, clips: Sequence[Clip], rates: Sequence, processes: int = 1, bar: Any = None
) -> Rendered:
    """The clips through the codec and through Opus, measured.

    Args:
      codec: what `jaxcodec.load` returns.
      clips: at its sample rate.
      rates: of the codec, or `evaluation.AtKbps`.
      processes: workers that share the slow measures.
      bar: of tqdm, on which every decoded version of a clip is a step and every measured one too; it is told how many.
    """

    def watched(items, total):
        if bar is not None:
            bar.total = total * len(clips)
        for item in items:
            yield item
            if bar is not None:
                bar.update()

    here = evaluation.installed()
    missing = [f"{evaluation.MEASURES[key].title}: not installed" for key in MEASURED if key not in here]
    originals = [clip.audio for clip in clips]
    versions = [
        Version(ORIGINAL, "", originals, [2 * len(clip) for clip in originals]),
        *(_decode(codec, watched(originals, 2 * len(rates)), rate) for rate in rates),
    ]
    remarks = []
    if reason := opus.unavailable(codec.sample_rate):
        missing.append(reason)
    else:
        seconds = sum(map(len, originals)) / codec.sample_rate
        ours = [
            _nominal_kbps(codec, rate) or 8e-3 * sum(version.num_bytes) / seconds
            for rate, version in zip(rates, versions[1:], strict=True)
        ]
        for kbps in _opus_rates(ours):
            version, remark = _through_opus(originals, codec.sample_rate, kbps)
            versions.append(version)
            remarks.append(remark)
    measured = watched(_measure(clips, versions, codec.sample_rate, processes), len(rates) + len(versions) - 1)
    return Rendered(versions, list(measured), missing, remarks)


def _nominal_kbps(codec, rate):
    """What a rate is in kbit/s before anything is encoded, where that is known."""
    if isinstance(rate, evaluation.AtKbps):
        return rate.kbps
    bits_per_second = codec.module.bits_per_second(rate)
    return bits_per_second and bits_per_second / 1000


def _decode(codec, originals, rate):
    if isinstance(rate, evaluation.AtKbps):
        trips = [scoring.at_kbps(codec, clip, rate)[1:] for clip in originals]
    else:
        coded = ((np.asarray(inference.encode(codec, clip, rate)), len(clip)) for clip in originals)
        trips = [files.round_trip(codec, codes, num_samples) for codes, num_samples in coded]
    return Version(OURS, setting_of(codec, rate), [decoded for decoded, _ in trips], [size for _, size in trips])


def setting_of(codec: inference.TrainedCodec, rate) -> str:
    """What the page calls a rate of the codec; a second knob is named where it is not as it is by default."""
    knob, second = quantizers.kind_of(codec.config.model)[1:]
    if isinstance(rate, evaluation.AtKbps):
        label, rate = quantizers.KBPS.label.format(rate.kbps), codec.check_rate(rate.rate)
    else:
        label = knob.label.format(rate)
    if second is None or rate[1] == codec.check_rate(None)[1]:
        return label
    return f"{label}, {second.label.format(rate[1])}"


def _opus_rates(ours):
    """Opus' nominal kbit/s: ours but for those below its lowest, and half as much again as our highest."""
    return sorted({float(max(opus.LOWEST_KBPS, rate)) for rate in (*ours, 1.5 * max(ours))})


def _through_opus(originals, sample_rate, kbps):
    clips = [opus.round_trip(clip, sample_rate, kbps) for clip in originals]
    aligned, lag = alignment.align(originals, [clip.decoded for clip in clips])
    version = Version(
        OPUS,
        f"{kbps:g}",
        [clip.clip(-1.0, 1.0) for clip in aligned],
        [clip.num_bytes for clip in clips],
        [clip.payload_bytes for clip in clips],
    )
    return version, f"{version.label}: {clips[0].version} in Ogg, {lag:+g} samples of lag taken out"


def _measure(clips, versions, sample_rate, processes):
    """A row a version and clip, versions in the outer loop."""
    coded = versions[1:]
    pairs = ((clip.audio, decoded) for version in coded for clip, decoded in zip(clips, version.audio, strict=True))
    scores = evaluation.score_pairs(pairs, sample_rate, processes, MEASURED)
    for version in coded:
        for index, clip in enumerate(clips):
            row = dict(
                system=version.system,
                setting=version.setting,
                clip=clip.name,
                seconds=len(clip.audio) / sample_rate,
                bytes=version.num_bytes[index],
            )
            yield row | next(scores)


def read_results(path: epath.PathLike) -> dict:
    """What benchmarks/rate_distortion.py wrote.

    Raises:
      ValueError: the file is not there or is not of that kind.
    """
    try:
        results = json.loads(epath.Path(path).expanduser().read_text())
        for point in results["points"]:
            _ = point["system"], point["setting"], float(point["kbps"])
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} has no results: expected what benchmarks/rate_distortion.py writes.") from None
    return results


def model_name(path: epath.PathLike) -> str:
    """What `--model` names: a bundled model, a file, or a run."""
    if path in bundled.BUNDLED:
        return f"the bundled model {path}, {bundled.BUNDLED[path]}"
    location = epath.Path(path)
    return (
        f"the run {location.parent.name if location.name == 'checkpoints' else location.name}"
        if location.is_dir()
        else location.name
    )


def speaker(name: str) -> str:
    """The first folder of a clip's name, or nothing."""
    return name.split("/")[0] if "/" in name else ""
