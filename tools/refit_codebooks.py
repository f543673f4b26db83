"""Codebooks of a trained codec fitted together to speech, as a model of its own: `jaxcodec.quantizers.joint`.

    python tools/refit_codebooks.py checkpoints/telugu --data_dir recordings/ --minutes 800 -o refit.safetensors

Random crops of the training split at random levels, as in training, are coded by the codec's search; then all codebooks
(of gain and shape those of the shape) move to where their sums are nearest. Weights stay as they are. Each line tells the
squared error that the codebooks leave to speech that they have not been fitted to yet, against the energy. The result has
no tables of the entropy coder: `jaxcodec export refit.safetensors --entropy_data RECORDINGS -o model.safetensors` fits some.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import jaxcodec
from configs import telugu
from jaxcodec import data
from jaxcodec.inference import pretrained
from jaxcodec.nn import layers
from jaxcodec.quantizers import gain_shape, joint, rvq

MEMORY = 4.0  # batches that the codebooks given stand for


def refit(codec: jaxcodec.TrainedCodec, batches) -> Iterator[tuple[jaxcodec.TrainedCodec, dict[int, float]]]:
    """After each batch {"audio": (1, B, S), "length": (1, B)} the codec so far, and its errors over the energy before."""
    quantizer = codec.module.quantizer
    if not isinstance(quantizer, rvq.ResidualVectorQuantizer):
        raise ValueError("this codec has no codebooks.")
    of_gain_and_shape = isinstance(quantizer, gain_shape.GainShapeQuantizer)
    before = quantizer.num_envelope if of_gain_and_shape else 0
    counts = [rate - before for rate in quantizer.rates if rate > before]
    constants = codec.constants["shape"] if of_gain_and_shape else codec.constants

    @jax.jit
    def vectors_of(audio, lengths):
        latents = codec.module.apply(
            codec.variables, audio, layers.length_mask(lengths, audio.shape[1]), method="analyze"
        )
        mask = codec.module.frame_mask(lengths, latents.shape[1])
        if of_gain_and_shape:
            latents = codec.module.apply(codec.variables, latents, mask, method=lambda m, *xs: m.quantizer.shape(*xs))
        return latents.reshape(-1, latents.shape[-1]), mask.reshape(-1)

    search = jax.jit(rvq.search, static_argnums=(2, 5))
    centroids = jnp.asarray(constants["centroids"], jnp.float32)
    update = jax.jit(joint.refit)
    for number, batch in enumerate(batches):
        vectors, mask = vectors_of(batch["audio"][0], batch["length"][0])
        codes = {n: search(vectors[None], centroids, quantizer.beams, mask[None], None, n)[0] for n in counts}
        energy = jnp.sum(mask[:, None] * vectors**2) / jnp.sum(mask)
        centroids, errors = update(centroids, vectors, mask.astype(jnp.float32), codes, MEMORY + number)
        fitted = constants | {"centroids": centroids}
        yield (
            codec.replace(constants=codec.constants | {"shape": fitted} if of_gain_and_shape else fitted, entropy=None),
            {n + before: float(error / energy) for n, error in errors.items()},
        )


def main():
    """Reads, fits, writes after every batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a run, a safetensors file or the name of a bundled one")
    parser.add_argument("--data_dir", default="", help="recordings or prepared shards; the bundled corpus if not given")
    parser.add_argument("--prepared_dir", default="", help="where shards are kept")
    parser.add_argument("--minutes", type=float, default=60.0, help="of speech")
    parser.add_argument("--batch_size", type=int, default=512, help="crops of two seconds between two fits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", required=True)
    args = parser.parse_args()
    config = telugu.get_config().data
    config.data_dir, config.prepared_dir = args.data_dir, args.prepared_dir
    crop_samples = round(config.crop_seconds * data.SAMPLE_RATE)
    try:
        if args.batch_size < 1:
            raise ValueError(f"--batch_size is {args.batch_size}, expected at least 1.")
        codec = jaxcodec.load(args.model)
        batches = data.train_batches(
            data.open_split(config, "train"),
            seed=args.seed,
            start_step=0,
            batch_size=args.batch_size,
            crop_samples=crop_samples,
            gain_db=tuple(config.gain_db),
            backend=config.backend,
            prefetch=1,
        )
        steps = max(1, round(args.minutes * 60 / (args.batch_size * config.crop_seconds)))
        for number, (fitted, errors) in enumerate(refit(codec, batches), 1):
            pretrained.save(fitted, args.output)
            told = ", ".join(f"{10 * np.log10(error):.2f} dB at {count}" for count, error in errors.items())
            print(f"batch {number} of {steps}: {told} codebooks", flush=True)
            if number == steps:
                break
        batches.close()
    except (ValueError, OSError) as error:
        sys.exit(f"refit_codebooks.py: {error}")


if __name__ == "__main__":
    main()
