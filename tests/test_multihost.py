"""Processes over loopback train as one does: the step, and the program."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np

from jaxcodec import audio
from jaxcodec.training import checkpoint
from tests import multihost_worker, support

ROOT = pathlib.Path(__file__).parent.parent
TIMEOUT = 120  # seconds
PROGRAM_TIMEOUT = 600
FAST = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu", "NPROC": "32"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_two_processes_with_two_devices_each_train_as_one_with_four(tmp_path):
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, multihost_worker.__file__, str(port), str(process_id), str(tmp_path / "two.npz")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process_id in range(2)
    ]
    try:
        expected = multihost_worker.two_steps(jax.devices()[:4], slice(None))  # meanwhile, here
        for worker in workers:
            output, _ = worker.communicate(timeout=TIMEOUT)
            assert worker.returncode == 0, output
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    actual = np.load(tmp_path / "two.npz")
    assert set(actual) == set(expected)
    for name, value in expected.items():
        assert value.shape == (1, *actual[name].shape[1:])
        np.testing.assert_allclose(actual[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert not np.isclose(expected["params/decoder/output_scale"], 2.5, atol=1e-6)  # something was learned


def start(folder, name, processes, devices, *flags):
    """`train.py` as `processes` with `devices` each."""
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "SLURM_"))}
    kept |= FAST | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    command = [sys.executable, "train.py", *program_flags(folder, name), *flags]
    return [
        subprocess.Popen(
            [*command, f"--multihost={'on' if processes > 1 else 'off'}"],
            cwd=ROOT,
            env=kept | {"JAX_PROCESS_ID": str(process_id)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process_id in range(processes)
    ]


def ended(workers, codes=(0,)):
    """What processes print, after their end with one of these exit codes."""
    try:
        printed = []
        for worker in workers:
            output, log = worker.communicate(timeout=PROGRAM_TIMEOUT)
            assert worker.returncode in codes, log
            printed.append(output)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    return printed


def program(folder, name, processes, devices, *flags):
    """The reports of `train.py`; of its processes the first alone may write one."""
    printed = ended(start(folder, name, processes, devices, *flags))
    assert not any("epoch" in output for output in printed[1:])
    return printed[0][printed[0].index("epoch") :]


def program_flags(folder, name):
    """One epoch of two steps of four crops, and validation in batches that the clips do not fill."""
    values = {
        "data.data_dir": folder / "speech",
        "data.prepared_dir": folder / "prepared",
        "data.backend": "numpy",
        "data.crop_seconds": 0.1,
        "data.max_eval_seconds": 1.0,
        "checkpoint_dir": folder,
        "experiment_name": name,
        "batch_size": 4,
        "eval_batch_size": 4,
        "num_epochs": 1,
        "steps_per_epoch": 2,
        "num_examples": 0,
        "optimizer.warmup_steps": 0,
        "optimizer.schedule": "constant",  # whatever the number of epochs
    }
    return ["--config=configs/tiny.py", *(f"--config.{name}={value}" for name, value in values.items())]


def make_corpus(folder):
    """Recordings of different levels and lengths, six to train on and five to validate with."""
    for split, seconds in {"train": [0.5] * 6, "validation": [0.3, 0.5, 0.9, 0.4, 0.6]}.items():
        (folder / split).mkdir(parents=True)
        for number, length in enumerate(seconds):
            clip = support.speech_like(1, round(16000 * length), seed=number + 10 * len(split))[0]
            audio.save(folder / split / f"{number}.wav", clip * (1 + number) / 3, 16000)


def figures(report):
    """The numbers of an epoch's report, but for its first line, which tells the time."""
    return [float(number) for number in re.findall(r"[-+]?\d+(?:\.\d+)?", report.split("\n", 1)[1])]


def test_the_program_as_four_processes_and_gone_on_as_two_is_the_program_as_one(tmp_path):
    make_corpus(tmp_path / "speech")
    spread = [
        program(tmp_path, "spread", processes, 1, f"--num_epochs={epochs}")
        for epochs, processes in enumerate((4, 2), 1)
    ]
    alone = re.split(r"\n(?=epoch )", program(tmp_path, "alone", 1, 4, "--num_epochs=2"))
    for actual, expected in zip(spread, alone, strict=True):
        assert all("5 validation clips" in report.split("\n")[0] for report in (actual, expected))
        actual, expected = figures(actual), figures(expected)
        assert len(expected) > 20
        np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=0.011)  # as printed
    spread, alone = (checkpoint.load_model(str(tmp_path / name / "checkpoints"))[:2] for name in ("spread", "alone"))
    support.assert_trees_close(spread, alone, rtol=1e-4, atol=2e-5)  # a step moves a weight by 1e-3


def wait_for_a_snapshot(workers, folder):
    """Until there is one below a folder."""
    limit = time.monotonic() + PROGRAM_TIMEOUT
    while not any(path.name.isdigit() for path in folder.glob("checkpoints/*")):
        assert time.monotonic() < limit and all(worker.poll() is None for worker in workers), ended(workers)
        time.sleep(0.1)


ENDLESS = ("--config.num_epochs=1000", "--config.snapshots.every_steps=1")


def test_all_processes_save_and_stop_when_one_is_told_to(tmp_path):
    make_corpus(tmp_path / "speech")
    workers = start(tmp_path, "run", 2, 1, *ENDLESS)
    wait_for_a_snapshot(workers, tmp_path / "run")
    workers[1].send_signal(signal.SIGTERM)
    ended(workers, (75,))


def test_the_death_of_a_process_ends_the_others_within_a_minute(tmp_path):
    make_corpus(tmp_path / "speech")
    workers = start(tmp_path, "run", 2, 1, *ENDLESS)
    wait_for_a_snapshot(workers, tmp_path / "run")
    workers[1].kill()
    died = time.monotonic()
    try:
        assert workers[0].wait(timeout=PROGRAM_TIMEOUT) != 0
        assert time.monotonic() - died < 60
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
