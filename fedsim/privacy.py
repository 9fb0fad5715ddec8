"""What DP-SGD costs a party: ε over all rounds, and the noise that a planned run needs.

The mechanism is the Poisson-subsampled Gaussian: in every step each record takes part with probability q
(the sample rate), the clipped gradients are summed and N(0, (σC)²) is added (Abadi et al. 2016, algorithm
1). The unit is one record, neighbouring is add/remove, and q and n are public settings. No amplification by
the server's choice of parties is claimed.

Two accountants, both upper bounds on ε:

rdp   Rényi DP (Mironov 2017; Mironov, Talwar & Zhang 2019), as Opacus computes it: fast, some 8 % above.
prv   privacy random variables composed by FFT (Gopi, Lee & Wutschitz 2021), built from Opacus' parts: tight,
      its error bound max(0.01, ε/1000) included in the ε that is returned. RDP stands in for it where it
      would be slow or numerically unsafe: see `Ledger.accounted_by`.

Adaptive clipping (Andrew et al. 2021, algorithm 1) releases in each step, beside the noisy sum of gradients
clipped to C, a noisy count of those that C did not shorten. Together the two cost what noise multiplier z
alone costs (theorem 1), so that ε is accounted with z = ``Plan.noise_multiplier`` whatever the clipping.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedsim.errors import InputError
from fedsim.scenario import DPSettings, TrainingSettings

if TYPE_CHECKING:
    from opacus.accountants.analysis.prv import DiscretePRV, Domain

Accountant = Literal["rdp", "prv"]
Entry = tuple[float, float, int]  # noise multiplier σ, sample rate q, steps

LOWEST_PRV_NOISE = 0.4
LARGEST_PRV_GRID = 2**21
PRV_ERROR = 0.01

# Opacus' orders, and larger ones, without which RDP's ε never falls below 0.1 at δ = 1e-5.
ORDERS = (
    *(1 + x / 10 for x in range(1, 100)),
    *range(11, 64),
    *(64, 80, 96, 128, 160, 192, 256, 384, 512, 768, 1024),
)


@dataclass(frozen=True)
class Ledger:
    """Everything that a party has spent so far, over all rounds.

    entries: (noise multiplier, sample rate, steps), oldest first, equal neighbours merged
    """

    entries: tuple[Entry, ...] = ()

    def add(self, noise_multiplier: float, sample_rate: float, steps: int) -> Ledger:
        """Return the ledger with ``steps`` more steps in it."""
        if steps == 0:
            return self
        *older, (last_noise, last_rate, last_steps) = self.entries or ((0.0, 0.0, 0),)
        if (last_noise, last_rate) == (noise_multiplier, sample_rate):
            return Ledger((*older, (noise_multiplier, sample_rate, last_steps + steps)))
        return Ledger((*self.entries, (noise_multiplier, sample_rate, steps)))

    def epsilon(self, delta: float, accountant: Accountant = "prv") -> float:
        """Return the composed ε of all entries at ``delta``: an upper bound, 0 where nothing was spent."""
        return _spent(self.entries, delta, accountant)[0]

    def accounted_by(self, delta: float, accountant: Accountant = "prv") -> Accountant:
        """Return the accountant that `epsilon` really uses.

        It is 'rdp' instead of 'prv' where σ is below 0.4, where the PRV grid would have more than 2²¹
        points (a matter of seconds), or where Opacus' discretisation refuses (δ close to machine
        precision).
        """
        return _spent(self.entries, delta, accountant)[1]

    def to_config(self) -> dict[str, list[Any]]:
        """Return the entries as parallel lists, which is what a Flower ConfigRecord can hold."""
        return {
            "noise_multiplier": [noise for noise, _, _ in self.entries],
            "sample_rate": [rate for _, rate, _ in self.entries],
            "steps": [steps for _, _, steps in self.entries],
        }

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Ledger:
        """Return the ledger that `to_config` wrote.

        Raises:
            KeyError: a list is missing.
            ValueError: the lists differ in length.
        """
        columns = config["noise_multiplier"], config["sample_rate"], config["steps"]
        return Ledger(tuple((float(s), float(q), int(k)) for s, q, k in zip(*columns, strict=True)))


@dataclass(frozen=True)
class Plan:
    """DP-SGD of one party for the whole planned run, fixed before round 1.

    sample_rate: q, probability with which a record takes part in a step
    expected_batch: q·n, the denominator of the averaged gradient
    noise_multiplier: σ, by which ε is accounted; the noise on the summed gradient has standard deviation σC,
        a little more under adaptive clipping (`gradient_noise`)
    clipping_norm: C, bound on the Euclidean norm of a record's gradient; the first one if adaptive
    epsilon: ε of all ``rounds`` at ``delta``
    budget: ε at which the party stops; infinite where none is set
    clipping: whether C stays, or follows the quantile γ = clipping_quantile of the gradients' norms with
        learning rate η = clipping_rate (`next_clipping_norm`)
    """

    sample_rate: float
    expected_batch: float
    steps_per_round: int
    noise_multiplier: float
    rounds: int
    delta: float
    clipping_norm: float
    accountant: Accountant
    epsilon: float
    budget: float
    clipping: Literal["flat", "adaptive"] = "flat"
    clipping_quantile: float = 0.5
    clipping_rate: float = 0.2

    @property
    def count_noise(self) -> float:
        """σ_b, the standard deviation of the noise on the count of gradients that C does not shorten.

        A twentieth of the expected batch (Andrew et al. 2021, section 3.1), but at least σ: the gradients'
        own noise grows by 2/√3 at most, however small the batches are.
        """
        return max(self.expected_batch / 20, self.noise_multiplier)

    @property
    def gradient_noise(self) -> float:
        """z_Δ: the noise on the sum of the clipped gradients has standard deviation z_Δ C.

        z_Δ = (σ⁻² − (2σ_b)⁻²)^(−1/2) under adaptive clipping (Andrew et al. 2021, theorem 1), else σ.
        """
        if self.clipping == "flat" or self.noise_multiplier == 0:
            return self.noise_multiplier
        return (self.noise_multiplier**-2 - (2 * self.count_noise) ** -2) ** -0.5

    def next_clipping_norm(self, norm: float, count: float) -> float:
        """Return C after a step with C = ``norm``: C exp(−η (b̃ − γ)) (Andrew et al. 2021, section 2.2).

        count: Σ_i (1[‖g_i‖ ≤ C] − ½) + N(0, σ_b²) over the batch. One record moves the sum by ½; that of the
        indicators themselves it moves by 1, and their number is private under Poisson sampling. b̃ is its
        quotient by the expected batch, plus ½, at the nearest in [0, 1].
        """
        share = min(1.0, max(0.0, 0.5 + count / self.expected_batch))
        return norm * math.exp(-self.clipping_rate * (share - self.clipping_quantile))

    def spend(self, ledger: Ledger, steps: int | None = None) -> Ledger:
        """Return ``ledger`` after one more round (or after ``steps`` steps of it)."""
        steps = self.steps_per_round if steps is None else steps
        return ledger.add(self.noise_multiplier, self.sample_rate, steps)


def steps_per_round(training: TrainingSettings, n: int) -> int:
    """Return the optimizer steps of one round on ``n`` records: ``steps``, or ``epochs`` × ⌈n / batch⌉.

    The same with and without DP, where an epoch is ⌈1/q⌉ Poisson batches.
    """
    return training.steps or training.epochs * -(-n // training.batch)


def plan(dp: DPSettings, training: TrainingSettings, n: int, rounds: int) -> Plan:
    """Return the plan of a party with ``n`` records that may take part in all ``rounds``.

    Given a target ε, σ is solved once for all steps of the run, so that the planned ε is at most the target
    and less than 1 % below it.

    Raises:
        InputError: no amount of noise reaches the target.
    """
    rate = min(1.0, training.batch / n)
    per_round = steps_per_round(training, n)
    total = per_round * rounds
    if dp.noise_multiplier is not None:
        noise = dp.noise_multiplier
    else:
        assert dp.epsilon is not None  # DPSettings has one of the two
        noise = solve_noise_multiplier(dp.epsilon, dp.delta, rate, total, dp.accountant)
    return Plan(
        sample_rate=rate,
        expected_batch=float(min(training.batch, n)),
        steps_per_round=per_round,
        noise_multiplier=noise,
        rounds=rounds,
        delta=dp.delta,
        clipping_norm=dp.clipping_norm,
        accountant=dp.accountant,
        epsilon=Ledger().add(noise, rate, total).epsilon(dp.delta, dp.accountant),
        budget=dp.budget or dp.epsilon or math.inf,
        clipping=dp.clipping,
        clipping_quantile=dp.clipping_quantile,
        clipping_rate=dp.clipping_rate,
    )


def would_exceed(ledger: Ledger, plan: Plan) -> bool:
    """Return whether one more round would take the party above its budget (but for float noise, 1e-9)."""
    after = plan.spend(ledger).epsilon(plan.delta, plan.accountant) if math.isfinite(plan.budget) else 0.0
    return after > plan.budget * (1 + 1e-9)


@lru_cache(maxsize=1024)
def solve_noise_multiplier(
    epsilon: float, delta: float, sample_rate: float, steps: int, accountant: Accountant = "prv"
) -> float:
    """Return a σ whose ε after ``steps`` steps is in [0.998, 1] × ``epsilon``.

    Safeguarded secant steps on ln ε against ln σ, which is nearly a straight line, from the central limit's
    guess. Where ε jumps over that interval (PRV takes over from RDP there), the σ just above the jump.

    Raises:
        InputError: ε stays above the target whatever σ.
    """
    x = math.log(_guess_noise_multiplier(epsilon, delta, sample_rate, steps))
    low, high = -math.inf, math.inf  # ln σ with ε(low) > target ≥ ε(high)
    points: list[tuple[float, float]] = []  # (ln σ, ln ε)
    while high - low > 1e-9:
        spent = Ledger().add(math.exp(x), sample_rate, steps).epsilon(delta, accountant)
        if 0.998 * epsilon <= spent <= epsilon:
            return math.exp(x)
        low, high = (x, high) if spent > epsilon else (low, x)
        if low > math.log(1e6):
            raise InputError(
                f"dp.epsilon = {epsilon:g}: out of reach at delta = {delta:g} in {steps} steps with "
                f"sample rate {sample_rate:.3g}, however much noise; raise epsilon or delta"
            )
        points.append((x, math.log(spent)))
        x = _next_log_noise(points, math.log(0.999 * epsilon), low, high)
    return math.exp(high)


def _next_log_noise(points: list[tuple[float, float]], aim: float, low: float, high: float) -> float:
    """Return the next ln σ to try: a secant step where it stays in (low, high), else halve or widen."""
    x, y = points[-1]
    slope = -1.2
    if len(points) > 1 and math.isfinite(y) and math.isfinite(points[-2][1]):
        slope = min(-0.1, (y - points[-2][1]) / (x - points[-2][0]))
    step = x + (aim - y) / slope
    if low < step < high and abs(step - x) <= 2 and len(points) < 8:
        return step
    if math.isinf(high):
        return low + 1
    return high - 1 if math.isinf(low) else (low + high) / 2


def _guess_noise_multiplier(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """Return σ by the central limit theorem: μ = q √(k (e^{1/σ²} − 1)) in Gaussian DP.

    Bu, Dong, Long & Su 2020, theorem 5 and corollary 3. A guess to start from, never a guarantee: it
    under-reports ε.
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr

    def excess(log_mu: float) -> float:
        mu = math.exp(log_mu)
        spent = math.exp(log_ndtr(mu / 2 - epsilon / mu))
        return spent - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu)) - delta

    bracket = math.log(1e-9), math.log(epsilon + 100)
    mu = math.exp(brentq(excess, *bracket)) if excess(bracket[0]) < 0 < excess(bracket[1]) else epsilon
    return min(1e5, max(0.05, math.log1p(mu**2 / (sample_rate**2 * steps)) ** -0.5))


@lru_cache(maxsize=4096)
def _spent(entries: tuple[Entry, ...], delta: float, accountant: Accountant) -> tuple[float, Accountant]:
    """Return (ε, accountant used): asked anew after every round of every party, hence the cache."""
    if not entries:
        return 0.0, accountant
    renyi = _rdp_epsilon(entries, delta)
    if accountant == "prv" and renyi < math.inf and min(entries)[0] >= LOWEST_PRV_NOISE:
        # In powers of two, so that one grid serves many rounds while ε grows.
        error = PRV_ERROR * 2 ** math.floor(math.log2(max(1.0, renyi / 1000 / PRV_ERROR)))
        tight = _prv_epsilon(entries, delta, error)
        if tight is not None:
            return tight, "prv"
    return renyi, "rdp"


def _rdp_epsilon(entries: Sequence[Entry], delta: float) -> float:
    """Return min over orders α of the conversion of Balle et al. 2020 (arXiv:1905.09982), theorem 21."""
    orders = np.asarray(ORDERS)
    total = sum(steps * _rdp_of_one_step(noise, rate) for noise, rate, steps in entries)
    epsilon = total - np.log(delta * orders) / (orders - 1) + np.log1p(-1 / orders)
    return max(0.0, float(np.nan_to_num(epsilon, nan=np.inf, posinf=np.inf).min()))


@lru_cache(maxsize=256)
def _rdp_of_one_step(noise_multiplier: float, sample_rate: float) -> np.ndarray:
    """Return the Rényi divergence of one step at every order; it adds up over steps."""
    from opacus.accountants.analysis.rdp import compute_rdp

    return np.asarray(
        compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=ORDERS), float
    )


def _prv_epsilon(entries: tuple[Entry, ...], delta: float, error: float) -> float | None:
    """Return the upper bound on ε of Gopi et al. 2021, algorithm 1, or None where it cannot be had.

    Opacus does all of it anew for every question. Here the grid is the one for the next power of two of the
    steps, finer and wider than asked for and so as safe: 50 rounds need a handful of discretisations. Its
    size is a power of two, which is what an FFT likes.
    """
    horizon = tuple((noise, rate, 2 ** math.ceil(math.log2(steps))) for noise, rate, steps in entries)
    size, mesh = _prv_grid(horizon, delta, error)
    if size > LARGEST_PRV_GRID:
        return None
    try:
        with np.errstate(all="ignore"):  # overflow far out on the grid; what matters of it is checked below
            composed = _compose(entries, size, mesh)
            upper = composed.compute_epsilon(delta, delta / 1000, error)[2]
    except (RuntimeError, ValueError):
        return None
    return max(0.0, float(upper)) if math.isfinite(upper) else None


def _compose(entries: tuple[Entry, ...], size: int, mesh: float) -> DiscretePRV:
    """Return the privacy loss of all entries together: the convolution of its steps' privacy losses."""
    from opacus.accountants.analysis.prv import DiscretePRV
    from scipy.fft import irfft

    spectrum, shift = np.ones(1), 0.0
    for noise, rate, steps in entries:
        transform, mean_shift = _prv_transform(noise, rate, size, mesh)
        spectrum = spectrum * _power(transform, steps)
        shift += steps * mean_shift
    # The sum of k grid indices, each relative to the grid's zero, is off by k − 1 times the zero's index.
    repeats = sum(steps for _, _, steps in entries)
    density = np.roll(irfft(spectrum, size), -(repeats - 1) * _zero_index(size) % size)
    return DiscretePRV(density, _prv_domain(size, mesh).shift_right(shift))


def _power(base: np.ndarray, exponent: int) -> np.ndarray:
    """Return ``base ** exponent``, exponent ≥ 1, by squaring: NumPy's complex power is many times slower."""
    if exponent == 1:
        return base
    half = _power(base, exponent // 2)
    square = half * half
    return square * base if exponent % 2 else square


@lru_cache(maxsize=256)
def _prv_grid(entries: tuple[Entry, ...], delta: float, error: float) -> tuple[int, float]:
    """Return (number of points, mesh) of the privacy loss's grid: Gopi et al. 2021, remark 5.6."""
    delta_error = delta / 1000
    total = sum(steps for _, _, steps in entries)
    single = [_rdp_epsilon([(noise, rate, 1)], delta_error / (8 * total)) for noise, rate, _ in entries]
    reach = max(_rdp_epsilon(entries, delta_error / 4), *single, error) + 3
    mesh = error / math.sqrt(total * math.log(12 / delta_error) / 2)
    return (2 ** math.ceil(math.log2(2 * reach / mesh + 2)), mesh) if reach < 1e6 else (2**63, mesh)


def _zero_index(size: int) -> int:
    return size // 2 - 1


def _prv_domain(size: int, mesh: float) -> Domain:
    from opacus.accountants.analysis.prv import Domain

    return Domain(-_zero_index(size) * mesh, (_zero_index(size) + 1) * mesh, size)


@lru_cache(maxsize=16)
def _prv_transform(noise: float, rate: float, size: int, mesh: float) -> tuple[np.ndarray, float]:
    """Return (Fourier transform of one step's discretised privacy loss, shift that keeps its mean)."""
    from opacus.accountants.analysis import prv
    from scipy.fft import rfft

    domain = _prv_domain(size, mesh)
    loss = prv.PoissonSubsampledGaussianPRV(rate, noise)
    discrete = prv.discretize(prv.TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max), domain)
    return rfft(discrete.pmf), float(discrete.domain.shifts)
