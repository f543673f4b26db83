"""Files that are there whole or not at all."""

import contextlib
import tempfile
import uuid
from collections.abc import Iterator

from etils import epath


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[epath.Path]:
    """A local file to write, of the same extension, that becomes `path` at the end of a block that raises nothing."""
    path = epath.Path(path)
    remote = "://" in str(path)
    folder = epath.Path(tempfile.gettempdir()) if remote else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}"
    try:
        yield part
        if remote:
            path.write_bytes(part.read_bytes())
        else:
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)
