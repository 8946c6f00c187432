"""Charts: the maths of axes and labels against values worked by hand, and what is missing."""

from __future__ import annotations

import doctest
import math
import re
from xml.etree import ElementTree

import pytest

from steerlab.evals import charts, charts_parts
from steerlab.evals.charts import Axis, Chart, Mark, Series, nice_ticks, spread
from steerlab.evals.charts_style import DARK, LIGHT


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0, 100, 5, (0, 25, 50, 75, 100)),
        (-2, 2, 5, (-2, -1, 0, 1, 2)),
        (0, 0.35, 5, (0, 0.1, 0.2, 0.3)),
        (0, 11, 6, (0, 2, 4, 6, 8, 10)),
        (3, 3, 5, (3,)),
        (-0.3, 0.3, 3, (-0.2, 0, 0.2)),
    ],
)
def test_ticks_are_multiples_of_nice_steps(low, high, count, expected):
    assert nice_ticks(low, high, count) == expected


def test_an_axis_maps_its_ends_to_its_ends_and_clips_outside():
    axis = Axis(-50, 150, ())
    assert [axis.at(v, 10, 210) for v in (-50, 0, 150, 999, -999)] == [10, 60, 210, 210, 10]
    assert axis.at(0, 210, 10) == 160  # upside down, as heights are


def test_labels_are_spread_as_little_as_possible():
    assert spread([99, 99, 99], 10, 0, 100) == [80, 90, 100]
    assert spread([40, 20], 10, 0, 100) == [40, 20]
    assert spread([1, 2, 3], 60, 0, 100) == [0, 50, 100]


def test_the_modules_examples_hold():
    assert doctest.testmod(charts_parts).failed == 0


def test_a_missing_value_is_a_gap_and_a_cross_and_never_a_zero():
    marks = [
        Mark(0, 10, 5, 15),
        Mark(1, 20, 15, 25),
        Mark(2, None, note="12 missing"),
        Mark(3, 30, 25, 35),
        Mark(4, 40, 30, 50),
    ]
    drawn = ElementTree.fromstring(charts.svg(Chart(Axis(0, 4, (0, 4)), Axis(0, 100, (0, 100)), [Series(marks)])))
    line = next(e for e in drawn.iter("path") if "line" in e.get("class", ""))
    assert line.get("d", "").count("M") == 2
    assert len([e for e in drawn.iter("path") if "band" in e.get("class", "")]) == 2
    assert len(list(drawn.iter("circle"))) == 4
    absent = [e for e in drawn.iter("path") if e.get("class") == "lost"]
    assert [e.findtext("title") for e in absent] == ["12 missing"]


def test_coordinates_are_where_the_values_say():
    chart = Chart(
        Axis(0, 10, ()), Axis(0, 100, ()), [Series([Mark(0, 0), Mark(5, 50), Mark(10, 100)])], width=113, height=122
    )
    found = re.findall(r'<circle class="dot" cx="(.*?)" cy="(.*?)"', charts.svg(chart))
    # left margin 8 + one letter of 5.4, right 8; top 7, bottom 15
    assert found == [("13.4", "107"), ("59.2", "57"), ("105", "7")]


def test_what_lies_outside_the_axes_is_an_arrow_at_the_edge():
    chart = Chart(Axis(0, 10, ()), Axis(0, 100, ()), [Series([Mark(5, 50), Mark(99, 50)], line=False)])
    drawn = charts.svg(chart)
    assert drawn.count("<circle") == 1
    assert drawn.count('class="lost faint"') == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_mark_takes_numbers_or_nothing(bad):
    with pytest.raises(ValueError, match="None for what is missing"):
        Mark(0, bad)


def test_a_standalone_file_is_xml_with_its_own_colours_and_no_links(tmp_path):
    chart = Chart(Axis(0, 1, (0, 1)), Axis(0, 1, (0, 1)), [Series([Mark(0, 1)], label="a & b")], title="<b>\x00")
    path = charts.save([chart, chart, chart], tmp_path / "some.svg", columns=2, title="Two & one")
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    svg = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{svg}svg" and len(root.findall(f"{svg}g")) == 3
    assert "prefers-color-scheme:dark" in root.findtext(f"{svg}style", "")
    assert "<b>\u2400" in "".join(root.itertext())
    assert path.read_text(encoding="utf-8").count("://") == 1  # the name of SVG itself


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    r, g, b = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_every_colour_of_text_and_marks_stands_out_from_its_paper(palette):
    for paper in ("paper", "wash"):
        for name in ("ink", "soft", "effect", "joint", "cost", "ref"):
            assert contrast(palette[name], palette[paper]) >= 4.5, (name, paper)
    assert all(contrast(palette[f"c{k}"], palette["paper"]) >= 3 for k in range(1, 9))
