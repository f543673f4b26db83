"""A prior that predicts many frames at once, fitted to the codes of a trained codec for files: for its fast files.

    python tools/fit_checkerboard.py checkpoints/telugu_vbr --data_dir recordings/ -o fitted.safetensors

Crops of the training split at random levels are coded at random qualities and shapings, as in training. Encoder, decoder and
all codes stay as they are, and so do files without `fast`. What is learned is a moving average of the weights; it is
compared with the codec's own prior on codes that neither has met. A model that has one goes on from it, but for --anew.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).parents[1]))

import jaxcodec
from configs import telugu_vbr
from jaxcodec import bitstream
from jaxcodec.inference import pretrained
from jaxcodec.nn import layers
from jaxcodec.quantizers import checkerboard, interface, layout, scalar
from tools import crops

WARMUP, FINAL, AVERAGE = 100, 0.02, 0.998  # steps, share of the learning rate at the end, decay of the weights' average


def fit(
    codec: jaxcodec.TrainedCodec,
    batches,
    steps: int,
    learning_rate: float,
    seed: int = 0,
    width: int = 128,
    depth: int = 2,
) -> Iterator[tuple[Callable[[], jaxcodec.TrainedCodec], np.ndarray, Callable[[], jax.Array]]]:
    """After each of `steps` batches {"audio": (1, B, S), "length": (1, B)}: the codec so far, as a function, and bits.

    Bits a frame of the envelope and of each pass, before the batch's update, and, as a function, all by the codec's own
    prior. A codec that has such a prior goes on from it, whatever width and depth.
    """
    module, quantizer = codec.module, codec.module.quantizer
    if not isinstance(quantizer, scalar.ScalarQuantizer):
        raise ValueError("this codec is not one for files.")
    if codec.fast_entropy is not None:
        width, depth = codec.fast_entropy.width, codec.fast_entropy.depth
    prior = checkerboard.CheckerboardPrior(width, depth)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, WARMUP, steps, FINAL * learning_rate)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, 0.9, 0.99, weight_decay=0.01))
    config = telugu_vbr.get_config()

    @jax.jit
    def codes_of(key, batch):
        audio, lengths = batch["audio"], batch["length"]
        latents = module.apply(codec.variables, audio, layers.length_mask(lengths, audio.shape[1]), method="analyze")
        frame_mask = module.frame_mask(lengths, latents.shape[1])
        rates = quantizer.draw_rates(jax.random.split(key, len(audio)), batch, config)
        codes = module.apply(codec.variables, latents, rates, frame_mask, method="quantize").codes
        return codes, frame_mask[..., None].astype(jnp.float32)

    @jax.jit
    def own_bits(codes, mask):
        quantized = interface.Quantized(None, codes, None, None, None)
        bits = module.apply(codec.variables, None, quantized, mask[..., 0] > 0, method="penalize")["rate"]
        return jnp.sum(bits.values[0] * bits.energy) / jnp.maximum(jnp.sum(bits.energy), 1)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params, codes, mask):
        bits = prior.apply({"params": params}, *quantizer.prior_inputs(codes), mask, method="bits")
        bits /= jnp.maximum(jnp.sum(mask), 1)
        return jnp.sum(bits), bits

    @jax.jit
    def update(params, average, opt_state, number, codes, mask):
        (_, bits), gradient = loss(params, codes, mask)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        rest = 1 - jnp.minimum(AVERAGE, number / (number + 9))  # the first steps are forgotten sooner
        average = jax.tree.map(lambda a, x: a + rest * (x - a), average, params)
        return params, average, opt_state, bits

    keys = jax.random.split(jax.random.key(seed))
    shapes = (quantizer.num_bins, layout.NUM_BANDS, quantizer.num_bins, 1)
    params = prior.init(keys[0], *(jnp.zeros((1, 8, size)) for size in shapes))["params"]
    if codec.fast_entropy is not None:
        known = flax.traverse_util.unflatten_dict(codec.fast_entropy.weights, sep="/")
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), known)
    average, opt_state = params, optimizer.init(params)
    for number, batch in zip(range(1, steps + 1), batches, strict=False):  # in this order no batch is read in vain
        batch = {name: jnp.asarray(batch[name][0]) for name in ("audio", "length")}
        codes, mask = codes_of(jax.random.fold_in(keys[1], number), batch)
        params, average, opt_state, bits = update(params, average, opt_state, number, codes, mask)
        yield functools.partial(_with_prior, codec, average), np.asarray(bits), functools.partial(own_bits, codes, mask)


def _with_prior(codec, params):
    weights = flax.traverse_util.flatten_dict(params, sep="/")
    return codec.replace(fast_entropy=bitstream.checkerboard.CheckerboardModel(weights))


def main():
    """Reads, fits, writes every hundred steps and at the end."""
    parser = crops.parser(__doc__, 12, "in a step")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="at its peak")
    parser.add_argument("--anew", action="store_true", help="not from the one that the model has")
    parser.add_argument("--width", type=int, default=128, help="of a new network")
    parser.add_argument("--depth", type=int, default=2, help="blocks before the first pass of a new one")
    args = parser.parse_args()
    try:
        if args.steps <= WARMUP:
            raise ValueError(f"--steps is {args.steps}, expected at least {WARMUP + 1}.")
        batches = crops.batches(args, prefetch=4)
        seen: list[np.ndarray] = []
        compared: list[tuple[float, float]] = []  # with the codec's own prior, on every tenth batch
        settings = args.steps, args.learning_rate, args.seed, args.width, args.depth
        codec = jaxcodec.load(args.model)
        run = fit(codec.replace(fast_entropy=None) if args.anew else codec, batches, *settings)
        for number, (fitted, bits, own_bits) in enumerate(run, 1):
            seen.append(bits)
            if number % 10 == 0 or number == args.steps:
                compared.append((bits.sum(), float(own_bits())))
            if number % 100 and number < args.steps:
                continue
            pretrained.save(fitted(), args.output)
            envelope, *passes = np.mean(seen, axis=0)
            ours, own = np.sum(compared, axis=0)
            told = f"{envelope + sum(passes):.1f} bits a frame, {ours / own:.4f} of the codec's own prior"
            parts = f"envelope {envelope:.2f}, passes {' '.join(f'{part:.1f}' for part in passes)}"
            print(f"step {number} of {args.steps}: {told}; {parts}", flush=True)
            seen, compared = [], []
        batches.close()
    except (ValueError, OSError) as error:
        sys.exit(f"fit_checkerboard.py: {error}")


if __name__ == "__main__":
    main()
