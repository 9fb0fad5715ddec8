"""Windows of a table as Gaussian noise, against numbers drawn afresh."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from fedsim.core import rng
from fedsim.core.training.stacked import noise
from fedsim.core.training.stacked.noise import NoiseSource


def numbers(count: int, seed: int = 0) -> np.ndarray:
    return rng.generator(seed, "numbers").bit_generator.random_raw(count)


def noise_and_signs(source: NoiseSource, asked: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    flat = torch.full((len(asked), source.size), float("nan"))
    signs = source.draw(asked, out=flat)
    return flat, signs


def drawn(source: NoiseSource, count: int, seed: int = 0) -> np.ndarray:
    flat, signs = noise_and_signs(source, numbers(count, seed))
    return (flat * signs[:, None]).numpy()


@pytest.mark.parametrize("largest", [0, 2**16], ids=["afresh", "from the table"])
def test_noise_is_standard_normal_and_independent(largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "LARGEST", largest)
    steps = drawn(NoiseSource((3, 0), 500), 400)
    assert (steps.dtype, steps.shape) == (np.float32, (400, 500))
    assert stats.kstest(steps[:, 0], "norm").pvalue > 0.001  # over windows
    assert stats.kstest(steps[0], "norm").pvalue > 0.001  # within one
    between = np.corrcoef(steps)[np.triu_indices(400, 1)]
    within = np.corrcoef(steps.T)[np.triu_indices(500, 1)]
    for correlation, n in ((between, 500), (within, 400)):
        assert abs(correlation.mean()) < 5 / np.sqrt(len(correlation) * n)
        assert correlation.std() == pytest.approx(1 / np.sqrt(n), rel=0.05)


def test_the_sum_of_many_steps_varies_as_it_should() -> None:
    """What a federation adds up: 2000 steps; a table without random signs would add up its mean."""
    source = NoiseSource((3, 0), 50)
    sums = np.stack([drawn(source, 2000, seed).sum(axis=0) for seed in range(40)])
    assert stats.kstest(sums.ravel() / np.sqrt(2000), "norm").pvalue > 0.001
    assert sums.var() / 2000 == pytest.approx(1, abs=5 * np.sqrt(2 / sums.size))


def test_a_number_is_its_noise() -> None:
    source, asked = NoiseSource((3, 0), 7), numbers(5)
    whole, signs = noise_and_signs(source, asked)
    for i in range(5):
        alone, sign = noise_and_signs(NoiseSource((3, 0), 7), asked[i : i + 1])
        assert torch.equal(alone[0], whole[i]) and sign[0] == signs[i]
    assert set(noise_and_signs(source, numbers(100))[1].tolist()) == {-1.0, 1.0}
    for other in ((4, 0), (3, 1)):
        assert not torch.equal(noise_and_signs(NoiseSource(other, 7), asked)[0], whole)


def test_a_large_model_draws_its_noise_afresh() -> None:
    source = NoiseSource((3, 0), noise.LARGEST + 1)
    flat, signs = noise_and_signs(source, numbers(2))
    assert flat.shape == (2, noise.LARGEST + 1) and (signs == 1).all()
    assert stats.kstest(flat.flatten()[::9].numpy(), "norm").pvalue > 0.001
    assert torch.equal(noise_and_signs(source, numbers(2))[0], flat)
