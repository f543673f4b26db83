"""Pictures for TensorBoard."""

import numpy as np

from jaxcodec.training import pictures

PANEL = pictures._TITLE + pictures._HEIGHT + 4  # pixels from one panel of a comparison to the next


def tone(hertz, amplitude=0.1, seconds=0.5):
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(16000 * seconds)) / 16000)).astype(np.float32)


def inside(picture, panel):
    """The spectrogram of a panel, its brightness (H, W)."""
    top = panel * PANEL + pictures._TITLE
    return picture[top : top + pictures._HEIGHT, pictures._MARGIN :].astype(int).sum(axis=-1)


def test_a_tone_is_a_bright_line_at_its_frequency_with_low_ones_at_the_bottom():
    picture = pictures.comparison(tone(2000), tone(6000), 16000)
    assert picture.dtype == np.uint8 and picture.shape == (3 * PANEL, pictures._MARGIN + pictures._WIDTH, 3)
    for panel, share in ((0, 2 / 8), (1, 6 / 8)):
        brightest = inside(picture, panel).mean(axis=1).argmax()
        np.testing.assert_allclose(1 - brightest / pictures._HEIGHT, share, atol=0.03)


def test_the_error_panel_shows_the_difference_alone():
    equal = pictures.comparison(tone(2000), tone(2000), 16000)
    assert np.ptp(inside(equal, 2)) == 0
    halved = pictures.comparison(tone(2000), tone(2000, 0.05), 16000)
    assert np.ptp(inside(halved, 2)) > 300


def test_a_level_has_the_same_color_in_every_picture():
    quiet, loud = (pictures.comparison(tone(2000, level), tone(2000, level), 16000) for level in (0.01, 0.1))
    assert inside(quiet, 0).max() < inside(loud, 0).max()


def test_the_heat_map_has_a_band_a_codebook_sorted_by_use():
    counts = np.array([[0, 9, 0, 3], [5, 5, 5, 5], [0, 0, 0, 0]])
    picture = pictures.code_counts(counts)
    assert picture.shape == (pictures._TITLE + 3 * pictures._ROW, pictures._WIDTH + pictures._MARGIN, 3)
    bands = picture[pictures._TITLE + 2 :: pictures._ROW, pictures._MARGIN : -pictures._MARGIN].astype(int).sum(-1)
    quarters = bands[:, bands.shape[1] // 8 :: bands.shape[1] // 4]
    assert quarters[0, 0] > quarters[0, 1] > quarters[0, 2] == quarters[0, 3]
    assert np.ptp(quarters[1]) == 0 and quarters[1, 0] < quarters[0, 0]
    assert np.ptp(quarters[2]) == 0 and quarters[2, 0] == quarters[0, 3]


def test_a_clip_of_one_sample_and_silence_have_pictures():
    for clip in (np.zeros(1, np.float32), np.zeros(5000, np.float32)):
        assert pictures.comparison(clip, clip, 16000).shape[0] == 3 * PANEL
