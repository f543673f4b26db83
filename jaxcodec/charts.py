"""Line charts as SVG that stands in an HTML page: one panel, each curve labelled where it ends, colours from the page's CSS.

A chart is drawn for a column of 360 CSS pixels, so that its text stays legible on a phone.
"""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 360, 250  # user units, CSS pixels on a phone
_LEFT, _TOP, _BOTTOM = 40, 12, 36
_LETTER, _LINE = 6.9, 13  # width of a letter and height of a line of labels, at 11 px
_NUM_COLOURS = 8  # .c0 to .c7 in page.css
_Place = tuple[float, float]


class Curve(NamedTuple):
    """A labelled line through points (x, y); with `colour` an index into the page's palette."""

    label: str
    points: Sequence[_Place]
    colour: int
    dashed: bool = False
    marked: bool = False  # a dot at every point


def line_chart(
    title: str,
    curves: Sequence[Curve],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    bound: Sequence[_Place] = (),
) -> str:
    """An `<svg>` of `curves`; the region above `bound`, points (x, y), is shaded.

    Points without a finite place are left out. Returns "" where nothing is left to draw.
    """
    curves = [curve._replace(points=_finite(curve.points, log_x)) for curve in curves]
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return ""
    frame = _Frame(curves, log_x)
    parts = [*_grid(frame, x_label, y_label), *_shade(frame, _finite(bound, log_x))]
    parts += [part for curve in curves for part in _draw(frame, curve)]
    parts += _labels(frame, curves)
    name = f"{title}: {y_label} against {x_label}, {', '.join(curve.label for curve in curves)}"
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(name)}">'
        + "".join(parts)
        + "</svg>"
    )


class _Frame:
    """Where data lie in the picture."""

    def __init__(self, curves, log_x):
        self.log_x = log_x
        xs = [x for curve in curves for x, _ in curve.points]
        ys = [y for curve in curves for _, y in curve.points]
        self.x_ticks = _log_ticks(min(xs), max(xs)) if log_x else _ticks(min(xs), max(xs), 5)
        self.y_ticks = _ticks(min(ys), max(ys), 5)
        self.x_range = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) * 0.9 - 1e-3, max(xs) * 1.1 + 1e-3)
        self.y_range = min(min(ys), self.y_ticks[0]), max(max(ys), self.y_ticks[-1])
        self.right = WIDTH - 10 - _LETTER * min(15, max(len(curve.label) for curve in curves))

    def x(self, value):
        low, high, value = map(math.log, (*self.x_range, value)) if self.log_x else (*self.x_range, value)
        return _LEFT + (value - low) / (high - low) * (self.right - _LEFT)

    def y(self, value):
        low, high = self.y_range
        bottom = HEIGHT - _BOTTOM
        return bottom - (value - low) / (high - low) * (bottom - _TOP)

    def path(self, points):
        return "M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)


def _finite(points, log_x):
    return [
        (x, y) for x, y in points if y is not None and math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x)
    ]


def _ticks(low, high, count):
    """Round values from at or below `low` to at or above `high`, about `count` of them."""
    if high <= low:
        low, high = low - abs(low) * 0.05 - 1e-3, high + abs(high) * 0.05 + 1e-3
    raw = (high - low) / count
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * k for k in (1, 2, 2.5, 5, 10) if size * k >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]


def _log_ticks(low, high):
    """1, 2, 5, 10, ... within the range."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [k * 10**d for d in decades for k in (1, 2, 5) if low <= k * 10**d <= high]


def _grid(frame, x_label, y_label):
    bottom = HEIGHT - _BOTTOM
    for tick in frame.y_ticks:
        y = frame.y(tick)
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{frame.right:.1f}"/>'
        yield f'<text class="tick" x="{_LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{tick:g}</text>'
    for tick in frame.x_ticks:
        if _LEFT - 1 <= frame.x(tick) <= frame.right + 1:
            text = f"{tick / 1000:g}k" if tick >= 10000 else f"{tick:g}"
            yield f'<text class="tick" x="{frame.x(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{text}</text>'
    middle = (_LEFT + frame.right) / 2
    yield f'<text class="axis" x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(x_label)}</text>'
    yield f'<text class="axis" x="{_LEFT + 4}" y="{_TOP + 7}">{html.escape(y_label)}</text>'


def _shade(frame, bound):
    """The region above the bound, as far as it lies in the picture."""
    low, high = frame.x_range
    inside = [(x, min(max(y, frame.y_range[0]), frame.y_range[1])) for x, y in sorted(bound) if low <= x <= high]
    if len(inside) < 2:
        return
    top = f"L{frame.x(inside[-1][0]):.1f} {_TOP}L{frame.x(inside[0][0]):.1f} {_TOP}Z"
    yield f'<path class="bound" d="{frame.path(inside)}{top}"/>'
    yield f'<path class="bound-line" d="{frame.path(inside)}"/>'
    x, y = frame.x(inside[0][0]) + 4, _TOP + 26
    yield f'<text class="bound-label" x="{x:.1f}" y="{y}">beyond the bound</text>'


def _draw(frame, curve):
    style = f"curve c{curve.colour % _NUM_COLOURS}" + (" dashed" if curve.dashed else "")
    if len(curve.points) > 1:
        yield f'<path class="{style}" d="{frame.path(curve.points)}"/>'
    for x, y in curve.points if curve.marked or len(curve.points) == 1 else ():
        place = f'cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}"'
        name = html.escape(f"{curve.label}: {x:.4g}, {y:.4g}")
        yield f'<circle class="dot c{curve.colour % _NUM_COLOURS}" {place} r="2.6"><title>{name}</title></circle>'


def _labels(frame, curves):
    """Each curve's label beside its last point, moved up or down where another stands."""
    taken: list[_Place] = []
    for curve in sorted(curves, key=lambda curve: frame.y(curve.points[-1][1])):
        x, y = frame.x(curve.points[-1][0]) + 6, frame.y(curve.points[-1][1]) + 3.5
        text = curve.label if len(curve.label) <= 15 else curve.label[:14] + "…"
        clear = [shift for k in range(HEIGHT) for shift in (k, -k) if _is_clear(x, y + shift, len(text), taken)]
        y += clear[0] if clear else 0
        taken += [(x + _LETTER * k, y) for k in range(len(text) + 1)]
        style = f"label c{curve.colour % _NUM_COLOURS}"
        yield f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{html.escape(text)}</text>'


def _is_clear(x, y, letters, taken):
    inside = _TOP <= y <= HEIGHT - _BOTTOM + 4
    return inside and not any(
        abs(y - other_y) < _LINE and x - _LETTER < other_x < x + _LETTER * (letters + 1) for other_x, other_y in taken
    )
