"""What a run tells the person who watches it: the epoch report, the diagnosis, TensorBoard events, Weights & Biases."""

import importlib.util
import math

import ml_collections
import numpy as np

from jaxcodec import metrics, pictures


def summarize(sums: dict, num_codebooks: int) -> dict:
    """Means and derived figures of a validation pass, from the sums of `training.eval_step`.

    `snr` is that of all codebooks: the mean over clips of each clip's SNR in dB, as for every other measure.
    """
    sums = {name: np.asarray(value, np.float64) for name, value in sums.items()}
    clips, frames = sums.pop("clips"), sums.pop("frames")
    mean, usage = sums.pop("latent_sum") / frames, sums.pop("usage")
    covariance = sums.pop("latent_outer") / frames - np.outer(mean, mean)
    summary = {name: float(value / clips) for name, value in sums.items()}
    return summary | {
        "snr": summary[f"snr_{num_codebooks}"],
        "clips": int(clips),
        "effective_dimension": float(metrics.effective_dimension(covariance)),
        "code_counts": usage,
        "usage": np.mean(usage > 0, axis=-1),
        "perplexity": np.asarray(metrics.perplexity(usage)),
    }


def diagnose(summary: dict, output_scale: float | None) -> list[str]:
    """Why the SNR may be negative, in the order of the likeliest causes; empty when it is positive."""
    if summary["snr"] >= 0:
        return []
    findings = []
    if not math.isfinite(summary["loss"]):
        findings.append("the loss is not finite: lower optimizer.learning_rate or check the data for bad clips")
    if output_scale is None:
        findings.append("output_scale is not a parameter: fixes.learnable_scale is off")
    elif abs(output_scale) < 0.05:
        findings.append(f"output_scale has shrunk to {output_scale:.3f}: the decoder is being silenced")
    ratio = summary["range_ratio"]
    if ratio < 0.3:
        findings.append(f"the output is too quiet, {ratio:.2f} of the input's range: is output_scale applied?")
    elif ratio > 2:
        findings.append(f"the output is too loud, {ratio:.2f} times the input's range: early in training, or diverging")
    if summary["mse"] > 1:
        findings.append(f"the MSE is {summary['mse']:.2f}, above 1: worse than silence; more steps or a longer warm-up")
    collapsed = np.flatnonzero(summary["usage"] < 0.05)
    if collapsed.size:
        names = ", ".join(str(i + 1) for i in collapsed)
        findings.append(f"codebook {names} collapsed: under 5 % of its centroids in use")
    if summary["snr_unquantized"] < 0:
        findings.append("negative without quantization too: look at encoder and decoder, not at the codebooks")
    return findings or ["no known cause: look at the spectrogram pairs in TensorBoard"]


def format_report(
    epoch: int, num_epochs: int, step: int, seconds: float, summary: dict, train: dict, shares: dict
) -> str:
    """The epoch report as a table a person reads at a glance.

    Args:
      summary: validation figures from `summarize`.
      train: mean training terms of the epoch, and `output_scale` (None without the parameter).
      shares: each term's share of the gradient at the latents, adding up to 1.
    """
    counts = sorted(int(name[4:]) for name in summary if name[4:].isdigit() and name.startswith("snr_"))
    scale = train["output_scale"]
    rows = [
        ("codebooks", *map(str, counts), "unquantized"),
        ("SNR dB", *(f"{summary[f'snr_{n}']:.2f}" for n in counts), f"{summary['snr_unquantized']:.2f}"),
    ]
    terms = ("mse", "perceptual", "commitment")
    loss_rows = [
        ("loss", "total", *terms),
        ("training", *(f"{train[name]:.4f}" for name in ("loss", *terms))),
        ("validation", *(f"{summary[name]:.4f}" for name in ("loss", *terms))),
        ("gradient share", "", *(f"{100 * shares[name]:.1f} %" for name in terms)),
    ]
    level_rows = [
        ("level", "input range", "output range", "range ratio", "RMS ratio", "output_scale"),
        (
            "",
            f"{summary['input_min']:+.3f} {summary['input_max']:+.3f}",
            f"{summary['output_min']:+.3f} {summary['output_max']:+.3f}",
            f"{summary['range_ratio']:.3f}",
            f"{summary['rms_ratio']:.3f}",
            "none" if scale is None else f"{scale:.4f}",
        ),
    ]
    usage, perplexity = summary["usage"], summary["perplexity"]
    lines = [
        f"epoch {epoch} of {num_epochs}   step {step}   {_clock(seconds)} of training   "
        f"{summary['clips']} validation clips",
        *_table(rows),
        f"  segmental SNR {summary['segmental_snr']:.2f} dB   SI-SDR {summary['si_sdr']:.2f} dB",
        *_table(level_rows),
        *_table(loss_rows),
        f"  codebooks in use {100 * usage.min():.0f} to {100 * usage.max():.0f} %   perplexity {perplexity.min():.0f} to "
        f"{perplexity.max():.0f}   effective dimension of the latents {summary['effective_dimension']:.1f}",
    ]
    findings = diagnose(summary, scale)
    if findings:
        lines += ["  SNR is negative:", *(f"    - {finding}" for finding in findings)]
    return "\n".join(lines)


def _table(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    widths[0] = 14

    def line(row):
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        return "  ".join(["", row[0].ljust(widths[0]), *cells])

    return [line(row) for row in rows]


def _clock(seconds):
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


class SummaryWriter:
    """Scalars, spectrograms and sounds as TensorBoard events (no TensorFlow), and to W&B when asked for."""

    def __init__(self, directory: str, config: ml_collections.ConfigDict):
        """Raises ValueError when `directory` or the config asks for a package that is not installed."""
        from tensorboardX import SummaryWriter as EventWriter

        self._wandb = _start_wandb(config) if config.wandb_project else None
        try:
            self._events = EventWriter(directory, flush_secs=30)
        except ImportError:
            raise ValueError(f"Writing {directory} needs google-cloud-storage: pip install 'jaxcodec[gcs]'.") from None
        self._named: set[str] = set()  # the examples whose reference is written
        self._events.add_text("config", f"```\n{config}\n```")

    def epoch(self, step: int, summary: dict, train: dict, shares: dict) -> None:
        """Writes what `format_report` shows as scalars, and the codebooks' usage as a heat map."""
        values = {f"validation/{name}": value for name, value in summary.items() if np.ndim(value) == 0}
        values |= {f"train/{name}": value for name, value in train.items() if value is not None}
        values |= {f"gradient_share/{name}": value for name, value in shares.items()}
        for measure in ("usage", "perplexity"):
            values |= {f"codebooks/{measure}_{i + 1}": value for i, value in enumerate(summary[measure])}
        self._scalars(step, {name: float(value) for name, value in values.items()})
        picture = pictures.code_counts(summary["code_counts"])
        self._events.add_image("codebooks/code_counts", picture, step, dataformats="HWC")

    def _scalars(self, step, values):
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def pair(self, step: int, name: str, reference: np.ndarray, decoded: np.ndarray, sample_rate: int) -> None:
        """Writes a reference and what it decoded to, audio (S,), as sound and as a picture of spectrograms and error.

        The reference's sound is the same in every epoch and written once.
        """
        if importlib.util.find_spec("soundfile") is not None:  # tensorboardX encodes its sounds with it
            sounds = {"decoded": decoded} | ({} if name in self._named else {"reference": reference})
            for role, audio in sounds.items():
                sound = np.clip(audio, -1, 1)[:, None]  # (S, 1)
                self._events.add_audio(f"{name}/{role}", sound, step, sample_rate=sample_rate)
            self._named.add(name)
        picture = pictures.comparison(reference, decoded, sample_rate)
        self._events.add_image(f"{name}/spectrograms", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes everything."""
        self._events.close()
        if self._wandb is not None:
            self._wandb.finish()


def _start_wandb(config):
    if importlib.util.find_spec("wandb") is None:
        raise ValueError("wandb_project is set but wandb is not installed: pip install wandb, or leave it empty.")
    import wandb

    return wandb.init(project=config.wandb_project, name=config.experiment_name, config=config.to_dict())
