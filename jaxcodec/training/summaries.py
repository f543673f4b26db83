"""What a run tells the person who watches it: the epoch report, the diagnosis, TensorBoard events, Weights & Biases."""

import importlib.util
import math
import time
from collections.abc import Callable

import ml_collections
import numpy as np
from absl import logging
from etils import epy

from jaxcodec.nn import metrics

with epy.lazy_imports():  # a run without its extra gets to the line that says so
    from jaxcodec.training import pictures

COMMON_KBPS = 8.0  # at which variable rates are compared
POINTS_EVERY = 50  # steps, of the curves within an epoch
ENTROPY_HINT = (
    "Its files are smaller with tables for the entropy coder, fitted to recordings: "
    "jaxcodec export %s -o model.safetensors --entropy_data RECORDINGS."
)


def summarize_pass(sums: dict, best_rate) -> dict:
    """Means and derived figures of a validation pass, from the sums of `training.eval_step`.

    `snr` is that of the best rate: the mean over clips of each clip's SNR in dB, as for every other measure. There is no
    usage without codebooks; `kbps_RATE` is the entropy under the quantizer's prior, where it has one.
    """
    sums = {name: np.asarray(value, np.float64) for name, value in sums.items()}
    clips, frames = sums.pop("clips"), sums.pop("frames")
    mean, usage = sums.pop("latent_sum") / frames, sums.pop("usage", None)
    covariance = sums.pop("latent_outer") / frames - np.outer(mean, mean)
    seconds = sums.pop("seconds", None)
    rates = {
        f"kbps_{name[5:]}": float(sums.pop(name) / seconds / 1000) for name in list(sums) if name.startswith("bits_")
    }
    summary = rates | {name: float(value / clips) for name, value in sums.items()}
    points = sorted((kbps, summary[f"snr_{name[5:]}"]) for name, kbps in rates.items())
    if points and points[0][0] <= COMMON_KBPS <= points[-1][0]:
        kbps, snrs = np.array(points).T
        summary["snr_8kbps"] = float(np.interp(COMMON_KBPS, kbps, snrs))
    summary |= {
        "snr": summary[f"snr_{best_rate}"],
        "clips": int(clips),
        "effective_dimension": float(metrics.effective_dimension(covariance)),
    }
    if usage is None:
        return summary
    return summary | {
        "code_counts": usage,
        "usage": np.mean(usage > 0, axis=-1),
        "perplexity": np.asarray(metrics.perplexity(usage)),
    }


def diagnose(summary: dict, output_scale: float | None) -> list[str]:
    """Why the SNR may be negative, in the order of the likeliest causes; empty when it is positive."""
    if summary["snr"] >= 0:
        return []
    scale = math.nan if output_scale is None else output_scale
    ratio, mse = summary["range_ratio"], summary["mse"]
    collapsed = ", ".join(str(i + 1) for i in np.flatnonzero(summary.get("usage", np.ones(0)) < 0.05))
    loss_is_finite, unquantized = math.isfinite(summary["loss"]), summary.get("snr_unquantized", 0.0)
    causes = {
        "the loss is not finite: lower optimizer.learning_rate or check the data for bad clips": not loss_is_finite,
        "output_scale is not a parameter: fixes.learnable_scale is off": output_scale is None,
        f"output_scale has shrunk to {scale:.3f}: the decoder is being silenced": abs(scale) < 0.05,
        f"the output is too quiet, {ratio:.2f} of the input's range: is output_scale applied?": ratio < 0.3,
        f"the output is too loud, {ratio:.2f} times the input's range: early in training, or diverging": ratio > 2,
        f"the MSE is {mse:.2f}, above 1: worse than silence; more steps or a longer warm-up": mse > 1,
        f"codebook {collapsed} collapsed: under 5 % of its centroids in use": collapsed,
        "negative without quantization too: look at encoder and decoder, not at the codebooks": unquantized < 0,
    }
    findings = [cause for cause, holds in causes.items() if holds]
    return findings or ["no known cause: look at the spectrogram pairs in TensorBoard"]


def format_report(
    epoch: int, num_epochs: int, step: int, seconds: float, summary: dict, train: dict, shares: dict, knob: str
) -> str:
    """The epoch report as a table a person reads at a glance.

    Args:
      summary: validation figures from `summarize`.
      train: mean training terms of the epoch, and `output_scale` (None without the parameter).
      shares: each term's share of the gradient at the latents, adding up to 1.
      knob: what the quantizer's rate is set with.
    """
    names = [name[4:] for name in summary if name.startswith("snr_") and name not in ("snr_unquantized", "snr_8kbps")]
    rates = [*sorted(names, key=float), *["unquantized"] * ("snr_unquantized" in summary)]
    kbps = [f"{summary[name]:.2f}" if name in summary else "" for name in (f"kbps_{rate}" for rate in rates)]
    scale = train["output_scale"]
    levels = {
        "input range": f"{summary['input_min']:+.3f} {summary['input_max']:+.3f}",
        "output range": f"{summary['output_min']:+.3f} {summary['output_max']:+.3f}",
        "range ratio": f"{summary['range_ratio']:.3f}",
        "RMS ratio": f"{summary['rms_ratio']:.3f}",
        "output_scale": "none" if scale is None else f"{scale:.4f}",
    }
    losses = ("loss", *shares)
    lines = [
        f"epoch {epoch} of {num_epochs}   step {step}   {_clock(seconds)} of training   "
        f"{summary['clips']} validation {'clip' if summary['clips'] == 1 else 'clips'}",
        *_table(
            [knob, *rates],
            *[["kbit/s", *kbps]] * any(kbps),
            ["SNR dB", *(f"{summary[f'snr_{rate}']:.2f}" for rate in rates)],
        ),
        *_coded(summary),
        f"  segmental SNR {summary['segmental_snr']:.2f} dB   SI-SDR {summary['si_sdr']:.2f} dB",
        *_table(["level", *levels], ["", *levels.values()]),
        *_table(
            ["loss", "total", *shares],
            ["training", *(f"{train[name]:.4f}" for name in losses)],
            ["validation", *(f"{summary[name]:.4f}" for name in losses)],
            ["gradient share", "", *(f"{100 * share:.1f} %" for share in shares.values())],
        ),
        f"  {_usage(summary)}effective dimension of the latents {summary['effective_dimension']:.1f}",
    ]
    if findings := diagnose(summary, scale):
        lines += ["  SNR is negative:", *(f"    - {finding}" for finding in findings)]
    return "\n".join(lines)


def _coded(summary):
    """What a prior's entropy comes to."""
    if "snr_8kbps" in summary:
        yield f"  SNR at {COMMON_KBPS:g} kbit/s {summary['snr_8kbps']:.2f} dB"
    if "kbps_coded" in summary:
        coded, entropy = summary["kbps_coded"], summary["kbps_entropy"]
        yield (
            f"  examples coded in {coded:.3f} kbit/s, {100 * (coded / entropy - 1):+.2f} % from their entropy of "
            f"{entropy:.3f} kbit/s"
        )


def _usage(summary):
    if "usage" not in summary:
        return ""
    usage, perplexity = summary["usage"], summary["perplexity"]
    used = f"{100 * usage.min():.0f} to {100 * usage.max():.0f} %"
    return f"codebooks in use {used}   perplexity {perplexity.min():.0f} to {perplexity.max():.0f}   "


def _table(*rows):
    """Lines of text: the titles of all tables of one width to the left, the cells to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][1:]
    return ["  ".join([f"  {title:14}", *map(str.rjust, cells, widths)]) for title, *cells in rows]


def _clock(seconds):
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


class Pace:
    """How fast a run is: what is left of it, and points of the curves every `POINTS_EVERY` steps."""

    def __init__(self, total_steps: int, seconds_per_step: float):
        """`seconds_per_step`: of audio, over all devices."""
        self._total, self._audio = total_steps, seconds_per_step
        self._steps, self._seconds = 0, 0.0
        self._step_seconds: float | None = None
        self.show: Callable[[int, dict], object] = lambda number, values: None

    def add(self, steps: int, seconds: float) -> None:
        """So many `steps` took so many `seconds`."""
        self._steps, self._seconds = self._steps + steps, self._seconds + seconds
        if self._step_seconds is None or self._steps >= POINTS_EVERY:
            self._step_seconds = self._seconds / self._steps
        if self._steps >= POINTS_EVERY:
            self._steps, self._seconds = 0, 0.0

    def point(self, number: int, window: dict[str, float]) -> None:
        """Shows the `window` of sums that ends with step `number`, where that is one to be shown."""
        if number % POINTS_EVERY or not window:
            return
        rate = window["steps"] / max(window["seconds"], 1e-9)
        values = {"loss": window["loss"] / window["steps"], "steps_per_second": rate}
        self.show(number, values | {"audio_seconds_per_second": rate * self._audio})

    def left(self, number: int) -> str:
        """How long the steps after `number` will take at this pace, without evaluation."""
        return _clock((self._total - number) * (self._step_seconds or 0.0)) + " left"


def extended(window: dict[str, float], number: int, loss: float | None, seconds: float) -> dict[str, float]:
    """The `window` with step `number`, counted from 0, but for a skipped one; the step after a point begins a new one."""
    window = {} if number % POINTS_EVERY == 0 else window
    step = {} if loss is None else {"steps": 1.0, "loss": loss, "seconds": seconds}
    return window | {name: window.get(name, 0.0) + value for name, value in step.items()}


class SummaryWriter:
    """Scalars, spectrograms and sounds as TensorBoard events (no TensorFlow), and to W&B when asked for."""

    def __init__(self, directory: str, config: ml_collections.ConfigDict, first_step: int = 0):
        """Goes on with what stands in `directory`; there, points of `first_step` and later are to be forgotten.

        Raises ValueError when `directory` or the config asks for a package that is not installed.
        """
        try:
            from tensorboardX import SummaryWriter as EventWriter
        except ImportError:
            raise ValueError("The curves of a run need tensorboardX: pip install 'jaxcodec[train]'.") from None
        self._wandb = _start_wandb(config) if config.wandb_project else None
        try:
            self._events = EventWriter(directory, flush_secs=30, purge_step=first_step)
        except ImportError:
            raise ValueError(f"Writing {directory} needs google-cloud-storage: pip install 'jaxcodec[gcs]'.") from None
        self._lost = False
        events = self._events.file_writer.event_writer._ev_writer  # of the thread behind the queue
        events.write_event = self._marking(self._kept_going(events.write_event))
        events.flush = self._kept_going(events.flush)
        self._asked = self._reached = 0  # marks that flush has put into the queue, and that have come out of it
        self._named: set[str] = set()  # the examples whose reference is written
        self._events.add_text("config", f"```\n{config}\n```")

    def _kept_going(self, write):
        """`write` without its errors: tensorboardX's thread would die of one, and the process wait for it for ever."""

        def attempt(*args):
            try:
                return write(*args)
            except OSError as error:
                if not self._lost:
                    logging.warning("TensorBoard events are lost: %s. Training goes on.", error.strerror or error)
                self._lost = True

        return attempt

    def _marking(self, write):
        """`write` that takes note of a mark in place of writing it."""

        def write_or_note(event):
            if isinstance(event, int):
                self._reached = event
            else:
                write(event)

        return write_or_note

    def epoch(self, step: int, summary: dict, train: dict, shares: dict) -> None:
        """Writes what `format_report` shows as scalars, and the codebooks' usage as a heat map."""
        values = {f"validation/{name}": value for name, value in summary.items() if np.ndim(value) == 0}
        values |= {f"train/{name}": value for name, value in train.items() if value is not None}
        values |= {f"gradient_share/{name}": value for name, value in shares.items()}
        for measure in ("usage", "perplexity"):
            values |= {f"codebooks/{measure}_{i + 1}": value for i, value in enumerate(summary.get(measure, ()))}
        scalars = {name: float(value) for name, value in values.items()}
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(scalars, step=step)
        if "code_counts" in summary:
            picture = pictures.code_counts(summary["code_counts"])
            self._events.add_image("codebooks/code_counts", picture, step, dataformats="HWC")

    def steps(self, step: int, values: dict) -> None:
        """Writes a point of the curves within an epoch, under `steps/`."""
        values = {f"steps/{name}": float(value) for name, value in values.items()}
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

    def flush(self) -> None:
        """Writes what waits to be written, which tensorboardX's own `flush` leaves in its queue."""
        self._asked += 1
        self._events.file_writer.event_writer.add_event(self._asked)
        deadline = time.monotonic() + 10
        while self._reached < self._asked and time.monotonic() < deadline:
            time.sleep(0.001)
        self._events.flush()

    def close(self) -> None:
        """Flushes everything, and ends."""
        self._kept_going(self._events.close)()
        if self._wandb is not None:
            self._wandb.finish()


def _start_wandb(config):
    if importlib.util.find_spec("wandb") is None:
        raise ValueError("wandb_project is set but wandb is not installed: pip install wandb, or leave it empty.")
    import wandb

    return wandb.init(project=config.wandb_project, name=config.experiment_name, config=config.to_dict())
