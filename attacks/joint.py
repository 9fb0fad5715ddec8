"""Joint inference: the membership of all records decoded together from what many shadow federations show.

LiRA (Carlini et al. 2022) looks at one record's φ at a time, and what other records' membership does to it is
noise. To a participant it is signal: every shadow starts from the w_0 that it was sent, so that what a
membership moves is nearly linear and in the same place in shadows and target. Let X (S, D) be the shadows'
signals, centred and scaled, and Y (S, n) their memberships, centred. The best linear decoder of record i is
(XᵀX + λ)⁻¹ Xᵀy_i (linear minimum mean squared error; in multi-user detection, Verdú 1998, §6.2). All parts
share it and differ in what of the influences Xᵀy_i they trust, since these are noisy estimates from S shadows:

ridge_decoding        all of Xᵀy_i, signals φ of every record at every round
weight_decoding       the same, signals the final weights
factor_adjusted_lira  only the entries of Xᵀy_i at the record's own φ: each φ less what all other φ explain of
                      it (a smooth number of factors: directions of variance well above λ count as known)
joint                 logistic stacking of these, fitted on predictions for shadows that were left out

One decomposition serves all records, every λ, and the predictions for left-out shadows in closed form. These
choose λ, put the parts on one scale (log likelihood ratios) and fit the stacking, with no truth but the
shadows'. The results are log-odds of membership: 0 for a record about which nothing can be said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from attacks.signal_matrix import SignalMatrix

PENALTIES = (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
"""λ from which ridge decoding chooses, in units of the mean eigenvalue of XᵀX."""
FACTOR_PENALTIES = (0.1, 1.0, 10.0)
"""λ of factor-adjusted LiRA; the stacking weighs them, since many and few factors err in different ways."""
STACKED_PAIRS = 200_000
"""Pairs of a shadow and a record on which the stacking is fitted, at most."""
DRAWN_TOGETHER = -0.2
"""Neighbouring shadows whose memberships correlate below this are left out together."""


@dataclass(frozen=True)
class Prediction:
    """One number per record, higher = member: (S, n) for every shadow by a fit without it, (n,) for the target."""

    shadows: np.ndarray
    target: np.ndarray


def score(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return the log-odds of membership by all parts stacked, (n,) float64; see `joint`."""
    return joint(matrix, rng).target


def ridge_decoding(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return the log likelihood ratio of each record decoded from the φ of all, (n,) float64."""
    return _decoded(*_of_phi(matrix)).target


def weight_decoding(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return the log likelihood ratio of each record decoded from the final weights, (n,) float64.

    Raises:
        ValueError: the matrix holds no weights.
    """
    return _decoded(*_of_weights(matrix)).target


def factor_adjusted_lira(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return the log likelihood ratio of each φ less what all the others explain, (n,) float64."""
    decoder, design = _of_phi(matrix)
    return min((_adjusted(decoder, design, p) for p in FACTOR_PENALTIES), key=design.log_loss).target


def joint(matrix: SignalMatrix, rng: np.random.Generator) -> Prediction:
    """Return the log-odds of membership from the parts together, for the target and for left-out shadows.

    The stacking sees, for up to `STACKED_PAIRS` pairs of a shadow and a record, log likelihood ratios from fits
    without that shadow, plain LiRA at w_T among them: what a part is worth is learnt, and a part that knows
    nothing gets no weight. The shadows' log-odds are rehearsals: thresholds can be chosen on them.
    """
    decoder, design = _of_phi(matrix)
    parts = [design.likelihood_ratio(_last_phi(matrix)), _decoded(decoder, design)]
    parts += [_adjusted(decoder, design, penalty) for penalty in FACTOR_PENALTIES]
    del decoder
    if matrix.shadow_weights is not None:
        parts.append(_decoded(*_of_weights(matrix)))
    return _stacked(parts, design, rng)


# -------------------------------------------------------------------------------------------- the design
@dataclass(frozen=True)
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
        sign = np.where(member, 1.0, -1.0) - np.mean(np.where(member, 1.0, -1.0), axis=0)
        scale = np.maximum(np.linalg.norm(sign, axis=1), 1e-12)
        likeness = (sign[1:] * sign[:-1]).sum(axis=1) / (scale[1:] * scale[:-1])
        partner = np.arange(len(member))
        for s in np.flatnonzero(likeness < DRAWN_TOGETHER):
            if partner[s] == s:
                partner[s], partner[s + 1] = s + 1, s
        return Design(member, partner)

    @cached_property
    def centred(self) -> np.ndarray:
        """Y (S, n) float32: memberships less each record's share of the shadows."""
        return (self.member - self.member.mean(axis=0)).astype(np.float32)

    @cached_property
    def left(self) -> np.ndarray:
        """(S, 1) float32, shadows that remain when this one and its partner are left out."""
        pairs = self.partner != np.arange(len(self.partner))
        return (len(self.partner) - 1 - pairs)[:, None].astype(np.float32)

    def together(self, values: np.ndarray) -> np.ndarray:
        """Return each row of ``values`` (S, …) added to its partner's, (S, …)."""
        pairs = np.flatnonzero(self.partner != np.arange(len(self.partner)))
        total = values.copy()
        total[pairs] += values[self.partner[pairs]]
        return total

    def likelihood_ratio(self, scores: Prediction) -> Prediction:
        """Return log N(s; μ_in, σ²) − log N(s; μ_out, σ²) of ``scores``, one σ a record for both sides.

        The shadows' ratios are from statistics without them and their partners. 0 for a record that
        fewer than two of the remaining shadows hold, or all but one.
        """
        s = scores.shadows.astype(np.float64)
        sides = [_Side.of(s, side, self) for side in (self.member, ~self.member)]
        of_target = _ratio(scores.target.astype(np.float64), *(side.all for side in sides))
        of_shadows = _ratio(s, *(side.without for side in sides))
        return Prediction(of_shadows, of_target)

    def log_loss(self, ratio: Prediction) -> float:
        """Return the mean −log p of the shadows' memberships, with log-odds ``ratio``, in nats."""
        return float(np.logaddexp(0, np.where(self.member, -ratio.shadows, ratio.shadows)).mean())


Sums = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Number, sum and sum of squares of scores."""


@dataclass(frozen=True)
class _Side:
    """Sums over the shadows on one side: ``all`` of them, (n,) each; ``without`` a pair of them, (S, n) each."""

    all: Sums
    without: Sums

    @staticmethod
    def of(scores: np.ndarray, side: np.ndarray, design: Design) -> _Side:
        terms = [side.astype(np.float64), np.where(side, scores, 0.0), np.where(side, scores**2, 0.0)]
        n, total, square = (term.sum(axis=0) for term in terms)
        left = [whole - design.together(term) for whole, term in zip((n, total, square), terms, strict=True)]
        return _Side((n, total, square), (left[0], left[1], left[2]))


def _ratio(scores: np.ndarray, inside: Sums, outside: Sums) -> np.ndarray:
    """Return the log likelihood ratios of ``scores`` (…, n), given the two sides' sums of the same shape.

    The distance of the means in standard deviations is shrunk towards that of all records (empirical Bayes:
    Efron & Morris 1973): what 4/S of variance in it explains is chance, not a difference between records.
    """
    known = (inside[0] > 1) & (outside[0] > 1)
    mean_in, mean_out = (total / np.maximum(n, 1) for n, total, _ in (inside, outside))
    scatter = inside[2] - inside[1] * mean_in + outside[2] - outside[1] * mean_out
    variance = np.maximum(scatter, 0.0) / np.maximum(inside[0] + outside[0] - 2, 1)
    known &= variance > 1e-30
    deviation = np.sqrt(np.where(known, variance, 1.0))
    distance = np.where(known, (mean_in - mean_out) / deviation, 0.0)
    chance = np.where(known, 1 / np.maximum(inside[0], 1) + 1 / np.maximum(outside[0], 1), 0.0)
    distance = np.where(known, _shrunk(distance, chance, known), 0.0)
    return np.asarray(distance * (scores - (mean_in + mean_out) / 2) / deviation)


def _shrunk(values: np.ndarray, noise: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Shrink ``values`` (…, n), each with variance ``noise``, to their mean along the last axis."""
    count = np.maximum(known.sum(axis=-1, keepdims=True), 1)
    mean = (values * known).sum(axis=-1, keepdims=True) / count
    total = ((values - mean) ** 2 * known).sum(axis=-1, keepdims=True) / np.maximum(count - 1, 1)
    true = np.maximum(total - noise.sum(axis=-1, keepdims=True) / count, 0.0)
    return np.asarray(mean + (values - mean) * true / np.maximum(true + noise, 1e-30))


# ------------------------------------------------------------------------------------------- the decoder
@dataclass(frozen=True)
class Decoder:
    """X = Q diag(σ) Uᵀ, the decomposition from which every linear decoder of these signals follows.

    signals: X (S, D) float32, each column with mean 0 and variance 1/D; target: x (D,) float32 likewise
    q: (S, r) float32, orthonormal columns; square: σ² (r,) float64, descending, mean 1 with the zeros counted
    """

    signals: np.ndarray
    target: np.ndarray
    q: np.ndarray
    square: np.ndarray

    @cached_property
    def mean_square(self) -> float:
        """Mean eigenvalue of XᵀX over the directions that S shadows can fill."""
        shadows, size = self.signals.shape
        return float(self.square.sum()) / max(1, min(shadows - 1, size))

    @cached_property
    def projected(self) -> np.ndarray:
        """Diag(σ) Uᵀ = QᵀX, (r, D) float32."""
        return np.asarray(self.q.T @ self.signals)

    @cached_property
    def target_in_span(self) -> np.ndarray:
        """Diag(σ) Uᵀx, (r,) float64."""
        return np.asarray(self.q.T.astype(np.float64) @ (self.signals @ self.target))

    def leave_out(self, penalty: float, design: Design) -> Callable[[np.ndarray], np.ndarray]:
        """Return the map of rows (S, …) by which residuals of a fit become those of fits without the row.

        It multiplies with (I − H)⁻¹ of each pair of shadows, H = QQᵀσ²/(σ² + λ) + 1/S being the hat matrix of
        ridge regression with an intercept (for one row: Hoerl & Kennard; Golub, Heath & Wahba 1979).
        """
        share = (self.square / (self.square + penalty)).astype(np.float32)
        pairs = design.partner != np.arange(len(self.q))
        own = 1 - 1 / len(self.q) - (self.q**2) @ share
        other = np.where(pairs, -1 / len(self.q) - (self.q * self.q[design.partner]) @ share, 0.0)
        fellow = np.where(pairs, own[design.partner], 1.0)
        determinant = np.maximum(own * fellow - other**2, 1e-6)
        a, b = (fellow / determinant)[:, None], (-other / determinant)[:, None]
        a, b = a.astype(np.float32), b.astype(np.float32)
        return lambda rows: a * rows + b * rows[design.partner]


def decompose(signals: np.ndarray, target: np.ndarray) -> Decoder:
    """Centre and scale ``signals`` (S, D) and ``target`` (D,) by the shadows' statistics, and decompose.

    A value that is not finite counts as the column's mean. The eigenvalue problem is that of XᵀX or XXᵀ,
    whichever is smaller.
    """
    x = _scaled(np.concatenate([target[None], signals]))
    target, x = x[0], x[1:]
    dual = x.shape[1] > len(x)
    square, vectors = _eigen(x @ x.T if dual else x.T @ x)
    q = vectors if dual else x @ (vectors / np.sqrt(square)).astype(np.float32)
    return Decoder(x, target, q, square)


def _scaled(rows: np.ndarray) -> np.ndarray:
    """Scale the columns of ``rows`` (1 + S, D), by statistics of all rows but the first."""
    x = rows.astype(np.float32)
    finite = np.isfinite(x)
    if not finite.all():
        x = np.where(finite, x, np.nan)
        with np.errstate(all="ignore"):
            count = np.maximum(finite[1:].sum(axis=0), 1)
            mean = np.where(finite[1:], x[1:], 0).sum(axis=0) / count
        x = np.where(finite, x, mean.astype(np.float32))
    x -= x[1:].mean(axis=0, dtype=np.float64).astype(np.float32)
    deviation = x[1:].std(axis=0, dtype=np.float64)
    factor = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-12)
    return np.asarray(x * (factor / np.sqrt(x.shape[1])).astype(np.float32))


def _eigen(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues (r,) float64 that are not rounding errors, and their vectors (m, r) float32."""
    from scipy.linalg import eigh

    values, vectors = eigh(gram, driver="evd", overwrite_a=True, check_finite=False)
    kept = values > 1e-6 * max(float(values[-1]), 1e-30)
    return values[kept].astype(np.float64), vectors[:, kept]


def _of_phi(matrix: SignalMatrix) -> tuple[Decoder, Design]:
    decoder = decompose(matrix.shadows.reshape(len(matrix), -1), matrix.target.reshape(-1))
    return decoder, Design.of(matrix.member)


def _of_weights(matrix: SignalMatrix) -> tuple[Decoder, Design]:
    if matrix.shadow_weights is None or matrix.target_weights is None:
        raise ValueError("weight decoding needs the shadows' final weights")
    return decompose(matrix.shadow_weights, matrix.target_weights), Design.of(matrix.member)


def _last_phi(matrix: SignalMatrix) -> Prediction:
    last = _scaled(np.concatenate([matrix.target[None, -1], matrix.shadows[:, -1]]))
    return Prediction(last[1:], last[0])


# --------------------------------------------------------------------------------------------- the parts
def _decoded(decoder: Decoder, design: Design) -> Prediction:
    """Return the log likelihood ratios of ridge decoding, λ chosen by the log loss on left-out shadows."""
    ratios = (design.likelihood_ratio(found) for found in _ridge(decoder, design))
    return min(ratios, key=design.log_loss)


def _ridge(decoder: Decoder, design: Design) -> Iterator[Prediction]:
    """Yield, for each penalty, X (XᵀX + λ)⁻¹ XᵀY of left-out shadows and of the target."""
    y = design.centred
    along = decoder.q.T @ y  # (r, n)
    for penalty in PENALTIES:
        penalty = penalty * decoder.mean_square
        share = (decoder.square / (decoder.square + penalty)).astype(np.float32)
        residual = y - (decoder.q * share) @ along
        target = (decoder.target_in_span / (decoder.square + penalty)) @ along
        yield Prediction(y - decoder.leave_out(penalty, design)(residual), target)


def _adjusted(decoder: Decoder, design: Design, penalty: float) -> Prediction:
    """Return the log likelihood ratios of X (XᵀX + λ)⁻¹ b_i, b_i being Xᵀy_i at the record's own φ alone."""
    penalty = penalty * decoder.mean_square
    (shadows, records), x = design.member.shape, decoder.signals
    by_round = (shadows, -1, records)
    inverse = (1 / (decoder.square + penalty)).astype(np.float32)
    whitened = decoder.leave_out(penalty, design)((decoder.q * inverse) @ decoder.projected)
    y, x = design.centred[:, None], x.reshape(by_round)
    influence = np.einsum("srn,sn->rn", x, design.centred)
    of_shadows = np.zeros((shadows, records), np.float32)
    for r, own in enumerate(np.moveaxis(whitened.reshape(by_round), 1, 0)):
        here, y_ = x[:, r], y[:, 0]
        seen = design.together(here * y_) + design.together(here) * design.together(y_) / design.left
        of_shadows += own * (influence[r] - seen)
    of_target = (_whitened_target(decoder, penalty).reshape(-1, records) * influence).sum(axis=0)
    return design.likelihood_ratio(Prediction(of_shadows, of_target))


def _whitened_target(decoder: Decoder, penalty: float) -> np.ndarray:
    """Return (XᵀX + λ)⁻¹x, (D,) float64; outside the span of the shadows the inverse is 1/λ."""
    along = decoder.target_in_span / decoder.square  # in the basis of `projected`
    inside = (along / (decoder.square + penalty)) @ decoder.projected
    return np.asarray(inside + (decoder.target - along @ decoder.projected) / penalty)


def _stacked(parts: Sequence[Prediction], design: Design, rng: np.random.Generator) -> Prediction:
    """Return the log-odds of a logistic regression on the parts, fitted on the shadows' memberships."""
    from sklearn.linear_model import LogisticRegression

    known = np.flatnonzero(design.member.any(axis=0) & ~design.member.all(axis=0))
    shadows, records = design.member.shape
    result = Prediction(np.zeros((shadows, records)), np.zeros(records))
    if not len(known):
        return result
    pairs = shadows * len(known)
    chosen = rng.choice(pairs, STACKED_PAIRS, replace=False) if pairs > STACKED_PAIRS else np.arange(pairs)
    s, i = np.divmod(chosen, len(known))
    i = known[i]
    inputs = np.stack([part.shadows[s, i] for part in parts], axis=1)
    scale = np.maximum(inputs.std(axis=0), 1e-12)
    model = LogisticRegression(max_iter=500).fit(inputs / scale, design.member[s, i])
    weights, intercept = model.coef_[0] / scale, model.intercept_[0]
    for weight, part in zip(weights, parts, strict=True):
        result.shadows[:, known] += weight * part.shadows[:, known]
        result.target[known] += weight * part.target[known]
    result.shadows[:, known] += intercept
    result.target[known] += intercept
    return result
