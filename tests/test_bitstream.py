import dataclasses
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxcodec.bitstream import checkerboard, container, entropy, prior
from tests import fuzz_bitstream
from tests.fuzz_bitstream import Sparse, assemble, markov_codes, pack, take_apart

GOLDEN = Path(__file__).parent / "golden"
K = 20


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    return entropy.fit(
        [markov_codes(rng, 4, 400, K) for _ in range(4)],
        K,
        num_states=20,
        num_clusters=21,
        state_smoothing=20.0,
        weight_smoothing=5.0,
    )


@pytest.fixture
def codes():
    return markov_codes(np.random.default_rng(1), 4, 101, K)


@pytest.fixture(params=["fixed width", "entropy coded"])
def either(request, model):
    """Without and with an entropy model."""
    return None if request.param == "fixed width" else model


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(0, 70), st.integers(2, 65536), st.integers(1, 80), st.integers(0, 2**32))
def test_any_codes_come_back_at_fixed_width(num_codebooks, num_frames, codebook_size, block_frames, seed):
    codes = np.random.default_rng(seed).integers(0, codebook_size, (num_codebooks, num_frames))
    codes.flat[:1] = codebook_size - 1
    unpacked = container.unpack(pack(codes, codebook_size, block_frames=block_frames))
    assert unpacked.codes.dtype == np.uint16 and unpacked.damaged == []
    np.testing.assert_array_equal(unpacked.codes, codes)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(0, 70), st.integers(1, 80), st.floats(0, 1), st.integers(0, 2**32))
def test_any_codes_come_back_with_an_entropy_model(model, num_codebooks, num_frames, block_frames, stay, seed):
    codes = markov_codes(np.random.default_rng(seed), num_codebooks, num_frames, K, stay)
    data = pack(codes, K, model, block_frames=block_frames)
    np.testing.assert_array_equal(container.unpack(data, model).codes, codes)
    assert len(data) <= len(pack(codes, K, block_frames=block_frames))


def test_the_header_says_what_was_packed(codes, model):
    data = pack(
        codes, K, model, sample_rate=44100, hop_length=441, num_samples=44099, fingerprint=b"12345678", block_frames=50
    )
    assert container.read_header(data) == container.Header(
        version=1,
        fingerprint=b"12345678",
        entropy_digest=model.digest[:4],
        sample_rate=44100,
        hop_length=441,
        num_samples=44099,
        num_codebooks=4,
        codebook_size=K,
        num_frames=101,
        block_frames=50,
        coding=1,
    )
    header = container.read_header(data)
    assert (header.num_blocks, header.code_bits, header.extra_frames) == (3, 5, 1)
    assert header.seconds == pytest.approx(44099 / 44100)
    assert header.bits_per_second == pytest.approx(100 * 4 * np.log2(K))


def test_a_second_at_8_kbit_per_second_stays_within_10_percent_of_the_nominal_size():
    codes = np.random.default_rng(0).integers(0, 1024, (8, 101))
    data = pack(codes, 1024, num_samples=16000)
    header = container.read_header(data)
    assert header.bits_per_second / 8 == 1000 and len(data) == 1010 + 36


def test_everything_that_is_not_a_code_takes_at_most_64_bytes_in_a_short_file(model):
    widest = dict(sample_rate=2**32 - 1, hop_length=2**32 - 1, num_samples=2**48, block_frames=2**16 - 1)
    codes = np.zeros((4, -(-(2**48) // (2**32 - 1)) + 16), int)[:, :65535]
    widest["num_samples"] = (codes.shape[1] - 16) * widest["hop_length"]
    data = pack(codes, K, model, **widest)
    coded = len(model.encode(codes))
    assert len(data) - max(coded, -(-codes.size // 64)) <= 64


@pytest.mark.parametrize(("codebook_size", "bits"), [(2, 1), (3, 2), (1000, 10), (1024, 10), (1025, 11), (65536, 16)])
def test_fixed_width_is_log2_of_the_codebook_size_rounded_up(codebook_size, bits):
    codes = np.random.default_rng(0).integers(0, codebook_size, (8, 100))
    assert len(pack(codes, codebook_size)) - len(pack(codes[:, :0], codebook_size)) == 100 * bits + 4 + 2 + 1


def test_a_clip_without_samples_is_a_file_without_blocks(either):
    data = pack(np.zeros((4, 0), int), K, either, num_samples=0)
    header, codes, damaged = container.unpack(data, either)
    assert codes.shape == (4, 0) and header.num_frames == header.num_samples == 0 and damaged == [] and len(data) < 40


def test_an_entropy_model_makes_files_smaller_and_never_larger(codes, model):
    noise = np.random.default_rng(0).integers(0, K, codes.shape)
    assert len(pack(codes, K, model)) < 0.7 * len(pack(codes, K))
    assert pack(noise, K, model) == pack(noise, K)


def test_each_block_takes_the_smaller_of_both_codings(codes, model):
    noise = np.random.default_rng(0).integers(0, K, (4, 25))
    mixed = np.concatenate([codes[:, :25], noise, codes[:, 25:50]], axis=1)
    data = pack(mixed, K, model, block_frames=25)
    assert [block.coded for block in container._parse(data).blocks] == [True, False, True]
    np.testing.assert_array_equal(container.unpack(data, model).codes, mixed)


def test_codes_that_cost_almost_nothing_are_padded_to_what_a_reader_accepts():
    still = np.zeros((2, 3000), int)
    model = entropy.fit([still] * 3, K, num_states=2, num_clusters=2, weight_smoothing=0.01)
    data = pack(still, K, model, block_frames=3000)
    assert len(model.encode(still)) < 40 and container._parse(data).blocks[0].size == -(-6000 // 64)
    np.testing.assert_array_equal(container.unpack(data, model).codes, still)


@pytest.mark.parametrize("frames", [(0, 101), (0, 0), (101, 101), (0, 1), (100, 101), (24, 26), (25, 50), (13, 88)])
def test_a_range_of_frames_is_read_without_the_other_blocks(codes, either, frames):
    start, stop = frames
    data = bytearray(pack(codes, K, either, block_frames=25))
    layout = container._parse(bytes(data))
    for number, block in enumerate(layout.blocks):
        first, last = layout.header.block_range(number)
        if last <= start or first >= stop:
            data[block.offset] ^= 1  # would raise if it were read
    unpacked = container.unpack(bytes(data), either, start_frame=start, stop_frame=stop)
    np.testing.assert_array_equal(unpacked.codes, codes[:, start:stop])


@pytest.mark.parametrize("frames", [(-1, 5), (5, 4), (0, 102)])
def test_frames_outside_the_file_are_refused(codes, frames):
    with pytest.raises(ValueError, match="of a file with 101 frames"):
        container.unpack(pack(codes, K), start_frame=frames[0], stop_frame=frames[1])


def test_a_damaged_block_raises_with_its_number_and_frames_or_is_reported(codes, either):
    data = bytearray(pack(codes, K, either, block_frames=25))
    data[container._parse(bytes(data)).blocks[2].offset + 3] ^= 0x10
    with pytest.raises(
        container.DamagedBlock, match=r"block 2 \(frames 50 to 74\) is damaged: .* CRC.*report"
    ) as caught:
        container.unpack(bytes(data), either)
    assert (caught.value.block, caught.value.start_frame, caught.value.stop_frame) == (2, 50, 75)
    _, read, damaged = container.unpack(bytes(data), either, errors="report")
    assert damaged == [(50, 75)]
    expected = codes.copy()
    expected[:, 50:75] = 0
    np.testing.assert_array_equal(read, expected)
    _, read, damaged = container.unpack(bytes(data), either, start_frame=60, stop_frame=80, errors="report")
    assert damaged == [(60, 75)]
    np.testing.assert_array_equal(read, expected[:, 60:80])


def test_files_read_together_are_what_they_are_alone_and_the_model_is_asked_once(codes, model, monkeypatch):
    whole = [pack(codes[:count], K, model, block_frames=25) for count in (2, 4, 2)]
    flipped = bytearray(whole[2])
    flipped[container._parse(whole[2]).blocks[1].offset] ^= 1
    given = [whole[0], whole[1], b"nothing", pack(codes, K), bytes(flipped), whole[0][:-30], whole[1] + b"more"]
    asked, decode_blocks = [], entropy.EntropyModel.decode_blocks

    def counted(self, blocks, num_codebooks, sizes):
        asked.append((num_codebooks, len(blocks)))
        return decode_blocks(self, blocks, num_codebooks, sizes)

    monkeypatch.setattr(entropy.EntropyModel, "decode_blocks", counted)
    read = container.unpack_together(given, model)
    assert sorted(asked) == [(2, 4 + 3 + 2), (4, 4)]  # the last block of each, of one frame, is stored
    assert [content is None for content in read] == [False, False, True, False, False, False, True]
    for data, content in zip(given, read, strict=True):
        if content is not None:
            alone = container.unpack(data, model, errors="report")
            assert content.header == alone.header and content.damaged == alone.damaged
            np.testing.assert_array_equal(content.codes, alone.codes)
    assert [len(read[place].damaged) for place in (0, 4, 5)] == [0, 1, 3]
    assert container.unpack_together(whole, None) == [None] * 3 and container.unpack_together([], model) == []


@pytest.mark.parametrize("num_frames", [0, 20, 25, 49, 75, 101])
def test_a_file_is_the_same_in_pieces_and_at_once_where_its_last_block_is_coded_beside_the_others(
    codes, model, monkeypatch, num_frames
):
    given, sizes = np.tile(codes, 2)[:, :num_frames], []
    encode_blocks = entropy.EntropyModel.encode_blocks

    def noted(self, blocks):
        sizes.append([block.shape[1] for block in blocks])
        return encode_blocks(self, blocks)

    monkeypatch.setattr(entropy.EntropyModel, "encode_blocks", noted)
    at_once = pack(given, K, model, block_frames=25)
    assert sizes == ([[25] * (num_frames // 25) + [num_frames % 25] * (num_frames % 25 > 0)] if num_frames else [])
    packer = container.Packer._like(container._parse(at_once).header, model)
    for start in range(0, num_frames, 13):
        packer.add(given[:, start : start + 13], last=start + 13 >= num_frames)
    assert packer.finish(container._parse(at_once).header.num_samples) == at_once
    np.testing.assert_array_equal(container.unpack(at_once, model).codes, given)


def test_blocks_that_change_places_or_come_from_another_file_are_damaged(codes):
    data, other = pack(codes, K, block_frames=25), pack((codes + 1) % K, K, block_frames=25, fingerprint=b"anything")
    first, second = container._parse(data).blocks[:2]
    a, b = (slice(block.offset, block.offset + block.size + 4) for block in (first, second))
    swapped = data[: a.start] + data[b] + data[a] + data[b.stop :]
    assert len(swapped) == len(data)
    assert container.unpack(swapped, errors="report").damaged == [(0, 25), (25, 50)]
    foreign = data[: b.start] + other[b] + data[b.stop :]
    assert container.unpack(foreign, errors="report").damaged == [(25, 50)]


def test_every_single_flipped_bit_is_noticed(codes, either):
    data = pack(codes[:, :12], K, either, block_frames=5)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(container.BitstreamError):
            container.unpack(bytes(flipped), either)


def test_data_that_ends_anywhere_is_truncated_and_its_whole_blocks_can_be_read(codes, either):
    data = pack(codes[:, :12], K, either, block_frames=5)
    blocks = container._parse(data).blocks
    assert len(blocks) == 3
    for size in range(len(data)):
        with pytest.raises(container.NotABitstream if size == 0 else container.TruncatedBitstream):
            container.unpack(data[:size], either)
        if size >= blocks[0].offset:
            whole = sum(block.offset + block.size + 4 <= size for block in blocks)
            header, read, damaged = container.unpack(data[:size], either, errors="report")
            assert container.read_header(data[:size]) == header
            assert damaged == [(0, 5), (5, 10), (10, 12)][whole:]
            np.testing.assert_array_equal(read[:, : 5 * whole], codes[:, : 5 * whole])


def test_bytes_after_the_last_block_are_an_error(codes):
    with pytest.raises(container.TrailingData, match="3 bytes after the last block"):
        container.unpack(pack(codes, K) + b"abc", errors="report")


def test_other_files_other_versions_and_other_codings_are_refused_by_name(codes):
    data = bytearray(pack(codes, K))
    for start in (b"RIFF", b"fLaC", b""):
        with pytest.raises(container.NotABitstream, match="89 4a 58 43"):
            container.unpack(start and start + bytes(data[4:]))
    data[4] = 4
    with pytest.raises(container.UnsupportedVersion, match="version 4, this reader knows versions 1 to 3: update"):
        container.read_header(bytes(data))
    data[4:7] = 3, 0, len(container.PRESETS)
    with pytest.raises(container.UnsupportedVersion, match="preset 2, this reader knows 2: update"):
        container.read_header(bytes(data))
    data[4:6] = 1, 7
    with pytest.raises(container.UnsupportedVersion, match="coding 7"):
        container.read_header(bytes(data))


def test_a_coded_file_asks_for_its_own_entropy_model(codes, model):
    data = pack(codes, K, model)
    name = model.digest[:4].hex()
    with pytest.raises(container.MissingEntropyModel, match=f"tables {name}, and none given"):
        container.unpack(data)
    other = dataclasses.replace(model, weights=model.weights[:, ::-1].copy())
    with pytest.raises(container.WrongEntropyModel, match=f"model {name}, the given one is {other.digest[:4].hex()}"):
        container.unpack(data, other)
    head, fields, entries, payloads = take_apart(data)
    fields[list(container._LIMITS).index("codebook_size")] = 32
    with pytest.raises(container.WrongEntropyModel, match="4 codebooks of 20, the file has 4 codebooks of 32"):
        container.unpack(assemble(head, fields, entries, payloads), model)


def test_every_error_is_a_bitstream_error_and_a_value_error():
    names = "NotABitstream UnsupportedVersion TruncatedBitstream TrailingData DamagedHeader DamagedBlock "
    for name in (names + "MissingEntropyModel WrongEntropyModel").split():
        assert issubclass(getattr(container, name), container.BitstreamError)
    assert issubclass(container.BitstreamError, ValueError)


@pytest.mark.parametrize("errors", ["raise", "report"])
@pytest.mark.parametrize("coded", [0, 1])
@pytest.mark.parametrize("num_samples", [10**7, 2**48])
def test_a_header_that_claims_more_than_the_data_holds_costs_no_memory(codes, model, errors, coded, num_samples):
    head, fields, _, payloads = take_apart(pack(codes, K, model))
    names = list(container._LIMITS)
    claims = dict(hop_length=1, num_samples=num_samples, extra_frames=0, num_codebooks=256, block_frames=65535)
    for name, value in claims.items():
        fields[names.index(name)] = value
    num_blocks = min(-(-num_samples // 65535), 1000)
    sizes = [-(-256 * min(65535, num_samples - 65535 * i) // 64) for i in range(num_blocks)]
    data = assemble(head, fields, [2 * size + 1 if coded else 2 * 40 * size for size in sizes], payloads)
    tracemalloc.start()
    try:
        with pytest.raises(container.TruncatedBitstream):
            container.unpack(data, model, errors=errors)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_consistent_crc_does_not_excuse_an_impossible_value(codes, model):
    parts = take_apart(pack(codes, K, model, block_frames=25))
    names = list(container._LIMITS)

    def altered(field=None, value=None, entry=None):
        head, fields, entries, payloads = parts[0], list(parts[1]), list(parts[2]), parts[3]
        if field:
            fields[names.index(field)] = value
        if entry is not None:
            entries[0] = entry
        return assemble(head, fields, entries, payloads)

    assert container.unpack(altered(), model).damaged == []
    for field, (least, most) in container._LIMITS.items():
        for value in {max(least - 1, 0), most + 1} - {0 if least == 0 else None}:
            with pytest.raises(container.DamagedHeader, match=f"{field} = {value}, expected {least} to {most}"):
                container.unpack(altered(field, value), model)
    for entry in (0, 1, 2 * 10**6, 2 * 10**6 + 1, parts[2][0] ^ 1):
        with pytest.raises(container.DamagedHeader, match="block 0"):
            container.unpack(altered(entry=entry), model)
    fixed = take_apart(pack(codes, K))
    with pytest.raises(container.DamagedHeader, match=r"block 0 .* entropy coded"):
        container.unpack(assemble(*fixed[:2], [2 * 100 + 1], fixed[3]), model)
    payload = b"\xff" * (len(fixed[3][0]) - 1)
    with pytest.raises(container.DamagedBlock, match="codes 31 to 31, expected 0 to 19"):
        container.unpack(assemble(*fixed[:3], [payload + b"\xf0"]))
    with pytest.raises(container.DamagedBlock, match="the bits after its last code are not zero"):
        container.unpack(assemble(*fixed[:3], [fixed[3][0][:-1] + bytes([fixed[3][0][-1] | 1])]))


def test_a_number_in_more_bytes_than_it_needs_is_damage(codes):
    data = pack(codes, K)
    assert data[14:17] == b"\x80\x7d\xa0"  # sample_rate 16000 in two bytes, then hop_length
    longer = data[:15] + b"\xfd\x00" + data[16:]
    with pytest.raises(container.DamagedHeader, match="ends at byte 17 is not in its shortest form"):
        container.read_header(longer)


@pytest.mark.parametrize("num_codebooks", [1, 3, 4])
def test_a_truncated_file_is_the_file_of_the_first_codebooks(codes, either, num_codebooks):
    data = pack(codes, K, either, block_frames=25)
    assert container.truncate(data, num_codebooks, either) == pack(codes[:num_codebooks], K, either, block_frames=25)


def test_a_file_cannot_be_truncated_to_codebooks_it_does_not_have(codes):
    for num_codebooks in (0, 5):
        with pytest.raises(ValueError, match=f"cannot keep {num_codebooks} of 4"):
            container.truncate(pack(codes, K), num_codebooks)


def test_what_cannot_be_written_is_refused_before_it_is(codes, model):
    cases = [
        (codes.astype(float), {}, r"integers of shape \(Q, T\), got float64"),
        (codes[0], {}, r"shape \(101,\)"),
        (codes - 1, {}, r"in \[0, 20\), got -1 to 18"),
        (codes, dict(fingerprint=b"short"), "8 bytes, got 5"),
        (codes, dict(num_samples=16161), "extra_frames = -1, expected 0 to 16"),
        (codes, dict(num_samples=84 * 160), "extra_frames = 17"),
        (codes, dict(hop_length=0), "hop_length = 0"),
        (codes, dict(block_frames=0), "block_frames = 0"),
        (codes[:0], {}, "num_codebooks = 0"),
        (np.zeros((5, 101), int), dict(model=model), "for 4 codebooks of 20, the codes are 5 codebooks of 20"),
    ]
    for given_codes, fields, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            pack(given_codes, K, **fields)
        assert not isinstance(caught.value, container.BitstreamError)
    with pytest.raises(ValueError, match="errors is 'ignore'"):
        container.unpack(pack(codes, K), errors="ignore")


def test_crc_32_is_the_one_of_zip_and_png():
    assert zlib.crc32(b"123456789") == 0xCBF43926


def test_seeded_mutations_are_refused_reported_or_harmless():
    counts = fuzz_bitstream.run(400, seed=1)
    outcomes = {key[2] for key in counts if isinstance(key, tuple)}
    assert {"DamagedHeader", "DamagedBlock", "TruncatedBitstream", "TrailingData", "damage reported"} <= outcomes


def test_the_fuzzer_notices_a_reader_that_skips_its_checks(monkeypatch):
    monkeypatch.setattr(container, "_block_crc", lambda header_crc, number, payload: 0)
    goods = fuzz_bitstream.good_files()
    with pytest.raises(AssertionError, match="damage went unnoticed"):
        fuzz_bitstream.run(400, seed=1, goods=goods)


def golden_model():
    """An entropy model whose every number follows from its position, for two codebooks of 8."""
    state, code = np.mgrid[:3, :8]
    return entropy.EntropyModel(
        links=np.array([[[-1, 0], [0, -1]], [[0, 0], [1, -1]]], np.int16),
        clusters=np.stack([[np.arange(9) % 4, np.arange(9) // 3]] * 2).astype(np.uint8),
        transitions=(np.arange(2 * 2 * 3 * 4).reshape(2, 2, 3, 4) % 3).astype(np.uint8),
        weights=np.stack([65535 >> code * (state + 1) // 2, 65535 >> code * (3 - state) // 2]).astype(np.uint16),
    )


def golden_codes(num_frames):
    """Codes (2, num_frames) below 8: mostly zeros, but for frames 16 to 31, which use all of them."""
    frame = np.arange(2 * num_frames).reshape(2, num_frames)
    codes = frame * frame % 11 % 8 * (frame % 9 == 0)
    codes[:, 16:32] = (frame * 5 % 8)[:, 16:32]
    return codes


def golden_sparse():
    """Codes (2, 64) from -4 to 3, one in nine not zero."""
    return np.where(golden_codes(64) > 0, golden_codes(64) - 4, 0) * (np.arange(64) % 9 == 0)


def golden_prior():
    return prior.PriorModel(fuzz_bitstream.prior_weights(num_bins=320, width=8))


def golden_checkerboard():
    return checkerboard.CheckerboardModel(fuzz_bitstream.checkerboard_weights(num_bins=320, width=8))


def golden_files():
    """Name, codes and arguments of the files in tests/golden, each exactly what `pack` makes of them.

    A changed byte is a changed format: add to VERSIONS, keep the old files readable, add new ones here. To write a file
    anew: `(GOLDEN / name).write_bytes(pack(codes, **{"codebook_size": 8} | arguments))`.
    """
    return {
        "fixed.jxc": (golden_codes(21), dict(num_samples=3200)),
        "coded.jxc": (golden_codes(64), dict(num_samples=64 * 160, model=golden_model())),
        "blocks.jxc": (golden_codes(50), dict(num_samples=7999, hop_length=160, model=golden_model(), block_frames=16)),
        "empty.jxc": (golden_codes(0), dict(num_samples=0)),
        "signed.jxc": (golden_codes(21) - 3, dict(num_samples=3200, kind="toy", least_code=-3)),
        "sparse.jxc": (golden_sparse(), dict(num_samples=64 * 160, kind="toy", least_code=-4, model=Sparse())),
        "scalar.jxc": (
            fuzz_bitstream.scalar_codes(40, 320),
            dict(num_samples=12479, codebook_size=2**16, model=golden_prior()) | fuzz_bitstream.PRESET,
        ),
        "checkerboard.jxc": (
            fuzz_bitstream.scalar_codes(40, 320),
            dict(num_samples=12479, codebook_size=2**16, model=golden_checkerboard()) | fuzz_bitstream.PRESET,
        ),
    }


@pytest.mark.parametrize("name", golden_files())
def test_golden_files_are_written_byte_for_byte_and_read_back(name):
    codes, arguments = golden_files()[name]
    golden = (GOLDEN / name).read_bytes()
    assert pack(codes, **{"codebook_size": 8} | arguments) == golden
    unpacked = container.unpack(golden, arguments.get("model"))
    np.testing.assert_array_equal(unpacked.codes, codes)
    assert unpacked.header.num_samples == arguments["num_samples"]


def test_golden_files_cover_both_codings():
    coded = {name: [b.coded for b in container._parse((GOLDEN / name).read_bytes()).blocks] for name in golden_files()}
    assert coded["fixed.jxc"] == [False] and coded["coded.jxc"] == [True] and coded["empty.jxc"] == []
    assert coded["blocks.jxc"] == [True, False, True, True]
    assert coded["signed.jxc"] == [False] and coded["sparse.jxc"] == coded["scalar.jxc"] == [True]


def test_version_3_says_by_a_number_what_version_2_spells_out():
    codes, model = fuzz_bitstream.scalar_codes(40, 320), Sparse()
    short = pack(codes, 2**16, model, **fuzz_bitstream.PRESET)
    spelled = pack(codes, 2**16, model, **fuzz_bitstream.PRESET | dict(block_frames=251))
    assert (short[4], spelled[4]) == (3, 2) and len(spelled) - len(short) == len("6scalar") + 2 + 2 + 2 + 3 + 2 + 3 - 1
    headers = [container.read_header(data) for data in (short, spelled)]
    assert headers[0] == dataclasses.replace(headers[1], version=3, block_frames=250)
    for data in (short, spelled):
        np.testing.assert_array_equal(container.unpack(data, model).codes, codes)
    other = pack(codes, 2**16, model, **fuzz_bitstream.PRESET | dict(block_frames=64))
    assert (other[4], other[6]) == (3, 1) and container.read_header(other).block_frames == 64
    np.testing.assert_array_equal(container.unpack(other, model).codes, codes)
    smaller = container.truncate(short, 8, model)  # what the number says does not hold for it
    assert smaller[4] == 2
    np.testing.assert_array_equal(container.unpack(smaller, model).codes, codes[:8])


def test_version_2_names_its_kind_and_takes_signed_and_sparse_codes():
    silence = np.zeros((90, 400), np.int32)
    silence[7, 300], silence[89, 399] = -40, 39
    model = fuzz_bitstream.Sparse()
    data = pack(silence, 80, model, kind="scalar", least_code=-40)
    header = container.read_header(data)
    assert (header.version, header.kind, header.least_code, header.coding) == (2, "scalar", -40, 200)
    assert header.bits_per_second is None
    assert len(data) < 90 * 400 // 1024 + 60  # a code in 1024 costs a byte, at the least
    unpacked = container.unpack(data, model)
    np.testing.assert_array_equal(unpacked.codes, silence)
    np.testing.assert_array_equal(container.unpack(data, model, start_frame=299, stop_frame=301).codes[7], [0, -40])
    smaller = container.truncate(data, 8, model)
    np.testing.assert_array_equal(container.unpack(smaller, model).codes, silence[:8])
    with pytest.raises(container.MissingEntropyModel):
        container.unpack(data)
    with pytest.raises(ValueError, match=r"codes must lie in \[-40, 40\), got -40 to 40"):
        pack(silence + 1 * (silence == 39), 80, kind="scalar", least_code=-40)
    for kind in ("", "x" * 17, "a\nb"):
        with pytest.raises(ValueError, match="the kind is"):
            pack(silence, 80, kind=kind, least_code=-40)
    with pytest.raises(
        ValueError, match="the entropy model is for signed codes of 16 bits, the codes are 2 codebooks of 8"
    ):
        pack(golden_codes(21), 8, model)


def test_most_nonsense_behind_a_right_crc_is_noticed_where_the_coder_ends():
    rng = np.random.default_rng(0)
    tables = entropy.fit(
        [markov_codes(rng, 4, 400, K) for _ in range(4)], K, num_states=8, num_clusters=8, iterations=4
    )
    learned = prior.PriorModel(fuzz_bitstream.prior_weights(width=4))
    checkers = checkerboard.CheckerboardModel(fuzz_bitstream.checkerboard_weights(width=4))
    scalar_codes = fuzz_bitstream.scalar_codes(12)
    for model, codes in ((tables, markov_codes(rng, 4, 60, K)), (learned, scalar_codes), (checkers, scalar_codes)):
        data, shape = model.encode(codes), codes.shape
        for size in (0, 1, 4, 9):  # zeros at the end do not count
            np.testing.assert_array_equal(model.decode(data + bytes(size), *shape), codes)
        with pytest.raises(entropy.DamagedCodes, match="it goes on after its last code"):
            model.decode(data + b"\x01\x02\x03\x04\x05\x06\x07\x08", *shape)
        nonsense = [rng.bytes(len(data)) for _ in range(150)]
        found = sum(
            isinstance(x, entropy.DamagedCodes) for x in model.decode_blocks(nonsense, shape[0], [shape[1]] * 150)
        )
        assert found > 0.8 * 150


def test_decoded_codes_beyond_the_range_of_the_header_are_a_damaged_block():
    codes = np.zeros((9, 60), np.int32)
    codes[3, 5] = 7
    head, fields, entries, payloads = take_apart(pack(codes, 80, Sparse(), kind="toy", least_code=-40))
    assert payloads[0][2:4] == b"\x07\x00"
    data = assemble(head, fields, entries, [payloads[0][:2] + b"\x28\x00" + payloads[0][4:]])
    with pytest.raises(container.DamagedBlock, match="codes 0 to 40, expected -40 to 39"):
        container.unpack(data, Sparse())
