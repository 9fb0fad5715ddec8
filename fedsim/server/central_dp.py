"""Flower's central DP around a strategy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import Message
from flwr.serverapp import strategy as stock
from flwr.serverapp.strategy import Strategy

from fedsim.core.privacy import gaussian
from fedsim.core.scenario.protection import CentralDPSettings


class _AsPublished:
    """Mixed into Flower's adaptive wrappers, which differ from Andrew et al. 2021, algorithm 1, twice.

    They move the norm by the share of updates that were clipped, where the paper has the share that was not:
    the norm runs away from the quantile. And they move it before they draw the noise, which is then z times
    another norm than the one at which the updates were clipped.
    """

    def _geometric_update(self, clipped_fraction: float) -> None:
        self._unclipped = 1 - clipped_fraction

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        aggregated = super().aggregate_train(server_round, replies)  # type: ignore[misc]
        super()._geometric_update(self._unclipped)  # type: ignore[misc]
        return aggregated


class _ServerSideAdaptive(_AsPublished, stock.DifferentialPrivacyServerSideAdaptiveClipping):
    pass


class _ClientSideAdaptive(_AsPublished, stock.DifferentialPrivacyClientSideAdaptiveClipping):
    pass


_FIXED = {
    "server": stock.DifferentialPrivacyServerSideFixedClipping,
    "client": stock.DifferentialPrivacyClientSideFixedClipping,
}
_ADAPTIVE = {"server": _ServerSideAdaptive, "client": _ClientSideAdaptive}


def with_central_dp(inner: Strategy, settings: CentralDPSettings, participants: int) -> Strategy:
    """Return Flower's central-DP wrapper around ``inner``, for so many parties in a round."""
    if settings.clipping == "fixed":
        return _FIXED[settings.where](inner, settings.noise_multiplier, settings.clipping_norm, participants)
    return _ADAPTIVE[settings.where](
        inner,
        settings.noise_multiplier,
        participants,
        initial_clipping_norm=settings.clipping_norm,
        target_clipped_quantile=settings.clipping_quantile,
        clip_norm_lr=settings.clipping_rate,
        clipped_count_stddev=count_noise(settings, participants),
    )


def count_noise(settings: CentralDPSettings, participants: int) -> float:
    """Return the standard deviation of the noise on the number of clipped updates.

    A twentieth of the parties, as Andrew et al. 2021 recommend, but at least z: from half of z downwards the
    count alone would spend more than all is meant to, and at z the updates' noise grows by 15 %.
    """
    return max(participants / 20, settings.noise_multiplier)


def party_epsilon(settings: CentralDPSettings, rounds: int) -> float:
    """Return the party-level ε, at the settings' δ, of a party that took part in so many rounds.

    Where clipping is adaptive, z stands for updates and counts together: Flower raises the updates' noise to
    (z⁻² − (2σ_b)⁻²)^−½, so that both as one mechanism have multiplier z (Andrew et al. 2021, theorem 1).
    """
    return gaussian.epsilon_of(settings.delta, settings.noise_multiplier, rounds)


def is_central(strategy: Strategy) -> bool:
    """Return whether ``strategy`` is one of Flower's central-DP wrappers."""
    return isinstance(strategy, (*_FIXED.values(), *_ADAPTIVE.values()))
