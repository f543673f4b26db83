"""The mean of the weights and codebooks of models that were trained from one another, as a model of its own.

    python tools/average_models.py tokens checkpoints/telugu -o mean.safetensors

Fine-tuned models that start alike lie in one valley, and their mean is often better than each (Wortsman et al. 2022, model
soups). Of runs the best snapshot is taken, the last with --latest. Tables of the entropy coder stay where all models have
the same codes, as where decoders were tuned; `jaxcodec export mean.safetensors --entropy_data RECORDINGS -o new.safetensors`
fits others.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import jaxcodec
from jaxcodec.inference import pretrained


def average(models: Sequence[jaxcodec.TrainedCodec]) -> jaxcodec.TrainedCodec:
    """The mean of models of one recipe, told their rate where some are. Raises `ValueError` where they are of several."""
    if len({model.config for model in models}) > 1:
        models = [pretrained.told_rate(model) for model in models]
    first, *others = models
    if any(other.config != first.config for other in others):
        raise ValueError("models of different recipes have no mean.")

    def mean(*arrays):
        return np.mean([np.asarray(array, np.float64) for array in arrays], axis=0).astype(np.float32)

    params = jax.tree.map(mean, *(model.params for model in models))
    constants = jax.tree.map(mean, *(model.constants for model in models))
    entropy = next((model.entropy for model in models if model.entropy is not None), None)
    return first.replace(params=params, constants=constants, entropy=entropy if _same_codes(models) else None)


def _same_codes(models):
    """Whether nothing but the decoder differs."""
    first, *others = ({n: x for n, x in m.arrays.items() if not n.startswith("params/decoder/")} for m in models)
    return all(np.array_equal(other[name], array) for other in others for name, array in first.items())


def main():
    """Reads, averages, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="a run, a safetensors file or the name of a bundled one"
    )
    parser.add_argument("--latest", action="store_true", help="the last snapshot of a run in place of the best")
    parser.add_argument("-o", "--output", required=True)
    args = parser.parse_args()
    try:
        pretrained.save(average([jaxcodec.load(model, best=not args.latest) for model in args.models]), args.output)
    except (ValueError, OSError) as error:
        sys.exit(f"average_models.py: {error}")


if __name__ == "__main__":
    main()
