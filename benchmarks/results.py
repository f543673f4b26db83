"""Every number of the result tables in README.md, measured in one go: a quarter of an hour on two CPU cores.

    python benchmarks/results.py            # print the tables and write docs/results/results.json
    python benchmarks/results.py --readme   # and put them into README.md

Rates, distortion, peers and bound by `benchmarks/rate_distortion.py` with the bundled model on the bundled validation clips;
the first epoch of `configs/telugu.py` and of `configs/seed.py` as `train.py` trains them, on the bundled corpus.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import ablate, rate_distortion
from configs import seed, telugu
from jaxcodec import atomic, evaluation, recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {"configs/telugu.py": telugu.get_config, "configs/seed.py": seed.get_config}
BEGIN, END = "<!-- results: written by benchmarks/results.py -->", "<!-- end of the results -->"
MEASURES = ("snr", "segmental_snr", "pesq_wb", "estoi", "visqol")
COUNTS = (1, 2, 4, 8)
PCM_KBPS = 256


def main():
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/results.json")
    parser.add_argument("--readme", action="store_true", help="put the tables into README.md")
    args = parser.parse_args()
    results = dict(
        date=datetime.date.today().isoformat(),
        command="python benchmarks/results.py",
        hardware=f"{platform.machine()}, {os.cpu_count()} cores, {jax.device_count()} x {jax.devices()[0].device_kind}",
        jax=jax.__version__,
        first_epoch={path: first_epoch(get_config()) for path, get_config in RECIPES.items()},
        rate_distortion=measure_rates(),
    )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(args.output) as path:
        Path(path).write_text(json.dumps(results, indent=1) + "\n")
    tables = render(results)
    print(tables)
    if args.readme:
        readme = ROOT / "README.md"
        readme.write_text(insert(readme.read_text(), tables))


def first_epoch(config):
    """A recipe's config and what it reached after its first epoch, the report that `train.py` would print."""
    return dict(config=config.to_dict(), **ablate.train(config, epochs=1))


def measure_rates():
    """What benchmarks/rate_distortion.py finds, without the rows of single clips; its plots become those of docs/."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "benchmarks/rate_distortion.py"), "--processes", "2"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        shutil.copy(Path(folder) / "rate_distortion.png", ROOT / "docs/rate_distortion.png")
        found = json.loads((Path(folder) / "rate_distortion.json").read_text())
    return {key: value for key, value in found.items() if key != "rows"}


def insert(page, tables):
    """The page with what stands between the two marks replaced."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{tables}\n{END}{rest.split(END)[1]}"


def render(results) -> str:
    """The tables in Markdown."""
    rates = results["rate_distortion"]
    model = recipe.flat(rates["config"]["model"])
    seconds = sum(clip["seconds"] for clip in rates["clips"])
    epoch = {path: run["curve"][0] for path, run in results["first_epoch"].items()}
    best = next(p for p in rates["points"] if p["system"] == rate_distortion.OURS and p["setting"] == "8 codebooks")
    lines = [
        f"Measured on {results['date']} by `{results['command']}` ({results['hardware']}, jax {results['jax']}):",
        f"the bundled model, fingerprint `{rates['model']}` ({model['architecture']}, {model['num_codebooks']} x "
        f"{model['codebook_size']}, hop {model['hop_length']}, {model['latent_dim']} latents), on the "
        f"{len(rates['clips'])} bundled validation clips, {seconds:.0f} s. Training: seed 0, first epoch of each recipe.",
        "",
        "| | claimed by the original notes | bound (1) | measured |",
        "|---|---|---|---|",
        f"| rate | 32x smaller than 16-bit PCM | | 8 kbit/s nominal, 32x; **{best['kbps']:.1f} kbit/s, "
        f"{PCM_KBPS / best['kbps']:.0f}x**, in files |",
        f"| SNR at that rate | 35 to 40 dB | {rate_distortion.bound_at(rates['bound'], best['kbps'])} dB | "
        f"**{best['snr']:.1f} dB** |",
        f"| SNR after the first epoch, `configs/telugu.py` | positive | | {epoch['configs/telugu.py']['snr']:.1f} dB, "
        f"{epoch['configs/telugu.py']['step']} steps |",
        f"| the same, the original recipe, `configs/seed.py` | positive | | {epoch['configs/seed.py']['snr']:.1f} dB, "
        f"{epoch['configs/seed.py']['step']} steps |",
        "",
        "| | kbit/s | " + " | ".join(evaluation.MEASURES[key].title for key in MEASURES) + " |",
        "|---|---|" + "---|" * len(MEASURES),
        *(_row(point) for point in shown(rates["points"])),
    ]
    return "\n".join(lines)


def shown(points):
    """Ours at 1, 2, 4 and 8 codebooks; of each peer the rate nearest to our highest and the next above it."""
    systems: dict[str, list[dict]] = {}
    for point in points:
        systems.setdefault(point["system"], []).append(point)
    ours = systems.pop(rate_distortion.OURS)
    chosen = [point for point in ours if int(point["setting"].split()[0]) in COUNTS]
    highest = chosen[-1]["kbps"]
    for group in systems.values():
        group = sorted(group, key=lambda point: point["kbps"])
        nearest = min(range(len(group)), key=lambda i: abs(group[i]["kbps"] - highest))
        chosen += group[nearest : nearest + 2]
    return chosen


def _row(point):
    name = f"**jaxcodec, {point['setting']}**" if point["system"] == rate_distortion.OURS else point["system"]
    return f"| {name} | {point['kbps']:.2f} | " + " | ".join(_value(point, key) for key in MEASURES) + " |"


def _value(point, key):
    interval = point["intervals"][key]
    if point[key] is None:
        return "-"
    return f"{point[key]:.2f}" + (f" ±{(interval[1] - interval[0]) / 2:.2f}" if interval and key == "snr" else "")


if __name__ == "__main__":
    main()
