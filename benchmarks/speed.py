"""How much faster than real time: encoding, decoding, bytes, and streams of several chunk sizes.

    python benchmarks/speed.py
    taskset -c 0 python benchmarks/speed.py --seconds 30        # one core

Medians of several repetitions after one that compiles, each as a multiple of real time (audio seconds per second).
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


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the bundled model")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    codec = jaxcodec.load(args.model)
    print(
        f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, {jax.devices()[0].device_kind}"
    )
    speech = np.concatenate([audio_files.load(path) for path in sorted(SAMPLE.rglob("*.flac"))])
    speech = np.resize(speech, int(args.seconds * codec.sample_rate))
    codes = np.asarray(jaxcodec.encode(codec, speech))
    data = jaxcodec.pack(codec, codes, len(speech))
    for name, function in {
        f"encode {args.seconds:g} s": lambda: jaxcodec.encode(codec, speech),
        f"decode {args.seconds:g} s": lambda: jaxcodec.decode(codec, codes, len(speech)),
        "codes to bytes": lambda: jaxcodec.pack(codec, codes, len(speech)),
        "bytes to codes": lambda: jaxcodec.unpack(codec, data),
    }.items():
        print(f"{name:28s} {args.seconds / median_time(function, args.repetitions):8.0f} x real time")
    for milliseconds in (10, 20, 40, 80, 320) if codec.causal else ():
        chunk = int(milliseconds * codec.sample_rate / 1000)
        encode, decode = (1e3 * t for t in stream_times(codec, speech, chunk, 20 * args.repetitions))
        factor = milliseconds / (encode + decode)
        print(
            f"stream, chunks of {milliseconds:3d} ms     {factor:8.1f} x real time: {encode:.1f} + {decode:.1f} ms a chunk"
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
