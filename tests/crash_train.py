"""Kills a tiny run with SIGKILL at random moments and compares how it ends with one that was never killed.

    python tests/crash_train.py --kills 20 --seed 0

Snapshots are made after every second step, so many of the moments are in the midst of one.
"""

import argparse
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
RUN = ["--config=configs/tiny.py", "--config.data.backend=numpy", "--config.snapshots.every_steps=2", "--num_epochs=3"]
RUN += ["--config.steps_per_epoch=20", "--config.num_examples=0", "--batch_size=8"]


def start(folder: pathlib.Path, name: str) -> subprocess.Popen:
    """A run of that name below the folder, its report in NAME.txt."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    places = [f"--data_dir={folder / 'recordings'}", f"--config.data.prepared_dir={folder / 'prepared'}"]
    places += [f"--checkpoint_dir={folder}", f"--experiment_name={name}"]
    with open(folder / f"{name}.txt", "ab") as output:
        command = [sys.executable, "train.py", *RUN, *places]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)


def steps(folder: pathlib.Path, name: str) -> list[int]:
    """The snapshots of a run that are whole."""
    directory = folder / name / "checkpoints"
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit())


def kill_at_random(folder: pathlib.Path, name: str, rng: random.Random) -> bool:
    """Starts the run and kills it a moment after its next snapshot; whether it was still running."""
    before, process = steps(folder, name)[-1:], start(folder, name)
    while process.poll() is None and steps(folder, name)[-1:] == before:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.6))
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return running


def differing(folder: pathlib.Path) -> list[str]:
    """Leaves of the last snapshots of "whole" and "killed" that are not the same to the bit."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    trees = []
    for name in ("whole", "killed"):
        step = folder / name / "checkpoints" / str(steps(folder, name)[-1])
        trees.append(
            {item: ocp.StandardCheckpointer().restore((step / item).absolute()) for item in ("model", "optimizer")}
        )
    whole, killed = (dict(jax.tree.leaves_with_path(tree)) for tree in trees)
    assert whole.keys() == killed.keys()
    return [jax.tree_util.keystr(path) for path in whole if not np.array_equal(whole[path], killed[path])]


def points(folder: pathlib.Path, name: str) -> dict[tuple[str, int], list[float]]:
    """Scalars that TensorBoard shows of a run, (name, step) to values.

    Without times, and without what a later start says is to be forgotten.
    """
    from tensorboardX.proto import event_pb2

    shown: dict[tuple[str, int], list[float]] = {}
    for path in sorted((folder / name / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:  # records of TensorFlow: length, its checksum, data, its checksum
            end = 12 + int.from_bytes(content[:8], "little")
            if end + 4 > len(content):
                break  # cut short by a kill, as TensorBoard takes it
            event, content = event_pb2.Event.FromString(content[12:end]), content[end + 4 :]
            if event.session_log.status == event_pb2.SessionLog.START:
                shown = {key: values for key, values in shown.items() if key[1] < event.step}
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    timeless = 0.0 if "per_second" in value.tag else value.simple_value
                    shown.setdefault((value.tag, event.step), []).append(timeless)
    assert all(len(values) == 1 for values in shown.values())
    return shown


def crash(folder: pathlib.Path, kills: int, seed: int) -> tuple[int, list[str]]:
    """How often the run was killed before it ended, and the leaves and curves in which it differs.

    Recordings are in the folder.
    """
    assert start(folder, "whole").wait() == 0, (folder / "whole.txt").read_text()
    rng = random.Random(seed)
    killed = sum(kill_at_random(folder, "killed", rng) for _ in range(kills))
    assert start(folder, "killed").wait() == 0, (folder / "killed.txt").read_text()
    whole, other = points(folder, "whole"), points(folder, "killed")
    curves = sorted({name for name, _ in [key for key in whole | other if whole.get(key) != other.get(key)]})
    return killed, differing(folder) + curves


def main():
    """Makes recordings, crashes, and says what came of it."""
    sys.path.insert(0, str(ROOT))
    import numpy as np

    from jaxcodec import audio

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, rng = pathlib.Path(name), np.random.default_rng(0)
        (folder / "recordings").mkdir()
        for index in range(6):
            noise = np.cumsum(rng.standard_normal(16000)) * np.hanning(16000)
            audio.save(folder / "recordings" / f"{index}.wav", (noise / 2000).astype(np.float32), 16000)
        killed, leaves = crash(folder, arguments.kills, arguments.seed)
        print(f"killed {killed} times; {len(leaves)} leaves and curves differ {leaves}")
        sys.exit(bool(leaves))


if __name__ == "__main__":
    main()
