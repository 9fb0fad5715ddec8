"""What follows membership, asked of a finished run: hidden values, typical records, a batch's rows, counts.

Each function builds the views from what the run kept, calls the attacks, and lets the judge join the truth;
the result is a table of the run's folder, written and returned. Nothing else in a run is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from attacks.attributes import inference
from attacks.attributes.problem import Options, flat, options_of, population
from attacks.counts import groups, members
from attacks.membership import update_regression
from attacks.reconstruction import gradient as inversion
from attacks.reconstruction import model as typical_records
from attacks.reconstruction.gradient import Effort, Method
from attacks.reconstruction.model import Descent
from attacks.signals import outputs
from attacks.views import observations
from attacks.views.participant import ParticipantView
from attacks.views.rounds import as_assumed
from attacks.views.server import ServerView
from attacks.views.settings import Weights
from fedsim.core import files, rng
from fedsim.core.data.layout import Layout, column_of, read_layout
from fedsim.core.data.records import Records
from fedsim.core.errors import InputError
from fedsim.core.models.shapes import LANGUAGE
from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation import attributes as attribute_judge
from fedsim.evaluation import counts as count_judge
from fedsim.evaluation import reconstruction as judge
from fedsim.evaluation.estimates import Estimate, mean
from fedsim.evaluation.truth import read_truth
from fedsim.runs import integrity
from fedsim.runs.observers import observers_of, sight, victims_of
from fedsim.runs.sent import Setting, default_settings, sent, training_records

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int], object]


@dataclass(frozen=True, eq=False)
class PlayedGame:
    """One finished game: what the adversary saw and is asked about, and, for the judge, the truth.

    member: (n,) bool; party: (n,) objects, the name of each candidate's party
    """

    game: int
    view: ParticipantView
    candidates: Records
    member: np.ndarray
    party: np.ndarray


def games_of(run: RunDirectory, letters: bool = False) -> list[PlayedGame]:
    """Return the finished games of a run.

    letters: whether what is asked can be asked of letters as well as of a table's records

    Raises:
        InputError: no game is finished, a file is not what the run wrote, or the records are letters.
    """
    if run.scenario.model.name in LANGUAGE and not letters:
        raise InputError(
            f"{run.path}: its records are letters, and this asks about the columns of a table; "
            "`fedsim report` says what its model memorised"
        )
    integrity.verify_asked(run)
    truth = read_truth(run.path)
    games = []
    for game in range(run.scenario.games):
        folder = run.observations(game)
        if not (folder / "candidates.safetensors").exists():
            continue
        rows = truth[truth["game"] == game].sort_values("candidate")
        view = sight(run, game, "participant")
        assert isinstance(view, ParticipantView)
        view = as_assumed(view)
        sides = rows["member"].to_numpy(dtype=bool), rows["party"].to_numpy()
        games.append(PlayedGame(game, view, observations.load_candidates(folder), *sides))
    if not games:
        raise InputError(f"{run.path}: no game is finished; go on with `fedsim run {run.path} --resume`")
    return games


def _write(run: RunDirectory, name: str, table: pd.DataFrame, key: str | None = None) -> pd.DataFrame:
    """Write the table; with a key, other values' rows of an earlier call are kept."""
    whole = table
    if key is not None and run.has(name):
        before = run.table(name)
        whole = pd.concat([before[~before[key].isin(table[key])], table], ignore_index=True)
    run.write_table(name, whole)
    return table


# ------------------------------------------------------------------ attributes
def attribute(run: RunDirectory, column: str, bins: int = 3) -> pd.DataFrame:
    """Infer a column of the candidates, and write ``attributes.parquet``.

    Columns: column, then those of `fedsim.evaluation.attributes`.

    Raises:
        InputError: there is no such column, or the adversary's own records show one value of it.
    """
    chosen = column_of(read_layout(run.path), column)
    judged = []
    for played in games_of(run):
        owned = population(played.view)
        options = options_of(chosen, owned, bins)
        stream = rng.generator(run.scenario.seed, f"attribute/{column}", game=played.game)
        scores = inference.infer(played.view, options, owned, played.candidates, stream)
        value, called = options.index_of(played.candidates), inference.called_members(scores)
        judged.append(attribute_judge.evaluate(scores, value, played.member, called))
    table = attribute_judge.over_games(judged)
    table.insert(0, "column", column)
    return _write(run, "attributes", table, "column")


# ------------------------------------------------------------- model inversion
DESCENT = Descent()

ROUNDS = 8
"""Models whose mean cost a participant descends: this many, spread evenly over the rounds."""


def invert(run: RunDirectory, descent: Descent = DESCENT) -> pd.DataFrame:
    """Reconstruct each class's typical record, and write ``inversion.parquet`` and the records themselves.

    Columns: source, party, metric, value, low, high, note; means over games and classes. The records are in
    ``inverted.safetensors``: 'game/source/party', (C, d) float32.
    source: 'class mean' (of the adversary's own records, no model), 'released' (w_T from the neutral row),
    'released from mean' (from that mean), 'rounds' (several w_t), 'answer' (a party's own last answer, where
    the server observes)
    """
    layout, judged, rows = read_layout(run.path), [], {}
    for played in games_of(run):
        for source, party, records in _inverted(run, played, layout, descent):
            rows[f"{played.game}/{source}/{party}"] = records
            of_party = np.ones(len(played.party), bool) if party == "all" else played.party == party
            for label, row in enumerate(records):
                side = of_party & (played.candidates.labels == label)
                sides = [flat(played.candidates)[side & half] for half in (played.member, ~played.member)]
                if min(map(len, sides)) > 1:
                    judged.append((source, party, judge.typical(row, sides[0], sides[1], layout)))
    files.write_arrays(run.path / "inverted.safetensors", rows)
    return _write(run, "inversion", _inversion_table(judged))


def _inverted(
    run: RunDirectory, played: PlayedGame, layout: Layout, descent: Descent
) -> list[tuple[str, str, np.ndarray]]:
    """Return (source, party, typical records (C, d))."""
    view, classes, shape = played.view, played.view.settings.classes, played.candidates.shape
    means = typical_records.class_means(population(view), classes, layout)

    def of(models: Sequence[Weights], starts: np.ndarray | None = None) -> np.ndarray:
        modules = [view.module(model) for model in models]
        return typical_records.invert_all(
            modules, layout, classes, starts=starts, input_shape=shape, descent=descent
        )

    spread = np.unique(np.linspace(0, len(view.trained_rounds) - 1, ROUNDS).round().astype(int))
    models = [view.models[view.trained_rounds[k]] for k in spread]
    result = [
        ("class mean", "all", means),
        ("released", "all", of([view.final_model])),
        ("released from mean", "all", of([view.final_model], means)),
        ("rounds", "all", of(models)),
    ]
    for party, answers in _answers(run, _server_view(run, played)).items():
        result.append(("class mean", party, means))
        result.append(("released", party, result[1][2]))
        result.append(("answer", party, of([answers[max(answers)]])))
    return result


def _server_view(run: RunDirectory, played: PlayedGame) -> ServerView | None:
    """Return what the server saw, None where it is no observer or sees no single answers."""
    settings = run.scenario.adversary
    if "server" not in observers_of(settings) or settings.secure_aggregation:
        return None
    view = sight(run, played.game, "server")
    assert isinstance(view, ServerView)
    return view


def _answers(run: RunDirectory, seen: ServerView | None) -> dict[str, dict[int, Weights]]:
    """Return what each victim answered, by round, as far as it did; nothing where the server saw nothing."""
    if seen is None:
        return {}
    names = list(run.manifest["parties"])
    answers = {
        names[k]: {t: of_round[k] for t, of_round in seen.answers.items() if k in of_round}
        for k in victims_of(run)
    }
    return {name: rounds for name, rounds in answers.items() if rounds}


def _inversion_table(judged: Sequence[tuple[str, str, judge.Typical]]) -> pd.DataFrame:
    lines = []
    for source, party in dict.fromkeys((source, party) for source, party, _ in judged):
        cases = [case for s, p, case in judged if (s, p) == (source, party)]
        nearer = mean([case.nearer for case in cases])
        lines.append((source, party, "nearer", nearer.value, nearer.low, nearer.high, nearer.note))
        for metric in ("to_member", "to_heldout", "to_mean"):
            value = float(np.mean([getattr(case, metric) for case in cases]))
            lines.append((source, party, metric, value, np.nan, np.nan, f"mean of {len(cases)}"))
    return pd.DataFrame(lines, columns=["source", "party", "metric", "value", "low", "high", "note"])


# ---------------------------------------------------------- gradient inversion
EFFORT = Effort(starts=2)

BASELINE = "nearest own record"


def gradient(
    run: RunDirectory,
    settings: Sequence[Setting] = (),
    repeats: int = 4,
    methods: Sequence[Method] = inversion.METHODS,
    round: int = 1,
    effort: Effort = EFFORT,
    progress: Progress = lambda done, total: None,
) -> pd.DataFrame:
    """Reconstruct batches of the victims' training records from the updates they would send in ``round``.

    The updates are made here, from the run's model w_{t−1} and its training settings, one per batch size,
    number of steps, protection and optimizer (default: `default_settings`). Writes ``gradient.parquet``:
    method, protection, batch, epochs, minibatches, optimizer, metric (rows, cells, labels: shares recovered),
    value, low, high, n (records).

    Raises:
        InputError: the run has no such round.
    """
    layout, played = read_layout(run.path), games_of(run)[0]
    settings = settings or default_settings(run)
    module = _model_before(played, round)
    trains, owned = training_records(run, played.game), population(played.view)
    lines = []
    for done, setting in enumerate(settings):
        progress(done, len(settings))
        judged: dict[str, list[judge.Matched]] = {}
        for repeat in range(repeats):
            purpose = f"gradient/{setting.protection}/{setting.batch}/{setting.epochs}/{repeat}"
            if (setting.minibatches, setting.optimizer) != (1, "own"):
                purpose += f"/{setting.minibatches}/{setting.optimizer}"
            stream = rng.generator(run.scenario.seed, purpose, game=played.game, round=round)
            batch, update, local = sent(run, module, setting, trains, purpose, stream)
            for method in methods:
                rows = inversion.invert(
                    module, update, local, layout, method, stream, input_shape=batch.shape, effort=effort
                )
                matched = judge.match(flat(rows), rows.labels, flat(batch), batch.labels, layout)
                judged.setdefault(method, []).append(matched)
            matched = judge.nearest(flat(owned), owned.labels, flat(batch), layout)
            judged.setdefault(BASELINE, []).append(matched)
        lines += [line for name, batches in judged.items() for line in _shares(name, setting, batches)]
    progress(len(settings), len(settings))
    columns = ["method", "protection", "batch", "epochs", "minibatches", "optimizer"]
    columns += ["metric", "value", "low", "high", "n"]
    return _write(run, "gradient", pd.DataFrame(lines, columns=columns))


def _model_before(played: PlayedGame, round: int) -> torch.nn.Module:
    """Return the model that a party is sent in ``round``."""
    if round - 1 not in played.view.models:
        raise InputError(
            f"--round {round}: no model of round {round - 1} was seen; valid: 1 … {played.view.final_round}"
        )
    return played.view.module(played.view.models[round - 1])


def _shares(name: str, setting: Setting, batches: list[judge.Matched]) -> list[tuple]:
    n = sum(batch.n for batch in batches)
    shares = judge.shares(batches)
    if name == BASELINE:
        shares.pop("labels")
    key = (name, setting.protection, setting.batch, setting.epochs, setting.minibatches, setting.optimizer)
    return [(*key, metric, share.value, share.low, share.high, n) for metric, share in shares.items()]


# ---------------------------------------------------------------------- counts
LISTS, REPEATS = 40, 4
"""Records of a list, and lists of each planted share, per game."""

EARLY = 5
"""Rounds whose updates tell shares of groups: later ones follow what single records still lack."""


def count(run: RunDirectory, column: str | None = None, bins: int = 2) -> pd.DataFrame:
    """Count members on lists, among all candidates and per party, and groups of a column at the others.

    Writes ``counts.parquet``: what ('lists', 'all', a party's name, or 'column=value'), score, estimator,
    metric, value, low, high, truth. Metrics: of lists 'error' (mean |count − truth|, as a share of the list),
    'gain over prior' (by how much that is smaller than the prior's) and 'covered'; of all and of parties the
    'count'; of groups the 'share'. A party's count is given where the adversary is told whose each record is.
    """
    lines: list[tuple] = []
    drawn: dict[tuple[str, str], list[tuple[members.Count, int, int]]] = {}
    for played in games_of(run):
        seed, game = run.scenario.seed, played.game
        lists = count_judge.lists(
            played.member, LISTS, REPEATS, rng.generator(seed, "count/lists", game=game)
        )
        scoring = rng.generator(seed, "count/scores", game=game)
        for score, (values, inside, outside) in membership_scores(
            played.view, played.candidates, scoring
        ).items():
            for name, estimator in members.ESTIMATORS.items():
                stream = rng.generator(seed, f"count/{score}/{name}", game=game)
                for one in lists:
                    guess = members.count(values[one.rows], inside, outside, estimator, stream)
                    drawn.setdefault((score, name), []).append((guess, one.members, len(one.rows)))
                for what, rows in _parts(played).items():
                    guess = members.count(values[rows], inside, outside, estimator, stream)
                    whole = (guess.value, guess.low, guess.high, float(played.member[rows].sum()))
                    lines.append((what, score, name, f"count, game {game}", *whole))
        if column is not None:
            lines += _group_lines(run, played, column, bins)
    lists_first = [
        line for (score, name), guesses in drawn.items() for line in _list_lines(score, name, guesses)
    ]
    names = ["what", "score", "estimator", "metric", "value", "low", "high", "truth"]
    return _write(run, "counts", pd.DataFrame(lists_first + lines, columns=names))


def membership_scores(
    view: ParticipantView, candidates: Records, stream: np.random.Generator
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return by name the scores of the candidates, and of the adversary's own members and held-out records.

    All are scored together and alike: nothing is taken out of the updates, in which the own members are.
    """
    n, own = len(candidates), len(view.own_train)
    everyone = Records.concatenate([candidates, view.own_train, view.own_heldout])
    logits = view.logits(view.final_round, everyone)
    scores = {
        "scaled-logit": outputs.scaled_logit(logits, everyone.labels),
        "update-regression": update_regression.score(view.as_outsider_of_itself(), everyone, stream),
    }
    return {name: (s[:n], s[n : n + own], s[n + own :]) for name, s in scores.items()}


def _parts(played: PlayedGame) -> dict[str, np.ndarray]:
    candidate_party = played.view.candidate_party
    parts = {"all": np.arange(len(played.party))}
    if candidate_party is not None and (candidate_party >= 0).all():
        parts |= {str(name): np.flatnonzero(played.party == name) for name in sorted(set(played.party))}
    return parts


def _list_lines(score: str, estimator: str, guesses: Sequence[tuple[members.Count, int, int]]) -> list[tuple]:
    values, lows, highs = np.array([(c.value, c.low, c.high) for c, _, _ in guesses]).T
    truths, sizes = np.array([(truth, size) for _, truth, size in guesses], dtype=float).T
    scaled = values / sizes, truths / sizes
    estimates: dict[str, Estimate] = {
        "error": count_judge.mean_absolute_error(*scaled),
        "gain over prior": count_judge.paired_gain(scaled[0], np.full(len(sizes), 0.5), scaled[1]),
        "covered": count_judge.covered(lows, highs, truths),
    }
    return [
        ("lists", score, estimator, metric, e.value, e.low, e.high, np.nan) for metric, e in estimates.items()
    ]


def _group_lines(run: RunDirectory, played: PlayedGame, column: str, bins: int) -> list[tuple]:
    """Return the shares of the column's values at the other parties together, and at each where seen."""
    owned = population(played.view)
    options = options_of(column_of(read_layout(run.path), column), owned, bins)
    group = options.index_of(owned)
    view = played.view
    steps = {"others": [(t, view.others_update(t)) for t in view.trained_rounds]}
    server = _server_view(run, played)
    models = view.models if server is None else server.models
    for party, answers in _answers(run, server).items():
        steps[party] = [(t, _step(models[t - 1], answer)) for t, answer in answers.items()]
    lines: list[tuple] = []
    for who, seen in steps.items():
        early = [(t, update) for t, update in seen[:EARLY] if update is not None]
        made = [(view.module(models[t - 1]), update) for t, update in early]
        stream = rng.generator(run.scenario.seed, f"count/{column}/{who}", game=played.game)
        shares = groups.shares(made, owned, group, len(options), stream)
        truth = _true_shares(played, options, who)
        usual = groups.baseline(group, len(options))
        for k, name in enumerate(options.names):
            what, metric = f"{column}={name}, {who}", f"share, game {played.game}"
            share = (shares[k].value, shares[k].low, shares[k].high)
            lines.append((what, "updates", "least squares", metric, *share, truth[k]))
            lines.append((what, "none", "own records", metric, usual[k], np.nan, np.nan, truth[k]))
    return lines


def _step(before: Weights, after: Weights) -> Weights:
    return {name: after[name].astype(np.float64) - start for name, start in before.items()}


def _true_shares(played: PlayedGame, options: Options, who: str) -> np.ndarray:
    rows = played.member & ((played.party == who) | (who == "others"))
    return groups.baseline(options.index_of(played.candidates)[rows], len(options))
