"""Line charts as SVG."""

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from jaxcodec.report import charts, webpage


def render(curves, title="SNR", x_label="kbit/s", y_label="dB", **options):
    chart = charts.line_chart(title, curves, x_label=x_label, y_label=y_label, **options)
    return webpage.templates().get_template("chart.svg").render(chart=chart)


def draw(curves, **options):
    """The chart's elements, parsed: malformed SVG raises."""
    return ElementTree.fromstring(render(curves, **options))


def places(element):
    return [tuple(map(float, pair)) for pair in re.findall(r"([-\d.]+) ([-\d.]+)", element.get("d"))]


def labels(chart):
    return [(e.text, float(e.get("x")), float(e.get("y"))) for e in chart if e.get("class", "").startswith("label")]


def test_a_line_runs_through_its_points_in_proportion():
    chart = draw([charts.Curve("ours", [(1, 0), (3, 10), (9, 5)], 0)])
    (line,) = [e for e in chart if e.get("class") == "curve c0"]
    (x0, y0), (x1, y1), (x2, y2) = places(line)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(2 * (y0 - y2), abs=0.2) and y1 < y0  # up is more


def test_a_log_axis_gives_equal_room_to_equal_ratios():
    chart = draw([charts.Curve("ours", [(1, 0), (2, 1), (4, 2)], 0)])
    (line,) = [e for e in chart if e.get("class") == "curve c0"]
    x0, x1, x2 = (x for x, _ in places(line))
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)


def test_every_curve_is_labeled_and_no_label_covers_another():
    curves = [charts.Curve(f"system {i}", [(1, 1), (8, 3 + 0.01 * i)], i) for i in range(8)]
    found = labels(draw(curves))
    assert sorted(text for text, *_ in found) == [f"system {i}" for i in range(8)]
    for (_, _, y), (_, _, other) in itertools.combinations(found, 2):
        assert abs(y - other) >= 12
    assert all(0 < y < charts.Chart.height for *_, y in found)


def test_names_are_escaped():
    svg = render([charts.Curve("<script>&", [(1, 1)], 0)], title='<b>"', x_label="&", y_label="<")
    assert "<script" not in svg and "<b>" not in svg
    ElementTree.fromstring(svg)


def test_the_region_beyond_the_bound_is_shaded_within_the_picture():
    curves = [charts.Curve("ours", [(1, 2), (8, 10)], 0)]
    (region,) = [e for e in draw(curves, bound=[(1, 5), (2, 8), (4, 30), (8, 60)]) if e.get("class") == "bound"]
    assert all(0 <= y <= charts.Chart.height for _, y in places(region))
    assert not [e for e in draw(curves) if e.get("class") == "bound"]


def test_points_without_a_place_are_left_out_and_nothing_is_drawn_of_none():
    points = [(1, 1), (2, math.nan), (3, None), (0, 5), (4, 2)]
    (line,) = [e for e in draw([charts.Curve("ours", points, 0)]) if e.get("class") == "curve c0"]
    assert len(places(line)) == 2
    assert charts.line_chart("t", [charts.Curve("ours", [], 0)], x_label="", y_label="") is None


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 14.7), (0.94, 0.97), (5, 5), (0, 0), (1e-9, 3e-9), (-7, -7)])
def test_ticks_are_round_few_and_around_the_data(low, high):
    ticks = charts._ticks(low, high)
    assert ticks[0] <= low and high <= ticks[-1] and 2 <= len(ticks) <= 9
