"""Where functions of arrays become programs: compiled by `jax.jit`, unless a command wants them run in another way."""

import functools
from collections.abc import Callable

_runner: Callable | None = None


def call(function: Callable, *arguments):
    """`jax.jit(function)(*arguments)`, by the runner where there is one."""
    return jitted(function)(*arguments) if _runner is None else _runner(function, *arguments)


def run_by(runner: Callable | None) -> None:
    """From now on runner(function, *arguments) gives the result of `call`; None: as at first."""
    global _runner
    _runner = runner


@functools.cache
def jitted(function: Callable) -> Callable:
    """`jax.jit(function)`, the same for the same function."""
    import jax  # which reads its settings when it is imported

    return jax.jit(function)
