"""The transform coder: what its bytes hold, and at which rate."""

import numpy as np
import pytest

from benchmarks import transform_codec
from tests import support


def snr(clip, decoded):
    return 10 * np.log10(np.sum(clip**2.0) / np.sum((clip - decoded) ** 2.0))


@pytest.mark.parametrize("length", [1, 2, 399, 400, 401, 7777])
def test_the_bytes_alone_give_the_clip_at_its_exact_length(length):
    clip = support.speech_like(1, length)[0]
    coefficients = transform_codec.analyze(clip)
    decoded = transform_codec.decode(transform_codec.encode_at(coefficients, length, 160))
    assert decoded.shape == (length,) and decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, clip, atol=4 * transform_codec.step(160))


def test_the_decoder_has_the_values_that_the_encoder_chose():
    rng = np.random.default_rng(0)
    length = 20 * transform_codec.HOP_LENGTH
    envelope = 2.0 ** rng.integers(-3, 9, (21, transform_codec.HOP_LENGTH))  # some far above the last symbol
    scaled = np.rint(rng.laplace(size=envelope.shape) * envelope)
    data = transform_codec.encode_at(scaled * transform_codec.step(40), length, 40)
    quantized = transform_codec.analyze(transform_codec.decode(data)) / transform_codec.step(40)
    inner = slice(1, -1)  # the first and the last block have samples outside the clip
    assert np.abs(scaled).max() > 2 * transform_codec.NUM_SYMBOLS
    chosen = np.rint(quantized[inner])
    assert np.abs(quantized[inner] - chosen).max() < 0.5
    assert np.abs(chosen - scaled[inner]).max() <= 1


def test_the_transform_is_orthonormal_and_its_own_inverse():
    clip = support.speech_like(1, 5000)[0].astype(np.float64)
    coefficients = transform_codec.analyze(clip)
    assert np.sum(coefficients**2) == pytest.approx(np.sum(clip**2))
    np.testing.assert_allclose(transform_codec.synthesize(coefficients, 5000), clip, atol=1e-12)


def test_the_file_has_the_rate_asked_for_and_a_higher_rate_a_higher_snr():
    clip = support.speech_like(1, 32000)[0]
    snrs = []
    for kbps in (4, 8, 16, 32):
        data = transform_codec.encode(clip, 16000, kbps)
        assert 0.93 * kbps < 8e-3 * len(data) / 2 <= kbps
        snrs.append(snr(clip, transform_codec.decode(data)))
    assert np.all(np.diff(snrs) > 1)


def test_silence_takes_next_to_nothing_and_stays_silent():
    data = transform_codec.encode(np.zeros(16000, np.float32), 16000, 8)
    assert len(data) < 100
    assert not transform_codec.decode(data).any()


def test_a_clip_that_is_far_too_loud_for_its_step_still_comes_back():
    clip = np.full(2000, 1.0, np.float32)
    decoded = transform_codec.decode(transform_codec.encode_at(transform_codec.analyze(clip), 2000, 255))
    np.testing.assert_allclose(decoded, clip, atol=1e-2)
