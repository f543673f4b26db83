"""Pictures for TensorBoard: spectrograms side by side, code counts; RGB arrays (H, W, 3) uint8, with labels."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FLOOR_DB, CEILING_DB = -100.0, -20.0  # of full scale, the range of the colors
_MARGIN, _TITLE = 34, 16  # pixels for the axis and above each panel
_WIDTH, _HEIGHT = 316, 104  # of a spectrogram; with its margin as wide as TensorBoard shows pictures: text stays sharp
_FFT = 512
_ROW = 14  # pixels of a codebook
_STEPS = 20  # distinct colors: a picture is written every epoch, and fewer colors make smaller files
# Dark to light, in steps of about equal brightness; the page to listen on has the same.
_STOPS = np.array(
    [[9, 7, 26], [43, 20, 96], [112, 31, 121], [187, 55, 98], [236, 105, 56], [250, 178, 59], [252, 253, 214]]
)


def comparison(reference: np.ndarray, decoded: np.ndarray, sample_rate: int) -> np.ndarray:
    """Spectrograms of a clip (S,), of what it decoded to and of the difference, one below the other on one scale."""
    error = decoded - reference
    snr = 10 * np.log10(max(np.sum(reference**2), 1e-12) / max(np.sum(error**2), 1e-12))
    seconds = len(reference) / sample_rate
    panels = [
        (f"reference, {seconds:.1f} s", reference),
        (f"decoded, SNR {snr:.1f} dB", decoded),
        ("error: decoded minus reference", error),
    ]
    return np.concatenate([_panel(title, _color(_spectrogram(clip)), sample_rate) for title, clip in panels])


def code_counts(counts: np.ndarray) -> np.ndarray:
    """How often each code was used, (Q, K): a band a codebook, its codes sorted by use, the brighter the more (log)."""
    ordered = np.log1p(-np.sort(-counts, axis=-1))
    width = _WIDTH - _MARGIN
    nearest = np.arange(width) * counts.shape[-1] // width
    bands = _color(ordered[:, nearest] / max(ordered.max(), 1e-9))
    canvas, pen = _canvas("codes, the most used first; share in use", _ROW * len(counts), width + 2 * _MARGIN)
    for row, (band, used) in enumerate(zip(bands, counts, strict=True)):
        top = _TITLE + _ROW * row
        pen.text((_MARGIN - 5, top + 1), str(row + 1), fill="white", anchor="ra")
        pen.text((_MARGIN + width + 5, top + 1), f"{100 * np.mean(used > 0):.0f} %", fill="white")
        canvas.paste(Image.fromarray(np.repeat(band[None], _ROW - 2, axis=0)), (_MARGIN, top))
    return np.asarray(canvas)


def _panel(title, picture, sample_rate):
    """A titled picture with a frequency axis."""
    canvas, pen = _canvas(title, _HEIGHT + 4, _MARGIN + _WIDTH)
    for share, anchor in ((0, "rs"), (0.5, "rm"), (1, "ra")):
        label = f"{share * sample_rate / 2000:g}" + (" kHz" if share == 1 else "")
        pen.text((_MARGIN - 5, _TITLE + (1 - share) * _HEIGHT), label, fill="white", anchor=anchor)
    canvas.paste(Image.fromarray(picture), (_MARGIN, _TITLE))
    return np.asarray(canvas)


def _canvas(title, height, width):
    """A picture with a title above `height` pixels, and a pen for it."""
    canvas = Image.new("RGB", (width, _TITLE + height), "#17171f")
    pen = ImageDraw.Draw(canvas)
    pen.font = ImageFont.load_default(11)
    pen.text((_MARGIN, 1), title, fill="white")
    return canvas, pen


def _spectrogram(audio):
    """Audio (S,) to levels (_HEIGHT, _WIDTH) in [0, 1], low frequencies at the bottom: the loudest of each pixel's bins."""
    centers = ((np.arange(_WIDTH) + 0.5) / _WIDTH * len(audio)).astype(int)
    padded = np.pad(audio, _FFT // 2)
    frames = padded[centers[:, None] + np.arange(_FFT)] * np.hanning(_FFT)
    power = np.abs(np.fft.rfft(frames)).T ** 2 / (_FFT / 4) ** 2
    edges = np.linspace(0, len(power), _HEIGHT, endpoint=False).astype(int)
    power = np.maximum.reduceat(power, edges)[::-1]
    return np.clip((10 * np.log10(power + 1e-12) - FLOOR_DB) / (CEILING_DB - FLOOR_DB), 0, 1)


def _color(levels):
    """(H, W) in [0, 1] to (H, W, 3) uint8."""
    levels = np.round(np.clip(levels, 0, 1) * _STEPS) / _STEPS * (len(_STOPS) - 1)
    channels = [np.interp(levels, np.arange(len(_STOPS)), _STOPS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)
