"""Random signals through every road of the codec: the codes must be the same on all of them.

    python benchmarks/robustness.py --signals 500 --chunkings 200

Signals from one sample to a minute: speech, silence, full-scale squares, white noise, DC, int16 extremes, clicks. Each is
encoded alone, in a list, in a padded batch, padded under jit, and by way of bytes; decoded audio must have the exact length
and be finite. Then speech in streams, cut at random: codes as offline but for near ties, as a stream adds up few rows in
another order, and the audio of its codes within 1e-5. Exits with 1 at the first difference, or where of all codes of streams
more than one in a thousand differs.
"""

import argparse
import platform
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import jaxcodec
from jaxcodec import audio as audio_files

SAMPLE = Path(jaxcodec.__file__).parent / "datasets" / "sample"
KINDS = ("speech", "silence", "square", "noise", "dc", "extremes", "clicks", "quiet")
BATCH = 10
MOST_OTHER = 1e-3  # share of the codes of streams


def main():
    """Runs both checks and prints what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the bundled model")
    parser.add_argument("--signals", type=int, default=500)
    parser.add_argument("--chunkings", type=int, default=200)
    parser.add_argument("--max_seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    codec, rng = jaxcodec.load(args.model), np.random.default_rng(args.seed)
    print(f"{platform.processor() or platform.machine()}, {jax.devices()[0].device_kind}, jax {jax.__version__}")
    speech = np.concatenate([audio_files.load(path) for path in sorted(SAMPLE.rglob("*.flac"))[:40]])
    started = time.time()
    frames = check_signals(codec, rng, speech, args)
    seconds = time.time() - started
    print(f"{args.signals} signals, {frames} frames: codes identical on five roads, lengths exact ({seconds:.0f} s)")
    if codec.causal:
        started = time.time()
        worst, other, number = check_streams(codec, rng, speech, args.chunkings)
        print(
            f"{args.chunkings} chunkings: {other} of {number} codes differ, audio within {worst:.1e} "
            f"({time.time() - started:.0f} s)"
        )
        expect(other <= MOST_OTHER * number, "streams have other codes")


def check_signals(codec, rng, speech, args):
    """Codes of every signal on every road; the number of frames seen."""
    jitted, frames = jax.jit(jaxcodec.encode), 0
    longest = np.log(args.max_seconds * codec.sample_rate)
    for first in range(0, args.signals, BATCH):
        kinds = [KINDS[i % len(KINDS)] for i in range(first, min(first + BATCH, args.signals))]
        clips = [make_signal(rng, kind, int(np.exp(rng.uniform(0, longest))), speech) for kind in kinds]
        floats = [audio_files.to_float(clip) if clip.dtype == np.int16 else clip for clip in clips]
        alone = [np.asarray(jaxcodec.encode(codec, clip)) for clip in clips]
        lengths = np.array([len(clip) for clip in clips])
        # A power of two, so that few shapes are compiled; noise beyond the clips, which must not be heard.
        batch = rng.uniform(-1, 1, (len(clips), 1 << int(lengths.max() - 1).bit_length())).astype(np.float32)
        for row, clip in zip(batch, floats, strict=True):
            row[: len(clip)] = clip
        roads = {
            "in a list": jaxcodec.encode(codec, floats),
            "in a padded batch": jaxcodec.encode(codec, batch, lengths=lengths),
            "under jit": jitted(codec, batch, lengths=lengths),
        }
        for i, (kind, codes) in enumerate(zip(kinds, alone, strict=True)):
            for name, results in roads.items():
                expect(
                    np.array_equal(results[i][:, : codes.shape[1]], codes),
                    f"{kind} of {lengths[i]}: other codes {name}",
                )
            data = jaxcodec.pack(codec, codes, int(lengths[i]))
            unpacked = jaxcodec.unpack(codec, data)
            expect(np.array_equal(unpacked.codes, codes), f"{kind} of {lengths[i]}: other codes after bytes")
            decoded = np.asarray(jaxcodec.decode(codec, unpacked.codes, unpacked.num_samples))
            expect(decoded.shape == (lengths[i],), f"{kind} of {lengths[i]} samples came back with {decoded.shape}")
            expect(np.isfinite(decoded).all(), f"{kind} of {lengths[i]} samples is not finite")
            frames += codes.shape[1]
    return frames


def make_signal(rng, kind, length, speech):
    """One signal of `length` samples."""
    time_axis = np.arange(length)
    match kind:
        case "speech":
            start = rng.integers(0, len(speech))
            return np.resize(np.roll(speech, -start), length)
        case "silence":
            return np.zeros(length, np.int16)
        case "square":
            return np.where(time_axis // rng.integers(1, 400) % 2, 1.0, -1.0).astype(np.float32)
        case "noise":
            return rng.uniform(-1, 1, length).astype(np.float32)
        case "dc":
            return np.full(length, rng.uniform(-1, 1), np.float32)
        case "extremes":
            return rng.choice(np.array([-32768, 32767], np.int16), length)
        case "clicks":
            return (rng.random(length) < 1e-3).astype(np.float32)
        case "quiet":
            return rng.integers(-1, 2, length).astype(np.int16)
    raise AssertionError(kind)


def check_streams(codec, rng, speech, chunkings):
    """Over random chunkings the largest difference of audio from streamed codes, and how many codes of how many differ."""
    blocks, hop_length, worst, other, number = 300, codec.hop_length, 0.0, 0, 0
    sizes = (1, 2, 3, 5, 8, 13, 40, 100)  # few, for each is compiled
    for _ in range(chunkings):
        start = rng.integers(0, len(speech) - blocks * hop_length)
        clip = speech[start : start + blocks * hop_length]
        expected = np.asarray(jaxcodec.encode(codec, clip))
        flushed = np.pad(clip, (0, codec.num_frames(len(clip)) * hop_length - len(clip)))
        state, position, codes, decoded = jaxcodec.init_stream(codec), 0, [], []
        while position < len(flushed):
            size = rng.choice([s for s in sizes if s * hop_length <= len(flushed) - position]) * hop_length
            state, new = jaxcodec.encode_step(codec, state, flushed[position : position + size])
            codes.append(np.asarray(new))
            state, new = jaxcodec.decode_step(codec, state, new)
            decoded.append(np.asarray(new))
            position += size
        streamed = np.concatenate(codes, 1)
        expect(streamed.shape == expected.shape, f"a stream has codes {streamed.shape}, not {expected.shape}")
        other, number = other + int(np.sum(streamed != expected)), number + expected.size
        reference = np.asarray(jaxcodec.decode(codec, streamed, len(clip)))
        heard = np.concatenate([*decoded, jaxcodec.decode_end(codec, state)])[codec.delay :][: len(clip)]
        worst = max(worst, float(np.abs(heard - reference).max()))
        expect(worst <= 1e-5, f"a stream's audio differs by {worst:.1e}")
    return worst, other, number


def expect(condition, message):
    """Ends the run with `message` unless the condition holds."""
    if not condition:
        sys.exit(f"FAILED: {message}")


if __name__ == "__main__":
    main()
