"""The plots of `rate_distortion.py`: four measures against the rate, every curve labeled, the bound shaded."""

from pathlib import Path

import numpy as np

PANELS = (
    ("snr", "SNR (dB)"),
    ("segmental_snr", "segmental SNR (dB)"),
    ("pesq_wb", "PESQ-WB"),
    ("estoi", "ESTOI"),
)
ColorS = ("#D55E00", "#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#E69F00")  # Okabe and Ito's, told apart by everyone
MARKERS = "osD^vP"
OURS = "jaxcodec"
TICKS = (0.5, 1, 2, 4, 8, 16, 32)  # kbit/s


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
    for (system, points), color, marker in zip(curves.items(), ColorS, MARKERS, strict=False):
        axis.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=4, linewidth=1 + (system == OURS))
    if key == "snr" and results["bound"]:
        shade(axis, results["bound"], 1.12 * max(value for points in curves.values() for _, value in points))
    axis.set_xscale("log")
    axis.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axis.set_xticks([], minor=True)
    axis.set_xlim(TICKS[0], 40)
    axis.grid(alpha=0.25)
    label(axis, curves)


def shade(axis, rows, top):
    """The bound as a dashed line, and what lies above it shaded, up to `top`."""
    rates, values = [row["kbps"] for row in rows], [row["snr"] for row in rows]
    axis.plot(rates, values, color="black", linestyle="--", linewidth=1)
    axis.fill_between(rates, values, max(*values, top), color="0.88", linewidth=0)
    axis.annotate("above the Gaussian bound", (0.04, 0.92), xycoords="axes fraction", color="0.25")
    axis.set_ylim(0, top)


def label(axis, curves):
    """The name of each curve: ours beside its middle, the others in a column on the right, joined to their last points."""
    low, high = axis.get_ylim()
    gap = 0.055 * (high - low)
    column = sorted((points[-1][1], system) for system, points in curves.items() if system != OURS)
    heights = [value for value, _ in column]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    ceiling = high
    for i in reversed(range(len(heights))):
        heights[i] = ceiling = min(heights[i], ceiling)
        ceiling -= gap
    colors = dict(zip(curves, ColorS, strict=False))
    for (value, system), height in zip(column, heights, strict=True):
        axis.plot(
            [curves[system][-1][0], 43], [value, height], color=colors[system], linewidth=0.6, alpha=0.6, clip_on=False
        )
        axis.annotate(system, (45, height), color=colors[system], va="center", annotation_clip=False)
    if OURS in curves:
        rate, value = curves[OURS][len(curves[OURS]) // 3]
        below = any(np.interp(rate, *zip(*curves[system], strict=True), left=low) > value for _, system in column)
        axis.annotate(
            OURS,
            (rate, value),
            (6, -6) if below else (-6, 6),
            textcoords="offset points",
            ha="left" if below else "right",
            va="top" if below else "bottom",
            color=colors[OURS],
            fontweight="bold",
        )
