"""Speech beyond full scale through the bundled model, with the input clipped to [-1, 1] (fix 5) and as it comes.

    python benchmarks/overload.py

The bundled validation clips, each raised until its peak is so many dB over full scale. SNR is against the raised clip, and
against that clip as any file or converter would hold it, cut at full scale. Means over clips.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jaxcodec
from benchmarks import rate_distortion
from jaxcodec import evaluation

OVER_DB = (-6, 0, 6, 12, 20)


def main():
    """Prints the table."""
    clipping = jaxcodec.load()
    module = clipping.module
    open_input = clipping.replace(module=module.clone(encoder=module.encoder.clone(clip_input=False)))
    clips = [clip for _, clip in rate_distortion.read_clips(rate_distortion.SAMPLE)]
    print(
        "| peak over full scale | clipped, against the raised clip | against the cut clip | open, raised | open, cut |"
    )
    print("|---|---|---|---|---|")
    for decibels in OVER_DB:
        raised = [clip * (10 ** (decibels / 20) / np.abs(clip).max()) for clip in clips]
        figures = [mean_snr(codec, raised, cut) for codec in (clipping, open_input) for cut in (False, True)]
        print(f"| {decibels:+d} dB | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |")


def mean_snr(codec, clips, cut):
    """Mean SNR in dB of clips through the codec, against themselves or against themselves cut at full scale."""
    values = []
    for clip in clips:
        decoded = np.asarray(jaxcodec.decode(codec, jaxcodec.encode(codec, clip), len(clip)))
        reference = clip.clip(-1.0, 1.0) if cut else clip
        values.append(evaluation.score(reference, decoded, codec.sample_rate, ["snr"])["snr"])
    return np.mean(values)


if __name__ == "__main__":
    main()
