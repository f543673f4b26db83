"""What each part of the codec for files is worth, on the same clips.

    python benchmarks/scalar_parts.py --output docs/results/scalar_parts.json
    python benchmarks/scalar_parts.py --train 400 --output docs/results/scalar_training.json

Without `--train`, of a trained model: the prior against the contexts of `transform_codec.py` on the same integers; real
bytes with the decoder network left out, with coefficients rounded without regard to bits, at four shapings, and 20 dB
quieter. With it, of models trained afresh for so many steps on the bundled corpus: look-ahead and hop. Tables in Markdown go
to stdout.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

import jax
import numpy as np
from constriction import stream

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jaxcodec
from benchmarks import rate_distortion, transform_codec
from configs import telugu_vbr
from jaxcodec import codec as codec_module, data, evaluation
from jaxcodec.bitstream import entropy
from jaxcodec.inference import files, pretrained
from jaxcodec.nn import spectral
from jaxcodec.quantizers import layout, scalar
from jaxcodec.training import run as training_run

KBPS = (2, 5, 8, 12, 24)
MEASURES = ("snr", "segmental_snr", "pesq_wb", "estoi")


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="files")
    parser.add_argument("--clips", type=Path, default=rate_distortion.SAMPLE, help="a folder of recordings")
    parser.add_argument("--train", type=int, metavar="STEPS")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    clips = [clip for _, clip in rate_distortion.read_clips(arguments.clips)]
    command = " ".join(["python", "benchmarks/scalar_parts.py", *sys.argv[1:]])
    results = dict(date=datetime.date.today().isoformat(), command=command, clips=len(clips))
    if arguments.train:
        results["training"] = trained_parts(clips, arguments.train)
        print(table(results["training"], ("part", "kbps", *MEASURES)))
    else:
        codec = jaxcodec.load(arguments.model)
        results |= dict(model=codec.fingerprint.hex(), prior=prior_against_contexts(codec, clips))
        print(table(results["prior"], ("kbps", "contexts", "prior", "saved_percent")))
        results["parts"] = [row for name, part in PARTS.items() for row in measured(name, part(codec, clips))]
        print("\n" + table(results["parts"], ("part", "kbps", *MEASURES)))
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def prior_against_contexts(codec, clips):
    """kbit/s of the coefficients that the codec itself chose without shaping, by either coder; no headers, one block."""
    rows, seconds = [], sum(map(len, clips)) / codec.sample_rate
    for kbps in KBPS:
        contexts = prior = 0
        for clip in clips:
            codes, _ = coded_at(codec, clip, kbps, 0.0)
            contexts += len(context_bytes(codes[layout.EXTRA :].T))
            prior += len(codec.entropy.encode(codes))
        rows.append(
            dict(
                kbps=kbps,
                contexts=8e-3 * contexts / seconds,
                prior=8e-3 * prior / seconds,
                saved_percent=100 * (1 - prior / contexts),
            )
        )
    return rows


def coded_at(codec, clip, kbps, shape):
    """Codes (Q, T) of a clip whose file has so many kbit/s, and its bytes."""
    data = files.compress(codec, clip, (None, shape), kbps=kbps)
    return files.unpack(codec, data).codes, len(data)


def context_bytes(coefficients) -> bytes:
    """Integers (T, F) coded with the transform coder's contexts."""
    coder = stream.queue.RangeEncoder()

    def visit(block, places, counts):
        chosen = coefficients[block, places].astype(np.int64)
        transform_codec.write(coder, np.abs(chosen), chosen < 0, counts)
        return np.abs(chosen)

    transform_codec.walk(len(coefficients), visit, coefficients.shape[1])
    return entropy.compressed(coder)


def trips(codec, clips, kbps, shape=scalar.DEFAULT[1], decode=None):
    """(clip, decoded, bytes) of every clip at a rate."""
    for clip in clips:
        codes, size = coded_at(codec, clip, kbps, shape)
        decoded = decode(codes, len(clip)) if decode else np.asarray(jaxcodec.decode(codec, codes, len(clip)))
        yield clip, decoded.clip(-1, 1), size


def whole(codec, clips):
    """As it is."""
    return (trips(codec, clips, kbps) for kbps in KBPS)


def plain_decoder(codec, clips):
    """Coefficients times steps, and the inverse transform."""

    def decode(codes, num_samples):
        latents = jaxcodec.dequantize(codec, codes)
        return np.asarray(spectral.imdct(latents[None, :, : codec.hop_length], num_samples))[0]

    return (trips(codec, clips, kbps, decode=decode) for kbps in KBPS)


def plain_rounding(codec, clips):
    """No bit has a price: a dead zone of two thirds instead."""
    saved = scalar.LAGRANGIAN, scalar.ROUNDING
    scalar.LAGRANGIAN, scalar.ROUNDING = 0.0, 0.33
    jax.clear_caches()
    try:
        yield from (list(trips(codec, clips, kbps)) for kbps in KBPS)
    finally:
        scalar.LAGRANGIAN, scalar.ROUNDING = saved
        jax.clear_caches()


def shaped(shape):
    """Another shaping."""
    return lambda codec, clips: (trips(codec, clips, kbps, shape) for kbps in KBPS)


def quieter(shape):
    """The same clips 20 dB quieter, not rounded to 16 bits again."""
    return lambda codec, clips: (trips(codec, [clip / 10 for clip in clips], kbps, shape) for kbps in KBPS)


PARTS = {
    "all of it": whole,
    "without the decoder network": plain_decoder,
    "without a price for bits": plain_rounding,
    "shape 1": shaped(1.0),
    "shape 0.5": shaped(0.5),
    "shape 0": shaped(0.0),
    "20 dB quieter": quieter(scalar.DEFAULT[1]),
    "20 dB quieter, shape 0": quieter(0.0),
}


def measured(name, points):
    """A row for each point, clips scored and averaged."""
    for point in points:
        point = list(point)
        scores = list(evaluation.score_pairs(((clip, decoded) for clip, decoded, _ in point), 16000, 1, MEASURES))
        seconds = sum(len(clip) for clip, _, _ in point) / 16000
        kbps = 8e-3 * sum(size for _, _, size in point) / seconds
        yield dict(part=name, kbps=kbps) | {key: _mean(scores, key) for key in MEASURES}


def _mean(scores, key):
    return float(np.mean([score[key] for score in scores if score[key] is not None]))


def trained_parts(clips, steps):
    """Rows of models that differ in one thing, trained alike from the beginning."""
    changes = {
        "look-ahead 1, hop 320": {},
        "look-ahead 0": {"model.transform.lookahead": 0},
        "look-ahead 2": {"model.transform.lookahead": 2},
        "hop 400": {"model.transform.hop_length": 400, "model.latent_dim": 400 + layout.EXTRA},
    }
    rows = []
    for name, change in changes.items():
        config = telugu_vbr.get_config()
        config.update_from_flattened_dict(change | {"steps_per_epoch": steps, "num_epochs": 1})
        codec = train(config)
        rows += measured(name, (trips(codec, clips, kbps) for kbps in (5, 8, 12)))
    return rows


def train(config):
    """The codec after an epoch."""
    splits = (data.open_split(config.data, split) for split in ("train", "validation"))
    run = training_run.Run(config, codec_module.from_config(config.model, config.fixes), *splits)
    batches = run.train_batches(0)
    state, _ = run.train_epoch(training_run.replicate(run.init_state()), batches, 0, 0)
    batches.close()
    jax.clear_caches()  # every run compiles its own step
    state = training_run.first_replica(state)
    return pretrained.make(state.average, state.quantizer, config)


def table(rows, keys):
    """Rows as a table in Markdown."""
    cells = [[f"{row[key]:.2f}" if isinstance(row[key], float) else str(row[key]) for key in keys] for row in rows]
    lines = [list(keys), ["---"] * len(keys), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
