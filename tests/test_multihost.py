"""Two processes over loopback train as one does."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np

from tests import multihost_worker

TIMEOUT = 120  # seconds


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_two_processes_with_two_devices_each_train_as_one_with_four(tmp_path):
    port, root = free_port(), pathlib.Path(__file__).parent.parent
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    environment |= {
        "PYTHONPATH": str(root),
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
