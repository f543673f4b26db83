"""What a command reads and writes, one recording after the other: inputs that fail are named in one line, outputs are whole.

`Jobs` gives the files of commands that make a file of each input, `find_clips` and `read_clips` the recordings of those that
measure. Everything that is said goes to stderr by `tell`.
"""

import contextlib
import functools
import os
import pathlib
import shutil
import sys
import tempfile
import time
from types import SimpleNamespace
from typing import Any, NamedTuple

from etils import epy
from tqdm import tqdm

with epy.lazy_imports():  # --help needs none of them
    from etils import epath

    from jaxcodec import atomic, audio, data
    from jaxcodec.data import recordings

STREAM = "-"  # stdin or stdout
_PATIENCE_SECONDS = 2  # of work, before a recording has a bar of its own
_ENDINGS = (
    ".jxc",
    ".safetensors",
    ".wav",
    ".flac",
    ".ogg",
    ".opus",
    ".mp3",
    ".aiff",
    ".aif",
)  # of files, never of folders
quiet = False  # set by --quiet


class UsageError(Exception):
    """A command that makes no sense."""


class Job(NamedTuple):
    """An input and where its output goes."""

    source: str
    target: str


class NothingToDo(Exception):
    """No input of a command is to be done; those that failed have been named."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


class Jobs:
    """The inputs of a command one by one: names what fails, counts the rest, shows bars on a terminal.

    What can be known before any work is refused before it: an output that is an input, that exists, that cannot be written.
    """

    def __init__(self, arguments, verb, find, suffix, suffixes):
        self.verb, self.suffix = verb, suffix
        self.force, self.skip = arguments.force, arguments.skip_existing
        self.planned = _plan(arguments.inputs, arguments.output, find, suffix, suffixes)
        self.open: list[Job] = []
        self.done: set[Job] = set()
        self.failed: set[Job] = set()
        self.skipped: set[Job] = set()
        self.seconds, self.num_bytes = 0.0, 0

    def __enter__(self):
        self.bar = progress_bar(len(self.planned))
        self.started = time.monotonic()
        identities = _identities(job.source for job in self.planned)
        targets: set[str] = set()
        for job in self.planned:
            if problem := self._problem(job, targets, identities):
                self.fail(job, problem)
            elif job not in self.skipped:
                targets.add(job.target)
                self.open.append(job)
        for folder in {os.path.dirname(job.target) for job in self.open if job.target != STREAM}:
            atomic.check_writable(os.path.join(folder, "file"))
        if self.planned and not self.open:
            self.__exit__(None)
            raise NothingToDo(int(bool(self.failed)))
        return self

    def _problem(self, job, targets, identities):
        """Why an output may not be written, if so; one that exists may be skipped, and is noted."""
        if job.target in targets:
            return f"another input is written to {job.target}"
        if job.target == STREAM or not os.path.lexists(job.target):
            return None
        if _identities([job.target]) & identities:
            return f"{job.target} is an input, which nothing replaces: give another output"
        if self.skip and os.path.isfile(job.target):
            self.skipped.add(job)
            self._advance()
            return None
        if os.path.exists(job.target) and not os.path.isfile(job.target):
            return f"{job.target} exists and is no file"
        return None if self.force else f"{job.target} exists, --force replaces it"

    def __exit__(self, kind, *_):
        self.bar.close()
        if kind is not None or not (self.done or self.skipped):
            return
        elapsed = max(time.monotonic() - self.started, 1e-3)
        rate = f", {8e-3 * self.num_bytes / self.seconds:.3g} kbit/s" if self.seconds else ""
        there = f", {len(self.skipped)} already there" if self.skipped else ""
        pace = f", {self.seconds:.1f} s of audio in {elapsed:.1f} s ({self.seconds / elapsed:.3g} x real time){rate}"
        note(f"{self.verb} {len(self.done)} of {len(self.planned)}{there}{pace if self.done else ''}")

    def __iter__(self):
        """The jobs that may be done."""
        return iter(self.open)

    def attempt(self, job, write):
        """Has `write` write a file, which is then put in its place; names in one line what is raised.

        `write` takes the path and returns seconds of audio and bytes of code, for the summary.
        """
        try:
            with _output(job.target, self.suffix) as path:
                counted = write(path)
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            self.fail(job, error)
        else:
            self.count(job, *counted)

    def count(self, job, seconds, num_bytes):
        """Adds one finished file to the summary."""
        self.done.add(job)
        self.seconds, self.num_bytes = self.seconds + seconds, self.num_bytes + num_bytes
        self._advance()

    def fail(self, job, problem):
        """Names what is wrong with one input."""
        self.failed.add(job)
        self._advance()
        tell(about("stdin" if job.source == STREAM else job.source, problem))

    def _advance(self):
        self.bar.update(len(self.done | self.failed | self.skipped) - self.bar.n)


class Source(NamedTuple):
    """A recording to measure: what it is called, whose it is, and what `read_clips` reads."""

    name: str
    speaker: str
    source: Any


def find_clips(inputs, split):
    """The clips of files, of folders, and of one split of prepared folders."""
    prepared = [path for path in inputs if (epath.Path(path) / "dataset_info.json").exists()]
    if split and not prepared:
        raise UsageError("--split is for prepared folders, those with a dataset_info.json.")
    for path in inputs:
        if path in prepared:
            yield from _find_prepared(path, split or "validation")
        else:
            for name, file in expand([path], find_recordings):
                yield Source(name, name.split("/")[0] if "/" in name else "", file)


def _find_prepared(folder, split):
    source = data.open_split(SimpleNamespace(data_dir=folder, prepared_dir=""), split)

    def read(index, sample_rate):
        return audio.resample(audio.to_float(source[index]["audio"]), data.SAMPLE_RATE, sample_rate)

    for i in range(len(source)):
        yield Source(source[i]["id"], source[i]["speaker"], functools.partial(read, i))


def read_clips(files, sample_rate, failures):
    """(name, audio (S,)) of every recording, under a bar; those that cannot be read are named and listed in `failures`.

    Of (name, source) in `files`, where a source is a path, `-`, or a function of the sample rate. A ValueError in the end
    if none could be read.
    """
    with progress_bar(len(files)) as bar:
        for name, source in files:
            try:
                yield name, source(sample_rate) if callable(source) else audio.load(recording(source), sample_rate)
            except ValueError as error:
                failures.append(explain(error))
                tell(failures[-1])
            bar.update()
    if len(failures) == len(files):
        raise ValueError("no recording could be read.")


def recording(source):
    """What `audio` reads: the path, or the open stdin."""
    return sys.stdin.buffer if source == STREAM else source


def read_bytes(source) -> bytes:
    """The bytes of a file, or of stdin."""
    return sys.stdin.buffer.read() if source == STREAM else epath.Path(source).read_bytes()


class Opened(NamedTuple):
    """A file that has been read for somebody, or why that cannot be."""

    job: Any
    error: Exception | None


def open_all(files, codec_of):
    """(`Opened`, codec, bytes) of each of files, pairs of whose it is and its path, for `files.read_together`."""
    for job, source in files:
        try:
            data = read_bytes(source)
            codec = codec_of(data)
        except (ValueError, OSError) as error:
            yield Opened(job, error), None, b""
        else:
            yield Opened(job, None), codec, data


def _plan(inputs, output, find, suffix, suffixes):
    """The jobs of a command: where the output of each input file goes."""
    files = list(expand(inputs, find))
    single = len(inputs) == 1 and not os.path.isdir(inputs[0])
    if inputs.count(STREAM) > 1:
        raise UsageError("stdin can be given once.")
    if output == STREAM:
        if not single:
            raise UsageError("-o - is for one input, several need a folder.")
        return [Job(inputs[0], STREAM)]
    ending = os.path.splitext(output)[1].lower()
    if single and not (output.endswith(os.sep) or os.path.isdir(output)):
        if ending not in suffixes:
            raise UsageError(f"-o {output}: expected a folder or a name that ends in {', '.join(suffixes)}.")
        return [Job(inputs[0], output)]
    if os.path.lexists(output) and not os.path.isdir(output):
        raise UsageError(f"-o {output} is a file, several inputs need a folder.")
    if ending in (*_ENDINGS, *suffixes) and not os.path.isdir(output):
        raise UsageError(f"-o {output} is the name of a file, several inputs need a folder.")
    return [Job(path, os.path.join(output, os.path.splitext(name)[0] + suffix)) for name, path in files]


def expand(inputs, find):
    """(name below the output folder, path) of every file, those of folders included."""
    for path in inputs:
        if path == STREAM:
            yield "stdin", path
        elif os.path.isdir(path):
            yield from find(path)
        else:
            yield os.path.basename(path), path


def find_recordings(folder):
    """(name below the folder, path) of its recordings; a ValueError if it has none."""
    return [(name, os.fspath(path)) for name, path in recordings.list_audio(folder)]


def find_bitstreams(folder):
    """(name below the folder, path) of its .jxc files; a ValueError if it has none."""
    found = (path for path in pathlib.Path(folder).rglob("[!.]*.jxc") if not path.is_dir())
    names = sorted(os.path.relpath(path, folder) for path in found)
    if not names:
        raise ValueError(f"{folder} has no .jxc file in it.")
    return [(name, os.path.join(folder, name)) for name in names]


@contextlib.contextmanager
def _output(target, suffix):
    """A file to write, which becomes `target` or goes to stdout."""
    if target != STREAM:
        with atomic.replacing(target) as path:
            yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        path = epath.Path(folder) / f"stdout{suffix}"
        with atomic.told_of(path, "stdout"):
            yield path
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def check_output(path, force, inputs=()):
    """Raises, before any work, where a file cannot be written, would be replaced unasked, or is one of the inputs."""
    if os.path.lexists(path):
        if _identities([path]) & _identities(inputs):
            raise UsageError(f"{path} is an input, which nothing replaces: give another output")
        if not force:
            raise ValueError(f"{path} exists, --force replaces it")
    atomic.check_writable(path)


def _identities(paths):
    """What files are, whatever names or links lead to them: device and number of each that is there."""
    found = set()
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            status = os.fstat(sys.stdin.buffer.fileno()) if path == STREAM else os.stat(path)
            found.add((status.st_dev, status.st_ino))
    return found


def about(name, problem):
    """One line that begins with the name of the input."""
    text = explain(problem)
    return text if name is None or text.startswith(name) else f"{name}: {text}"


def count(number, noun):
    """`1 clip`, `2 clips`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def explain(problem):
    """What went wrong, in one line."""
    if isinstance(problem, OSError) and problem.strerror:
        return f"{problem.filename}: {problem.strerror}" if problem.filename else problem.strerror
    return " ".join(str(problem).split())


def tell(message):
    """One line on stderr, above the progress bar."""
    tqdm.write(f"jaxcodec: {message}", file=sys.stderr)


def note(message):
    """The same, of what went well, which --quiet leaves out."""
    if not quiet:
        tell(message)


def progress_bar(total, unit="file", **more):
    """A bar on stderr, on a terminal only and not with --quiet."""
    return tqdm(total=total, unit=unit, file=sys.stderr, disable=quiet or None, leave=False, **more)


class Within:
    """A bar of the seconds of one long recording, below that of the files, from its third second of work on."""

    def __init__(self):
        self._bar, self._key = None, None

    def __call__(self, key, name, seconds, total=None):
        """So many `seconds` of the recording `key` are done; fewer than before: it is done once more."""
        if key != self._key:
            self.close()
            self._key = key
            self._bar = progress_bar(total and round(total), "s", desc=os.path.basename(name), delay=_PATIENCE_SECONDS)
        self._bar.update(round(seconds) - self._bar.n)

    def close(self):
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
