"""Codes as tokens: a small causal language model of speech.

    python examples/language_model.py                                          # on the bundled recordings
    python examples/language_model.py --recordings FOLDER --clips 10000 --steps 2000

A frame is Q codes. Their embeddings are added up, a GRU runs along time, and Q heads guess the codes of the next frame.
Guessing at random costs log2(K) bits a code. Every tenth recording is left out of training: its bits are what counts.
"""

import argparse
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcodec
from jaxcodec import audio

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--recordings", type=pathlib.Path, default=pathlib.Path(jaxcodec.__file__).parent / "datasets")
parser.add_argument("--clips", type=int, default=32, help="how many of them to use")
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--model", help="a codec to use in place of the bundled one")
parser.add_argument("--codebooks", type=int, help="how many of its codebooks to use; all by default")
flags = parser.parse_args()
batch_size, crop_frames, width = 8, 100, 128

codec = jaxcodec.load(flags.model)
files = sorted(path for path in flags.recordings.rglob("*") if path.suffix in audio.EXTENSIONS)[: flags.clips]
recordings = [audio.load(file, codec.sample_rate) for file in files]
clips = [np.asarray(codes) for codes in jaxcodec.encode(codec, recordings, num_codebooks=flags.codebooks)]
num_codebooks = len(clips[0])
print(f"{len(clips)} recordings, {sum(c.size for c in clips)} codes of {math.log2(codec.codebook_size):g} bits")


class LanguageModel(nn.Module):
    """Codes (B, Q, T) to logits (B, Q, T, K) of the codes one frame later."""

    @nn.compact
    def __call__(self, codes):
        (_, q, _), k = codes.shape, codec.codebook_size
        tokens = codes + k * jnp.arange(q)[None, :, None]  # every codebook has a vocabulary of its own
        x = nn.Embed(q * k, width)(tokens).sum(axis=1)  # (B, T, C)
        x = nn.RNN(nn.GRUCell(width))(x)
        return nn.Dense(q * k)(x).reshape(*x.shape[:2], q, k).swapaxes(1, 2)


def draw_batch(rng, clips):
    """Crops of random clips: codes (B, Q, T), zero beyond the frames (B,) that exist."""
    codes, frames = np.zeros((batch_size, num_codebooks, crop_frames), np.int32), np.zeros(batch_size, np.int32)
    for row in range(batch_size):
        clip = clips[rng.integers(len(clips))]
        first = rng.integers(max(1, clip.shape[1] - crop_frames + 1))
        crop = clip[:, first : first + crop_frames]
        codes[row, :, : crop.shape[1]], frames[row] = crop, crop.shape[1]
    return codes, frames


def bits_per_code(params, codes, frames):
    """Mean cost of every next frame that exists."""
    losses = optax.softmax_cross_entropy_with_integer_labels(model.apply(params, codes[..., :-1]), codes[..., 1:])
    exist = jnp.arange(1, crop_frames)[None] < frames[:, None]
    return jnp.sum(losses * exist[:, None]) / (num_codebooks * jnp.sum(exist)) / math.log(2)


@jax.jit
def train_step(params, opt_state, codes, frames):
    """One update."""
    loss, grads = jax.value_and_grad(bits_per_code)(params, codes, frames)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, loss


model, optimizer, rng = LanguageModel(), optax.adam(3e-3), np.random.default_rng(0)
held_out, learned = clips[::10], [clip for index, clip in enumerate(clips) if index % 10]
tests = [draw_batch(rng, held_out) for _ in range(8)]
params = model.init(jax.random.key(0), tests[0][0])
opt_state = optimizer.init(params)
test = jax.jit(bits_per_code)
for step in range(flags.steps):
    params, opt_state, loss = train_step(params, opt_state, *draw_batch(rng, learned))
    if step % max(1, flags.steps // 6) == 0 or step == flags.steps - 1:
        bits = np.mean([test(params, *batch) for batch in tests])
        print(f"step {step:4d}: {loss:.2f} bits per code, {bits:.2f} of recordings left out")
