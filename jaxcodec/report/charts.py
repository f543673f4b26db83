"""Line charts against a rate: what `page/chart.svg` draws and where, each curve labeled where it ends.

A chart is drawn for a column of 360 CSS pixels, so that its text stays legible on a phone.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_LETTER, _LINE = 6.9, 13  # width of a letter and height of a line of labels, at 11 px
_LONGEST = 15  # letters of a label
_NUM_COLORS = 8  # .c0 to .c7 in page.css
_Place = tuple[float, float]


class Curve(NamedTuple):
    """A labeled line through points (x, y); `color` is an index into the page's palette."""

    label: str
    points: Sequence[_Place]
    color: int


def line_chart(
    title: str, curves: Sequence[Curve], *, x_label: str, y_label: str, bound: Sequence[_Place] = ()
) -> "Chart | None":
    """A chart of `curves`, x on a logarithmic scale; the region above `bound`, points (x, y), is shaded.

    Points without a finite place are left out. Returns None where nothing is left to draw.
    """
    curves = [Curve(label, _finite(points), color % _NUM_COLORS) for label, points, color in curves]
    curves = [curve for curve in curves if curve.points]
    name = f"{title}: {y_label} against {x_label}, {', '.join(curve.label for curve in curves)}"
    return Chart(title, name, curves, x_label, y_label, _finite(bound)) if curves else None


class Chart:
    """Curves, ticks in units of the data, and where they lie in the picture, in CSS pixels on a phone."""

    width, height, left, top, bottom = 360, 262, 40, 26, 226

    def __init__(self, title, name, curves, x_label, y_label, bound):
        self.title, self.name, self.curves, self.x_label, self.y_label = title, name, curves, x_label, y_label
        xs, ys = zip(*(point for curve in curves for point in curve.points), strict=True)
        self.x_ticks, self.y_ticks = _log_ticks(min(xs), max(xs)), _ticks(min(ys), max(ys))
        self._x_range = (min(xs), max(xs)) if max(xs) > min(xs) else (0.9 * min(xs), 1.1 * max(xs))
        self._y_range = low, high = self.y_ticks[0], self.y_ticks[-1]
        self.right = round(self.width - 10 - _LETTER * min(_LONGEST, max(len(curve.label) for curve in curves)), 1)
        inside = [point for point in sorted(bound) if self._x_range[0] <= point[0] <= self._x_range[1]]
        self.bound = [(x, min(max(y, low), high)) for x, y in inside] if len(inside) > 1 else []

    def x(self, value: float) -> float:
        """Where a value of x is."""
        low, high, value = map(math.log, (*self._x_range, value))
        return round(self.left + (value - low) / (high - low) * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        """Where a value of y is."""
        low, high = self._y_range
        return round(self.bottom - (value - low) / (high - low) * (self.bottom - self.top), 1)

    def path(self, points: Sequence[_Place]) -> str:
        """The line through them, in SVG's words."""
        return "M" + "L".join(f"{self.x(x)} {self.y(y)}" for x, y in points)

    def labels(self) -> Iterator[tuple[str, int, float, int]]:
        """(text, color, x, y): beside each curve's last point, moved up or down where another label stands."""
        taken: list[tuple[float, float, int]] = []
        for label, points, color in sorted(self.curves, key=lambda curve: -curve.points[-1][1]):
            text = label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…"
            x, y = self.x(points[-1][0]) + 6, round(self.y(points[-1][1]) + 3.5)
            end = x + _LETTER * (len(text) + 1)
            beside = [other for start, stop, other in taken if start < end and x < stop]
            free = [
                row for row in range(self.top, self.bottom + 5) if all(abs(row - other) >= _LINE for other in beside)
            ]
            y = min(free, key=lambda row: (abs(row - y), -row), default=y)
            taken.append((x, end, y))
            yield text, color, round(x, 1), y


def _finite(points):
    return [(x, y) for x, y in points if y is not None and math.isfinite(x) and math.isfinite(y) and x > 0]


def _ticks(low, high):
    """Round values from at or below `low` to at or above `high`, about five of them."""
    if high <= low:
        low, high = low - abs(low) * 0.05 - 1e-3, high + abs(high) * 0.05 + 1e-3
    raw = (high - low) / 5
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * k for k in (1, 2, 2.5, 5, 10) if size * k >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]


def _log_ticks(low, high):
    """1, 2, 5, 10, ... within the range."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [k * 10**d for d in decades for k in (1, 2, 5) if low <= k * 10**d <= high]
