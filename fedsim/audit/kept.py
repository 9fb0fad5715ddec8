"""Audits of a run's scenario, kept in its folder, so that its page shows them beside the accountant's ε."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from fedsim.audit.settings import Audit
from fedsim.core.run_directory import RunDirectory

TABLE = "audits"

_KEY = ["party", "vantage", "method", "worst_case"]
_ALIKE = ["upper", "guesses", "correct", "canaries", "records", "confidence", "delta"]


def keep(run: RunDirectory, audits: Sequence[Audit]) -> pd.DataFrame:
    """Put audits into ``audits.parquet`` of the run; one that is made again takes the earlier one's place.

    Columns: party, vantage, method, worst_case, statistic, lower and ceiling (of this statistic's bound on
    ε), upper (the accountant's ε, infinite without DP), guesses, correct, canaries,
    records (of a canary; more than one where it is a person), confidence, delta.

    Returns: the whole table.
    """
    rows = []
    for audit in audits:
        same = {name: getattr(audit, name) for name in (*_KEY, *_ALIKE)}
        rows += [
            same | {"statistic": statistic, "lower": lower, "ceiling": audit.ceiling[statistic]}
            for statistic, lower in audit.lower.items()
        ]
    fresh = pd.DataFrame(rows)
    if run.has(TABLE):
        before = run.table(TABLE)
        again = pd.MultiIndex.from_frame(before[_KEY]).isin(pd.MultiIndex.from_frame(fresh[_KEY]))
        fresh = pd.concat([before[~again], fresh], ignore_index=True)
    run.write_table(TABLE, fresh)
    return fresh
