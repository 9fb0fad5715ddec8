"""What chance decides at a party: the laws of its draws, and that each comes from a stream of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from support.training import PLAN

from fedsim.core import rng
from fedsim.core.privacy.plan import steps_per_round
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training.draws import PartyDraws


def draws(round: int = 0) -> PartyDraws:
    return PartyDraws(
        rng.torch_generator(0, "order", round=round),
        rng.torch_generator(0, "noise", round=round),
        rng.generator(0, "rounding", round=round),
    )


@given(
    n=st.integers(1, 40),
    batch=st.integers(1, 12),
    epochs=st.integers(1, 3),
    steps=st.none() | st.integers(1, 9),
)
def test_an_epoch_is_a_permutation_cut_into_batches(n, batch, epochs, steps) -> None:
    settings = TrainingSettings(batch=batch, epochs=epochs, steps=steps)
    epochs_drawn = [list(batches) for batches in draws().permuted(n, settings)]
    assert sum(map(len, epochs_drawn)) == steps_per_round(settings, n)
    for number, batches in enumerate(epochs_drawn):
        positions = torch.cat(batches).tolist()
        assert len(set(positions)) == len(positions)
        if number + 1 < len(epochs_drawn):
            assert sorted(positions) == list(range(n))
        assert all(len(part) == batch for part in batches[:-1])


@pytest.mark.parametrize("secure", [False, True])
def test_records_are_drawn_independently_with_probability_q(secure: bool) -> None:
    n, plan = 50, replace(PLAN, sample_rate=0.3, steps_per_round=4000)
    drawn = np.zeros((plan.steps_per_round, n))
    for step, rows in enumerate((PartyDraws(None, None) if secure else draws()).poisson(n, plan)):
        drawn[step, rows] = 1
    deviation = np.sqrt(4000 * 0.3 * 0.7)
    assert np.abs(drawn.sum(0) - 4000 * 0.3).max() < 5 * deviation
    sizes = drawn.sum(1)  # Bin(n, q): shuffled batches of a fixed size would have no variance
    assert sizes.var() == pytest.approx(n * 0.3 * 0.7, rel=0.15)
    assert abs(np.corrcoef(sizes[:-1], sizes[1:])[0, 1]) < 5 / np.sqrt(4000)


def test_full_rate_takes_every_record_in_every_step() -> None:
    batches = list(draws().poisson(7, replace(PLAN, sample_rate=1.0)))
    assert len(batches) == PLAN.steps_per_round
    assert all(batch.tolist() == list(range(7)) for batch in batches)


@pytest.mark.parametrize("secure", [False, True])
def test_noise_is_normal_and_each_piece_has_its_own(secure: bool) -> None:
    party = PartyDraws(None, None) if secure else draws()
    pieces = [torch.empty(50, 40), torch.empty(2000)]
    party.noise(0, pieces, 2.5)
    for piece in pieces:
        assert stats.kstest(piece.flatten().numpy() / 2.5, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(pieces[0].flatten(), pieces[1])[0, 1]) < 5 / np.sqrt(2000)


def test_masks_keep_what_is_not_dropped_and_mixup_permutes() -> None:
    party, masks = draws(), [torch.empty(100, 30), torch.empty(100, 20)]
    party.keep(0, masks, 0.2)
    for mask in masks:
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        assert float(mask.mean()) == pytest.approx(0.8, abs=5 * 0.4 / np.sqrt(mask.numel()))
    shares = []
    for step in range(300):
        share, partner = party.mixup(step, 0.4, 9)
        assert sorted(partner.tolist()) == list(range(9))
        shares.append(share)
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).pvalue > 1e-4


def test_no_purpose_moves_the_stream_of_another() -> None:
    """Dropout, mixup and noise leave the batches as they are."""
    settings, quiet, busy = TrainingSettings(batch=3, epochs=2), draws(), draws()
    busy.keep(0, [torch.empty(3, 4)], 0.5)
    busy.mixup(0, 1.0, 3)
    busy.noise(0, [torch.empty(5)], 1.0)
    busy.rounding([4])
    with busy.global_stream():
        torch.rand(3)
    for one, other in zip(quiet.permuted(8, settings), busy.permuted(8, settings), strict=True):
        assert torch.equal(torch.cat(list(one)), torch.cat(list(other)))


def test_the_global_stream_is_the_partys_for_a_while() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    with draws().global_stream():
        first = torch.rand(3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    with draws().global_stream():
        assert torch.equal(torch.rand(3), first)
    with draws(round=1).global_stream():
        assert not torch.equal(torch.rand(3), first)


def test_one_stream_for_two_purposes_is_refused() -> None:
    stream = rng.torch_generator(0, "dp")
    with pytest.raises(ValueError, match="stream each"):
        PartyDraws(stream, stream)


def test_rounding_needs_a_stream() -> None:
    with pytest.raises(ValueError, match="quantisation"):
        PartyDraws(None, None).rounding([3])
    assert [len(numbers) for numbers in draws().rounding([3, 1])] == [3, 1]
