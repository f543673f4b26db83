"""How much smaller the entropy model makes files, and how fast: one core.

    python benchmarks/entropy.py --recordings FOLDER                          # the bundled model and its tables
    python benchmarks/entropy.py --codes validation.npz --fit training.npz
    taskset -c 0 python benchmarks/entropy.py --codes validation.npz --model entropy.npz

An .npz of codes holds one array (Q, T) a clip. `--model` holds the arrays of `EntropyModel.to_arrays`; `--fit` learns a
model from the codes of other clips, and `--save` keeps it.
"""

import argparse
import os
import platform
import sys
import time
from pathlib import Path

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import jaxcodec
from jaxcodec import audio, bitstream
from jaxcodec.bitstream import entropy


def main():
    """Prints the hardware, the sizes by codebook, and the speeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--codes", type=Path)
    given.add_argument("--recordings", type=Path)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", type=Path)
    source.add_argument("--fit", type=Path)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--codebook-size", type=int, default=1024)
    parser.add_argument("--sample-rate", type=int, default=16000)
    parser.add_argument("--hop-length", type=int, default=160)
    arguments = parser.parse_args()

    print(f"{processor()}, one thread, Python {platform.python_version()}, numpy {np.__version__}")
    clips = read_codes(arguments.codes) if arguments.codes else encode(arguments.recordings)
    model = read_model(arguments)
    if arguments.save:
        np.savez(arguments.save, **model.to_arrays())
    tables = sum(array.nbytes for array in model.to_arrays().values())
    print(f"entropy model {model.digest[:4].hex()}: {tables / 1e6:.2f} MB")

    fields = dict(
        codebook_size=arguments.codebook_size,
        sample_rate=arguments.sample_rate,
        hop_length=arguments.hop_length,
        fingerprint=bytes(8),
    )
    report_sizes(clips, model, fields)
    report_speed(clips, model, fields)


def processor() -> str:
    """The CPU's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def encode(folder: Path) -> list[np.ndarray]:
    """Codes (Q, T) of every recording in a folder, by the bundled codec."""
    codec = jaxcodec.load()
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in audio.EXTENSIONS)
    return [np.asarray(jaxcodec.encode(codec, audio.load(path, codec.sample_rate))) for path in paths]


def read_codes(path: Path) -> list[np.ndarray]:
    """Every array of an .npz, (Q, T) each."""
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays]


def read_model(arguments) -> entropy.EntropyModel:
    """The model that `--model` names or `--fit` learns, or else the bundled one."""
    if not (arguments.model or arguments.fit):
        return jaxcodec.load().entropy
    if arguments.model:
        with np.load(arguments.model) as arrays:
            return entropy.EntropyModel.from_arrays(dict(arrays))
    clips = read_codes(arguments.fit)
    started = time.perf_counter()
    model = entropy.fit(clips, arguments.codebook_size)
    frames = sum(clip.shape[1] for clip in clips)
    hours = frames * arguments.hop_length / arguments.sample_rate / 3600
    print(f"fitted to {hours:.2f} hours in {time.perf_counter() - started:.0f} s")
    return model


def report_sizes(clips, model, fields):
    """Ideal size of each codebook, and the size of the files, in percent of fixed width."""
    frames = sum(clip.shape[1] for clip in clips)
    bits = sum(model.bits(clip) for clip in clips) / frames
    width = np.log2(fields["codebook_size"])
    print("codebook   bits a code   percent of fixed width")
    for codebook, value in enumerate(bits):
        print(f"{codebook:8d}   {value:11.2f}   {100 * value / width:6.1f}")
    print(f"     all   {bits.mean():11.2f}   {100 * bits.mean() / width:6.1f}")

    seconds = frames * fields["hop_length"] / fields["sample_rate"]
    nominal = width * len(bits) * fields["sample_rate"] / fields["hop_length"]
    for name, entropy_model in (("fixed width", None), ("entropy coded", model)):
        size = sum(len(pack(clip, fields, entropy_model)) for clip in clips)
        rate = 8 * size / seconds
        print(f"files, {name}: {size} bytes, {rate:.0f} bit/s, {100 * rate / nominal:.1f} % of {nominal:.0f} bit/s")


def report_speed(clips, model, fields):
    """Packing and unpacking as multiples of real time, the best of three; every clip is compared with its original."""
    seconds = sum(clip.shape[1] for clip in clips) * fields["hop_length"] / fields["sample_rate"]
    packing, unpacking = [], []
    for _ in range(3):
        started = time.perf_counter()
        files = [pack(clip, fields, model) for clip in clips]
        packed = time.perf_counter()
        decoded = [bitstream.unpack(data, model).codes for data in files]
        packing.append(packed - started)
        unpacking.append(time.perf_counter() - packed)
    lossless = all(np.array_equal(*pair) for pair in zip(clips, decoded, strict=True))
    print(f"{len(clips)} clips, {seconds:.0f} s, lossless: {lossless}")
    print(f"pack {seconds / min(packing):.0f} x real time, unpack {seconds / min(unpacking):.0f} x real time")


def pack(clip, fields, model) -> bytes:
    """A clip of exactly as many samples as its frames cover."""
    return bitstream.pack(clip, num_samples=clip.shape[1] * fields["hop_length"], entropy_model=model, **fields)


if __name__ == "__main__":
    main()
