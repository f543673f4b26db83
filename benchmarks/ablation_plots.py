"""Plots of the ablation: what each fix does, how the output scale moves, why a good decoder is a little quiet."""

import matplotlib
import numpy as np

from benchmarks import ablate

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ColorS = {"flagship": "#0072B2", "original balance": "#D55E00"}  # Okabe and Ito's, told apart by everyone


def draw(runs, points, folder):
    """Writes fixes.png, output_scale.png and shrinkage.png into `folder`.

    `points` are summaries (`evaluate.summarize`) of a trained model at several numbers of codebooks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 150})
    plots = dict(
        fixes=lambda: effects(runs), output_scale=lambda: output_scales(runs), shrinkage=lambda: shrinkage(runs, points)
    )
    for name, plot in plots.items():
        figure = plot()
        figure.savefig(folder / f"{name}.png", bbox_inches="tight")
        plt.close(figure)


def effects(runs):
    """A row for each variant: SNR against its baseline, seeds as dots, the 95 % interval as a bar."""
    stages = list(dict.fromkeys(run["stage"] for run in runs))
    rows = {stage: _compared(runs, stage) for stage in stages}
    heights = [len(rows[stage]) for stage in stages]
    figure, axes = plt.subplots(
        len(stages), 1, figsize=(7.5, 0.27 * sum(heights) + 1.6), height_ratios=heights, squeeze=False
    )
    for axis, stage in zip(axes[:, 0], stages, strict=True):
        for height, name in enumerate(reversed(rows[stage])):
            effect, pairs = ablate.difference(runs, stage, name), ablate.paired(runs, stage, name)
            axis.plot([effect.low, effect.high], [height, height], color=ColorS[stage], linewidth=4, alpha=0.3)
            axis.plot(pairs, [height] * len(pairs), ".", color=ColorS[stage])
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(rows[stage])), list(reversed(rows[stage])))
        axis.set_xscale("symlog", linthresh=0.5)
        axis.set_xticks(*[[-20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5]] * 2)
        axis.set_title(stage, loc="left", fontweight="bold")
        axis.grid(axis="x", alpha=0.3)
    axes[-1, 0].set_xlabel("SNR against the baseline of the stage, dB (the scale is linear within 0.5 dB)")
    figure.tight_layout()
    return figure


def _compared(runs, stage):
    names = [v.name for v in ablate.variants() if v.stage == stage]
    return [name for name in names if ablate.difference(runs, stage, name)]


def output_scales(runs):
    """How far the output scale moves from each initial value, and what that value does to the SNR."""
    figure, (path, outcome) = plt.subplots(1, 2, figsize=(8, 3.2))
    stage = "original balance"
    names = {2.5: ablate.ALL_ON} | {scale: f"output scale from {scale}" for scale in ablate.SCALES}
    for initial, name in sorted(names.items()):
        color = plt.cm.viridis(initial / 6)
        for index, run in enumerate(ablate.select(runs, stage, name)):
            steps = np.minimum(np.arange(len(run["output_scale"])) * ablate.SCALE_EVERY, run["steps"])
            moved = np.array(run["output_scale"]) - initial
            path.plot(steps, moved, color=color, linewidth=1.2, label=None if index else f"from {initial}")
            outcome.plot(initial, run["curve"][-1]["snr"], ".", color=color)
    none = [run["curve"][-1]["snr"] for run in ablate.select(runs, stage, "without learnable_scale")]
    outcome.plot([1] * len(none), none, "x", color="black")
    if none:
        outcome.annotate("x: fixed at 1", (1, min(none)), xytext=(6, -10), textcoords="offset points")
    path.axhline(0, color="black", linewidth=0.8)
    path.set(xlabel="step", ylabel="output_scale less its initial value")
    path.legend(frameon=False)
    outcome.set(xlabel="initial output_scale", ylabel="SNR at the end, dB", xscale="log")
    outcome.set_xticks([0.5, 1, 2.5, 5], ["0.5", "1", "2.5", "5"], minor=False)
    outcome.minorticks_off()
    figure.tight_layout()
    return figure


def shrinkage(runs, points):
    """RMS of the decoded speech over that of the original against SNR, with what least squares asks for."""
    figure, (level, gain) = plt.subplots(1, 2, figsize=(8, 3.2))
    for stage, color in ColorS.items():
        rows = [row for run in runs if run["stage"] == stage for row in run["curve"]]
        rows = [row for row in rows if np.isfinite(row["snr"]) and row["snr"] > 0.2]
        snr = [row["snr"] for row in rows]
        level.plot(snr, [row["rms_ratio"] for row in rows], ".", color=color, label=stage)
        gain.plot(snr, [row["optimal_gain"] for row in rows], ".", color=color, label=stage)
    for axis, key in ((level, "rms_ratio"), (gain, "optimal_gain")):
        values = [point["snr"] for point in points], [point[key] for point in points]
        axis.plot(*values, "^", color="black", label="trained model, 1 to 8 codebooks")
    snr = np.linspace(0.2, 13, 100)
    level.plot(snr, np.sqrt(1 - 10 ** (-snr / 10)), color="black", linewidth=1)
    level.annotate("$\\sqrt{1 - 10^{-SNR/10}}$", (5, 0.62))
    gain.axhline(1, color="black", linewidth=1)
    level.set(xlabel="SNR, dB", ylabel="RMS ratio, decoded over original", ylim=(0, 1.1))
    gain.set(xlabel="SNR, dB", ylabel="optimal gain on the decoded speech", ylim=(0, 2))
    gain.legend(frameon=False)
    figure.tight_layout()
    return figure
