"""The command line: recordings to .jxc files and back, and what is done with a trained codec around that.

    jaxcodec encode speech.wav -o speech.jxc
    jaxcodec decode speech.jxc -o decoded.wav

Each command is a module with its help as docstring, `add_arguments(parser)` and `run(arguments)`. Exit codes: 0 done; 1 an
input failed, each named in one line on stderr; 2 a command that makes no sense; 130 interrupted.
"""

import argparse
import contextlib
import logging
import os
import shlex
import sys

import jaxcodec
from jaxcodec.cli import decode, encode, evaluate, export, info, report, tokens, truncate
from jaxcodec.cli.jobs import UsageError, explain, tell

DESCRIPTION = "A neural speech codec: 16 kHz speech to 8 kbit/s and back."
COMMANDS = {
    "encode": encode,
    "decode": decode,
    "info": info,
    "truncate": truncate,
    "eval": evaluate,
    "report": report,
    "tokens": tokens,
    "export": export,
}


def main(argv=None) -> int:
    """Runs one command and returns its exit code."""
    arguments = make_parser().parse_args(argv)
    arguments.command = shlex.join(["jaxcodec", *(sys.argv[1:] if argv is None else argv)])
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells at length how it reads
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except UsageError as error:
        return _stop(error, 2)
    except BrokenPipeError:
        # What is still buffered would fail again when Python flushes it at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _stop("the reader of the output has gone", 1)
    except (ValueError, OSError, ImportError) as error:
        return _stop(explain(error), 1)
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


def _stop(message, code):
    tell(message)
    return code
