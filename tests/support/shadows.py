"""Shadows asked for in one call, as most tests do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from attacks.shadows import simulate as shadows_simulate
from attacks.shadows.members import Membership
from attacks.shadows.plan import FederationPlan
from attacks.shadows.simulate import Laboratory, Progress, ShadowRequest, Shadows, Weights
from fedsim.core.data.records import Records


def simulate(
    plan: FederationPlan,
    initial: Weights,
    pool: Records,
    membership: Membership,
    signal_records: Records,
    *,
    rounds: Sequence[int],
    seed: int,
    logit_rounds: Sequence[int] = (),
    weight_rounds: Sequence[int] = (),
    raised: Records | None = None,
    person: np.ndarray | None = None,
    workers: int = 1,
    max_bytes: int = 2**30,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Shadows:
    request = ShadowRequest(
        plan, initial, pool, membership, signal_records, tuple(rounds), seed,
        logit_rounds=tuple(logit_rounds), weight_rounds=tuple(weight_rounds), raised=raised, person=person,
    )  # fmt: skip
    return shadows_simulate.train_shadows(request, Laboratory(workers, cache, progress, max_bytes))
