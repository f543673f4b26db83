"""Where functions of arrays become programs."""

import functools
from collections.abc import Callable

import jax


def call(function: Callable, *arguments):
    """`jax.jit(function)(*arguments)`."""
    return jitted(function)(*arguments)


@functools.cache
def jitted(function: Callable) -> Callable:
    """`jax.jit(function)`, the same for the same function."""
    return jax.jit(function)
