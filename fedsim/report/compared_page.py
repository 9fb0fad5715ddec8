"""The page of `fedsim compare`: the same tables, for whoever has no terminal."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedsim.core.files import write_text
from fedsim.report import svg


def write(path: Path, settings: pd.DataFrame, summary: pd.DataFrame, differences: pd.DataFrame) -> Path:
    """Write the page from the tables of `compared`; it has no script and asks nothing of the network.

    Raises:
        InputError: it cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("fedsim.report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["shown"] = _shown
    tables = {
        "In what the scenarios differ": settings,
        "What was found": summary,
        f"Differences from {summary['run'].iloc[0]}, with 95 % intervals": differences,
    }
    rows = {title: (list(map(str, t.columns)), t.values.tolist()) for title, t in tables.items()}
    text = environment.get_template("compared.html.j2").render(tables=rows, chart_style=Markup(svg.STYLE))
    write_text(path, text)
    return path


def _shown(value: object) -> str:
    if isinstance(value, float):
        return "–" if pd.isna(value) else "∞" if value == float("inf") else f"{value:.3f}"
    return str(value)
