"""The plots of `rate_distortion.py`: four measures against the rate, every curve labeled, the bound shaded."""

import itertools
from pathlib import Path

PANELS = (
    ("snr", "SNR (dB)"),
    ("segmental_snr", "segmental SNR (dB)"),
    ("pesq_wb", "PESQ-WB"),
    ("estoi", "ESTOI"),
)
OURS = "jaxcodec"  # that the names of our systems begin with
STYLES = (
    ("#D55E00", "o"),
    ("#E69F00", "D"),
    ("#CC79A7", "s"),
)  # of our curves; Okabe and Ito's colors, told apart by everyone
OTHERS = ("#0072B2", "^"), ("#56B4E9", "v"), ("#009E73", "P"), ("#8C6D31", "X"), ("#666666", "*")
TICKS = (0.5, 1, 2, 4, 8, 16, 32)  # kbit/s
MAX_KBPS = 44


def draw(results: dict, path: Path) -> None:
    """Writes the plots of what `rate_distortion.py` measured, in the format that the path's suffix names."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for axis, (key, title) in zip(axes.flat, PANELS, strict=True):
        panel(axis, results, key)
        axis.set_title(title, loc="left", fontweight="bold")
    figure.supxlabel("kbit/s in files, containers included")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def panel(axis, results, key):
    """One measure against the rate, with the bound where it is SNR."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for point in results["points"]:
        if point[key] is not None:
            curves.setdefault(point["system"], []).append((point["kbps"], point[key]))
    looks = styles(curves)
    for system, points in sorted(curves.items(), key=lambda curve: is_ours(curve[0])):  # ours on top
        axis.plot(*zip(*points, strict=True), **looks[system])
    if key == "snr" and results["bound"]:
        shade(axis, results["bound"], 1.12 * max(value for points in curves.values() for _, value in points))
    axis.set_xscale("log")
    axis.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axis.set_xticks([], minor=True)
    axis.set_xlim(TICKS[0], MAX_KBPS)
    axis.grid(alpha=0.25)
    label(axis, curves)


def is_ours(system: str) -> bool:
    """Whether a curve is emphasized."""
    return system.startswith(OURS)


def styles(systems) -> dict[str, dict]:
    """How the curve of each system is drawn: ours thick in warm colors, the others thin in cold ones."""
    looks = {}
    for emphasized, palette in ((True, STYLES), (False, OTHERS)):
        chosen = [system for system in systems if is_ours(system) == emphasized]
        for system, (color, marker) in zip(chosen, itertools.cycle(palette), strict=False):
            size = dict(linewidth=2.4, markersize=5) if emphasized else dict(linewidth=1, markersize=4)
            looks[system] = dict(color=color, marker=marker) | size
    return looks


def shade(axis, rows, top):
    """The bound as a dashed line, and what lies above it shaded, up to `top`."""
    rates, values = [row["kbps"] for row in rows], [row["snr"] for row in rows]
    axis.plot(rates, values, color="black", linestyle="--", linewidth=1)
    axis.fill_between(rates, values, max(*values, top), color="0.88", linewidth=0)
    axis.annotate("above the Gaussian bound", (0.04, 0.92), xycoords="axes fraction", color="0.25")
    axis.set_ylim(0, top)


def label(axis, curves):
    """The name of each curve in a column on the right, ours in bold, joined to its last point."""
    low, high = axis.get_ylim()
    gap = 0.055 * (high - low)
    column = sorted((points[-1][1], system) for system, points in curves.items())
    heights = [value for value, _ in column]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    ceiling = high
    for i in reversed(range(len(heights))):
        heights[i] = ceiling = min(heights[i], ceiling)
        ceiling -= gap
    looks = styles(curves)
    for (value, system), height in zip(column, heights, strict=True):
        color, weight = looks[system]["color"], "bold" if is_ours(system) else "normal"
        line = [curves[system][-1][0], 1.05 * MAX_KBPS], [value, height]
        axis.plot(*line, color=color, linewidth=0.6, linestyle=":", clip_on=False)
        axis.annotate(
            system, (1.09 * MAX_KBPS, height), color=color, fontweight=weight, va="center", annotation_clip=False
        )
