"""Scales, lines and charts, each by what it must show."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.report import figures
from fedsim.report.svg import Frame, Scale, standalone


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), st.booleans())
def test_a_scale_keeps_order_and_ends_and_its_ticks_lie_within(low: float, width: float, log: bool) -> None:
    low = abs(low) + 1e-6 if log else low
    scale = Scale(low, low + width, 10, 110, log)
    assert (scale(low), scale(low + width)) == pytest.approx((10, 110))
    assert (scale(low - 1), scale(low + width + 1)) == pytest.approx((10, 110))
    ticks = scale.ticks()
    slack = 1e-6 * (abs(low) + width)
    assert all(low - slack <= tick <= low + width + slack for tick in ticks)
    assert ticks == sorted(ticks) and (log or 3 <= len(ticks) <= 11)


def test_a_log_scale_puts_decades_at_equal_steps() -> None:
    scale = Scale(0.001, 1, 0, 300, log=True)
    assert [scale(tick) for tick in scale.ticks()] == pytest.approx([0, 100, 200, 300])


def test_a_line_leaves_out_what_is_unknown() -> None:
    frame = Frame(Scale(0, 1, 0, 100), Scale(0, 1, 100, 0))
    assert frame.path([(0, 0), (0.5, math.nan), (1, 1)]) == "M0.0,100.0L100.0,0.0"
    assert frame.path([(math.nan, 0)]) == ""


def test_the_gauge_shows_the_interval_and_the_guarantee() -> None:
    root = ElementTree.fromstring(figures.gauge(0.5, 0.25, 1.0, 0.75))
    circle = root.find("{http://www.w3.org/2000/svg}circle")
    assert circle is not None
    assert float(circle.attrib["cx"]) == pytest.approx(4 + 172 / 3, abs=0.1)
    rectangle = root.find("{http://www.w3.org/2000/svg}rect")
    assert rectangle is not None
    assert float(rectangle.attrib["x"]) == pytest.approx(4 + 172 * 2 / 3, abs=0.1)
    unknown = ElementTree.fromstring(figures.gauge(math.nan, math.nan, math.nan, None))
    assert unknown.find("{http://www.w3.org/2000/svg}circle") is None


def test_the_histogram_counts_every_record() -> None:
    stream = np.random.default_rng(0)
    table = pd.DataFrame({"value": stream.uniform(-1, 1, 200), "error": 0.1})
    table.loc[:9, "value"] = math.nan
    titles = re.findall(r"<title>(\d+) records from", figures.vulnerability(table))
    assert len(titles) == 40 and sum(map(int, titles)) == 190


def test_forty_parties_under_dp_fit_into_one_chart() -> None:
    parties = [f"bank-{number}" for number in range(40)]
    rounds = pd.DataFrame(
        [{"round": t, "party": name, "epsilon": t * 0.1} for t in (0, 1, 2) for name in parties]
    )
    picture = standalone(figures.epsilon(rounds))
    assert picture.count("bank-39") == 1  # a title; no legend of forty lines
    ElementTree.fromstring(picture)
