"""Attribute inference: try each value of the hidden column and ask the model which of them it was trained on.

Every attack returns (n, V) float64, higher where the value is more likely; the guess is the largest of a row,
the first of equals. The prior is what the adversary believes without the model (`imputation`), (n, V).

yeom             prior(v) · p_y(x_v): Yeom et al. 2018, section 4, with cross-entropy as the loss
csmia            of the values with which the model is right the surest, if none the least sure (Mehnaz et al.
                 2022, section 5.1)
lomia            labels alone: the one value with which the model is right; where there is not one, a model
                 trained on the records where there is (section 5.2)
loss-series      yeom with the mean of log p_y over all rounds' models
update-cosine    the value whose gradient the others' updates align with, summed over rounds
update-regression  the value whose version has the largest part in the updates, all versions of all records
                 decoded together
white-box        prior and the above weighed by a conditional logit model, fitted on the adversary's own
                 training records, which it knows to be members (ours)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from attacks.attributes import imputation
from attacks.attributes.problem import Options, Problem, pose
from attacks.declaration import EVERY_MODEL, FINAL_LABELS, FINAL_MODEL, PULLED
from attacks.further import IMPUTATION, RECORD_BUT_ONE, further
from attacks.membership import update_regression
from attacks.signals import gradients, outputs
from attacks.views.participant import ParticipantView
from attacks.views.rounds import as_assumed
from fedsim.core.data.records import Records

Attack = Callable[[ParticipantView, Problem, np.ndarray, np.random.Generator], np.ndarray]


def label_log_probability(view: ParticipantView, problem: Problem, t: int) -> np.ndarray:
    """Return log p_y(x_v) at w_t, (n, V) float64."""
    filled = problem.filled()
    logits = outputs.logits(view.module(view.models[t]), filled.features)
    return problem.by_value(-outputs.loss(logits, filled.labels))


@further(
    "attribute",
    "yeom",
    infers="a hidden column",
    needs=RECORD_BUT_ONE,
    sees=FINAL_MODEL,
    assumes="the true value is fitted better than others",
    baseline=IMPUTATION,
    source="Yeom et al. 2018",
)
def yeom(view: ParticipantView, problem: Problem, prior: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return log prior(v) + log p_y(x_v) at the final model (Yeom et al. 2018, section 4)."""
    return np.log(prior) + label_log_probability(view, problem, view.final_round)


@further(
    "attribute",
    "csmia",
    infers="a hidden column",
    needs=RECORD_BUT_ONE,
    sees=FINAL_MODEL,
    assumes="the model is right, and surer, with the true value",
    baseline=IMPUTATION,
    source="Mehnaz et al. 2022",
)
def csmia(view: ParticipantView, problem: Problem, prior: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the confidence max_i p_i where the model is right, its negative where it is wrong.

    Its largest value is the paper's choice in each of its cases: one value right, several, none (Mehnaz et
    al. 2022, section 5.1). The prior is not used.
    """
    filled = problem.filled()
    logits = outputs.logits(view.module(view.final_model), filled.features)
    confidence = np.exp(outputs.confidence(logits))
    right = outputs.correct(logits, filled.labels) > 0
    return problem.by_value(np.where(right, confidence, -confidence))


@further(
    "attribute",
    "lomia",
    infers="a hidden column",
    needs=RECORD_BUT_ONE,
    sees=FINAL_LABELS,
    assumes="the model is right with the true value alone",
    baseline=IMPUTATION,
    source="Mehnaz et al. 2022",
)
def lomia(view: ParticipantView, problem: Problem, prior: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return 1 for the only value with which the model is right, elsewhere what a model of such records says.

    Mehnaz et al. 2022, section 5.2: labels alone, and no record of one's own. The prior is not used, but
    where fewer than two values are ever singled out, of which no model can be made.
    """
    from sklearn.ensemble import RandomForestClassifier

    filled = problem.filled()
    logits = outputs.logits(view.module(view.final_model), filled.features)
    right = problem.by_value(outputs.correct(logits, filled.labels)) > 0
    single = right.sum(axis=1) == 1
    scores = np.where(single[:, None], right.astype(np.float64), prior)
    chosen = right[single].argmax(axis=1)
    if len(np.unique(chosen)) < 2 or single.all():
        return scores
    rows = imputation.inputs(problem.hidden, view.settings.classes)
    model = RandomForestClassifier(100, min_samples_leaf=3, random_state=int(rng.integers(2**31)))
    model.fit(rows[single], chosen)
    learnt = np.zeros_like(scores[~single])
    learnt[:, model.classes_] = model.predict_proba(rows[~single])
    scores[~single] = learnt
    return scores


@further(
    "attribute",
    "loss-series",
    infers="a hidden column",
    needs=RECORD_BUT_ONE,
    sees=EVERY_MODEL,
    assumes="the true value is fitted better than others",
    baseline=IMPUTATION,
    source="ours, after Yeom et al. 2018",
)
def loss_series(
    view: ParticipantView, problem: Problem, prior: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return log prior(v) + the mean over rounds of log p_y(x_v)."""
    return np.log(prior) + _mean_log_probability(view, problem)


def _mean_log_probability(view: ParticipantView, problem: Problem) -> np.ndarray:
    return np.mean([label_log_probability(view, problem, t) for t in view.trained_rounds], axis=0)


@further(
    "attribute",
    "update-cosine",
    infers="a hidden column",
    needs=RECORD_BUT_ONE,
    sees=EVERY_MODEL,
    assumes=PULLED,
    baseline=IMPUTATION,
    source="ours, after Li et al. 2023",
)
def update_cosine(
    view: ParticipantView, problem: Problem, prior: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return Σ_t cos(−∇ℓ(w_{t−1}; x_v), others' update of t), (n, V); the prior is not used."""
    return _alignment(view, problem)


def _alignment(view: ParticipantView, problem: Problem) -> np.ndarray:
    filled, total = problem.filled(), np.zeros(len(problem.hidden) * len(problem.options))
    for t in view.trained_rounds:
        update = view.others_update(t)
        if update is None:
            continue
        module = view.module(view.models[t - 1])
        length = np.sqrt(sum(np.sum(update[name] ** 2) for name, _ in module.named_parameters()))
        dot, norm = gradients.gradient_products(module, filled, update)
        total += np.divide(-dot, norm * length, out=np.zeros_like(dot), where=norm * length != 0)
    return problem.by_value(total)


@further(
    "attribute",
    "update-regression",
    infers="a hidden column",
    needs=RECORD_BUT_ONE,
    sees=EVERY_MODEL,
    assumes=PULLED,
    baseline=IMPUTATION,
    source="ours: all versions decoded together",
)
def update_regression_scores(
    view: ParticipantView, problem: Problem, prior: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return each version's t-statistic in the others' updates, (n, V) (`membership.update_regression`)."""
    return problem.by_value(update_regression.score(view, problem.filled(), rng))


@further(
    "attribute",
    "white-box",
    infers="a hidden column",
    needs=RECORD_BUT_ONE,
    sees=EVERY_MODEL,
    assumes="members of its own show how members' values look",
    baseline=IMPUTATION,
    source="ours",
)
def white_box(
    view: ParticipantView, problem: Problem, prior: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the log-odds of each value by a conditional logit model of prior and signals, (n, V).

    Fitted on the adversary's own training records, of whose update nothing is taken out: they are members,
    and it knows their values. The weights are shrunk to those of the prior alone.
    """
    options, own = problem.options, view.own_train
    index = options.index_of(own)
    known = own.take(index >= 0)
    others = [view.own_heldout] + ([view.auxiliary.records] if view.auxiliary is not None else [])
    own_prior = imputation.impute_own(options, known, Records.concatenate(others), view.settings.classes, rng)
    mirror = view.as_outsider_of_itself()
    fitted = signals(mirror, pose(options, known), own_prior, rng)
    scale = np.maximum(np.sqrt(np.mean(fitted**2, axis=(0, 1))), 1e-12)
    scale[0] = 1.0
    weights = conditional_logit(fitted / scale, index[index >= 0])
    return np.asarray(signals(view, problem, prior, rng) / scale @ weights)


def signals(
    view: ParticipantView, problem: Problem, prior: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return what tells one value from another, (n, V, 5), each with mean 0 over a record's values.

    log prior, log p_y at the final model, its mean over rounds, the updates' alignment, and the t-statistic
    of the update regression.
    """
    columns = [
        np.log(prior),
        label_log_probability(view, problem, view.final_round),
        _mean_log_probability(view, problem),
        _alignment(view, problem),
        update_regression_scores(view, problem, prior, rng),
    ]
    stacked = np.nan_to_num(np.stack(columns, axis=2))
    return np.asarray(stacked - stacked.mean(axis=1, keepdims=True))


def conditional_logit(inputs: np.ndarray, chosen: np.ndarray, penalty: float = 3.0) -> np.ndarray:
    """Return the weights β of P(v | i) ∝ exp(β · inputs[i, v]), (F,) (McFadden 1974).

    inputs: (n, V, F); chosen: (n,) the value of each record. Minimises the negative log-likelihood plus
    penalty/2 ‖β − (1, 0, …)‖²: without evidence the first input, the log prior, is believed as it is.
    """
    from scipy.optimize import minimize

    centre = np.eye(1, inputs.shape[2])[0]
    rows = np.arange(len(chosen))

    def objective(beta: np.ndarray) -> tuple[float, np.ndarray]:
        utility = inputs @ beta
        utility -= utility.max(axis=1, keepdims=True)
        p = np.exp(utility)
        p /= p.sum(axis=1, keepdims=True)
        value = -np.log(np.maximum(p[rows, chosen], 1e-300)).sum() + penalty / 2 * np.sum(
            (beta - centre) ** 2
        )
        slope = np.einsum("nv,nvf->f", p, inputs) - inputs[rows, chosen].sum(axis=0)
        return float(value), slope + penalty * (beta - centre)

    return np.asarray(minimize(objective, centre, jac=True, method="L-BFGS-B").x)


def called_members(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return whom the adversary calls members before it guesses, (n,) bool: the upper half.

    A record looks like a member as far as the likeliest of its versions does, by the update regression.
    """
    likeness = scores["update-regression"].max(axis=1)
    return np.asarray(likeness >= np.median(likeness))


SUITE: Mapping[str, Attack] = {
    "yeom": yeom,
    "csmia": csmia,
    "lomia": lomia,
    "loss-series": loss_series,
    "update-cosine": update_cosine,
    "update-regression": update_regression_scores,
    "white-box": white_box,
}

BASELINES = ("prior", "imputation")
"""Guesses that never touch the model."""


def infer(
    view: ParticipantView, options: Options, owned: Records, candidates: Records, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return every attack's and baseline's scores by name, each (n, V) float64.

    owned: the adversary's own records (`problem.population`); candidates: their column is erased here first
    """
    view, problem = as_assumed(view), pose(options, candidates)
    prior = imputation.impute(problem, owned, view.settings.classes, rng)
    share = np.tile(imputation.marginal(options, owned), (len(candidates), 1))
    scores = {"prior": share, "imputation": prior}
    return scores | {name: attack(view, problem, prior, rng) for name, attack in SUITE.items()}
