"""The HTML report of a run, and its figures: one page, no script, nothing fetched from anywhere.

svg.py        scales, axes and strokes
figures.py    the charts
findings.py   what a run found, from its tables
words.py      the same in sentences
html.py       the page
"""

from __future__ import annotations

from fedsim.report.page import write

__all__ = ["write"]
