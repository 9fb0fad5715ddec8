"""The charts of the report, each a function from a table to SVG text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fedsim.evaluation import guarantees
from fedsim.report.svg import SERIES, Frame, Scale, chart, legend, number, text


def roc(
    table: pd.DataFrame,
    attacks: Sequence[str],
    sizes: Mapping[str, int],
    guarantee: tuple[float, float] | None = None,
) -> str:
    """Draw ROC curves on log axes.

    table: columns attack, fpr, tpr, low, high. attacks: at most six, the strongest first (it has a band).
    sizes: words → number of non-members, each marked at the smallest FPR that so many resolve.
    guarantee: (ε, δ) that holds for all records, whose largest TPR is drawn as well; None where none does.
    """
    floor = 10.0 ** math.floor(math.log10(table["fpr"].min()) - 1e-9)
    frame = Frame(Scale(floor, 1, 64, 424, log=True), Scale(floor, 1, 344, 34, log=True))
    smallest = 1 / max(sizes.values())
    parts = [
        frame.axes("false-positive rate (held-out records called members)", "true-positive rate"),
        f'<rect class="blind" x="64" y="34" width="{frame.x(smallest) - 64:.1f}" height="310"/>',
        frame.line([(floor, floor), (1, 1)], "chance", "guessing"),
    ]
    parts += [_resolution(frame, words, n, n == max(sizes.values())) for words, n in sizes.items()]
    names = list(attacks)[:SERIES]
    for style, attack in reversed(list(enumerate(names))):
        rows = table[(table["attack"] == attack) & table["tpr"].notna()]
        x = rows["fpr"].tolist()
        if style == 0:
            low, high = (list(zip(x, rows[end].tolist(), strict=True)) for end in ("low", "high"))
            parts.append(frame.band(low, high, "s0"))
        parts.append(frame.line(list(zip(x, rows["tpr"].tolist(), strict=True)), f"s{style}", attack))
    entries = [(name, f"s{style}") for style, name in enumerate(names)] + [("guessing", "chance")]
    if guarantee is not None:
        rates = np.geomspace(floor, 1, 100).tolist()
        allowed = [(rate, guarantees.tpr_bound(rate, *guarantee)) for rate in rates]
        parts.append(frame.line(allowed, "allowed", "the most that DP allows"))
        entries.append(("most DP allows", "allowed"))
    parts.append(legend(444, 44, entries))
    return chart(640, 396, f"ROC curves on log axes of {', '.join(names)}", *parts)


def _resolution(frame: Frame, words: str, n: int, leftmost: bool) -> str:
    """Draw the line at 1/n; the leftmost is named on its left, where there is room, others on their right."""
    at = frame.x(1 / n)
    left = leftmost and at - frame.x.start > 40
    beside = (at - 4, "end") if left else (at + 4, "start")
    line = frame.line([(1 / n, frame.y.low), (1 / n, frame.y.high)], "limit", f"1 of {n}: {words}")
    # Below the top, where the curves are not, and each on a line of its own.
    return line + text(beside[0], frame.y.start - (8 if leftmost else 24), f"1/{n}", beside[1], style="quiet")


def norms(rounds: pd.DataFrame, adversary: str) -> str:
    """Draw how far each party's answer lies from the model that it was sent, over rounds, log axis.

    rounds: columns round, party, update_norm; one row per party and round, norms above 0.
    """
    low, high = float(rounds["update_norm"].min()), float(rounds["update_norm"].max())
    frame = Frame(_round_axis(rounds), Scale(low / 1.2, high * 1.2, 274, 34, log=True))
    parts = [frame.axes("round", "norm of the update")]
    if not frame.y.ticks():
        parts += [text(58, frame.y(end) + 4, f"{end:.2g}", anchor="end") for end in (low, high)]
    for party, rows in rounds.groupby("party", sort=False):
        if party != adversary:
            parts.append(frame.line(_series(rows, "update_norm"), "party", str(party)))
    adversarys = rounds[rounds["party"] == adversary]
    parts.append(frame.line(_series(adversarys, "update_norm"), "overall", adversary))
    parts.append(legend(64, 322, [(f"{adversary} (the adversary)", "overall")]))
    parts.append(legend(300, 322, [("each other party", "party")]))
    return chart(460, 334, "Norm of each party's update over rounds", *parts)


def utility(rounds: pd.DataFrame, metric: str, label: str) -> str:
    """Draw a held-out metric over rounds: all parties' mean in bold, each party thin.

    rounds: columns round, party, and ``metric``; one row per party and round.
    """
    values = rounds[metric].dropna()
    spread = max(1e-3, float(values.max() - values.min()))
    low, high = float(values.min()) - 0.05 * spread, float(values.max()) + 0.05 * spread
    frame = Frame(_round_axis(rounds), Scale(low, high, 274, 34))
    parts = [frame.axes("round", label)]
    for party, rows in rounds.groupby("party", sort=False):
        if party != "all":
            parts.append(frame.line(_series(rows, metric), "party", str(party)))
    parts.append(frame.line(_series(rounds[rounds["party"] == "all"], metric), "overall", "all parties"))
    parts.append(legend(64, 322, [("all parties, weighted by records", "overall")]))
    parts.append(legend(300, 322, [("each party", "party")]))
    return chart(460, 334, f"{label} over rounds", *parts)


def epsilon(rounds: pd.DataFrame) -> str:
    """Draw the composed ε that each party has spent after each round.

    rounds: columns round, party, epsilon; one row per party under DP and round.
    """
    parties = list(dict.fromkeys(rounds["party"]))
    high = float(rounds["epsilon"].max()) * 1.05 or 1.0
    frame = Frame(_round_axis(rounds), Scale(0, high, 274, 34))
    parts = [frame.axes("round", "ε spent, rounds 1…t composed")]
    for number_, party in enumerate(parties):
        style = f"s{number_}" if len(parties) <= SERIES else "party"
        rows = rounds[rounds["party"] == party]
        parts.append(frame.line(_series(rows, "epsilon"), style, str(party)))
    if len(parties) <= SERIES:
        for number_, party in enumerate(parties):
            entry = [(str(party)[:16], f"s{number_}")]
            parts.append(legend(64 + 130 * (number_ % 3), 322 + 18 * (number_ // 3), entry))
    return chart(460, 354 if len(parties) > 3 else 334, "ε over rounds", *parts)


def gap(histogram: pd.DataFrame, threshold: float) -> str:
    """Draw how sure the last round's model is of members' and of non-members' true labels.

    histogram: columns edge, members, nonmembers, of one round; threshold: the adversary's own, in log-odds
    """
    edges = histogram["edge"].to_numpy(float)
    step = float(edges[1] - edges[0])
    shares = {side: histogram[side] / max(1, histogram[side].sum()) for side in ("members", "nonmembers")}
    most = max(float(share.max()) for share in shares.values())
    frame = Frame(Scale(float(edges[0]), float(edges[-1]) + step, 64, 444), Scale(0, most * 1.08, 274, 34))
    parts = [frame.axes("log-odds of the record's true label", "share of the records")]
    for style, share in (("s1", shares["members"]), ("s0", shares["nonmembers"])):
        outline = [(x, y) for edge, y in zip(edges, share, strict=True) for x in (edge, edge + step)]
        parts.append(frame.band(outline, [(edges[0], 0), (edges[-1] + step, 0)], style))
        parts.append(frame.line(outline, style))
    parts.append(frame.line([(threshold, 0), (threshold, most * 1.08)], "limit", "the adversary's threshold"))
    for place, entry in enumerate((("members", "s1"), ("non-members", "s0"), ("threshold", "limit"))):
        parts.append(legend(64 + 130 * place, 322, [entry]))
    return chart(460, 334, "How sure the model is of members and of non-members", *parts)


def by_round(rounds: pd.DataFrame, utility: pd.DataFrame) -> str:
    """Draw each round's leakage by confidence, with its interval, beside held-out accuracy.

    rounds: columns round, auc, low, high; utility: columns round, accuracy
    """
    frame = Frame(_round_axis(rounds), Scale(0.4, 1, 274, 34))
    ordered = rounds.sort_values("round")
    low, high = (list(zip(ordered["round"], ordered[end], strict=True)) for end in ("low", "high"))
    parts = [
        frame.axes("round", "AUC of this round's model alone; accuracy"),
        frame.line([(0, 0.5), (frame.x.high, 0.5)], "chance", "guessing"),
        frame.band(low, high, "s1"),
        frame.line(_series(ordered, "auc"), "s1"),
        frame.line(_series(utility, "accuracy"), "s0"),
        legend(64, 322, [("leakage (AUC)", "s1")]),
        legend(250, 322, [("held-out accuracy", "s0")]),
    ]
    return chart(460, 334, "Leakage by round beside held-out accuracy", *parts)


def _round_axis(rounds: pd.DataFrame) -> Scale:
    return Scale(0, max(1.0, float(rounds["round"].max())), 64, 444)


def _series(rows: pd.DataFrame, metric: str) -> list[tuple[float, float]]:
    ordered = rows.sort_values("round")
    return list(zip(ordered["round"].astype(float).tolist(), ordered[metric].tolist(), strict=True))


def intervals(rows: Sequence[tuple[str, float, float, float, float | None]], label: str) -> str:
    """Draw one line a row: (name, value, low, high, the largest value that its guarantee allows or None)."""
    height = 64 + 24 * len(rows)
    frame = Frame(_auc_scale(180, 520), Scale(0, 1, height - 40, 20))
    parts = [frame.line([(0.5, 0), (0.5, 1)], "chance", "guessing")]
    for tick in (0.25, 0.5, 0.75, 1.0):
        parts.append(text(frame.x(tick), height - 22, number(tick), anchor="middle"))
    parts.append(text(350, height - 5, label, anchor="middle"))
    for row, (name, value, low, high, bound) in enumerate(rows):
        y = 32 + 24 * row
        parts.append(text(170, y + 4, name, anchor="end"))
        parts.append(_interval(frame.x, y, value, low, high, bound))
        known = f"{value:.2f} ({low:.2f} to {high:.2f})" if math.isfinite(value) else "not measured"
        parts.append(text(534, y + 4, known))
    return chart(680, height, label, *parts)


def gauge(value: float, low: float, high: float, bound: float | None) -> str:
    """Draw one interval as a strip for a table's cell; the chance line is at .5."""
    scale = _auc_scale(4, 176)
    label = f"{value:.3f}, 95 % interval {low:.3f} to {high:.3f}; guessing .5"
    line = f'<path class="line chance" d="M{scale(0.5):.1f},1V21"/>'
    return chart(180, 22, label, line, _interval(scale, 11, value, low, high, bound))


def _auc_scale(start: float, end: float) -> Scale:
    return Scale(0.25, 1, start, end)


def _interval(x: Scale, y: float, value: float, low: float, high: float, bound: float | None) -> str:
    parts = []
    if bound is not None:
        parts.append(
            f'<rect class="bound" x="{x(bound):.1f}" y="{y - 8}" width="3" height="16" stroke="none">'
            f"<title>the guarantee: no attack can exceed {bound:.3f} on average</title></rect>"
        )
    if math.isfinite(value):
        parts.append(f'<path class="line s0" d="M{x(low):.1f},{y}H{x(high):.1f}"/>')
        parts.append(f'<circle class="dot s0" cx="{x(value):.1f}" cy="{y}" r="5"/>')
    return "".join(parts)


def vulnerability(table: pd.DataFrame) -> str:
    """Draw how many records have which difference of rank, and how chance alone would spread them.

    table: columns value and error, of `fedsim.evaluation.comparison.vulnerability`.
    """
    from scipy.stats import norm

    known = table.dropna(subset=["value", "error"])
    edges = np.linspace(-1, 1, 41)
    counts, _ = np.histogram(known["value"], edges)
    errors = np.maximum(known["error"].to_numpy(float), 1e-9)
    expected = np.diff(norm.cdf(edges[:, None] / errors).sum(axis=1))
    frame = Frame(Scale(-1, 1, 64, 444), Scale(0, max(1.0, *counts, *expected) * 1.05, 274, 34))
    parts = [frame.axes("mean rank as member − mean rank as non-member", "records")]
    for left, count in zip(edges, counts, strict=False):
        x, top = frame.x(left), frame.y(float(count))
        title = f"<title>{count} records from {left:.2f} to {left + 0.05:.2f}</title>"
        parts.append(
            f'<rect class="bar" x="{x:.1f}" y="{top:.1f}" width="9" height="{274 - top:.1f}">{title}</rect>'
        )
    middles = (edges[:-1] + edges[1:]) / 2
    parts.append(frame.line(list(zip(middles.tolist(), expected.tolist(), strict=True)), "s1"))
    parts.append(legend(64, 322, [("if membership changed nothing", "s1")]))
    return chart(460, 334, "Histogram of the records' own exposure", *parts)
