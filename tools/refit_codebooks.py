"""Codebooks of a trained codec fitted together to speech, as a model of its own: `jaxcodec.quantizers.joint`.

    python tools/refit_codebooks.py checkpoints/telugu --data_dir recordings/ --minutes 800 -o refit.safetensors

Random crops of the training split at random levels, as in training, are coded by the codec's search; then all codebooks
(of gain and shape those of the shape) move to where their sums are nearest. Weights stay as they are. Each line tells the
squared error that the codebooks leave to speech that they have not been fitted to yet, against the energy. The result has
no tables of the entropy coder: `jaxcodec export refit.safetensors --entropy_data RECORDINGS -o model.safetensors` fits some.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import jaxcodec
from jaxcodec.inference import pretrained
from jaxcodec.nn import layers
from jaxcodec.quantizers import gain_shape, joint, rvq
from tools import crops

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
    parser = crops.parser(__doc__, 512, "between two fits")
    parser.add_argument("--minutes", type=float, default=60.0, help="of speech")
    args = parser.parse_args()
    try:
        batches = crops.batches(args, prefetch=1)
        codec = jaxcodec.load(args.model)
        steps = max(1, round(args.minutes * 60 / (args.batch_size * crops.CONFIG.crop_seconds)))
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
