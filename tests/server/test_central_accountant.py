"""Central DP's ε, checked against Flower's own accountant (flwr.serverapp, since 1.41)."""

from __future__ import annotations

import pytest
from flwr.serverapp import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyConfig,
    RdpAccountant,
    SamplingMethod,
)

from fedsim.core.scenario.protection import CentralDPSettings
from fedsim.server.central_dp import party_epsilon

PARTIES = 5


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("rounds", [1, 20, 200])
def test_a_partys_epsilon_is_that_of_flowers_accountant(noise: float, rounds: int) -> None:
    """No amplification by sampling: every party takes part. Rényi composition bounds ours, which is exact."""
    settings = CentralDPSettings(noise_multiplier=noise)
    config = PrivacyConfig(
        settings.delta, PARTIES, NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.NO_AMPLIFICATION
    )
    accountant = RdpAccountant(config)
    accountant.compose(GaussianPrivacyEvent(noise, PARTIES, PARTIES), rounds)
    theirs, ours = accountant.get_epsilon(settings.delta), party_epsilon(settings, rounds)
    assert ours <= theirs <= 1.25 * ours
