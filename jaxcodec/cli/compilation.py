"""What XLA has compiled is kept for the next command, which then does not compile it again.

In the folder that the environment variable JAXCODEC_CACHE names, $XDG_CACHE_HOME/jaxcodec or ~/.cache/jaxcodec by default;
nothing is kept where it is empty. JAX's own JAX_COMPILATION_CACHE_DIR has the last word. Of encoding and decoding whole
programs are kept (`kept_programs`), of all else what JAX keeps.
"""

import os
import pathlib
import sys
import tempfile

from jaxcodec import programs
from jaxcodec.cli import kept_programs


def keep():
    """Tells JAX, before it is imported, and `programs` how to run them, where to keep what is compiled.

    No command fails for a folder that cannot be written.
    """
    if "jax" in sys.modules or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    if (folder := _folder()) and _is_writable(folder):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
        programs.run_by(kept_programs.KeptPrograms(folder / "programs"))


def _folder():
    default = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "jaxcodec")
    named = os.environ.get("JAXCODEC_CACHE", str(default))
    try:
        return pathlib.Path(named).expanduser() if named else None
    except RuntimeError:  # nobody's home
        return None


def _is_writable(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
