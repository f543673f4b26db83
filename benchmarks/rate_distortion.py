"""Rate against distortion: both models, codecs in use, a transform coder and the Gaussian bound on the very same clips.

    python benchmarks/rate_distortion.py --processes 2
    python benchmarks/rate_distortion.py --clips validation/ --model checkpoints/telugu files --out results/

Prints a table, means over clips with half the width of their 95 % interval, and the distance to the transform coder; writes
rate_distortion.json and rate_distortion.png into the folder `--out`. Rates are those of the files' bytes, containers
included. A model for files has two curves, shaped for the ear and of least squared error: each clip at the finest quality
whose file does not exceed the rate asked for. Without `--clips`: the bundled validation clips, 75 s. docs/rate_distortion.md
says how to read it and what the codecs need.
"""

import argparse
import datetime
import importlib.util
import itertools
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import jaxcodec
from benchmarks import bound, peers, rate_distortion_plot, transform_codec
from jaxcodec import audio, evaluation
from jaxcodec.evaluation import alignment, scoring
from jaxcodec.inference import TrainedCodec, files

SAMPLE = Path(jaxcodec.__file__).parent / "datasets" / "sample" / "validation"
OURS, TRANSFORM, BOUND = "jaxcodec", "transform", "bound"
FILES, LEAST_SQUARES, TOKENS = "jaxcodec files", "jaxcodec files, shape 0", "jaxcodec tokens"
TRANSFORM_TITLE = "MDCT transform coder"
SHAPES = {FILES: None, LEAST_SQUARES: 0.0}  # None: the default
COMPARED_KBPS = (2, 3, 5, 8, 12, 16, 24)  # where both aim at squared error alone
KBPS = (*COMPARED_KBPS, 32, 40)
TRANSFORM_KBPS = (0.7, 1.3, *COMPARED_KBPS, 32)
BOUND_KBPS = tuple(np.geomspace(0.5, 40, 25).round(3).tolist())
SHOWN = ("snr", "segmental_snr", "si_sdr", "pesq_wb", "estoi", "visqol")


class Decoded(NamedTuple):
    """One clip through one system."""

    row: dict  # what is known before it is measured: system, setting, clip, seconds, bytes, payload_bytes
    clip: np.ndarray  # (S,)
    decoded: np.ndarray  # (S,), aligned


def main():
    """Runs all of it."""
    systems = [OURS, *peers.PEERS, TRANSFORM, BOUND]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, default=SAMPLE, help="a folder of recordings")
    parser.add_argument(
        "--model", nargs="+", default=["files", "tokens"], help="one or one of each kind, default: bundled"
    )
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--systems", nargs="+", choices=systems, default=systems)
    arguments = parser.parse_args()
    started = time.monotonic()
    try:
        models = load_models(arguments.model)
    except ValueError as error:
        parser.error(str(error))
    clips = read_clips(arguments.clips)
    if not clips:
        parser.error(f"{arguments.clips} has no recordings that are not silent.")
    missing, unreached = missing_parts(arguments.systems), {}
    tell(missing)
    results = provenance(models, missing) | compare(models, clips, arguments.systems, arguments.processes, unreached)
    results["missing"] |= unreached
    tell(unreached)
    if not results["points"]:
        parser.error("nothing was measured: the bound stands beside other systems, name one that is installed.")
    print(format_table(results), format_distances(results["against_transform"]), sep="\n\n")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "rate_distortion.json"
    path.write_text(json.dumps(results, indent=1))
    if "plots" not in missing:
        rate_distortion_plot.draw(results, path.with_suffix(".png"))
    print(f"\n{path}: {time.monotonic() - started:.0f} s")


def tell(missing):
    """Names what is left out."""
    for name, reason in missing.items():
        print(f"{name} is left out: {reason}", file=sys.stderr)


def load_models(names: Sequence[str]) -> dict[str, TrainedCodec]:
    """Models by what they are for, "files" or "tokens". Raises `ValueError` for two of a kind or another sample rate."""
    models: dict[str, TrainedCodec] = {}
    for name in names:
        codec = jaxcodec.load(name)
        if codec.sample_rate != peers.SAMPLE_RATE:
            raise ValueError(
                f"the peers are wide-band codecs of 16000 Hz, the rate of {name} is {codec.sample_rate} Hz."
            )
        if (purpose := "files" if codec.knob.search else "tokens") in models:
            raise ValueError(f"{name} is the second model for {purpose}: give one of each kind.")
        models[purpose] = codec
    return models


def provenance(models, missing) -> dict:
    """What the figures are of: when, how, where, with which models and which versions."""
    return dict(
        date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        command=shlex.join(["python", "benchmarks/rate_distortion.py", *sys.argv[1:]]),
        hardware=f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        version=jaxcodec.__version__,
        model=", ".join(f"{codec.fingerprint.hex()} ({purpose})" for purpose, codec in models.items()),
        config={purpose: codec.config.to_dict() for purpose, codec in models.items()},
        versions={peer.title: peer.version() for peer in peers.available()[0].values()},
        missing=missing,
    )


def compare(models, clips, systems, processes, unreached) -> dict:
    """The clips, a row for each through each system, their means as points, and the bound; adds to `unreached`."""
    rows = measure(models if OURS in systems else {}, clips, systems, processes, unreached)
    points = summarize(rows)
    return dict(
        clips=[dict(clip=name, seconds=len(clip) / peers.SAMPLE_RATE) for name, clip in clips],
        points=points,
        against_transform=against_transform(points),
        bound=bound.curve([clip for _, clip in clips], peers.SAMPLE_RATE, BOUND_KBPS) if BOUND in systems else [],
        rows=rows,
    )


def read_clips(folder: Path) -> list[tuple[str, np.ndarray]]:
    """Name and samples (S,) of every recording of a folder that is not silent."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in audio.EXTENSIONS)
    clips = [(path.relative_to(folder).as_posix(), audio.load(path, peers.SAMPLE_RATE)) for path in paths]
    return [(name, clip) for name, clip in clips if clip.any()]


def missing_parts(systems) -> dict[str, str]:
    """Peers, measures and plots that cannot be had here, and what to install."""
    missing = {name: f"install {what}" for name, what in peers.available()[1].items() if name in systems}
    if not importlib.util.find_spec("matplotlib"):
        missing["plots"] = "pip install 'jaxcodec[examples]'"
    measures = sorted(set(evaluation.MEASURES) - set(evaluation.installed()))
    return missing | dict.fromkeys(measures, "pip install 'jaxcodec[metrics]'")


def measure(models, clips, systems, processes, unreached) -> list[dict]:
    """A row for every system, setting and clip, with all measures."""
    waiting: list[dict] = []

    def pairs():
        for row, clip, decoded in itertools.chain(ours(models, clips, unreached), others(clips, systems)):
            waiting.append(row)
            yield clip, decoded

    scores = evaluation.score_pairs(pairs(), peers.SAMPLE_RATE, processes)
    return [waiting[index] | score for index, score in enumerate(scores)]


def ours(models, clips, unreached) -> Iterator[Decoded]:
    """Every clip through both curves of a model for files, and through 1, 2, 4, ... codebooks of one for tokens.

    A rate that some clip cannot have is left out, and why is added to `unreached`: a mean over the rest is of other speech.
    """
    if "files" in models:
        for system, shape in SHAPES.items():
            for kbps in KBPS:
                setting, target = f"{kbps:g} kbit/s", evaluation.AtKbps(kbps, (None, shape))
                try:
                    coded = [through_file(models["files"], name, clip, target) for name, clip in clips]
                except ValueError as error:
                    unreached[f"{system} at {setting}"] = str(error)
                else:
                    yield from decodings(system, setting, clips, coded, [each.decoded for each in coded])
    if "tokens" in models:
        codec = models["tokens"]
        for count in codec.module.quantizer.rates:
            codes = [np.asarray(jaxcodec.encode(codec, clip, count)) for _, clip in clips]
            trips = [files.round_trip(codec, code, len(clip)) for code, (_, clip) in zip(codes, clips, strict=True)]
            coded = [peers.Coded(decoded, size, size) for decoded, size in trips]
            setting = f"{count} codebook{'s' * (count > 1)}"
            yield from decodings(TOKENS, setting, clips, coded, [each.decoded for each in coded])


def through_file(codec, name: str, clip: np.ndarray, target) -> peers.Coded:
    """A clip (S,) through a file of at most `target.kbps`. Raises `ValueError` where it has none."""
    try:
        _, decoded, size = scoring.at_kbps(codec, clip, target)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return peers.Coded(decoded, size, size)


def others(clips, systems) -> Iterator[Decoded]:
    """Every clip through every peer and the transform coder, aligned by the lag of each setting."""
    here, _ = peers.available()
    coders = {peer.title: (peer.settings, peer.round_trip) for name, peer in here.items() if name in systems}
    if TRANSFORM in systems:
        coders[TRANSFORM_TITLE] = TRANSFORM_KBPS, through_transform
    for title, (settings, round_trip) in coders.items():
        for setting in settings:
            coded = [round_trip(clip, setting) for _, clip in clips]
            aligned, lag = alignment.align([clip for _, clip in clips], [each.decoded for each in coded])
            yield from decodings(title, f"{setting:g} kbit/s", clips, coded, aligned, lag)


def decodings(system, setting, clips, coded, aligned, lag=0.0) -> Iterator[Decoded]:
    """What became of the clips at one setting."""
    for (name, clip), each, decoded in zip(clips, coded, aligned, strict=True):
        row = dict(
            system=system,
            setting=setting,
            clip=name,
            seconds=len(clip) / peers.SAMPLE_RATE,
            bytes=each.file_bytes,
            payload_bytes=each.payload_bytes,
            lag=lag,
        )
        yield Decoded(row, clip, decoded)


def through_transform(clip: np.ndarray, kbps: float) -> peers.Coded:
    """A clip (S,) through the bytes of the transform coder; nothing in them is a container."""
    data = transform_codec.encode(clip, peers.SAMPLE_RATE, kbps)
    return peers.Coded(transform_codec.decode(data), len(data), len(data))


def summarize(rows: list[dict]) -> list[dict]:
    """`evaluation.summarize` by system and setting, with the rate without containers and the lag that was taken out."""
    points = evaluation.summarize(rows, by=("system", "setting"))
    for point in points:
        group = [row for row in rows if (row["system"], row["setting"]) == (point["system"], point["setting"])]
        point["payload_kbps"] = 8e-3 * sum(row["payload_bytes"] for row in group) / point["seconds"]
        point["lag"] = group[0]["lag"]
    return points


def against_transform(points) -> list[dict]:
    """SNR of the files of least squared error less the transform coder's at the rate that they have, `gain` in dB."""
    theirs = [point for point in points if point["system"] == TRANSFORM_TITLE]
    settings = {f"{kbps:g} kbit/s": kbps for kbps in COMPARED_KBPS}
    rows = []
    for point in points:
        compared = point["system"] == LEAST_SQUARES and point["setting"] in settings
        if compared and (snr := snr_at(theirs, point["kbps"])) is not None:
            asked = dict(kbps_asked=settings[point["setting"]], kbps=point["kbps"])
            rows.append(asked | dict(snr=point["snr"], transform_snr=snr, gain=point["snr"] - snr))
    return rows


def format_distances(rows: list[dict]) -> str:
    """`against_transform` in a line."""
    gains = ", ".join(f"{row['gain']:+.2f} at {row['kbps_asked']:g} kbit/s" for row in rows)
    return f"SNR of {LEAST_SQUARES} less the transform coder's at the same rate, dB: {gains or 'not measured'}"


def format_table(results: dict) -> str:
    """The points as a table in Markdown, below three lines of what they are of; `bound` is the SNR's at the point's rate."""
    seconds = sum(clip["seconds"] for clip in results["clips"])
    keys = [key for key in SHOWN if any(point[key] is not None for point in results["points"])]
    lines = [["system", "setting", "kbit/s", "payload", "bound", *(evaluation.MEASURES[key].title for key in keys)]]
    lines.append(["-" * 3] * len(lines[0]))
    for point in results["points"]:
        figures = [f"{point['kbps']:.2f}", f"{point['payload_kbps']:.2f}", bound_at(results["bound"], point["kbps"])]
        lines.append([point["system"], point["setting"], *figures, *(_mean(point, key) for key in keys)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head = f"{results['date']}, model {results['model']}, {len(results['clips'])} clips, {seconds:.0f} s"
    table = ("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)
    return "\n".join([head, results["command"], results["hardware"], "", *table])


def bound_at(rows: list[dict], kbps: float) -> str:
    """The bound in dB between the rates it was computed at; nothing beyond them."""
    return "-" if (snr := snr_at(rows, kbps)) is None else f"{snr:.1f}"


def snr_at(rows: Sequence[dict], kbps: float) -> float | None:
    """The SNR of a curve, rows of `kbps` and `snr` with rising rates, in dB; linear in log rate, None beyond its ends."""
    if not rows or not rows[0]["kbps"] <= kbps <= rows[-1]["kbps"]:
        return None
    return float(np.interp(np.log(kbps), np.log([row["kbps"] for row in rows]), [row["snr"] for row in rows]))


def kbps_at(rows: Sequence[dict], snr: float) -> float | None:
    """The rate at which a curve reaches an SNR, the inverse of `snr_at`; None beyond its ends."""
    if not rows or not rows[0]["snr"] <= snr <= rows[-1]["snr"]:
        return None
    return float(np.exp(np.interp(snr, [row["snr"] for row in rows], np.log([row["kbps"] for row in rows]))))


def _mean(point, key):
    if point[key] is None:
        return "-"
    interval = point["intervals"][key]
    return f"{point[key]:.2f}" + ("" if interval is None else f" ±{(interval[1] - interval[0]) / 2:.2f}")


if __name__ == "__main__":
    main()
