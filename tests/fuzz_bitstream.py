"""Seeded mutations of .jxc files: every one is refused by name, reported in the right block, or harmless.

    python tests/fuzz_bitstream.py --count 20000 --seed 0

The command goes on with the other files that are read, `tests/fuzz_models.py`; --kind names one of all.

`blind` mutations change bytes and leave the CRCs alone: nothing but the original may come out. `sealed` mutations change
fields, sizes or payloads and compute the CRCs anew, which reaches the checks behind them: any answer is legal, a crash,
a second of work or 64 MB of memory beyond what good files took is not.
"""

import argparse
import collections
import dataclasses
import faulthandler
import functools
import hashlib
import random
import resource
import sys
import time
import zlib
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from jaxcodec.bitstream import checkerboard, container, entropy, prior
from jaxcodec.quantizers import layout

MEMORY_LIMIT = 64 * 2**20
SECONDS_LIMIT = 1.0  # of this thread: other programs have no part in it
HANG_SECONDS = 300


@dataclasses.dataclass(frozen=True)
class Good:
    """A file as `pack` wrote it, and what is in it."""

    data: bytes
    codes: np.ndarray
    model: entropy.ProbabilityModel | None


class Sparse:
    """A second kind of probability model: place and value, two bytes each, of every code that is not zero."""

    kind, coding, max_block_frames, digest = "sparse", 200, 2**16 - 1, hashlib.sha256(b"sparse").digest()

    def __str__(self):
        return "signed codes of 16 bits"

    def fits(self, num_codebooks, least_code, codebook_size):
        return least_code < 0 and codebook_size <= 2**16

    def encode_blocks(self, blocks):
        return [self.encode(codes) for codes in blocks]

    def encode(self, codes):
        flat = codes.reshape(-1)
        places = np.flatnonzero(flat)
        return np.stack([places.astype("<u2").view("<i2"), flat[places].astype("<i2")], axis=1).tobytes()

    def decode_blocks(self, blocks, num_codebooks, sizes):
        return entropy.one_by_one(self.decode, blocks, num_codebooks, sizes)

    def decode(self, data, num_codebooks, num_frames):
        codes = np.zeros(num_codebooks * num_frames, np.int32)
        pairs = np.frombuffer(data + bytes(-len(data) % 4), "<i2").reshape(-1, 2)
        places, values = pairs[:, 0].view("<u2"), pairs[:, 1]
        if places.size and places.max() >= codes.size:
            raise entropy.DamagedCodes("a place that is not there")
        codes[places[values != 0]] = values[values != 0]
        return codes.reshape(num_codebooks, num_frames)


PRESET = dict(kind="scalar", hop_length=320, least_code=-(2**15), block_frames=250)  # with 333 codes of 16 bits


def markov_codes(rng, num_codebooks, num_frames, codebook_size, stay=0.9):
    """Codes (Q, T) that mostly repeat themselves and the codebook above: something to compress."""
    codes = rng.integers(0, codebook_size, (num_codebooks, num_frames))
    for q in range(num_codebooks):
        for t in range(1, num_frames):
            if rng.random() < stay:
                codes[q, t] = codes[q, t - 1]
        if q:
            copied = rng.random(num_frames) < stay
            codes[q, copied] = (codes[q - 1, copied] * 3 + 1) % codebook_size
    return codes


def prior_weights(num_bins=64, width=16, depth=1, seed=0):
    """Weights of a `PriorModel` whose every bit follows from the seed."""
    return _weights(prior._shapes(num_bins, width, depth), seed)


def checkerboard_weights(num_bins=64, width=16, depth=1, seed=0):
    """The same of a `CheckerboardModel`."""
    return _weights(checkerboard._shapes(num_bins, width, depth), seed)


def _weights(shapes, seed):
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in sorted(shapes.items()):
        fan_in = shape[-2] if len(shape) > 1 else 16
        values = rng.integers(-1024, 1025, shape) / 1024  # all the digits that float16 has
        scale = name.endswith(("scale", "layer_scale"))
        arrays[name] = (values * 2.0 ** -round(np.log2(fan_in) / 2) + scale).astype(np.float16)
    return arrays


def scalar_codes(num_frames, num_bins=64, seed=0):
    """Scalar codes (Q, T) with an envelope that wanders and magnitudes that follow it."""
    rng = np.random.default_rng(seed)
    levels = np.cumsum(rng.integers(-1, 2, (num_frames, layout.NUM_BANDS)), axis=0) - 9
    scale = np.repeat(2.0 ** rng.integers(-3, 3, (num_frames, 8)), num_bins // 8, axis=1)
    coefficients = np.fix(rng.integers(-300, 301, (num_frames, num_bins)) / 200 * scale)
    head = np.full((num_frames, 1), -64), np.full((num_frames, 1), 16)
    return np.concatenate([*head, levels, coefficients], axis=1).T.astype(np.int32)


def pack(codes, codebook_size, model=None, **fields):
    fields = dict(sample_rate=16000, hop_length=160, fingerprint=b"jaxcodec", block_frames=500) | fields
    fields.setdefault("num_samples", fields["hop_length"] * max(codes.shape[-1] - 1, 0))
    return container.pack(codes, codebook_size=codebook_size, entropy_model=model, **fields)


def good_files(seed=0):
    """One file or more of every kind: both codings, mixed blocks, one block, many, no frames, odd sizes."""
    rng = np.random.default_rng(seed)
    model = entropy.fit(
        [markov_codes(rng, 4, 400, 20) for _ in range(4)], 20, num_states=8, num_clusters=8, iterations=4
    )
    shapes = [(1, 1, 500), (4, 30, 7), (4, 101, 25), (3, 60, 60), (4, 0, 500), (2, 333, 50), (4, 600, 100)]
    files = []
    for num_codebooks, num_frames, block_frames in shapes:
        codes = markov_codes(rng, num_codebooks, num_frames, 20)
        files += [Good(pack(codes, 20, m, block_frames=block_frames), codes, m) for m in (None, model)]
    mixed = np.concatenate([markov_codes(rng, 4, 60, 20), rng.integers(0, 20, (4, 60))], axis=1)
    files.append(Good(pack(mixed, 20, model, block_frames=20), mixed, model))
    speech_like = rng.integers(0, 1024, (8, 101))
    files.append(Good(pack(speech_like, 1024), speech_like, None))
    signed = dict(kind="toy", least_code=-40, block_frames=50)
    for density, num_frames in ((0.5, 170), (0.01, 171)):  # of one header each: their blocks are told apart by it
        shape = 9, num_frames
        codes = np.where(rng.random(shape) < density, rng.integers(-40, 40, shape), 0)
        files += [Good(pack(codes, 80, m, **signed), codes, m) for m in (None, Sparse())]
    priors = (
        prior.PriorModel.from_arrays(prior_weights(width=4)),
        checkerboard.CheckerboardModel(checkerboard_weights(width=4)),
    )
    for learned, num_frames, block_frames in ((priors[0], 40, 9), (priors[0], 25, 50), (priors[1], 41, 9)):
        codes = scalar_codes(num_frames)
        fields = dict(kind="scalar", least_code=-(2**15), block_frames=block_frames)
        files.append(Good(pack(codes, 2**16, learned, **fields), codes, learned))
    files.append(Good(pack(codes := scalar_codes(60, 320), 2**16, Sparse(), **PRESET), codes, Sparse()))
    return files


def assemble(head, fields, entries, payloads):
    """A file of these parts, whatever they say, with the CRCs that go with them."""
    head = head + b"".join(container._varint(value) for value in [*fields, *entries])
    header_crc = zlib.crc32(head)
    body = b""
    for number, payload in enumerate(payloads):
        body += payload + container._block_crc(header_crc, number, payload).to_bytes(4, "little")
    return head + header_crc.to_bytes(4, "little") + body


def take_apart(data):
    """The arguments of `assemble`."""
    layout = container._parse(data)
    entries = [2 * block.size + block.coded for block in layout.blocks]
    payloads = [data[block.offset : block.offset + block.size] for block in layout.blocks]
    header = layout.header
    start = 14 + {1: 0, 2: 1 + len(header.kind), 3: 1}[header.version] + 4 * (header.entropy_digest is not None)
    return data[:start], list(container._numbers(header).values()), entries, payloads


def flip_bits(random, data, _):
    data = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


def set_bytes(random, data, _):
    data, start = bytearray(data), random.randrange(len(data))
    for i in range(start, min(start + random.choice([1, 2, 8, 64]), len(data))):
        data[i] = random.choice([0, 0x7F, 0x80, 0xFF, random.randrange(256)])
    return bytes(data)


def insert(random, data, _):
    at = random.randrange(len(data) + 1)
    return data[:at] + random.randbytes(random.choice([1, 2, 4, 100])) + data[at:]


def delete(random, data, _):
    at = random.randrange(len(data))
    return data[:at] + data[at + random.choice([1, 2, 4, 100]) :]


def cut(random, data, _):
    return data[: random.randrange(len(data))]


def swap_blocks(random, data, _):
    layout = container._parse(data)
    if len(layout.blocks) < 2:
        return flip_bits(random, data, _)
    first, second = sorted(random.sample(layout.blocks, 2))
    a, b = (data[block.offset : block.offset + block.size + 4] for block in (first, second))
    return data[: first.offset] + b + data[first.offset + len(a) : second.offset] + a + data[second.offset + len(b) :]


def splice(random, data, other):
    at = random.randrange(len(data))
    return data[:at] + other[random.choice([at, random.randrange(len(other))]) :]


def garbage(random, data, _):
    return random.choice([b"", container.MAGIC, data[:6]]) + random.randbytes(random.choice([0, 1, 30, 3000]))


def edit_fields(random, data, _):
    head, fields, entries, payloads = take_apart(data)
    for _ in range(random.choice([1, 1, 2, 3])):
        values = [
            0,
            1,
            2,
            255,
            256,
            65535,
            65536,
            2**31,
            2**32,
            2**48,
            2**62,
            random.getrandbits(random.randrange(1, 63)),
        ]
        field = random.randrange(len(fields))
        fields[field] = random.choice([*values, fields[field] + 1, max(fields[field] - 1, 0), fields[field] * 2])
    return assemble(head, fields, entries, payloads)


def edit_index(random, data, _):
    head, fields, entries, payloads = take_apart(data)
    for _ in range(random.choice([1, 1, 3])):
        choice = random.randrange(4)
        if choice == 0 or not entries:
            entries.insert(random.randrange(len(entries) + 1), random.choice([0, 1, 3, 200, 2**40]))
        elif choice == 1:
            entries.pop(random.randrange(len(entries)))
        else:
            at = random.randrange(len(entries))
            entries[at] = random.choice([entries[at] ^ 1, entries[at] + 2, max(entries[at] - 2, 0), 0, 2**62])
    return assemble(head, fields, entries, payloads)


def edit_payload(random, data, other):
    head, fields, entries, payloads = take_apart(data)
    for i in range(len(payloads)):
        if random.random() < 0.5:
            payloads[i] = (
                flip_bits(random, payloads[i], other) if random.random() < 0.5 else random.randbytes(len(payloads[i]))
            )
    return assemble(head, fields, entries, payloads)


def ask_for_much(random, data, _):
    """A file whose fields agree with each other and promise far more than the data holds."""
    head, _, _, payloads = take_apart(data)
    fields = container._numbers(container._parse(data).header)
    much = {
        "hop_length": random.choice([1, 160]),
        "num_samples": random.choice([10**4, 10**6, 10**9, 2**40, 2**48]),
        "extra_frames": 0,
        "num_codebooks": random.choice([4, 256]),
        "block_frames": 65535,
        "codebook_size": random.choice([fields.get("codebook_size"), 65536]),
    }
    fields |= {name: value for name, value in much.items() if name in fields}  # a preset says the others
    num_blocks = -(-much["num_samples"] // much["hop_length"] // 65535)
    size = random.choice([10**5, 2 * 10**6, 65535 * 256 * 2, 2**50])
    entries = [2 * size + random.randrange(2) for _ in range(min(num_blocks, 2000))]
    return assemble(head, fields.values(), entries, payloads)


BLIND = [flip_bits, set_bytes, insert, delete, cut, swap_blocks, splice, garbage]
SEALED = [edit_fields, edit_index, edit_payload, ask_for_much]


def outcome(data, model, errors):
    """What `unpack` makes of it: an `Unpacked` or the `BitstreamError`. Any other exception is a finding."""
    try:
        return container.unpack(data, model, errors=errors)
    except container.BitstreamError as error:
        refusal = error
    assert "\n" not in str(refusal) and type(refusal) is not container.BitstreamError, repr(refusal)
    return refusal


def head_of(data):
    """Header and index with their CRC."""
    layout = container._parse(data)
    return data[: layout.blocks[0].offset if layout.blocks else layout.end]


def check_blind(data, good, goods, strict, lenient):
    """Only the original comes out whole; what is reported damaged is what was changed."""
    if isinstance(strict, container.Content):
        assert any(data == g.data and np.array_equal(strict.codes, g.codes) for g in goods), "damage went unnoticed"
    if isinstance(lenient, container.Content):
        origin = next(g for g in [good, *goods] if data.startswith(head_of(g.data)))
        layout = container._parse(origin.data)
        changed = []
        for number, block in enumerate(layout.blocks):
            here = slice(block.offset, block.offset + block.size + 4)
            start, stop = layout.header.block_range(number)
            if data[here] != origin.data[here]:
                changed.append((start, stop))
                assert not lenient.codes[:, start:stop].any(), "a damaged block is not zeros"
            else:
                assert np.array_equal(lenient.codes[:, start:stop], origin.codes[:, start:stop]), (
                    "a whole block differs"
                )
        assert lenient.damaged == changed, f"reported {lenient.damaged}, changed {changed}"


def memory() -> float:
    """The most bytes of memory that this process has had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run(cases, seed, goods=None):
    """Counts of outcomes by mutation. Raises `AssertionError` that names the case, to be run again by its seed."""
    goods = goods or good_files()
    counts = collections.Counter()
    for good in goods:
        outcome(good.data, good.model, "raise")
    before = memory()
    try:
        for case in range(cases):
            rng = random.Random(f"{seed}/{case}")
            good, other = rng.choice(goods), rng.choice(goods)
            mutation = rng.choice(BLIND + SEALED)
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
            data = mutation(rng, good.data, other.data)
            started = time.thread_time()
            try:
                results = [outcome(data, good.model, errors) for errors in ("raise", "report")]
                more, seconds = memory() - before, time.thread_time() - started
                assert more < MEMORY_LIMIT, f"{more / 2**20:.0f} MB"
                assert seconds < SECONDS_LIMIT, f"{seconds:.1f} s"
                if mutation in BLIND:
                    check_blind(data, good, goods, *results)
            except Exception as error:
                raise AssertionError(f"case {case} of seed {seed}, {mutation.__name__}: {error!r}") from error
            for errors, result in zip(("raise", "report"), results, strict=True):
                name = type(result).__name__
                if isinstance(result, container.Content):
                    name = "damage reported" if result.damaged else "decoded"
                counts[mutation.__name__, errors, name] += 1
            counts["MB more"] = max(counts["MB more"], round(more / 2**20, 1))
            counts["slowest s"] = max(counts["slowest s"], round(seconds, 3))
    finally:
        faulthandler.cancel_dump_traceback_later()
    return counts


def main():
    """A long run; a case that hangs ends it, with the line where it does."""
    from tests import fuzz_models

    kinds = {"container": run} | {kind: functools.partial(fuzz_models.run, kind) for kind in fuzz_models.KINDS}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20000, help="cases of each kind of file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=kinds)
    arguments = parser.parse_args()
    for kind in [arguments.kind] if arguments.kind else kinds:
        print(f"{kind}, {arguments.count} cases of seed {arguments.seed}")
        for key, count in sorted(kinds[kind](arguments.count, arguments.seed).items(), key=str):
            print("  ", *(key if isinstance(key, tuple) else (key,)), count)


if __name__ == "__main__":
    main()
