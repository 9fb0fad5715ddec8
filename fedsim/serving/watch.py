"""Whose questions look like an attack, told from the audit log alone.

Where `SHARE` or more of at least `ENOUGH` records of a key lie next to an earlier one (`neighbours`),
somebody searches a boundary, asks about noisy copies or tries variants of one person. A list of single
persons, each asked once, looks like any other traffic: nothing here sees it, and only a policy or a budget
helps.

Whoever plays 'what if' with the numbers of a few persons is named as well: it is the same question. Measured
by `experiments/benchmarks/monitoring.py`; figures in `experiments/results/serving.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

ENOUGH, SHARE = 30, 0.3


@dataclass
class Pattern:
    """What one key asked.

    near: records with a neighbour among the key's earlier ones
    refused: requests beyond its budget
    """

    key: str
    name: str
    requests: int = 0
    records: int = 0
    near: int = 0
    refused: int = 0
    digests: set[str] = field(default_factory=set, repr=False)

    @property
    def repeated(self) -> int:
        """Records that had been asked about before."""
        return self.records - len(self.digests)

    @property
    def probing(self) -> bool:
        """Whether the key's questions look like an attack on one or several records."""
        return self.records >= ENOUGH and self.near >= SHARE * self.records


def patterns(entries: Iterable[Mapping[str, Any]]) -> list[Pattern]:
    """Return each key's pattern, in the order in which the keys first asked."""
    by_key: dict[str, Pattern] = {}
    for entry in entries:
        pattern = by_key.setdefault(entry["key"], Pattern(entry["key"], entry["name"]))
        pattern.requests += 1
        pattern.refused += entry["status"] == 429
        pattern.records += entry["records"]
        pattern.near += entry["near"]
        pattern.digests.update(entry["digests"])
    return list(by_key.values())
