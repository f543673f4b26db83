"""Rate against distortion: the codec, codecs in use, a plain transform coder and the Gaussian bound on the very same clips.

    python benchmarks/rate_distortion.py --processes 2
    python benchmarks/rate_distortion.py --clips validation/ --model checkpoints/telugu --out results/

Prints a table, means over clips with half the width of their 95 % interval, and writes rate_distortion.json and
rate_distortion.png into the folder `--out`. Rates are those of the files' bytes, containers included. Without `--clips`: the
bundled validation clips, 75 s. docs/rate_distortion.md says how to read it and what the codecs need.
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import jaxcodec
from benchmarks import bound, peers, rate_distortion_plot, transform_codec
from jaxcodec import audio, evaluation
from jaxcodec.evaluation import alignment

SAMPLE = Path(jaxcodec.__file__).parent / "datasets" / "sample" / "validation"
OURS, TRANSFORM, BOUND = "jaxcodec", "transform", "bound"
TRANSFORM_KBPS = (0.7, 1.3, 2.6, 5.2, 8, 16, 24)
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
    parser.add_argument("--model", help="default: the bundled model")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--systems", nargs="+", choices=systems, default=systems)
    arguments = parser.parse_args()
    started = time.monotonic()
    codec = jaxcodec.load(arguments.model)
    if codec.sample_rate != peers.SAMPLE_RATE:
        parser.error(f"the peers are wide-band codecs of 16000 Hz, the model's rate is {codec.sample_rate} Hz.")
    clips = read_clips(arguments.clips)
    if not clips:
        parser.error(f"{arguments.clips} has no recordings that are not silent.")
    missing = missing_parts(arguments.systems)
    for name, reason in missing.items():
        print(f"{name} is left out: {reason}", file=sys.stderr)

    results = provenance(codec, missing) | compare(codec, clips, arguments.systems, arguments.processes)
    if not results["points"]:
        parser.error("nothing was measured: the bound stands beside other systems, name one that is installed.")
    print(format_table(results))
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "rate_distortion.json"
    path.write_text(json.dumps(results, indent=1))
    if "plots" not in missing:
        rate_distortion_plot.draw(results, path.with_suffix(".png"))
    print(f"\n{path}: {time.monotonic() - started:.0f} s")


def provenance(codec, missing) -> dict:
    """What the figures are of: when, how, where, with which model and which versions."""
    return dict(
        date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        command=shlex.join(["python", "benchmarks/rate_distortion.py", *sys.argv[1:]]),
        hardware=f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        version=jaxcodec.__version__,
        model=codec.fingerprint.hex(),
        config=codec.config.to_dict(),
        versions={peer.title: peer.version() for peer in peers.available()[0].values()},
        missing=missing,
    )


def compare(codec, clips, systems, processes) -> dict:
    """The clips, a row for each through each system, their means as points, and the bound."""
    rows = measure(codec, clips, systems, processes)
    return dict(
        clips=[dict(clip=name, seconds=len(clip) / codec.sample_rate) for name, clip in clips],
        points=summarize(rows),
        bound=bound.curve([clip for _, clip in clips], codec.sample_rate, BOUND_KBPS) if BOUND in systems else [],
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


def measure(codec, clips, systems, processes) -> list[dict]:
    """A row for every system, setting and clip, with all measures."""
    rows = []
    if OURS in systems:
        for row in evaluation.evaluate(codec, clips, range(1, codec.num_codebooks + 1), processes):
            setting = f"{row['codebooks']} codebook{'s' * (row['codebooks'] > 1)}"
            rows.append(dict(system=OURS, setting=setting, payload_bytes=row["bytes"], lag=0.0) | row)
        order = {name: index for index, (name, _) in enumerate(clips)}
        rows.sort(key=lambda row: (row["codebooks"], order[row["clip"]]))
    waiting: list[dict] = []

    def pairs():
        for row, clip, decoded in others(clips, systems):
            waiting.append(row)
            yield clip, decoded

    scores = evaluation.score_pairs(pairs(), codec.sample_rate, processes)
    return rows + [waiting[index] | score for index, score in enumerate(scores)]


def others(clips, systems) -> Iterator[Decoded]:
    """Every clip through every peer and the transform coder, aligned by the lag of each setting."""
    here, _ = peers.available()
    coders = {peer.title: (peer.settings, peer.round_trip) for name, peer in here.items() if name in systems}
    if TRANSFORM in systems:
        coders["MDCT transform coder"] = TRANSFORM_KBPS, through_transform
    for title, (settings, round_trip) in coders.items():
        for setting in settings:
            coded = [round_trip(clip, setting) for _, clip in clips]
            aligned, lag = alignment.align([clip for _, clip in clips], [each.decoded for each in coded])
            for (name, clip), each, decoded in zip(clips, coded, aligned, strict=True):
                row = dict(
                    system=title,
                    setting=f"{setting:g} kbit/s",
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
    if not rows or not rows[0]["kbps"] <= kbps <= rows[-1]["kbps"]:
        return "-"
    return f"{np.interp(np.log(kbps), np.log([row['kbps'] for row in rows]), [row['snr'] for row in rows]):.1f}"


def _mean(point, key):
    if point[key] is None:
        return "-"
    interval = point["intervals"][key]
    return f"{point[key]:.2f}" + ("" if interval is None else f" ±{(interval[1] - interval[0]) / 2:.2f}")


if __name__ == "__main__":
    main()
