"""The plots of `rate_distortion.py`: four measures against the rate, every curve labelled, the bound shaded."""

from pathlib import Path

PANELS = (
    ("snr", "SNR (dB)"),
    ("segmental_snr", "segmental SNR (dB)"),
    ("pesq_wb", "PESQ-WB"),
    ("estoi", "ESTOI"),
)
COLOURS = ("#D55E00", "#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#E69F00")  # Okabe and Ito's, told apart by everyone
MARKERS = "osD^vP"
TICKS = (0.5, 1, 2, 4, 8, 16, 32)  # kbit/s


def draw(results: dict, path: Path) -> None:
    """Writes the plots of what `rate_distortion.py` measured, in the format that the path's suffix names."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, 2, figsize=(11, 8.5), layout="constrained")
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
    ends = []
    for (system, points), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
        rates, values = zip(*sorted(points), strict=True)
        axis.plot(
            rates, values, color=colour, marker=marker, markersize=4, linewidth=2 if system == "jaxcodec" else 1.2
        )
        ends.append((values[-1], rates[-1], system, colour))
    top = max((value for points in curves.values() for _, value in points), default=1.0)
    if key == "snr" and results["bound"]:
        shade(axis, results["bound"], top)
    label(axis, ends)
    axis.set_xscale("log")
    axis.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axis.set_xticks([], minor=True)
    axis.set_xlim(0.5, 110)  # the labels stand to the right of the last points
    axis.grid(alpha=0.25)


def shade(axis, rows, top):
    """The bound as a dashed line, and what lies above it, up to a little more than the best system's SNR."""
    ceiling = 1.15 * top
    rates, values = [row["kbps"] for row in rows], [min(row["snr"], ceiling) for row in rows]
    axis.plot(rates, values, color="black", linestyle="--", linewidth=1)
    axis.fill_between(rates, values, ceiling, color="0.88", linewidth=0)
    axis.annotate("above the Gaussian bound", (0.6, 0.93 * ceiling), color="0.25")
    axis.set_ylim(0, ceiling)


def label(axis, ends):
    """The name of each curve beside its last point; names that would overlap are moved up, least first."""
    axis.figure.canvas.draw()
    low, high = axis.get_ylim()
    height, position = 0.045 * (high - low), -float("inf")
    for value, rate, system, colour in sorted(ends):
        position = max(value, position + height)
        axis.annotate(
            system,
            (rate, value),
            (max(rate * 1.12, 0.6), position),
            color=colour,
            va="center",
            fontweight="bold" if system == "jaxcodec" else "normal",
        )
