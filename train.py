"""Trains a codec: python train.py --config configs/telugu.py [--data_dir recordings/] [--config.model.width=512].

Flags, config, devices and errors; the loop is in `jaxcodec.training.run`.
"""

import glob
import importlib.util
import logging as python_logging
import os
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow only reads data here and has nothing to tell
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import jax
from absl import app, flags, logging
from ml_collections import config_flags

import jaxcodec
from jaxcodec import data
from jaxcodec.training import run, stopping

# Exit codes beside 0 and 1: of Ctrl-C as shells have it, and the one that asks to be run again (EX_TEMPFAIL of sysexits.h).
INTERRUPTED, PREEMPTED = 130, 75
HEARTBEAT_SECONDS = 30  # without a sign of life of a process, after which the others end

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, a file in configs/.")
_MULTIHOST = flags.DEFINE_enum(
    "multihost", "auto", ["auto", "on", "off"], "Call jax.distributed.initialize; auto: on a pod or a cluster."
)
# The names of the original run, each the short form of a config value.
_SHORTHANDS = {
    "data.data_dir": flags.DEFINE_string("data_dir", None, "Recordings or prepared shards, local or gs://."),
    "checkpoint_dir": flags.DEFINE_string("checkpoint_dir", None, "Where runs are kept, local or gs://."),
    "experiment_name": flags.DEFINE_string("experiment_name", None, "The run's folder in checkpoint_dir."),
    "batch_size": flags.DEFINE_integer("batch_size", None, "Clips a step over all devices."),
    "num_epochs": flags.DEFINE_integer("num_epochs", None, "Epochs to train."),
    "optimizer.learning_rate": flags.DEFINE_float("learning_rate", None, "Peak learning rate."),
}


def main(argv):
    """Runs the recipe in --config; what a user can mend ends in one line and exit code 1 (--verbosity=1: a traceback).

    After SIGTERM or Ctrl-C the run is saved, and ends with exit code 75 or 130.
    """
    show_own_log()
    try:
        if len(argv) > 1:
            raise ValueError(f"Unexpected argument {argv[1]}: flags start with --.")
        start_distributed()
        run.train(resolve_config())
    except (ValueError, OSError) as error:
        logging.debug("Where it was raised:", exc_info=True)
        sys.exit(f"train.py: {one_line(error)}")
    except stopping.Stopped as stopped:
        logging.info("Stopped, with a snapshot of this moment: the same command goes on.")
        sys.exit(INTERRUPTED if stopped.signum == signal.SIGINT else PREEMPTED)
    except KeyboardInterrupt:
        print("train.py: interrupted. The same command resumes from the last snapshot.", file=sys.stderr)
        sys.exit(INTERRUPTED)


def parse_flags(argv):
    """Flags as absl parses them; a misspelled config key ends in one line, with ml_collections' suggestion."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        sys.exit(f"train.py: {one_line(error)}")


def one_line(error):
    """What an error says, on one line; ml_collections' messages come with line breaks, some of them quoted twice."""
    return " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split())


def show_own_log():
    """This project's messages as plain lines; of the libraries' only warnings (all of them with --verbosity=1)."""
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    handler.setFormatter(python_logging.Formatter("%(message)s"))
    if logging.get_verbosity() < logging.DEBUG:
        own = (__file__, os.path.dirname(jaxcodec.__file__))
        handler.addFilter(lambda record: record.levelno > python_logging.INFO or record.pathname.startswith(own))


def resolve_config():
    """The config file with every override applied, locked and checked."""
    config = _CONFIG.value
    if config is None:
        raise ValueError("No recipe given: --config configs/telugu.py.")
    for key, flag in _SHORTHANDS.items():
        if flag.value is not None:
            config.update_from_flattened_dict({key: flag.value})
    devices, parts = jax.device_count(), config.gradient_accumulation_steps
    if config.batch_size < 1 or config.batch_size % devices:
        raise ValueError(f"batch_size is {config.batch_size}, expected a multiple of the {devices} devices.")
    if parts < 1 or config.batch_size // devices % parts:
        raise ValueError(
            f"gradient_accumulation_steps is {parts}, expected to divide a device's {config.batch_size // devices} clips."
        )
    if config.model.sample_rate != data.SAMPLE_RATE:
        raise ValueError(
            f"model.sample_rate is {config.model.sample_rate}, recordings are read at {data.SAMPLE_RATE} Hz."
        )
    if config.num_epochs < 1:
        raise ValueError(f"num_epochs is {config.num_epochs}, expected at least 1.")
    return config.lock()


def start_distributed():
    """Joins the other hosts of a TPU slice, of a Slurm job, or of a cluster described by JAX_COORDINATOR_ADDRESS."""
    if _MULTIHOST.value == "off" or (_MULTIHOST.value == "auto" and not _on_cluster(os.environ)):
        return
    num_processes, process_id = (
        int(os.environ[name]) if name in os.environ else None for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    )
    jax.distributed.initialize(
        num_processes=num_processes, process_id=process_id, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
    )


def _on_cluster(env):
    if "JAX_COORDINATOR_ADDRESS" in env or int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return True
    has_tpu = importlib.util.find_spec("libtpu") is not None and (
        glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    )
    return bool(has_tpu) and env.get("JAX_PLATFORMS", "tpu").startswith("tpu")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
