"""How much faster than real time: encoding, decoding, whole files in bytes, and streams of several chunk sizes.

    python benchmarks/speed.py                                  # both bundled models
    taskset -c 0 python benchmarks/speed.py --model files --seconds 30        # one core

Medians of several repetitions after one that compiles, each as a multiple of real time (audio seconds per second). Bytes
are `jaxcodec.compress` and `decompress`, networks and entropy coder together, at the rate that a codec has by default.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import jaxcodec
from jaxcodec import audio as audio_files

SAMPLE = Path(jaxcodec.__file__).parent / "datasets" / "sample"
STREAM_MILLISECONDS = (10, 20, 40, 80, 320)


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["files", "tokens"], help="default: the bundled models")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, {jax.devices()[0].device_kind}"
    )
    for name in args.model:
        report(name, jaxcodec.load(name), args.seconds, args.repetitions)


def report(name, codec, seconds, repetitions):
    """The rows of one codec."""
    speech = np.concatenate([audio_files.load(path, codec.sample_rate) for path in sorted(SAMPLE.rglob("*.flac"))])
    speech = np.resize(speech, int(seconds * codec.sample_rate))
    codes = np.asarray(jaxcodec.encode(codec, speech))
    data = jaxcodec.compress(codec, speech)
    print(f"{name}, {codec.fingerprint.hex()}: {seconds:g} s of speech, {8e-3 * len(data) / seconds:.2f} kbit/s")
    for title, function in {
        "encode": lambda: jaxcodec.encode(codec, speech),
        "decode": lambda: jaxcodec.decode(codec, codes, len(speech)),
        "codes to bytes": lambda: jaxcodec.pack(codec, codes, len(speech)),
        "bytes to codes": lambda: jaxcodec.unpack(codec, data),
        "encode to bytes": lambda: jaxcodec.compress(codec, speech),
        "decode from bytes": lambda: jaxcodec.decompress(codec, data),
    }.items():
        print(f"  {title:26s} {seconds / median_time(function, repetitions):8.1f} x real time")
    for milliseconds in STREAM_MILLISECONDS if codec.causal else ():
        chunk = milliseconds * codec.sample_rate // 1000
        if chunk % codec.hop_length:
            continue  # a stream advances by whole frames
        encode, decode = (1e3 * t for t in stream_times(codec, speech, chunk, 20 * repetitions))
        factor = milliseconds / (encode + decode)
        print(
            f"  stream, chunks of {milliseconds:3d} ms  {factor:8.1f} x real time: {encode:.1f} + {decode:.1f} ms a chunk"
        )


def median_time(function, repetitions):
    """Seconds of one call."""
    jax.block_until_ready(function())
    return statistics.median(timed(function) for _ in range(repetitions))


def timed(function):
    """Seconds of this call."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def stream_times(codec, speech, chunk, repetitions):
    """Median seconds of one encoding and of one decoding step."""
    state = jaxcodec.init_stream(codec)
    samples = speech[:chunk]
    state, codes = jaxcodec.encode_step(codec, state, samples)
    jaxcodec.decode_step(codec, state, codes)
    return (
        median_time(lambda: jaxcodec.encode_step(codec, state, samples), repetitions),
        median_time(lambda: jaxcodec.decode_step(codec, state, codes), repetitions),
    )


if __name__ == "__main__":
    main()
