"""Whether two checkouts make the same bits: codes, files and decoded audio of the bundled model, and a resumed training run.

    python tools/compare_checkouts.py OLD NEW

OLD trains each recipe for one epoch; then both go on from copies of its snapshot, and NEW also trains from the start. What
they end with is compared leaf by leaf, and so is what they print but for times. Exit code 1 if anything differs.
"""

import argparse
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

FACTS = """
import hashlib, pathlib, sys
import numpy as np
import jaxcodec
from jaxcodec import audio

def sha(data):
    return hashlib.sha256(data).hexdigest()

codec = jaxcodec.load()
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.flac")):
    speech = audio.load(path, codec.sample_rate)
    codes = np.asarray(jaxcodec.encode(codec, speech))
    data, fewer = jaxcodec.pack(codec, codes, len(speech)), jaxcodec.pack(codec, codes[:3], len(speech), entropy=False)
    decoded = np.asarray(jaxcodec.decode(codec, codes, len(speech)))
    latents = np.asarray(jaxcodec.latents(codec, speech))
    print(path.name, *(sha(x) for x in (codes.tobytes(), data, fewer, decoded.tobytes(), latents.tobytes())))
state = jaxcodec.init_stream(codec)
state, codes = jaxcodec.encode_step(codec, state, speech[: 9 * codec.hop_length])
print("stream", sha(np.asarray(codes).tobytes()), sha(np.asarray(jaxcodec.decode_step(codec, state, codes)[1]).tobytes()))
"""
LEAVES = """
import hashlib, sys
import jax, numpy as np
import orbax.checkpoint as ocp
with ocp.CheckpointManager(sys.argv[1], item_names=("model", "optimizer", "config")) as manager:
    step = manager.latest_step()
    args = ocp.args.Composite(model=ocp.args.StandardRestore(), optimizer=ocp.args.StandardRestore())
    restored = manager.restore(step, args=args)
print("step", step)
for item in ("model", "optimizer"):
    for path, leaf in jax.tree_util.tree_leaves_with_path(restored[item]):
        print(item + jax.tree_util.keystr(path), hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest())
"""
SHORT = ("--config.steps_per_epoch=6", "--batch_size=4", "--config.data.crop_seconds=1", "--config.num_examples=1")
RECIPES = {
    "telugu": ("--config=configs/telugu.py", *SHORT),
    "seed": ("--config=configs/seed.py", *SHORT, "--config.model.width=8"),
    "tiny": ("--config=configs/tiny.py", "--config.quantizer.init=kmeans", "--config.optimizer.average_decay=0.99"),
}


def main():
    """Compares, prints what was compared, exits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=pathlib.Path)
    parser.add_argument("new", type=pathlib.Path)
    checkouts = [path.resolve() for path in vars(parser.parse_args()).values()]
    old, new = checkouts
    clips = old / "jaxcodec" / "datasets" / "sample" / "validation"
    differ = compare("bundled model", *(run(path, "-c", FACTS, clips) for path in checkouts))
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in RECIPES.items():
            runs = {key: pathlib.Path(folder, name, key) for key in ("first", "old", "new", "fresh")}
            train(old, flags, runs["first"], 1)
            for key in ("old", "new"):
                shutil.copytree(runs["first"], runs[key])
            told = [train(path, flags, runs[key], 2) for path, key in ((old, "old"), (new, "new"), (new, "fresh"))]
            leaves = [run(old, "-c", LEAVES, runs[key] / "run" / "checkpoints") for key in ("old", "new", "fresh")]
            differ |= compare(f"{name}: resumed snapshot", *leaves[:2])
            differ |= compare(f"{name}: snapshot of a fresh run", leaves[0], leaves[2])
            differ |= compare(f"{name}: resumed report", *told[:2])
            differ |= compare(
                f"{name}: second report of a fresh run", *(text[text.find("epoch 1") :] for text in told[::2])
            )
    sys.exit(int(differ))


def train(checkout, flags, folder, num_epochs):
    """What `train.py` prints, with the times taken out."""
    where = f"--checkpoint_dir={folder}", "--experiment_name=run", f"--num_epochs={num_epochs}"
    # Schedules are made for a number of epochs; without one a run of one epoch is the beginning of a run of two.
    constant = "--config.optimizer.schedule=constant", "--config.optimizer.warmup_steps=0"
    return re.sub(r"\d+:\d\d:\d\d", "", run(checkout, "train.py", *flags, *where, *constant))


def run(checkout, *arguments):
    """What Python prints in a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"in {checkout}: {result.stderr}")
    return result.stdout


def compare(what, old, new):
    """Prints one line, and the first lines that differ; whether any does."""
    pairs = list(zip(old.splitlines(), new.splitlines(), strict=False))
    different = [pair for pair in pairs if pair[0] != pair[1]]
    differ = bool(different) or len(old.splitlines()) != len(new.splitlines())
    digest = hashlib.sha256(old.encode()).hexdigest()[:16]
    print(f"{what}: {len(pairs)} lines, {f'{len(different)} DIFFER' if differ else f'equal, {digest}'}", flush=True)
    for pair in different[:3]:
        print(*pair, sep="\n")
    return differ


if __name__ == "__main__":
    main()
