"""Joint inference: the membership of all records decoded together from what many shadow federations show.

LiRA (Carlini et al. 2022) looks at one record's φ at a time, and what other records' membership does to it is
noise. To a participant it is signal: every shadow starts from the w_0 that it was sent, so that what a
membership moves is nearly linear, and moves alike in shadows and target. Let X (S, D) be the shadows'
signals, centred and scaled, and Y (S, n) their memberships, centred. The best linear decoder of record i is
(XᵀX + λ)⁻¹ Xᵀy_i (linear minimum mean squared error; for many senders on one channel, Verdú 1998, §6.2). All
parts share it; they differ in their signals, and in what they trust of the influences Xᵀy_i, noisy estimates:

ridge decoding        all of Xᵀy_i; the signals are the φ of all records, or the weights of a global model
factor-adjusted LiRA  only the entries of Xᵀy_i at the record's own φ: each φ less what all other φ explain of
                      it (factors are known as far as their variance is above λ)

Early models tell the most: the first steps away from w_0 are nearly the sum of what each member adds to them.
Shadows of the first rounds alone are cheap, so that there are many (`SignalMatrix.early`); they are read by
the same parts.

One decomposition of XXᵀ serves all records, every λ, and in closed form the predictions for each shadow by a
fit without it. On these predictions λ is chosen, and every part is put on one scale, log likelihood ratios of
membership. How much to trust which part is learnt on shadows that were held back from all of this (`score`).
Time and memory are linear in the number of records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np

from attacks.signal_matrix import SignalMatrix

PENALTIES = (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
"""λ from which ridge decoding chooses, in units of the mean eigenvalue of XᵀX."""
FACTOR_PENALTIES = (0.1, 1.0, 10.0)
"""λ of factor-adjusted LiRA; the stacking weighs them, since few and many factors err in different ways."""
CHOOSING = 512
"""Records on which λ is chosen, at most."""
HELD_BACK, LEARNING = 128, 100_000
"""Shadows held back, and pairs of one and a record that the stacking learns from, at most."""
SURPRISE = 1.25
"""A part is left out where it spreads this much more in the target than in any rehearsal."""
CHUNK = 2**21
"""Numbers worked on at a time."""
DRAWN_TOGETHER = -0.2
"""Neighbouring shadows whose memberships correlate below this are left out together."""


def score(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return the log-odds of membership by all parts together, (n,) float64.

    LiRA at w_T is one of the parts, and always stays. 0 for a record about which nothing can be said: in no
    shadow, or in all.
    """
    return rehearse(matrix, rng).target


@dataclass(frozen=True, eq=False)
class Evidence:
    """Log likelihood ratios, or log-odds, of membership: of the target, and of H shadows by fits without any.

    target: (n,) float64; shadows: (H, n) float32
    """

    target: np.ndarray
    shadows: np.ndarray


def rehearse(matrix: SignalMatrix, rng: np.random.Generator) -> Evidence:
    """Return the log-odds by all parts together of the target and of the shadows `held_back`."""
    held, known = held_back(matrix), _decodable(matrix.member)
    parts = _evidence(matrix, held)
    parts = [parts[0], *(part for part in parts[1:] if not _surprising(part))]
    weights, intercept = _stacking(parts, matrix.member[held], known, rng)
    target = intercept + sum(w * _tempered(part) for w, part in zip(weights, parts, strict=True))
    shadows = intercept + sum(np.float32(w) * part.shadows for w, part in zip(weights, parts, strict=True))
    return Evidence(np.where(known, target, 0.0), np.where(known, shadows, 0.0).astype(np.float32))


def held_back(matrix: SignalMatrix) -> np.ndarray:
    """Return the indices of the shadows that `rehearse` attacks: a quarter, at most about `HELD_BACK`.

    Evenly spread; shadows that were drawn together stay together.
    """
    partner = Design.of(matrix.member).partner
    group = np.minimum(partner, np.arange(len(partner)))
    groups = np.unique(group)
    wanted = max(1, min(HELD_BACK, len(matrix) // 4) * len(groups) // len(matrix))
    chosen = groups[np.unique(np.linspace(0, len(groups) - 1, wanted).astype(np.int64))]
    return np.flatnonzero(np.isin(group, chosen))


def ridge_decoding(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return the log likelihood ratio of each record decoded from the φ of all, (n,) float64."""
    design = Design.of(matrix.member)
    return design.likelihood_ratio(_decoded(Decoder.of(matrix.shadows, matrix.target[None]), design))[0]


def weight_decoding(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return the log likelihood ratio of each record decoded from the weights alone, (n,) float64.

    With the weights of several rounds, of the round that separates left-out shadows best.

    Raises:
        ValueError: the matrix holds no weights.
    """
    if matrix.shadow_weights is None or matrix.target_weights is None:
        raise ValueError("weight decoding needs the weights of target and shadows")
    design = Design.of(matrix.member)
    pairs = zip(matrix.shadow_weights.swapaxes(0, 1), matrix.target_weights, strict=True)
    found = (_decoded(Decoder.of(shadows, target[None]), design) for shadows, target in pairs)
    return design.likelihood_ratio(max(found, key=design.separation))[0]


def first_update(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return what shadows of the first rounds alone decode of the model after them, (n,) float64.

    Where the weights of that many shadows would not fit into memory, φ has to do.
    """
    decode = ridge_decoding if matrix.shadow_weights is None else weight_decoding
    return decode(matrix, rng)


def factor_adjusted_lira(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return the log likelihood ratio of each φ less what all the others explain, (n,) float64.

    With the penalty that separates left-out shadows best.
    """
    asked = matrix.target[None]
    decoder, design = Decoder.of(matrix.shadows, asked), Design.of(matrix.member)
    found = (_adjusted(matrix.shadows, asked, decoder, design, penalty) for penalty in FACTOR_PENALTIES)
    return design.likelihood_ratio(max(found, key=design.separation))[0]


# ---------------------------------------------------------------------------------- stacking of the parts
def _federations(matrix: SignalMatrix) -> list[SignalMatrix]:
    """Return the whole federations, and those of the first rounds, the first S of which are the same."""
    early = matrix.early
    if early is None:
        return [matrix]
    if len(early) < len(matrix) or not np.array_equal(early.member[: len(matrix)], matrix.member):
        raise ValueError("the early shadows do not begin with the whole ones")
    return [matrix, early]


_FOUND: WeakKeyDictionary[SignalMatrix, list[Evidence]] = WeakKeyDictionary()
"""What was made of a matrix, as long as it lives: more than one attack asks for it."""


def _evidence(matrix: SignalMatrix, held: np.ndarray) -> list[Evidence]:
    """Return what each part makes of the target and of the shadows `held_back`, by both kinds of shadows."""
    if matrix not in _FOUND:
        _FOUND[matrix] = [part for each in _federations(matrix) for part in _weighed(each, held)]
    return _FOUND[matrix]


def _weighed(matrix: SignalMatrix, held: np.ndarray) -> Iterator[Evidence]:
    """Yield what each part makes of the target, and of the shadows ``held`` by fits on the others."""
    others = matrix.subset(np.setdiff1d(np.arange(len(matrix)), held))
    weights = None if matrix.shadow_weights is None else matrix.shadow_weights[held]
    of_target = matrix.target_weights if matrix.target_weights is None else matrix.target_weights[None]
    pairs = zip(
        _parts(matrix, matrix.target[None], of_target),
        _parts(others, matrix.shadows[held], weights),
        strict=True,
    )
    return (Evidence(target[0], shadows.astype(np.float32)) for target, shadows in pairs)


def _parts(matrix: SignalMatrix, phi: np.ndarray, weights: np.ndarray | None) -> Iterator[np.ndarray]:
    """Yield each part's log likelihood ratios of T targets, (T, n); LiRA at the last round first.

    phi: (T, R, n); weights: (T, K, P) or None, of the targets
    """
    design, decoder = Design.of(matrix.member), Decoder.of(matrix.shadows, phi)
    yield design.likelihood_ratio(_plain(matrix.shadows[:, -1], phi[:, -1]))
    yield design.likelihood_ratio(_decoded(decoder, design))
    for penalty in FACTOR_PENALTIES:
        yield design.likelihood_ratio(_adjusted(matrix.shadows, phi, decoder, design, penalty))
    if matrix.shadow_weights is not None and weights is not None:
        for known, asked in zip(matrix.shadow_weights.swapaxes(0, 1), weights.swapaxes(0, 1), strict=True):
            yield design.likelihood_ratio(_decoded(Decoder.of(known, asked), design))


def _decodable(member: np.ndarray) -> np.ndarray:
    return np.asarray(member.any(axis=0) & ~member.all(axis=0))


def _surprising(part: Evidence) -> bool:
    """Tell whether the rehearsals do not prepare for what a part makes of the target.

    If the shadows resemble the target, it is one of them as far as any part can see. Where members are
    unknown to the adversary it is not, and a decoder may answer with noise that no shadow showed.
    """
    return bool(part.target.var() > SURPRISE * part.shadows.var(axis=1, dtype=np.float64).max(initial=0.0))


def _tempered(part: Evidence) -> np.ndarray:
    """Return a part's ratios of the target, (n,), less of them where they spread more than is usual.

    A Gaussian ratio is inversely proportional to the variance, so it is divided by as much as the spread over
    the records exceeds all but a twentieth of the rehearsals'. A mean beyond theirs is moved into their
    range.
    """
    means = part.shadows.mean(axis=1, dtype=np.float64)
    usual = np.quantile(part.shadows.var(axis=1, dtype=np.float64), 0.95)
    mean, share = part.target.mean(), min(1.0, usual / max(part.target.var(), 1e-30))
    return np.asarray((part.target - mean) * share + np.clip(mean, *np.quantile(means, [0.025, 0.975])))


def _stacking(
    parts: Sequence[Evidence], member: np.ndarray, known: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Return weights, none below 0 (Breiman 1996), and intercept of a logistic regression on the rehearsals.

    member: (H, n) bool, of the rehearsed shadows; known: (n,) bool, the records to learn from
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    pairs = np.flatnonzero(np.broadcast_to(known, member.shape))
    pairs = rng.choice(pairs, min(len(pairs), LEARNING), replace=False, shuffle=False)
    truth = member.ravel()[pairs]
    if len(np.unique(truth)) < 2:
        return np.zeros(len(parts)), 0.0
    inputs = np.stack([part.shadows.ravel()[pairs].astype(np.float64) for part in parts], axis=1)
    scale = np.maximum(inputs.std(axis=0), 1e-12)
    inputs /= scale

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        odds = inputs @ theta[:-1] + theta[-1]
        error, shrink = expit(odds) - truth, np.append(theta[:-1], 0.0)
        value = np.logaddexp(0.0, odds).sum() - odds[truth].sum() + 0.5 * (shrink**2).sum()
        gradient = np.append(inputs.T @ error, error.sum()) + shrink
        return value / len(truth), gradient / len(truth)

    start = np.append(np.full(len(parts), 0.5 / len(parts)), 0.0)
    bounds = [(0.0, None)] * len(parts) + [(None, None)]
    theta = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return theta[:-1] / scale, float(theta[-1])


# --------------------------------------------------------------------------------------------- the design
@dataclass(frozen=True, eq=False)
class Prediction:
    """Scores, higher = member, float32: (S, n) of every shadow by a fit without it, (T, n) of targets."""

    shadows: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True, eq=False)
class Design:
    """Who was a member of which shadow, and which shadows have to be left out together.

    member: (S, n) bool. partner: (S,) int, the shadow drawn together with this one, itself if none: where
    one holds exactly what the other does not, a fit on the one has seen the other's mirror image.
    """

    member: np.ndarray
    partner: np.ndarray

    @staticmethod
    def of(member: np.ndarray) -> Design:
        """Return the design with neighbouring shadows paired where their memberships exclude each other."""
        likeness, squares = np.zeros(len(member) - 1), np.full(len(member), 1e-24)
        for some in chunks(member.shape[1], len(member)):
            sign = member[:, some] - member[:, some].mean(axis=0, dtype=np.float32)
            likeness += np.einsum("si,si->s", sign[1:], sign[:-1])
            squares += np.einsum("si,si->s", sign, sign)
        partner = np.arange(len(member))
        for s in np.flatnonzero(likeness < DRAWN_TOGETHER * np.sqrt(squares[1:] * squares[:-1])):
            if partner[s] == s:
                partner[s], partner[s + 1] = s + 1, s
        return Design(member, partner)

    def centred(self, some: slice | np.ndarray) -> np.ndarray:
        """Y (S, b) float32 of some records: memberships less each record's share of the shadows."""
        member = self.member[:, some]
        return np.asarray(member - member.mean(axis=0, dtype=np.float32))

    @cached_property
    def paired(self) -> np.ndarray:
        """(S,) bool, whether there is a partner."""
        return self.partner != np.arange(len(self.partner))

    def together(self, values: np.ndarray) -> np.ndarray:
        """Return each row of ``values`` (S, …) added to its partner's."""
        total = values.copy()
        total[self.paired] += values[self.partner[self.paired]]
        return total

    def likelihood_ratio(self, scores: Prediction) -> np.ndarray:
        """Return log N(s; μ_in, σ²) − log N(s; μ_out, σ²) of the targets' scores, (T, n) float64.

        μ_in − μ_out in units of σ is shrunk towards that of all records: what chance explains of its spread
        is no difference between records (empirical Bayes; Efron & Morris 1973). It is at least 0: no decoder
        has members score less, but predictions of nothing for left-out shadows err to that side.
        """
        moments = self._moments(scores)
        return moments.ratio(scores.targets, moments.common())

    def separation(self, scores: Prediction) -> float:
        """Return how far members' scores lie above the others', in standard deviations, mean over records."""
        return self._moments(scores).separation

    def _moments(self, scores: Prediction) -> Moments:
        blocks = chunks(self.member.shape[1], len(self.member))
        return _joined([Moments.of(scores.shadows[:, some], self.member[:, some]) for some in blocks])


@dataclass(frozen=True, eq=False)
class Moments:
    """The Gaussians of members and others of n records, (n,) each.

    middle: (μ_in + μ_out)/2; distance: (μ_in − μ_out)/σ, 0 where unknown; deviation: σ, 1 where unknown
    chance: the sampling variance of ``distance``; known: bool
    """

    middle: np.ndarray
    distance: np.ndarray
    deviation: np.ndarray
    chance: np.ndarray
    known: np.ndarray

    @staticmethod
    def of(scores: np.ndarray, member: np.ndarray) -> Moments:
        """Return the moments of ``scores`` (S, b); unknown where a side has fewer than two shadows."""
        x = scores.astype(np.float64)
        centre = x.mean(axis=0)
        x -= centre
        n, inside = member.sum(axis=0), np.einsum("si,si->i", x, member)
        m = len(x) - n
        per_n, per_m = 1 / np.maximum(n, 1), 1 / np.maximum(m, 1)
        mean_in, mean_out = inside * per_n, (x.sum(axis=0) - inside) * per_m
        scatter = np.einsum("si,si->i", x, x) - n * mean_in**2 - m * mean_out**2
        deviation = np.sqrt(np.maximum(scatter, 0.0) / np.maximum(n + m - 2, 1))
        known = (np.minimum(n, m) > 1) & (deviation > 1e-12)
        deviation = np.where(known, deviation, 1.0)
        distance = np.where(known, (mean_in - mean_out) / deviation, 0.0)
        return Moments(centre + (mean_in + mean_out) / 2, distance, deviation, per_n + per_m, known)

    @property
    def separation(self) -> float:
        """Mean distance over the records of which it is known."""
        return float(self.distance[self.known].mean()) if self.known.any() else 0.0

    def common(self) -> tuple[float, float]:
        """Return mean and variance of the true distances, by moments; no shrinkage for fewer than three."""
        if self.known.sum() < 3:
            return 0.0, np.inf
        noise = float(self.chance[self.known].mean())
        return self.separation, max(0.0, float(self.distance[self.known].var(ddof=1)) - noise)

    def ratio(self, scores: np.ndarray, common: tuple[float, float]) -> np.ndarray:
        """Return the log likelihood ratios of ``scores`` (T, n); distances shrink to the ``common`` one."""
        mean, true = common
        share = 1.0 if np.isinf(true) else true / (true + self.chance)
        distance = np.maximum(mean + (self.distance - mean) * share, 0.0)
        return np.asarray(np.where(self.known, distance, 0.0) * (scores - self.middle) / self.deviation)


def _joined(parts: Sequence[Moments]) -> Moments:
    return Moments(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Moments)))


def chunks(columns: int, rows: int) -> Iterator[slice]:
    """Yield slices of the columns of a matrix with so many rows, `CHUNK` numbers in each."""
    size = max(1, CHUNK // max(1, rows))
    return (slice(start, min(start + size, columns)) for start in range(0, columns, size))


# -------------------------------------------------------------------------------------------- the decoder
@dataclass(frozen=True, eq=False)
class Decoder:
    """X = Q diag(σ) Uᵀ, the decomposition from which every linear decoder of these signals follows.

    The columns of X have mean 0 and variance 1/D over the shadows, or are constant 0 (`_scaled`).

    q: (S, r) float32, orthonormal columns; square: σ² (r,) float64
    along: (T, r) float64, the targets' products with U diag(σ)
    size: D
    """

    q: np.ndarray
    square: np.ndarray
    along: np.ndarray
    size: int

    @staticmethod
    def of(signals: np.ndarray, targets: np.ndarray) -> Decoder:
        """Scale the signals (S, …) and targets (T, …), and decompose XXᵀ, or XᵀX where that is far smaller.

        XᵀX is formed in float64: the columns of Q follow from it by a division by σ, which is nearly 0 for
        some of the directions that matter, since the φ of a model move together.
        """
        shadows, total = len(signals), len(signals) + len(targets)
        signals, targets = signals.reshape(shadows, -1), targets.reshape(len(targets), -1)
        size = signals.shape[1]
        if shadows > 1.5 * size:
            both = _scaled(signals, targets, size).astype(np.float64)
            x = both[:shadows]
            square, vectors = _eigen(x.T @ x, size)
            q = (x @ (vectors / np.sqrt(square))).astype(np.float32)
            return Decoder(q, square, (both[shadows:] @ x.T) @ q, size)
        products = np.zeros((total, shadows))
        for some in chunks(size, total):
            both = _scaled(signals[:, some], targets[:, some], size)
            products += both @ both[:shadows].T
        square, q = _eigen(products[:shadows].astype(np.float32), shadows - 1)
        return Decoder(q, square, products[shadows:] @ q, size)

    @cached_property
    def unit(self) -> float:
        """Mean eigenvalue of XᵀX over as many directions as S centred shadows can fill."""
        return max(float(self.square.sum()) / max(1, min(len(self.q) - 1, self.size)), 1e-12)

    def leaving_out(self, penalty: float, design: Design) -> Callable[[np.ndarray], np.ndarray]:
        """Return the map of rows (S, …) that turns residuals of one fit into those of fits without the row.

        It multiplies with (I − H)⁻¹ of each pair of shadows, H = Q diag(σ²/(σ² + λ)) Qᵀ + 1/S being the hat
        matrix of ridge regression with an intercept (for one row: Golub, Heath & Wahba 1979, §2). With more
        signals than shadows I − H is nearly 0: what the fit leaves is summed up, not subtracted from 1.
        """
        left = penalty / (self.square + penalty)
        own = self._beyond(np.arange(len(self.q))) + np.einsum("sr,sr,r->s", self.q, self.q, left)
        met = np.flatnonzero(design.paired)
        other = np.zeros_like(own)
        pairs = np.einsum("sr,sr,r->s", self.q[met], self.q[design.partner[met]], left)
        other[met] = self._beyond(design.partner)[met] + pairs
        partners = np.where(design.paired, own[design.partner], 1.0)
        determinant = np.maximum(own * partners - other**2, 1e-6 * own * partners)
        a, b = ((part / determinant).astype(np.float32)[:, None] for part in (partners, -other))
        return lambda rows: a * rows + b * rows[design.partner]

    def _beyond(self, partner: np.ndarray) -> np.ndarray:
        """Return I − QQᵀ − 1/S at every row and its ``partner``, (S,) float64, 0 where Q spans all there is.

        Q spans the contrasts of S shadows unless there are fewer signals.
        """
        if self.q.shape[1] >= len(self.q) - 1:
            return np.zeros(len(self.q))
        products = np.einsum("sr,sr->s", self.q, self.q[partner], dtype=np.float64)
        return np.asarray((partner == np.arange(len(self.q))) - products - 1 / len(self.q))


def _scaled(signals: np.ndarray, targets: np.ndarray, size: int) -> np.ndarray:
    """Return both, (S + T, …) float32, scaled to variance 1/``size`` over the shadows.

    What is not finite counts as the mean.
    """
    x, shadows = np.concatenate([signals, targets], dtype=np.float32), len(signals)
    if not np.isfinite(x).all():
        finite = np.isfinite(x)
        x[~finite] = 0
        mean = x[:shadows].sum(axis=0) / np.maximum(finite[:shadows].sum(axis=0), 1)
        x = np.where(finite, x, mean.astype(np.float32))
    x -= x[:shadows].mean(axis=0, dtype=np.float64).astype(np.float32)
    deviation = x[:shadows].std(axis=0, dtype=np.float64)
    factor = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-12)
    x *= (factor / np.sqrt(size)).astype(np.float32)
    return x


def _eigen(gram: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues (r,) float64 that are more than rounding errors, and their vectors (m, r).

    most: how many there can be; centred signals of S shadows have S − 1.
    """
    from scipy.linalg import eigh

    values, vectors = eigh(gram, driver="evd", overwrite_a=True, check_finite=False)
    kept = values > 1e-7 * max(float(values[-1]), 1e-30)
    kept[: len(values) - most] = False
    return values[kept].astype(np.float64), vectors[:, kept]


# ---------------------------------------------------------------------------------------------- the parts
def _empty(shadows: int, targets: int, records: int) -> Prediction:
    return Prediction(np.zeros((shadows, records), np.float32), np.zeros((targets, records), np.float32))


def _plain(phi: np.ndarray, asked: np.ndarray) -> Prediction:
    """Return φ of the shadows (S, n) and targets (T, n) itself: LiRA's signal."""
    found = _empty(len(phi), len(asked), phi.shape[1])
    for some in chunks(phi.shape[1], len(phi)):
        x = _scaled(phi[:, some], asked[:, some], 1)
        found.shadows[:, some], found.targets[:, some] = x[: len(phi)], x[len(phi) :]
    return found


def _decoded(decoder: Decoder, design: Design) -> Prediction:
    """Return ridge decoding with the penalty that separates left-out shadows best.

    It is chosen on at most `CHOOSING` records, evenly spread.
    """
    records = np.flatnonzero(_decodable(design.member))
    some = records[:: max(1, -(-len(records) // CHOOSING))] if len(records) else np.zeros(1, np.int64)
    few = Design(design.member[:, some], design.partner)
    best = max(PENALTIES, key=lambda penalty: few.separation(_ridge(decoder, few, penalty)))
    return _ridge(decoder, design, best)


def _ridge(decoder: Decoder, design: Design, penalty: float) -> Prediction:
    """Return X (XᵀX + λ)⁻¹ XᵀY of left-out shadows and of the targets."""
    penalty = penalty * decoder.unit
    inverse = (1 / (decoder.square + penalty)).astype(np.float32)
    inside = decoder.q * (inverse * decoder.square).astype(np.float32)
    targets = (decoder.along * inverse).astype(np.float32)
    left_out = decoder.leaving_out(penalty, design)
    found = _empty(len(design.member), len(targets), design.member.shape[1])
    for some in chunks(design.member.shape[1], len(design.member)):
        y = design.centred(some)
        along = decoder.q.T @ y  # (r, b)
        found.shadows[:, some] = y - left_out(y - inside @ along)
        found.targets[:, some] = targets @ along
    return found


def _adjusted(
    phi: np.ndarray, asked: np.ndarray, decoder: Decoder, design: Design, penalty: float
) -> Prediction:
    """Return X (XᵀX + λ)⁻¹ b_i of left-out shadows and targets, b_i = Xᵀy_i at the record's own φ only.

    phi: (S, R, n), the signals of ``decoder``; asked: (T, R, n). Outside the span of the shadows the inverse
    is 1/λ.
    """
    penalty = penalty * decoder.unit
    inverse = decoder.q * (1 / (decoder.square + penalty)).astype(np.float32)
    along = (decoder.along / decoder.square).astype(np.float32)
    inside = (along / (decoder.square + penalty)).astype(np.float32)
    left_out = decoder.leaving_out(penalty, design)
    left = (len(phi) - 1 - design.paired).astype(np.float32)[:, None]
    found = _empty(len(phi), len(asked), phi.shape[2])
    for some in chunks(phi.shape[2], len(phi)):
        y = design.centred(some)
        others = design.together(y) / left
        for round in range(phi.shape[1]):
            both = _scaled(phi[:, round, some], asked[:, round, some], decoder.size)
            x, t = both[: len(phi)], both[len(phi) :]
            projected = decoder.q.T @ x  # (r, b)
            influence = np.einsum("si,si->i", x, y)
            seen = design.together(x * y) + design.together(x) * others
            found.shadows[:, some] += left_out(inverse @ projected) * (influence - seen)
            outside = (t - along @ projected) / np.float32(penalty)
            found.targets[:, some] += (inside @ projected + outside) * influence
    return found
