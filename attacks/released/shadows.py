"""Shadow models that an outsider trains on records it owns, and sees through the service's own policy.

It knows neither the federation's training nor how long it took. Its shadows are models of one party that
trains on half of all it owns, the records it asks about among them, so that each is a member of half of the
shadows. They are looked at as training goes on; the age is taken at which they are as sure of records that
they did not train on as the released model is of known outsiders, which it did not train on either.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from attacks.matrix.signal_matrix import SignalMatrix
from attacks.shadows.members import Membership, draw_members
from attacks.shadows.plan import FederationPlan, PartyTraining
from attacks.shadows.simulate import Laboratory, ShadowRequest, Shadows, train_shadows
from attacks.signals import outputs
from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.privacy.output import BACKED, answered, completed, softmax
from fedsim.core.scenario.protection import OutputPolicy
from fedsim.core.scenario.training import ModelSettings, TrainingSettings

FEWEST_OUTSIDERS = 20
"""Known outsiders without which nothing says how old the shadows should be."""

FLOOR = 1e-9
"""Probability that a 0 counts as: the shadows' and the target's answers are read alike."""


@dataclass(frozen=True)
class ShadowSettings:
    """What an outsider assumes of the model and its training.

    model: the architecture; training: of a shadow, ``ages`` times its epochs at most
    ages: after how many such trainings the shadows are looked at, increasing
    """

    shadows: int = 64
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingSettings = field(default_factory=lambda: TrainingSettings(epochs=5))
    ages: tuple[int, ...] = (1, 2, 4, 8, 16, 32)


def log_odds(told: np.ndarray, labels: np.ndarray, policy: OutputPolicy) -> np.ndarray:
    """Return φ = log p_y − log Σ_{i≠y} p_i of released probabilities (n, classes), (n,) float64.

    What a policy rounds to 0 counts as half of its last decimal.
    """
    floor = 0.5 * 10.0**-policy.digits if policy.policy == "rounded" else FLOOR
    return outputs.scaled_logit(np.log(np.maximum(told, floor)), labels)


def signals(
    candidates: Records,
    outsiders: Records,
    told: tuple[np.ndarray, np.ndarray],
    policy: OutputPolicy,
    settings: ShadowSettings,
    seed: int,
    laboratory: Laboratory | None = None,
) -> SignalMatrix:
    """Train the shadows and return them beside the released model; columns: candidates, then outsiders.

    told: probabilities of candidates (n, classes) and outsiders (m, classes), NaN where nothing was told

    Raises:
        ValueError: fewer than `FEWEST_OUTSIDERS` known outsiders were answered, or the policy's answers take
            what only the service has.
    """
    if np.isfinite(told[1]).all(axis=1).sum() < FEWEST_OUTSIDERS:
        raise ValueError(f"its shadows need {FEWEST_OUTSIDERS} known outsiders or more")
    if policy.policy in BACKED:
        raise ValueError(f"its shadows cannot answer by the policy '{policy.policy}', as the service does")
    owned = Records.concatenate([candidates, outsiders])
    classes = told[0].shape[1]
    membership = draw_members(settings.shadows, [max(1, len(owned) // 2)], np.full(len(owned), -1), seed=seed)
    shadows = train_shadows(_request(owned, classes, membership, settings, seed), laboratory)
    seen = _through(policy, shadows, classes, seed)
    age = _alike(seen, membership.inside[:, len(candidates) :] < 0, told[1])
    return _matrix(owned, membership, seen[:, age], np.concatenate(told), policy, settings.ages[age])


def _request(
    owned: Records, classes: int, membership: Membership, settings: ShadowSettings, seed: int
) -> ShadowRequest:
    from fedsim.core.models import weights, zoo

    module = zoo.build(settings.model, owned.shape, classes, rng.integer(seed, "outsider/initial weights"))
    plan = FederationPlan(
        model=settings.model,
        input_shape=owned.shape,
        classes=classes,
        rounds=settings.ages[-1],
        training=settings.training,
        parties=(PartyTraining(membership.sizes[0]),),
        participants=1,
    )
    return ShadowRequest(
        plan, weights.weights_of(module), owned, membership, owned, settings.ages, seed,
        logit_rounds=settings.ages,
    )  # fmt: skip


def _through(policy: OutputPolicy, shadows: Shadows, classes: int, seed: int) -> np.ndarray:
    """Return what the policy would tell of the shadows, (S, ages, n, classes) float64."""
    assert shadows.logits is not None
    flat = shadows.logits.reshape(-1, classes).astype(np.float64)
    noise = rng.generator(seed, "outsider/noise of shadows")
    with np.errstate(invalid="ignore"):
        told = completed(answered(softmax(flat), policy, noise))
    return told.reshape(shadows.logits.shape)


def _alike(seen: np.ndarray, outside: np.ndarray, told: np.ndarray) -> int:
    """Return the age at which shadows are as sure of strangers as the model is of known outsiders.

    seen: (S, ages, n, classes); outside: (S, m) bool, of the last m of the records, which ``told`` is of.
    The distance is Kolmogorov's, of the distributions of the largest probability; of equals the youngest.
    """
    from scipy.stats import ks_2samp

    surest = told[np.isfinite(told).all(axis=1)].max(axis=1)
    of_shadows = seen[:, :, -outside.shape[1] :].max(axis=3)  # (S, ages, m)
    distances = []
    for age in range(seen.shape[1]):
        strangers = of_shadows[:, age][outside]
        distances.append(ks_2samp(strangers[np.isfinite(strangers)], surest).statistic)
    return int(np.argmin(np.round(distances, 12)))


def _matrix(
    owned: Records,
    membership: Membership,
    seen: np.ndarray,
    told: np.ndarray,
    policy: OutputPolicy,
    age: int,
) -> SignalMatrix:
    s, n, classes = seen.shape
    labels = np.tile(owned.labels, s)
    phi = log_odds(seen.reshape(-1, classes), labels, policy).reshape(s, 1, n)
    with np.errstate(invalid="ignore", divide="ignore"):
        shadow_logits, target_logits = (np.log(np.maximum(p, FLOOR)).astype(np.float32) for p in (seen, told))
        target = log_odds(told, owned.labels, policy)
    return SignalMatrix(
        target=target[None].astype(np.float32),
        shadows=phi.astype(np.float32),
        inside=membership.inside,
        rounds=np.array([age]),
        labels=owned.labels,
        party=np.full(n, -1),
        target_logits=target_logits,
        shadow_logits=shadow_logits,
        features=owned.features,
    )
