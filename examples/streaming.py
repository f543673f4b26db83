"""Encoding and decoding while the sound arrives; a file stands in for the microphone.

python examples/streaming.py speech.wav decoded.wav --chunk_ms 40
"""

import argparse
import pathlib
import tempfile
import time

import jax
import numpy as np

import jaxcodec
from jaxcodec import audio

SAMPLE = pathlib.Path(jaxcodec.__file__).parent / "datasets/sample/validation/piper-joe/te_064.flac"
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("recording", nargs="?", default=SAMPLE, help="default: a bundled one")
decoded_file = pathlib.Path(tempfile.gettempdir()) / "decoded.wav"
parser.add_argument("decoded", nargs="?", default=decoded_file, help=f"file to write, default: {decoded_file}")
parser.add_argument("--chunk_ms", type=float, default=40)
parser.add_argument("--model", help="a codec to use in place of the bundled one")
flags = parser.parse_args()

codec = jaxcodec.load(flags.model)
chunk = round(flags.chunk_ms * codec.sample_rate / 1000)
if chunk < 1 or chunk % codec.hop_length:
    parser.error(f"--chunk_ms must be a multiple of {1000 / codec.frame_rate:g}, a frame of this codec")
chunk_ms, latency_ms = (1000 * samples / codec.sample_rate for samples in (chunk, chunk + codec.delay))
print(f"latency {latency_ms:g} ms: a chunk of {chunk_ms:g} ms and {codec.delay} samples of delay")

# Zeros bring out the last frame of codes and fill the last chunk.
speech = audio.load(flags.recording, codec.sample_rate)
num_chunks = -(-codec.num_frames(len(speech)) * codec.hop_length // chunk)
chunks = np.pad(speech, (0, num_chunks * chunk - len(speech))).reshape(-1, chunk)


def process(state, samples):
    """One chunk through both ends: the state, the codes (what would be sent) and the decoded samples."""
    state, codes = jaxcodec.encode_step(codec, state, samples)
    state, decoded = jaxcodec.decode_step(codec, state, codes)
    return jax.block_until_ready((state, codes, decoded))


state = jaxcodec.init_stream(codec)
process(state, chunks[0])  # compiles
results, milliseconds = [], []
for samples in chunks:
    start = time.perf_counter()
    state, *result = process(state, samples)
    milliseconds.append(1000 * (time.perf_counter() - start))
    results.append(result)
codes, decoded = (np.concatenate(parts, axis=-1) for parts in zip(*results, strict=True))
decoded = np.concatenate([decoded, jaxcodec.decode_end(codec, state)])  # what the decoder still holds

audio.save(flags.decoded, decoded[codec.delay :][: len(speech)], codec.sample_rate)
median, slowest = np.median(milliseconds), max(milliseconds)
print(f"{len(chunks)} chunks, each computed in {median:.1f} ms (at most {slowest:.1f})")
print(
    f"real-time factor {median / chunk_ms:.2f}, {'fast enough' if slowest < chunk_ms else 'too slow for a live stream'}"
)
offline = np.asarray(jaxcodec.encode(codec, speech))
equal = np.array_equal(codes[:, : offline.shape[1]], offline)
print(f"wrote {flags.decoded}; its codes are {'' if equal else 'NOT '}those of the whole recording")
