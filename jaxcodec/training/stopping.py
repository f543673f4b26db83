"""How a run is asked to end: by the machine that will be taken away, or by the person who watches."""

import os
import signal

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """A run that was asked to end, saved and ended; `signum` asked, SIGTERM also where another host was told."""

    def __init__(self, signum: int | None):
        super().__init__(signum)
        self.signum = signum


class Stop:
    """Whether a run is to save and end: after SIGTERM, or Ctrl-C once. Use as a context manager, in the main thread.

    The second signal ends the process at once. Of several processes each is told by JAX's preemption service, which takes
    SIGTERM on any of them, and all stop at the same look; Ctrl-C is not for these.
    """

    def __init__(self):
        self.signum: int | None = None
        self._looks = 0
        self._before: dict = {}

    def __enter__(self):
        if jax.process_count() == 1:
            self._before = {signum: signal.signal(signum, self._ask) for signum in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def look(self) -> bool:
        """Whether to stop now. Of several processes all look equally often."""
        self._looks += 1
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(self._looks):
            self.signum = signal.SIGTERM
        return self.signum is not None

    def _ask(self, signum, _):
        if self.signum is not None:
            os.write(2, b"train.py: stopped at once.\n")
            os._exit(128 + signum)  # a traceback in the midst of a compilation can end in a segmentation fault
        self.signum = signum
        os.write(2, b"train.py: saving a snapshot, then stopping; once more to stop now, without.\n")
