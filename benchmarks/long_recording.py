"""Hours of audio through the command line: peak memory and real-time factor of `jaxcodec encode` and `jaxcodec decode`.

    python benchmarks/long_recording.py --hours 3 --rate 44100

Makes a stereo recording of that length from the bundled speech, in a temporary folder, and checks that the length
comes back exactly.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1]))

import jaxcodec
from jaxcodec import audio, bitstream

SAMPLE = Path(jaxcodec.__file__).parent / "datasets" / "sample"


def main():
    """Prints a line for each direction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--rate", type=int, default=44100, help="Hz of the recording")
    parser.add_argument("--model", help="default: the bundled model")
    args = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores")
    model = ["--model", args.model] if args.model else []
    with tempfile.TemporaryDirectory() as folder:
        recording, codes, decoded = (Path(folder, name) for name in ("speech.wav", "speech.jxc", "decoded.wav"))
        num_samples = write_recording(recording, args.hours, args.rate)
        run("encode", args.hours, [recording, "-o", codes, *model])
        header = bitstream.read_header(codes.read_bytes())
        run("decode", args.hours, [codes, "-o", decoded, *model])
        expected = -(-num_samples * header.sample_rate // args.rate)
        assert header.num_samples == soundfile.info(str(decoded)).frames == expected
        print(
            f"{codes.stat().st_size} bytes, {8e-3 * codes.stat().st_size / header.seconds:.2f} kbit/s, {expected} samples"
        )


def write_recording(path, hours, rate):
    """A stereo file of looped speech; its number of samples a channel."""
    speech = np.concatenate([audio.load(clip) for clip in sorted(SAMPLE.rglob("*.flac"))[:100]])
    speech = np.stack([audio.resample(speech, 16000, rate)] * 2, axis=1)
    total = written = int(hours * 3600 * rate)
    with soundfile.SoundFile(path, "w", rate, 2, "PCM_16", format="WAV" if total < 2**29 else "RF64") as file:
        while written:
            file.write(speech[:written])
            written -= min(written, len(speech))
    return total


def run(command, hours, arguments):
    """Times one command and prints the most memory that any command has taken so far."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "jaxcodec.cli", command, *map(str, arguments)], check=True)
    seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{command}: {seconds:.0f} s, {3600 * hours / seconds:.0f} x real time, peak memory {peak:.0f} MiB")


if __name__ == "__main__":
    main()
