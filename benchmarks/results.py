"""Every number of the result tables in README.md and docs/rate_distortion.md, measured in one go: an hour on two CPU cores.

    python benchmarks/results.py            # print the tables and write docs/results/results.json
    python benchmarks/results.py --readme   # and put them into both pages
    python benchmarks/results.py --render   # put what docs/results/results.json holds into both pages, measure nothing
    python benchmarks/results.py --keep docs/results/results.json      # only the codec for files anew, a third of the time

Rates, distortion, peers and bound by `benchmarks/rate_distortion.py` with the bundled models on the bundled validation
clips; the first epoch of `configs/telugu.py`, `configs/seed.py` and `configs/telugu_vbr.py` as `train.py` trains them, on
the bundled corpus.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import ablate, peers, rate_distortion, rate_distortion_plot
from configs import seed, telugu, telugu_vbr
from jaxcodec import atomic, evaluation

ROOT = Path(__file__).resolve().parents[1]
FILES_RECIPE = "configs/telugu_vbr.py"
RECIPES = {
    "configs/telugu.py": telugu.get_config,
    "configs/seed.py": seed.get_config,
    FILES_RECIPE: telugu_vbr.get_config,
}
BEGIN, END = "<!-- results: written by benchmarks/results.py -->", "<!-- end of the results -->"
MEASURES = ("snr", "segmental_snr", "pesq_wb", "estoi", "visqol")
SHOWN = {  # settings of ours
    rate_distortion.FILES: ("5 kbit/s", "8 kbit/s", "12 kbit/s", "24 kbit/s"),
    rate_distortion.LEAST_SQUARES: ("8 kbit/s",),
    rate_distortion.TOKENS: ("1 codebook", *(f"{count} codebooks" for count in (2, 4, 8, 16))),
}
PEER_KBPS = (8, 16)  # near which the others are shown
PROMISED_KBPS, PROMISED_SNR, PCM_KBPS = 8, 35, 256


def main():
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/results.json")
    parser.add_argument(
        "--readme", action="store_true", help="put the tables into README.md and docs/rate_distortion.md"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        nargs="+",
        default=[],
        help="earlier results, for systems and recipes other than the files'",
    )
    parser.add_argument("--render", action="store_true", help="the same with what the output holds already")
    args = parser.parse_args()
    if not args.render:
        measure(args.output, [json.loads(path.read_text()) for path in args.keep])
    results = json.loads(args.output.read_text())
    print(render(results), render_curves(results), sep="\n\n")
    if args.readme or args.render:
        for name, text in PAGES.items():
            page = ROOT / name
            page.write_text(insert(page.read_text(), text(results)))


def measure(output, earlier):
    """Writes everything that is measured, and what `earlier` results have of other systems and recipes than the files'."""
    epochs, points, versions, kept = {}, {}, {}, {}
    for results in earlier:
        rates, since = results.get("rate_distortion", results), results.get("kept", {})
        versions |= rates["versions"]
        for path, epoch in results.get("first_epoch", {}).items():
            if path != FILES_RECIPE:
                epochs[path], kept[path] = epoch, since.get(path, results["date"])
        for system, group in _by_system(rates["points"]).items():
            if (system := {"jaxcodec": rate_distortion.TOKENS}.get(system, system)) not in rate_distortion.SHAPES:
                points[system] = [point | dict(system=system) for point in group]
                kept[system] = since.get(system, rates["date"][:10])
    results = dict(
        date=datetime.date.today().isoformat(),
        command="python benchmarks/results.py",
        hardware=f"{platform.machine()}, {os.cpu_count()} cores, {jax.device_count()} x {jax.devices()[0].device_kind}",
        jax=jax.__version__,
        kept=kept,
        first_epoch={path: epochs.get(path) or first_epoch(get_config()) for path, get_config in RECIPES.items()},
        rate_distortion=measure_rates(points, versions),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(output) as path:
        Path(path).write_text(json.dumps(results, indent=1) + "\n")


def first_epoch(config):
    """A recipe's config and what it reached after its first epoch, the report that `train.py` would print."""
    return dict(config=config.to_dict(), **ablate.train(config, epochs=1))


def measure_rates(kept, versions):
    """What benchmarks/rate_distortion.py finds beside the points that are `kept`, without the rows of single clips.

    Its plots become those of docs/.
    """
    titles = {name: peer.title for name, peer in peers.available()[0].items()}
    titles |= {rate_distortion.TRANSFORM: rate_distortion.TRANSFORM_TITLE}
    systems = [name for name, title in titles.items() if title not in kept]
    models = ["files", "tokens"][: 1 if rate_distortion.TOKENS in kept else 2]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "benchmarks/rate_distortion.py"), "--processes", "2", "--model", *models]
        command += ["--systems", rate_distortion.OURS, rate_distortion.BOUND, *systems]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        found = json.loads((Path(folder) / "rate_distortion.json").read_text())
    del found["rows"]
    measured = _by_system(found["points"]) | kept
    order = dict.fromkeys([*SHOWN, *titles.values(), *kept])
    found["points"] = [point for system in order for point in measured.get(system, [])]
    found["versions"] = versions | found["versions"]
    found["against_transform"] = rate_distortion.against_transform(found["points"])
    if rate_distortion.TOKENS in kept:
        both = rate_distortion.load_models(["files", "tokens"])
        found |= {
            key: value for key, value in rate_distortion.provenance(both, {}).items() if key in ("model", "config")
        }
    rate_distortion_plot.draw(found, ROOT / "docs/rate_distortion.png")
    return found


def insert(page, tables):
    """The page with what stands between the two marks replaced."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{tables}\n{END}{rest.split(END)[1]}"


def render(results) -> str:
    """The tables of README.md in Markdown."""
    rates = results["rate_distortion"]
    seconds = sum(clip["seconds"] for clip in rates["clips"])
    lines = [
        f"Measured on {results['date']} by `{results['command']}` ({results['hardware']}, jax {results['jax']}):",
        f"the bundled models {rates['model']} on the {len(rates['clips'])} bundled validation clips, {seconds:.0f} s. "
        "Training: seed 0, first epoch of each recipe." + _kept(results),
        "",
        "| | claimed by the original notes | bound (1) | measured |",
        "|---|---|---|---|",
        *_claims(rates),
        *_first_epochs({path: run["curve"][0] for path, run in results["first_epoch"].items()}),
        "",
        "| | kbit/s | " + " | ".join(evaluation.MEASURES[key].title for key in MEASURES) + " |",
        "|---|---|" + "---|" * len(MEASURES),
        *(_row(point) for point in shown(rates["points"])),
    ]
    return "\n".join(lines)


def render_curves(results) -> str:
    """What docs/rate_distortion.md shows: every point, and the distances to the transform coder."""
    rates = results["rate_distortion"]
    named = (title if version in title else f"{title}: {version}" for title, version in rates["versions"].items())
    table = rate_distortion.format_table(rates).split("\n\n", 1)[1]
    distances = rate_distortion.format_distances(rates["against_transform"])
    head = f"Measured on {results['date']}, models {rates['model']}; {', '.join(named)}; means over clips."
    return f"{head}\n\n{table}\n\n{distances}."


PAGES = {"README.md": render, "docs/rate_distortion.md": render_curves}


def _kept(results):
    """What was measured earlier, by date."""
    by_date: dict[str, list[str]] = {}
    for name, date in results["kept"].items():
        by_date.setdefault(date, []).append(name)
    return "".join(f" Measured on {date}: {', '.join(names)}." for date, names in by_date.items())


def _claims(rates):
    """Rate and SNR against what was promised: 32 times smaller at 35 to 40 dB."""
    points, bound = _by_system(rates["points"]), rates["bound"]
    least_squares = points[rate_distortion.LEAST_SQUARES]
    shaped, plain = (_at(points[system], f"{PROMISED_KBPS} kbit/s") for system in rate_distortion.SHAPES)
    tokens = points[rate_distortion.TOKENS][-1]
    needed = _kbps(rate_distortion.kbps_at(least_squares, PROMISED_SNR), least_squares[-1]["kbps"])
    yield (
        f"| rate | 32x smaller than 16-bit PCM | | files: any that is asked for, here {least_squares[0]['kbps']:.0f} to "
        f"{least_squares[-1]['kbps']:.0f} kbit/s; tokens: 8 kbit/s nominal, 32x, **{tokens['kbps']:.1f} kbit/s, "
        f"{PCM_KBPS / tokens['kbps']:.0f}x**, in files |"
    )
    yield (
        f"| SNR at {PROMISED_KBPS} kbit/s | 35 to 40 dB | {rate_distortion.bound_at(bound, PROMISED_KBPS)} dB | "
        f"files: **{plain['snr']:.1f} dB** with shape 0, {shaped['snr']:.1f} dB with the default, for the ear; tokens, "
        f"{tokens['setting']}: {tokens['snr']:.1f} dB |"
    )
    yield (
        f"| rate for {PROMISED_SNR} dB | {PROMISED_KBPS} kbit/s, 32x | "
        f"{_kbps(rate_distortion.kbps_at(bound, PROMISED_SNR), bound[-1]['kbps'])} | files, shape 0: **{needed}** |"
    )


def _first_epochs(epochs):
    """What each recipe has reached after its first epoch."""
    titles = ("SNR after the first epoch, `configs/telugu.py`", "the same, the original recipe, `configs/seed.py`")
    for title, path in zip(titles, ("configs/telugu.py", "configs/seed.py"), strict=True):
        yield f"| {title} | positive | | {epochs[path]['snr']:.1f} dB, {epochs[path]['step']} steps |"
    epoch = epochs["configs/telugu_vbr.py"]
    at = (
        f"{epoch['snr_8kbps']:.1f} dB at 8 kbit/s"
        if "snr_8kbps" in epoch
        else f"{epoch['snr']:.1f} dB at its best rate"
    )
    yield (
        f"| the same, for files, `configs/telugu_vbr.py` | positive | | {at}, {epoch['step']} steps; bytes "
        f"{100 * (epoch['kbps_coded'] / epoch['kbps_entropy'] - 1):+.2f} % from the entropy |"
    )


def _kbps(rate, most):
    """A rate, and how much smaller than PCM it is; `most` is the highest that was tried."""
    return f"above {most:.0f} kbit/s" if rate is None else f"{rate:.1f} kbit/s, {PCM_KBPS / rate:.1f}x"


def _by_system(points):
    systems: dict[str, list[dict]] = {}
    for point in points:
        systems.setdefault(point["system"], []).append(point)
    return systems


def _at(points, setting):
    return next(point for point in points if point["setting"] == setting)


def shown(points):
    """Ours at the settings of `SHOWN`; of each peer what is nearest to `PEER_KBPS`."""
    systems = _by_system(points)
    ours = {system: systems.pop(system) for system in SHOWN}
    chosen = [_at(ours[system], setting) for system, settings in SHOWN.items() for setting in settings]
    for group in systems.values():
        nearest = [min(group, key=lambda point, kbps=kbps: abs(point["kbps"] - kbps)) for kbps in PEER_KBPS]
        chosen += nearest if nearest[0] is not nearest[1] else nearest[:1]
    return chosen


def _row(point):
    name = f"**{point['system']}, {point['setting']}**" if point["system"] in SHOWN else point["system"]
    return f"| {name} | {point['kbps']:.2f} | " + " | ".join(_value(point, key) for key in MEASURES) + " |"


def _value(point, key):
    interval = point["intervals"][key]
    if point[key] is None:
        return "-"
    return f"{point[key]:.2f}" + (f" ±{(interval[1] - interval[0]) / 2:.2f}" if interval and key == "snr" else "")


if __name__ == "__main__":
    main()
