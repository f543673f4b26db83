"""Files that are there whole or not at all."""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator

from etils import epath


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[epath.Path]:
    """A local file to write, of the same extension, that becomes `path` at the end of a block that raises nothing.

    What an `OSError` or a `ValueError` of the block says of the file to write, it says of `path`.
    """
    path = epath.Path(path)
    remote = "://" in str(path)
    folder = epath.Path(tempfile.gettempdir()) if remote else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}"
    try:
        with told_of(part, path):
            yield part
            if remote:
                path.write_bytes(part.read_bytes())
            else:
                part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def told_of(part: epath.PathLike, path: epath.PathLike) -> Iterator[None]:
    """What an `OSError` or a `ValueError` of the block says of `part`, it says of `path`."""
    part, path = os.fspath(part), os.fspath(path)
    try:
        yield
    except (OSError, ValueError) as error:
        error.args = tuple(arg.replace(part, path) if isinstance(arg, str) else arg for arg in error.args)
        if isinstance(error, OSError):  # which has the names of files beside its arguments
            for name in ("filename", "filename2"):
                if getattr(error, name) == part:
                    setattr(error, name, path)
        raise


def check_writable(path: epath.PathLike) -> None:
    """Raises the `OSError` that writing a local `path` would, before the work for it: of a folder or disk that cannot be."""
    if "://" in str(path):
        return
    folder = os.path.dirname(os.path.abspath(path))
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, folder) from None
