"""What tools that go on from a trained model share: their arguments, and random crops of speech as training hears them."""

import argparse

from configs import telugu
from jaxcodec import data

CONFIG = telugu.get_config().data


def parser(description: str, batch_size: int, use: str) -> argparse.ArgumentParser:
    """Of the model, the speech, how much of it at once (`use` says for what), the seed and the output."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a run, a safetensors file or the name of a bundled one")
    parser.add_argument("--data_dir", default="", help="recordings or prepared shards; the bundled corpus if not given")
    parser.add_argument("--prepared_dir", default="", help="where shards are kept")
    parser.add_argument("--batch_size", type=int, default=batch_size, help=f"crops of two seconds {use}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", required=True)
    return parser


def batches(args: argparse.Namespace, prefetch: int):
    """Batches of the training split at random levels, {"audio": (1, B, S), "length": (1, B)}; close them.

    Raises:
      ValueError: no crop in a batch, or speech that cannot be.
    """
    if args.batch_size < 1:
        raise ValueError(f"--batch_size is {args.batch_size}, expected at least 1.")
    config = CONFIG.copy_and_resolve_references()
    config.data_dir, config.prepared_dir = args.data_dir, args.prepared_dir
    return data.train_batches(
        data.open_split(config, "train"),
        seed=args.seed,
        start_step=0,
        batch_size=args.batch_size,
        crop_samples=round(config.crop_seconds * data.SAMPLE_RATE),
        gain_db=tuple(config.gain_db),
        backend=config.backend,
        prefetch=prefetch,
    )
