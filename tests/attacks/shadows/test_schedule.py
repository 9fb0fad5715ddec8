"""What chance decides in a shadow."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.shadow_plans import members_of, small_plan, some_pool

from attacks.shadows import schedule as shadows_schedule
from attacks.shadows.defences import draw_heldout
from attacks.shadows.schedule import Streams, draw_schedule, permutations
from fedsim.core.errors import InputError
from fedsim.core.training.stacked import noise


def test_mixup_and_dropout_have_their_laws() -> None:
    plan = small_plan(
        (22,), training={"batch": 8, "epochs": 40}, defences={0: {"mixup": 0.4, "dropout": 0.3}}
    )
    streams = [Streams(0, 0, s) for s in range(20)]
    schedule = draw_schedule(plan, streams)
    mixing, batches = schedule.mixing[0], schedule.batches[0]
    assert stats.kstest(mixing.share.ravel(), stats.beta(0.4, 0.4).cdf).pvalue > 0.001
    np.testing.assert_array_equal(np.sort(mixing.partner), np.sort(batches))  # a permutation of each batch
    full = batches[:, :, -1] >= 0
    assert ((mixing.partner < 0) == (batches < 0)).all()
    # A position is mapped to itself as often as to any other.
    stays = (mixing.partner == batches)[full].mean()
    assert abs(stays - 1 / 8) < 5 * np.sqrt(7 / 64 / full.sum() / 8)
    numbers = noise.uniform((0, 0), schedule.dropout.ravel(), 50).numpy()
    assert stats.kstest(numbers[:, 7], "uniform").pvalue > 0.001
    assert abs(np.corrcoef(numbers.T)[np.triu_indices(50, 1)].mean()) < 5 / np.sqrt(numbers.size)


def test_records_to_stop_on_are_in_no_party() -> None:
    plan = small_plan((9, 14, 5), defences={0: {"patience": 1}, 2: {"patience": 3}})
    pool = some_pool(plan, 60)
    members = members_of(plan, 6, pool).members
    heldout = draw_heldout(plan, members, 60, [Streams(3, 0, s) for s in range(6)])
    assert {k: rows.shape for k, rows in heldout.items()} == {0: (6, 9), 2: (6, 5)}
    for s in range(6):
        dealt = np.concatenate([heldout[0][s], heldout[2][s]])
        assert len(set(dealt)) == 14 and not set(dealt) & set(members[s].ravel())
    with pytest.raises(InputError, match="no record is left over"):
        draw_heldout(plan, np.arange(60)[None, None], 60, [Streams(3, 0, 0)])


def keys(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).bit_generator.random_raw(shape)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 70), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_permutations_are_permutations(sizes: list[int], seed: int) -> None:
    orders = permutations(keys((2, len(sizes), 3, max(sizes)), seed), np.array(sizes))
    for k, n in enumerate(sizes):
        assert (np.sort(orders[:, k, :, :n]) == np.arange(n)).all()


def test_every_permutation_is_as_likely() -> None:
    orders = permutations(keys((24000, 1, 1, 4)), np.array([4]))
    counts = Counter(map(tuple, orders[:, 0, 0].tolist()))
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


def test_an_epoch_has_every_record_once_and_its_last_batch_is_smaller() -> None:
    plan = small_plan((9, 14), training={"batch": 4, "epochs": 3})
    schedule = draw_schedule(plan, [Streams(0, 0, s) for s in range(5)])
    assert [b.shape for b in schedule.batches] == [(5, 9, 4), (5, 12, 4)]
    for n, batches in zip((9, 14), schedule.batches, strict=True):
        epochs = batches.reshape(5, 3, -1)
        assert (np.sort(epochs)[..., -n:] == np.arange(n)).all()
        assert ((batches >= 0).sum(2) == ([4] * (n // 4) + [n % 4]) * 3).all()
    first, second = schedule.batches[0][0, :3].ravel(), schedule.batches[0][0, 3:6].ravel()
    assert (first != second).any()


def test_poisson_batches_have_their_rate_and_drop_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan((40,), private=(0,), training={"batch": 10, "epochs": 500})
    streams = [Streams(0, 0, s) for s in range(4)]
    batches = draw_schedule(plan, streams).batches[0]
    counts = np.stack([(batches == i).sum(2) for i in range(40)])  # (records, shadows, steps)
    assert counts.max() == 1
    sizes = counts.sum(0).ravel()
    observed = np.bincount(sizes, minlength=41)
    expected = stats.binom.pmf(np.arange(41), 40, 0.25) * len(sizes)
    common = expected > 5
    assert (
        stats.chisquare(
            [*observed[common], observed[~common].sum()], [*expected[common], expected[~common].sum()]
        ).pvalue
        > 0.001
    )
    # A batch beyond the width that was prepared for widens it.
    monkeypatch.setattr(shadows_schedule, "poisson_width", lambda n, rate: 4)
    again = draw_schedule(plan, [Streams(0, 0, s) for s in range(4)]).batches[0]
    assert ((again >= 0).sum(2).ravel() == sizes).all()
    assert sizes.max() == again.shape[2] > 4


def test_participants_are_drawn_uniformly() -> None:
    plan = small_plan((4, 4, 4, 4), participants=2)
    streams = [Streams(0, 0, s) for s in range(600)]
    active = draw_schedule(plan, streams).active
    assert (active.sum(1) == 2).all()
    pairs = Counter(map(tuple, active.tolist()))
    assert len(pairs) == 6
    assert stats.chisquare(list(pairs.values())).pvalue > 0.001
