"""The HTML report of a run, and its figures: one page that asks nothing of the network.

svg.py        scales, axes and strokes
figures.py    the charts, static, for papers and print
findings.py   what a run found, from its tables
verdicts.py   the answer in one sentence, its condition inside
words.py      the findings in sentences
page.py       the page
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsim.core.run_directory import RunDirectory

__all__ = ["write"]


def write(run: RunDirectory, others: Sequence[RunDirectory] = (), priors: Sequence[float] = ()) -> Path:
    """Write a run's page and figures, and return the page's path: see `fedsim.report.page.write`."""
    from fedsim.report import page  # Jinja is not needed where only a verdict is said

    return page.write(run, others, priors)
