"""The policy's verdict as rich tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from fedsim.report.cards import Switch
from fedsim.report.gate import Check
from fedsim.terminal.formatting import new_table, number


def checks(found: Sequence[Check]) -> Table:
    """Return a row per threshold."""
    passes = all(check.passes for check in found)
    table = new_table("Policy: passed" if passes else "Policy: NOT passed")
    for heading in ("figure", "shown", "threshold", "", "source"):
        table.add_column(heading, justify="right" if heading in ("shown", "threshold") else "left")
    for check in found:
        sign = "≤" if check.name.startswith("max_") else "≥"
        shown = "not shown" if check.figure is None else f"{check.figure:.3g}"
        verdict = "[green]passes[/green]" if check.passes else "[red]fails[/red]"
        table.add_row(f"{escape(check.meaning)}\n[dim]{escape(check.why)}[/dim]", shown,
                      f"{sign} {check.threshold:g}", verdict, escape(check.source))  # fmt: skip
    return table


def frontier(rows: Sequence[tuple[Switch, Sequence[Check]]], chosen: int | None) -> Table:
    """Return a row per setting of DP-SGD, the recommended one marked."""
    table = new_table("Settings tried, from least to most private")
    for heading in ("DP-SGD", "AUC", "95 % interval", "accuracy", "loss", "policy", ""):
        table.add_column(heading, no_wrap=heading != "policy")
    for place, (switch, found) in enumerate(rows):
        failed = [check.name for check in found if not check.passes]
        table.add_row(
            escape(switch.label), number(switch.leak.value),
            f"{number(switch.leak.low, 2)}-{number(switch.leak.high, 2)}", number(switch.accuracy.value),
            number(switch.loss), f"fails {', '.join(failed)}" if failed else "passes",
            "[bold]recommended[/bold]" if place == chosen else "",
        )  # fmt: skip
    return table
