"""What is said of data that cannot be read, in one line."""

import contextlib
from collections.abc import Iterator

from etils import epath


def in_one_line(error: Exception) -> str:
    """`OSError: the disk is gone`."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextlib.contextmanager
def explained(file: epath.PathLike, folder: epath.PathLike) -> Iterator[None]:
    """What the block raises, of whatever kind, as a `ValueError` that names the file in a prepared folder and a remedy."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:  # array_record raises RuntimeError, tfds errors of JSON and of protocol buffers
        raise ValueError(
            f"{file} is damaged or gone ({in_one_line(error)}): delete the folder {folder}, "
            "it will be prepared again (or copy it again from where it was prepared)"
        ) from error
