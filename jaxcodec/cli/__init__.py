"""The command line: recordings to .jxc files and back, and what is done with a trained codec around that.

    jaxcodec encode speech.wav -o speech.jxc
    jaxcodec decode speech.jxc -o decoded.wav

Each command is a module with its help as docstring, `add_arguments(parser)` and `run(arguments)`. Exit codes: 0 done; 1 an
input failed, each named in one line on stderr; 2 a command that makes no sense; 130 interrupted, 143 terminated.
"""

import argparse
import atexit
import contextlib
import gc
import logging
import os
import shlex
import signal
import sys
import threading

import jaxcodec
from jaxcodec.cli import compilation, decode, encode, evaluate, export, info, jobs, report, tokens, truncate, verify
from jaxcodec.cli.jobs import NothingToDo, UsageError, explain, tell

DESCRIPTION = "A neural speech codec: 16 kHz speech to 8 kbit/s and back."
COMMANDS = {
    "encode": encode,
    "decode": decode,
    "info": info,
    "verify": verify,
    "truncate": truncate,
    "eval": evaluate,
    "report": report,
    "tokens": tokens,
    "export": export,
}


class Terminated(KeyboardInterrupt):
    """SIGTERM, which is to end a command as Ctrl-C does: without what is half written."""


def main(argv=None) -> int:
    """Runs one command and returns its exit code."""
    arguments = make_parser().parse_args(argv)
    arguments.command = shlex.join(["jaxcodec", *(sys.argv[1:] if argv is None else argv)])
    jobs.quiet = getattr(arguments, "quiet", False)
    compilation.keep()
    _collect_less()
    with _own_warnings(), _termination():
        try:
            code = arguments.run(arguments)
            sys.stdout.flush()
            return code
        except NothingToDo as nothing:
            return nothing.code
        except UsageError as error:
            return _stop(error, 2)
        except BrokenPipeError:
            # What is still buffered would fail again when Python flushes it at exit.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _stop("the reader of the output has gone", 1)
        except (ValueError, OSError, ImportError) as error:
            return _stop(explain(error), 1)
        except Terminated:
            return _stop("terminated", 143)
        except KeyboardInterrupt:
            return _stop("interrupted", 130)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser("jaxcodec", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"jaxcodec {jaxcodec.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.__doc__, description=module.__doc__, allow_abbrev=False)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def _collect_less():
    """Has Python not search all that JAX is made of for garbage while it is imported, and not again before it ends.

    Either takes a quarter of a second and more. What is no longer referred to is freed without that.
    """
    if "jax" not in sys.modules:
        gc.set_threshold(100_000)
        atexit.register(gc.freeze)


class _Warnings(logging.Handler):
    """This package's warnings as lines of the command; of the libraries', which tell at length what they do, only errors."""

    def emit(self, record):
        own = record.pathname.startswith(os.path.dirname(jaxcodec.__file__))
        if record.levelno >= (logging.WARNING if own else logging.ERROR):
            tell(record.getMessage())


@contextlib.contextmanager
def _own_warnings():
    """Within the block all that is logged goes through `_Warnings`."""
    from absl import logging as absl_logging

    logger = absl_logging.get_absl_logger()
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [_Warnings()], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before


@contextlib.contextmanager
def _termination():
    """Within the block SIGTERM raises `Terminated`, where this is a process's main thread and nobody else waits for it."""
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def raise_it(*_):
        raise Terminated

    signal.signal(signal.SIGTERM, raise_it)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop(message, code):
    tell(message)
    return code
