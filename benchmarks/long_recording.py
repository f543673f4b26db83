"""Hours of audio through the command line: peak memory and real-time factor of `jaxcodec encode` and `jaxcodec decode`.

    python benchmarks/long_recording.py --hours 3 --rate 44100                # both bundled models
    python benchmarks/long_recording.py --hours 0.2 --model files --kbps 8    # a search reads the recording several times

Makes a stereo recording of that length from the bundled speech, in a temporary folder, and checks that the length
comes back exactly. The peak of memory is that of each command alone.
"""

import argparse
import os
import platform
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
    parser.add_argument("--model", nargs="+", default=["files", "tokens"], help="default: the bundled models")
    parser.add_argument("--kbps", type=float, help="of a model for files, in place of its default quality")
    args = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores")
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder, "speech.wav")
        num_samples = write_recording(recording, args.hours, args.rate)
        for model in args.model:
            measure(model, recording, num_samples, args)


def measure(model, recording, num_samples, args):
    """A recording through one model, with a line for each direction and one for the file."""
    codes, decoded = (recording.with_name(name) for name in ("speech.jxc", "decoded.wav"))
    flags = ["--model", model, "--force"]
    run("encode", args.hours, [recording, "-o", codes, *flags, *(["--kbps", args.kbps] if args.kbps else [])])
    header = bitstream.read_header(codes.read_bytes())
    run("decode", args.hours, [codes, "-o", decoded, *flags])
    expected = -(-num_samples * header.sample_rate // args.rate)
    assert header.num_samples == soundfile.info(str(decoded)).frames == expected
    size = codes.stat().st_size
    print(f"{model}: {size} bytes, {8e-3 * size / header.seconds:.2f} kbit/s, {expected} samples")


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
    """Times one command and prints the most memory that it has taken."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "jaxcodec.cli", command, *map(str, arguments)])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    seconds = time.monotonic() - start
    print(
        f"{command}: {seconds:.0f} s, {3600 * hours / seconds:.1f} x real time, peak memory {usage.ru_maxrss / 1024:.0f} MiB"
    )


if __name__ == "__main__":
    main()
