"""Audits as tables and sentences."""

from __future__ import annotations

import math

from rich.markup import escape
from rich.table import Table

from fedsim.audit.settings import Audit
from fedsim.terminal.formatting import new_table


def audits(results: list[Audit]) -> Table:
    """Return the bounds of audits of one party, a statistic a row."""
    table = new_table(f"Audit of {escape(results[0].party)}: ε at δ = {results[0].delta:.0e}")
    for heading in ("vantage", "method", "statistic"):
        table.add_column(heading, no_wrap=True)
    for heading in ("lower", "upper", "ceiling", "right", "canaries", "confidence"):
        table.add_column(heading, justify="right")
    for audit in results:
        for statistic, lower in audit.lower.items():
            table.add_row(
                audit.vantage + (", worst case" if audit.worst_case else ""),
                audit.method,
                statistic,
                f"[bold red]{lower:.2f}[/bold red]" if lower > audit.upper else f"{lower:.2f}",
                "∞" if math.isinf(audit.upper) else f"{audit.upper:.2f}",
                f"{audit.ceiling[statistic]:.2f}",
                f"{audit.correct}/{audit.guesses}",
                str(audit.canaries),
                f"{audit.confidence:.0%}",
            )
        for statistic, value in audit.estimate.items():
            table.add_row(audit.vantage, audit.method, statistic, f"[dim]≈ {value:.2f}[/dim]")
    table.caption = (
        "Lower: shown by the audit. Upper: guaranteed by the accountant. Ceiling: what an audit of this size "
        "shows at most. f-dp and gaussian assume a trade-off between errors as of Gaussian noise, "
        "dp-sgd one as of DP-SGD with some other noise. ≈: an estimate, "
        "no bound: it takes the canaries of one run to be independent."
    )
    table.caption_justify = "left"
    return table


def audit_words(audit: Audit) -> str:
    """Say in one sentence what an audit means."""
    lower, seen = max(audit.lower.values()), _SEEN[audit.vantage]
    if audit.worst_case:
        seen += " with initial weights and a canary crafted as the worst case,"
    if audit.records > 1:
        seen += f" with persons of {audit.records} records for canaries,"
    if audit.violated:
        return (
            f"{audit.party}: BROKEN: {seen} shows ε ≥ {lower:.2f}, above the guaranteed {audit.upper:.2f}; "
            "the implementation or its accounting is wrong."
        )
    shown = f"{seen} shows ε ≥ {lower:.2f} ({audit.confidence:.0%} confidence)"
    if math.isinf(audit.upper):
        return f"{audit.party}, without DP (ε = ∞): {shown}."
    guaranteed = f"the accountant guarantees ε ≤ {audit.upper:.2f}"
    if audit.saturated:
        more = "more --runs" if audit.method == "many-run" else "more canaries, or --method many-run"
        return (
            f"{audit.party}: {shown}, {guaranteed}. All {audit.guesses} guesses were right: an audit of this "
            f"size cannot see more, which is no sign of a small ε; take {more}."
        )
    return f"{audit.party}: {shown}, {guaranteed}; the truth is in between."


_SEEN = {
    "white-box": "the white box, which sees every step,",
    "participant": "a participant, from the models it is sent,",
}
