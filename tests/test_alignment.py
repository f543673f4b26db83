"""Decoded clips moved to where their originals are."""

import numpy as np
import pytest

from jaxcodec.evaluation import alignment
from tests import support


def late(clip, lag):
    """A clip (S,) delayed by `lag` samples, any real number, by the phase of its spectrum."""
    spectrum = np.fft.rfft(np.pad(clip, 300))
    turned = spectrum * np.exp(-2j * np.pi * np.fft.rfftfreq(len(clip) + 600) * lag)
    return np.fft.irfft(turned, len(clip) + 600)[300:-300].astype(np.float32)


@pytest.mark.parametrize("lag", [-7, 0, 120, 0.75, -3.25])
def test_a_constant_lag_is_found_and_taken_out_to_a_fraction_of_a_sample(lag):
    clips = list(support.speech_like(3, 8000))
    aligned, found = alignment.align(clips, [late(clip, lag) for clip in clips])
    assert found == pytest.approx(lag, abs=0.01)
    for clip, moved in zip(clips, aligned, strict=True):
        np.testing.assert_allclose(moved[200:-200], clip[200:-200], atol=5e-3)


def test_the_lag_is_common_where_one_clip_would_mislead():
    clips = list(support.speech_like(3, 4000))
    decoded = [late(clip, 5) for clip in clips]
    decoded[1] = late(clips[1], 40) * 0.01  # level does not count
    assert alignment.common_lag(clips, decoded) == 5


@pytest.mark.parametrize("length", [900, 1000, 1200])
def test_decoded_clips_get_the_length_of_their_originals(length):
    clip = support.speech_like(1, 1000)[0]
    (aligned,), _ = alignment.align([clip], [np.resize(clip, length)])
    assert aligned.shape == clip.shape and aligned.dtype == np.float32


def test_a_decoded_clip_that_is_too_short_ends_in_zeros():
    clip = np.ones(100, np.float32)
    np.testing.assert_array_equal(alignment.advance(clip, 10, 100), np.repeat([1.0, 0.0], [90, 10]))
    assert alignment.advance(clip[:5], 0, 5000).shape == (5000,)


def test_one_lag_is_found_for_all_clips_although_one_of_them_is_silent():
    clips = [support.speech_like(1, 4000)[0], np.zeros(4000, np.float32)]
    assert alignment.common_lag(clips, [np.roll(clip, 30) for clip in clips]) == 30


def test_silence_has_no_lag():
    aligned, lag = alignment.align([np.zeros(500, np.float32)], [np.zeros(500, np.float32)])
    assert lag == 0 and not aligned[0].any()
