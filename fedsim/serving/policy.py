"""What a key is told of the model's probabilities: the offline policies, record by record.

Noise is a fixed function of the run's secret, the policy and the record. A record that is asked about again,
by whatever key of that policy, has the answer it had before: nothing can be averaged away, and several keys
together learn no more than one. Two policies draw independent noise: noise that was merely scaled differently
would cancel out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim.core import rng
from fedsim.core.privacy import memguard
from fedsim.core.privacy.output import NO_BACKING, Backing, answered
from fedsim.core.scenario.protection import OutputPolicy
from fedsim.serving.state import Secret

NOISY = ("noisy", "laplace", "gaussian", "hamp", "memguard", "votes")
_NO_NOISE = rng.generator(0, "served answer")  # for policies that draw nothing


def answer(
    p: np.ndarray,
    policy: OutputPolicy,
    digests: Sequence[bytes],
    seed: int,
    backing: Backing = NO_BACKING,
) -> np.ndarray:
    """Return what ``policy`` tells of probabilities p, (n, classes) float64; NaN where nothing is told.

    p: of the released model; shares of votes under 'votes'
    digests: of the records' features, in their order
    seed: of the noise. A service's is secret; a given one makes a run of it repeatable.
    backing: what the policy needs besides
    """
    if policy.policy not in NOISY:
        return answered(p, policy, _NO_NOISE)
    streams = [stream(seed, policy, digest) for digest in digests]
    if policy.policy == "memguard" and backing.guard is not None:
        # The search for the noise is common to a batch; each record has a coin of its own.
        coins = np.array([own.random() for own in streams])
        return memguard.guarded(p, backing.guard, policy.distortion, coins)
    rows = [answered(row[None], policy, own, backing) for row, own in zip(p, streams, strict=True)]
    return np.concatenate(rows) if rows else p


def stream(seed: int, policy: OutputPolicy, digest: bytes) -> np.random.Generator:
    """Return the noise of one record's answer."""
    settings = policy.model_dump_json(exclude={"queries"})
    return rng.generator(seed, "served answer", party=f"{settings} {digest.hex()}")


def record_digests(secret: Secret, features: np.ndarray) -> list[bytes]:
    """Return 16 bytes a record of features (n, …) float32: another spelling of a value is no other record.

    secret: the run's
    """
    own = Secret(secret.key("record digests"))
    flat = features.reshape(len(features), -1) + np.float32(0)  # −0 and 0 are one value
    return [own.digest(row.tobytes())[:16] for row in flat]
