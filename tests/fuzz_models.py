"""Seeded mutations of all that is read by way of a codec: models, .jxc files, shards of tokens. See `fuzz_bitstream`.

A `blind` mutation must be refused in one line, or have left what the file says as it was. A `sealed` one changes what it
says, with a checksum that is right or left out: any answer is legal but a crash, `SECONDS_LIMIT` of work, or `MEMORY_LIMIT`
of memory beyond what a good file takes.
"""

import collections
import faulthandler
import io
import json
import random
import tempfile
import time
from pathlib import Path

import numpy as np

from jaxcodec.bitstream import checkerboard, entropy
from jaxcodec.inference import files, pretrained, tokens
from jaxcodec.quantizers import layout
from tests import fuzz_bitstream, support, test_scalar

SECONDS_LIMIT = 30.0  # a network that could be is thought of before it is compared with the weights
VALUES = [
    0,
    -1,
    1,
    2,
    3,
    256.5,
    10**7,
    10**9,
    10**30,
    1e308,
    "",
    "8",
    "mdct",
    None,
    True,
    [],
    [1] * 60,
    [2, 4],
    {},
    {"a": 1},
]


def take_apart(data):
    """A safetensors file as its header, what the header says of a codec, and the bytes of the tensors."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    return header, json.loads(header["__metadata__"]["jaxcodec"]), data[8 + size :]


def assemble(header, codec, body):
    """The file of these parts, whatever they say."""
    text = json.dumps(header | {"__metadata__": {"jaxcodec": json.dumps(codec)}}).encode()
    return len(text).to_bytes(8, "little") + text + body


def with_recipe(data, path, value, *, remove=False):
    """The model file with one field of its recipe changed, added or removed, and without a checksum."""
    header, codec, body = take_apart(data)
    codec.pop("checksum", None)
    *sections, name = path.split(".")
    place = codec["config"]
    for section in sections:
        place = place[section]
    if remove:
        del place[name]
    else:
        place[name] = value
    return assemble(header, codec, body)


def edit_recipe(rng, data):
    header, codec, body = take_apart(data)
    codec.pop("checksum", None)
    for _ in range(rng.choice([1, 1, 2, 4]) if codec else 0):
        place = codec
        while True:
            name = rng.choice(sorted(place))
            if not isinstance(place[name], dict) or not place[name] or rng.random() < 0.05:
                break
            place = place[name]
        if rng.random() < 0.15:
            del place[name]
        else:
            new = name if rng.random() < 0.9 else rng.choice(["unknown", "mdct", "seanet", "scalar", "a.b", "\n"])
            old = place[name]
            near = [old + 1, old * 2, old * 1000] if type(old) in (int, float) else []
            place[new] = rng.choice([*VALUES, *near])
    return assemble(header, codec, body)


def edit_tensors(rng, data):
    """Other shapes, types, places and names of tensors."""
    header, codec, body = take_apart(data)
    codec.pop("checksum", None)
    for _ in range(rng.choice([1, 1, 3])):
        name = rng.choice(sorted(set(header) - {"__metadata__"}))
        tensor = header[name]
        choice = rng.randrange(4)
        if choice == 0:
            tensor["shape"] = rng.choice([[], [0], [2**62, 4], [-1], [1] * 40, tensor["shape"][::-1]])
        elif choice == 1:
            tensor["dtype"] = rng.choice(["F64", "F16", "I32", "BOOL", "BF16", "C64", "X", 3])
        elif choice == 2:
            tensor["data_offsets"] = [rng.choice([0, -1, 2**63, x, x + 4]) for x in tensor["data_offsets"]]
        else:
            header[rng.choice([name + "/a", "params", "a\nb", ""])] = header.pop(name)
    return assemble(header, codec, body)


def edit_length(rng, data):
    """Another length of the header."""
    size = rng.choice([0, 1, len(data), 2**31, 2**40, 2**63, 2**64 - 1, rng.getrandbits(64)])
    return size.to_bytes(8, "little") + data[8:]


def edit_weights(rng, data):
    """Weights that are large, or no numbers."""
    header, codec, body = take_apart(data)
    codec.pop("checksum", None)
    body = bytearray(body)
    for _ in range(rng.choice([1, 100])):
        at = 4 * rng.randrange(len(body) // 4)
        body[at : at + 4] = np.float32(rng.choice([np.nan, np.inf, -np.inf, 3e38, 0])).tobytes()
    return assemble(header, codec, bytes(body))


def edit_arrays(rng, data):
    """A shard of other arrays, with a digest that is theirs."""
    with np.load(io.BytesIO(data)) as shard:
        arrays = dict(shard)
    for _ in range(rng.choice([1, 2])):
        name = rng.choice(sorted(arrays))
        value = arrays[name]
        arrays[name] = rng.choice(
            [value[:-1] if value.ndim else value, value[None], value.astype(str), np.array(7), -value]
            if value.dtype.kind in "iu"
            else [value[None], np.zeros(3)]
        )
    if rng.random() < 0.2:
        del arrays[rng.choice(sorted(arrays))]
    file = io.BytesIO()
    np.savez(file, **arrays | {"digest": np.array(tokens._digest(arrays))})
    return file.getvalue()


def model():
    """The file of a tiny codec, and how it is read."""

    def read(path):
        codec = pretrained.load(path)
        return codec.fingerprint, codec.entropy and codec.entropy.digest

    return pretrained.to_bytes(_with_tables()), read


def _with_tables():
    """A tiny codec of codebooks with an entropy model."""
    codec, rng = support.untrained_codec(), np.random.default_rng(0)
    codes = fuzz_bitstream.markov_codes(rng, codec.num_codebooks, 901, codec.codebook_size)
    tables = entropy.fit([codes], codec.codebook_size, num_states=4, num_clusters=4, iterations=2)
    return codec.replace(entropy=tables)


def tokens_jxc():
    """A file of codebooks."""
    codec = _with_tables()
    rng = np.random.default_rng(0)
    return _jxc(codec, fuzz_bitstream.markov_codes(rng, codec.num_codebooks, 901, codec.codebook_size))


def files_jxc(fast=False):
    """A file of scalar codes, by their prior."""
    config = test_scalar.small_config()
    state = support.make_state(support.make_model(config))
    codes = fuzz_bitstream.scalar_codes(80)
    codes[2 : layout.EXTRA] = codes[2 : layout.EXTRA].clip(-12, 4)
    beside = checkerboard.CheckerboardModel(fuzz_bitstream.checkerboard_weights(width=4))
    return _jxc(pretrained.make(state.params, state.quantizer, config, beside), codes, fast=fast)


def fast_jxc():
    """The same, by the prior that predicts many frames at once."""
    return files_jxc(fast=True)


def _jxc(codec, codes, **how):
    num_samples = int(codec.module.num_samples(codes.shape[1]))

    def read(path):
        return files.unpack(codec, path.read_bytes()).codes.tobytes()

    return files.pack(codec, codes, num_samples, **how), read


def shard():
    """A shard of three recordings."""
    rng = np.random.default_rng(0)
    arrays = dict(
        codes=rng.integers(0, 16, (4, 90)).astype(np.uint16),
        offsets=np.array([0, 20, 20, 90]),
        num_samples=np.array([300, 0, 1400]),
        names=np.array(["a.wav", "b/c.wav", "d.wav"]),
        failed=np.array(["e.wav"]),
        reasons=np.array(["e.wav: not audio"]),
        settings=np.array(json.dumps({"format": tokens.FORMAT})),
    )
    file = io.BytesIO()
    np.savez(file, **arrays, digest=np.array(tokens._digest(arrays)))
    return file.getvalue(), read_shard


def read_shard(path):
    """What a shard holds."""
    summary = tokens.read_summary(path)
    return summary, [(name, codes.tobytes(), samples) for name, codes, samples in tokens.load_shard(path)]


BLIND = [mutation for mutation in fuzz_bitstream.BLIND if mutation is not fuzz_bitstream.swap_blocks]
KINDS = {
    "model": (model, [edit_recipe, edit_tensors, edit_length, edit_weights]),
    "tokens.jxc": (tokens_jxc, fuzz_bitstream.SEALED),
    "files.jxc": (files_jxc, fuzz_bitstream.SEALED),
    "fast.jxc": (fast_jxc, fuzz_bitstream.SEALED),
    "shard": (shard, [edit_arrays]),
}


def mutate(mutation, rng, good):
    """What a mutation makes of a good file; those of `fuzz_bitstream` take another one beside it."""
    shared = mutation in fuzz_bitstream.BLIND + fuzz_bitstream.SEALED
    return mutation(rng, good, good) if shared else mutation(rng, good)


def outcome(read, path, expected):
    """What became of a file; an exception that is no `ValueError` of one line is a finding."""
    try:
        return "read" if read(path) == expected else "another"
    except ValueError as error:
        problem = str(error)
    assert "\n" not in problem and len(problem) < 600, problem
    return "refused"


def run(kind, count, seed):
    """Counts of outcomes by mutation. Raises `AssertionError` that names the case, to be run again by its seed."""
    make, sealed = KINDS[kind]
    (good, read), counts = make(), collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / kind
        path.write_bytes(good)
        expected = read(path)
        before = fuzz_bitstream.memory()
        for case in range(count):
            rng = random.Random(f"{kind}/{seed}/{case}")
            mutation = rng.choice(BLIND + sealed)
            path.write_bytes(mutate(mutation, rng, good))
            faulthandler.dump_traceback_later(fuzz_bitstream.HANG_SECONDS, exit=True)
            started = time.thread_time()
            try:
                result = outcome(read, path, expected)
                assert mutation in sealed or result != "another", "damage went unnoticed"
                seconds = time.thread_time() - started
                assert seconds < SECONDS_LIMIT, f"{seconds:.1f} s"
                more = fuzz_bitstream.memory() - before
                assert more < fuzz_bitstream.MEMORY_LIMIT, f"{more / 2**20:.0f} MB"
            except Exception as error:
                raise AssertionError(f"{kind} {case} of seed {seed}, {mutation.__name__}: {error!r}") from error
            finally:
                faulthandler.cancel_dump_traceback_later()
            counts[mutation.__name__, kind, result] += 1
            counts["MB more"] = max(counts["MB more"], round(more / 2**20, 1))
            counts["slowest s"] = max(counts["slowest s"], round(seconds, 2))
    return counts
