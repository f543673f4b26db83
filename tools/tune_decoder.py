"""The decoder of trained tokens tuned to codes as they are searched for, at several rates: a model of its own.

    python tools/tune_decoder.py checkpoints/telugu --data_dir recordings/ -o tuned.safetensors

In training a decoder hears the nearest entries of codebooks, in use what a search of several beams finds, and one weight of
what is for the ear serves every rate. Here crops of the training split at random levels, as in training, are coded by the
codec's own search; encoder and codebooks stay as they are, and so do all codes. The loss of a clip is the logarithm of its
relative squared error, the mean of which is the mean SNR in dB, plus for each number of codebooks its own weight times what
the ear loses: the distance of loudness, which wants the whole spectrum, and beside it what PESQ takes off, which forgives
a dull one and no noise. A decoder that is told the rate (`model.gain_shape.told_rate`) can serve each in its own way. The
result is a moving average of the weights, and keeps the tables of the entropy coder.
"""

import argparse
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).parents[1]))

import jaxcodec
from jaxcodec.inference import pretrained
from jaxcodec.nn import layers, losses
from jaxcodec.quantizers import rvq
from tools import crops

FLOOR = 1e-3  # of a relative squared error: beyond 30 dB nothing is gained
RATES = "16:0.5:0.25 8:3:0.3 4:3:0.2 2:3:0.25"  # those of the bundled tokens
PESQ = 1.0  # weight of what PESQ takes off, beside loudness
WARMUP, FINAL, AVERAGE = 40, 0.05, 0.98  # steps, share of the learning rate at the end, decay of the weights' average


class Rate(NamedTuple):
    """A number of codebooks, what the loss of the ear weighs there, and its share of the steps."""

    codebooks: int
    ear: float
    share: float


def tune(
    codec: jaxcodec.TrainedCodec,
    batches,
    rates: Sequence[Rate],
    steps: int,
    learning_rate: float,
    seed: int = 0,
    pesq: float = PESQ,
) -> Iterator[tuple[jaxcodec.TrainedCodec, int, dict[str, float]]]:
    """After each of `steps` batches {"audio": (1, B, S), "length": (1, B)}: the codec so far, which rate, and its means.

    The means over the clips of the batch, before its update: "error", relative, and of the ear "loudness" and "pesq", which
    weighs `pesq` times as much.
    """
    quantizer = codec.module.quantizer
    if not isinstance(quantizer, rvq.ResidualVectorQuantizer):
        raise ValueError("this codec has no codebooks.")
    for rate in rates:
        codec.check_rate(rate.codebooks)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, WARMUP, steps, FINAL * learning_rate)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, 0.9, 0.99, weight_decay=0.01))
    ready = codec.ready

    @functools.partial(jax.jit, static_argnums=2)
    def codes_of(audio, lengths, rate):
        mask = layers.length_mask(lengths, audio.shape[1])
        latents = ready.module.apply(ready.variables, audio, mask, method="analyze")
        frame_mask = ready.module.frame_mask(lengths, latents.shape[1])
        return ready.module.apply(ready.variables, latents, rate, frame_mask, method="encode_latents")

    def loss(decoder, audio, lengths, codes, weight):
        variables = codec.module.collections({**codec.params, "decoder": decoder}, quantizer.state_of(codec.constants))
        latents = codec.module.apply(variables, codes, method="dequantize")
        decoded = codec.module.apply(variables, latents, lengths, audio.shape[1], method="synthesize_clips")
        recorded = jnp.clip(audio, -1, 1)
        error = losses.waveform_error(recorded, decoded, lengths, relative=True)
        terms = {
            "log_error": jnp.log(error + FLOOR),
            "error": error,
            "loudness": losses.loudness_loss(recorded, decoded, lengths),
            "pesq": losses.pesq_loss(recorded, decoded, lengths),
        }
        exist = lengths > 0
        means = {name: jnp.sum(exist * x) / jnp.maximum(jnp.sum(exist), 1) for name, x in terms.items()}
        return means["log_error"] + weight * (means["loudness"] + pesq * means["pesq"]), means

    @jax.jit
    def update(decoder, average, opt_state, *batch):
        gradient, means = jax.grad(loss, has_aux=True)(decoder, *batch)
        updates, opt_state = optimizer.update(gradient, opt_state, decoder)
        decoder = optax.apply_updates(decoder, updates)
        average = jax.tree.map(lambda a, x: a + (1 - AVERAGE) * (x - a), average, decoder)
        return decoder, average, opt_state, means

    decoder = average = jax.tree.map(jnp.asarray, codec.params["decoder"])
    opt_state, shares = optimizer.init(decoder), np.array([rate.share for rate in rates])
    rng = np.random.default_rng(seed)
    for _, batch in zip(range(steps), batches, strict=False):  # in this order no batch is read in vain
        rate = rates[rng.choice(len(rates), p=shares / shares.sum())]
        audio, lengths = jnp.asarray(batch["audio"][0]), jnp.asarray(batch["length"][0])
        codes = codes_of(audio, lengths, rate.codebooks)
        decoder, average, opt_state, means = update(decoder, average, opt_state, audio, lengths, codes, rate.ear)
        tuned = codec.replace(params={**codec.params, "decoder": average})
        yield tuned, rate.codebooks, {name: float(x) for name, x in means.items()}


def _rate(text):
    try:
        codebooks, ear, share = text.split(":")
        rate = Rate(int(codebooks), float(ear), float(share))
        if not (rate.ear >= 0 and rate.share > 0):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not CODEBOOKS:EAR:SHARE, such as 16:0.5:0.25') from None
    return rate


def main():
    """Reads, tunes, writes every hundred steps and at the end."""
    parser = crops.parser(__doc__, 16, "in a step")
    parser.add_argument(
        "--rates",
        nargs="+",
        type=_rate,
        default=[_rate(text) for text in RATES.split()],
        metavar="CODEBOOKS:EAR:SHARE",
        help=f"numbers of codebooks, the weight of what the ear loses and the share of the steps; {RATES}",
    )
    parser.add_argument(
        "--pesq", type=float, default=PESQ, help="weight of what PESQ takes off beside loudness; 0: none"
    )
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="at its peak")
    args = parser.parse_args()
    try:
        if args.steps <= WARMUP:
            raise ValueError(f"--steps is {args.steps}, expected at least {WARMUP + 1}.")
        if not 0 <= args.pesq < float("inf"):
            raise ValueError(f"--pesq is {args.pesq}, expected a number from 0 on.")
        batches = crops.batches(args, prefetch=4)
        seen: dict[int, list] = {}
        codec = jaxcodec.load(args.model)
        run = tune(codec, batches, args.rates, args.steps, args.learning_rate, args.seed, args.pesq)
        for number, (tuned, codebooks, means) in enumerate(run, 1):
            seen.setdefault(codebooks, []).append(means)
            if number % 100 and number < args.steps:
                continue
            pretrained.save(tuned, args.output)
            told = []
            for at, some in sorted(seen.items()):
                error, loudness, pesq = (np.mean([x[name] for x in some]) for name in ("error", "loudness", "pesq"))
                told.append(f"{10 * np.log10(error):.2f} dB, loudness {loudness:.3f}, pesq {pesq:.3f} at {at}")
            print(f"step {number} of {args.steps}: {'; '.join(told)} codebooks", flush=True)
            seen = {}
        batches.close()
    except (ValueError, OSError) as error:
        sys.exit(f"tune_decoder.py: {error}")


if __name__ == "__main__":
    main()
