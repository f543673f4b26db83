"""One process of two: trains on its half of every batch and, as process 0, writes what came out.

python multihost_worker.py PORT PROCESS_ID OUTPUT.npz; `two_steps` is the same training for the parent to compare with.
"""

import os
import sys

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    os.environ["JAX_PLATFORMS"] = "cpu"

import functools

import jax
import numpy as np
import optax

from jaxcodec import training
from tests import support

LENGTHS = (256, 200, 0, 131, 256, 90, 16, 1)


def two_steps(devices, rows):
    """Logs, parameters and codebooks after two steps of the global batch, of which this process holds `rows`."""
    config = support.small_config()
    model, optimizer = support.make_model(config), optax.sgd(0.1)
    step = functools.partial(training.train_step, model=model, optimizer=optimizer, config=config, axis_name="devices")
    step = jax.pmap(step, "devices", in_axes=(0, 0, None), devices=devices)
    local = len([d for d in devices if d.process_index == jax.process_index()])
    state = jax.tree.map(np.asarray, support.settle_codebooks(support.make_state(model, optimizer)))
    state = jax.tree.map(lambda x: np.broadcast_to(x, (local, *x.shape)), state)
    for seed in range(2):
        batch = support.make_batch(LENGTHS, seed=seed)
        shards = {name: x[rows].reshape(local, -1, *x.shape[1:]) for name, x in batch.items()}
        state, logs = step(state, shards, jax.random.key(0))
    outputs = {"logs": logs, "params": state.params, "codebooks": vars(state.quantizer)}
    paths = jax.tree.leaves_with_path(outputs)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x.addressable_data(0)) for path, x in paths
    }


def main(port, process_id, output):
    """Joins the other process, trains, writes."""
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(process_id))
    assert (jax.device_count(), jax.local_device_count()) == (4, 2)
    half = len(LENGTHS) // 2
    results = two_steps(jax.devices(), slice(int(process_id) * half, (int(process_id) + 1) * half))
    if process_id == "0":
        np.savez(output, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
