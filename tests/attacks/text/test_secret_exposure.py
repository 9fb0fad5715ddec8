"""Exposure against exact ranks, of models whose likelihood of every number is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks.text import exposure, extraction
from attacks.text.exposure import Numbers
from attacks.text.extraction import Policy
from fedsim.core.models.language import LanguageModel, State

DIGITS = np.arange(2, 12)
VOCABULARY = 14


class Table(LanguageModel):
    """Digit k has the probabilities of row k of a table, whatever stands before."""

    def __init__(self, table: np.ndarray) -> None:
        super().__init__(VOCABULARY, VOCABULARY)
        self.output = torch.nn.Identity()  # type: ignore[assignment]
        logs = np.full((len(table) + 1, VOCABULARY), -30.0)
        logs[: len(table), DIGITS] = np.log(table)
        self.logs = torch.tensor(logs, dtype=torch.float32)

    def hidden(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Place 0 is the prefix, of one token."""
        start = state[0][0].shape[1] if state else 0
        places = (torch.arange(start, start + ids.shape[1])).clamp(max=len(self.logs) - 1)
        read = torch.zeros(len(ids), start + ids.shape[1])
        return self.logs[places].expand(len(ids), -1, -1), [(read, read)]


def _table(length: int, sharpness: float, seed: int = 1) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(length, 10)) * sharpness
    return np.exp(rows) / np.exp(rows).sum(1, keepdims=True)


def _exact(table: np.ndarray, secrets: np.ndarray, checked: bool) -> np.ndarray:
    free = len(table) - checked
    numbers = np.array(list(itertools.product(range(10), repeat=free)))
    if checked:
        numbers = np.column_stack([numbers, exposure.check_digits(numbers)])

    def logs(rows: np.ndarray) -> np.ndarray:
        return np.log(table)[np.arange(len(table)), rows].sum(1)

    ranks = (logs(numbers)[None] >= logs(secrets)[:, None] - 1e-9).sum(1)
    return np.log2(len(numbers)) - np.log2(ranks)


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("sharpness", [0.5, 2.0])
def test_sampled_exposure_is_the_exact_rank(checked: bool, sharpness: float) -> None:
    table = _table(4, sharpness)
    rng = np.random.default_rng(2)
    free = rng.integers(0, 10, (20, 3 if checked else 4))
    free[0] = table.argmax(1)[: free.shape[1]]  # the likeliest, or nearly
    secrets = np.column_stack([free, exposure.check_digits(free)]) if checked else free
    numbers = Numbers(DIGITS, 4, checked)
    bits, _ = exposure.exposures(Table(table), np.array([0]), secrets, numbers, 4000, rng)
    assert np.abs(bits - _exact(table, secrets, checked)).max() < 0.8


def test_exposure_of_secrets_never_seen_has_a_median_of_about_one_bit() -> None:
    rng = np.random.default_rng(3)
    secrets = rng.integers(0, 10, (200, 6))
    bits, _ = exposure.exposures(
        Table(_table(6, 0.7)), np.array([0]), secrets, Numbers(DIGITS, 6, False), 256, rng
    )
    assert 0.6 < np.median(bits) < 1.6  # P(exposure > x) = 2^−x


def test_a_number_that_the_model_knows_is_fully_exposed_and_a_hopeless_one_is_not_at_all() -> None:
    table = np.full((6, 10), 1e-4)
    table[:, 7] = 1 - 9e-4
    numbers, rng = Numbers(DIGITS, 6, False), np.random.default_rng(4)
    known, hopeless = np.full((1, 6), 7), np.full((1, 6), 3)
    bits, fit = exposure.exposures(
        Table(table), np.array([0]), np.concatenate([known, hopeless]), numbers, 64, rng
    )
    assert bits[0] == pytest.approx(numbers.bits, abs=0.1)
    assert bits[1] < 4
    assert fit[0] > 10 > fit[1]


def test_skew_normal_fit_gives_a_normal_tail_where_there_is_no_skew() -> None:
    from scipy.stats import norm

    logs = norm.ppf((np.arange(2000) + 0.5) / 2000) * 3 - 20
    fit = exposure.skew_normal(logs, np.array([-20.0, -11.0]), 33.2)
    assert fit == pytest.approx(-norm.logsf([0.0, 3.0]) / np.log(2), abs=0.15)


@pytest.mark.parametrize(("digits", "check"), [("7992739871", 3), ("853926", 3), ("0", 0)])
def test_check_digit_is_luhns(digits: str, check: int) -> None:
    """The examples are those of ISO/IEC 7812-1's usual accounts."""
    number = np.array([[int(digit) for digit in digits]])
    if digits == "853926":
        check = int(exposure.check_digits(number)[0])
        total = sum(
            sum(divmod(int(d) * (2 if k % 2 else 1), 10)) for k, d in enumerate(reversed(digits + str(check)))
        )
        assert total % 10 == 0
    else:
        assert exposure.check_digits(number)[0] == check


def test_a_lookup_table_is_extracted_and_a_flat_model_is_not() -> None:
    answer = np.array([3, 1, 4, 1])
    table = np.full((4, 10), 1e-6)
    table[np.arange(4), answer] = 1 - 9e-6
    rng = np.random.default_rng(5)
    written = extraction.write(Table(table), [np.array([0])], 4, rng)
    assert (written[0] == DIGITS[answer]).all()
    assert extraction.probability(Table(table), np.array([0]), DIGITS[answer]) == pytest.approx(1, abs=1e-3)
    flat = extraction.probability(Table(np.full((4, 10), 0.1)), np.array([0]), DIGITS[answer])
    assert flat == pytest.approx(1e-4, rel=1e-3)


def test_draws_follow_the_model_at_temperature_one_and_the_policy_else() -> None:
    table = _table(1, 1.0)
    model, rng = Table(table), np.random.default_rng(6)
    prompts = [np.array([0])] * 4000
    drawn = extraction.write(model, prompts, 1, rng, Policy())[:, 0] - DIGITS[0]
    assert np.abs(np.bincount(drawn, minlength=10) / 4000 - table[0]).max() < 0.03
    two = extraction.write(model, prompts, 1, rng, Policy(top_k=2))[:, 0] - DIGITS[0]
    assert set(two) == set(np.argsort(table[0])[-2:])
    assert set(extraction.write(model, prompts[:9], 1, rng, Policy(0.0))[:, 0] - DIGITS[0]) == {
        table[0].argmax()
    }


def test_discoverable_is_the_chance_of_one_hit() -> None:
    assert extraction.discoverable(0.01, 100) == pytest.approx(1 - 0.99**100)
    assert extraction.discoverable(1.0, 1) == pytest.approx(1)
    assert extraction.discoverable(0.0, 10) == 0
