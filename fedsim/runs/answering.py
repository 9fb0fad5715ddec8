"""A model of any library as an outsider meets it: a function of the user's that answers with probabilities.

scikit-learn, XGBoost, a remote service: whatever can be asked. Only answers are seen, neither weights nor
training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedsim.core.data import table
from fedsim.core.data.encode import Encoded
from fedsim.core.data.listed import Persons
from fedsim.core.data.prepared import as_they_stand, said_by
from fedsim.core.data.records import Records
from fedsim.core.data.released import ReleasedSchema
from fedsim.core.data.schema import Column, Schema
from fedsim.core.errors import InputError, suggestion
from fedsim.core.imports import load, short
from fedsim.core.scenario.protection import OutputPolicy
from fedsim.core.scenario.settings import DataSettings
from fedsim.runs.outsider import Question, Target

TOLERANCE = 1e-3
"""How far from 1 the probabilities of an answer may add up: float32 and rounding."""

Ask = Callable[[np.ndarray], np.ndarray]


def of_function(
    reference: str,
    candidates: Path,
    outsiders: Path | None,
    *,
    label: str,
    truth: str | None = None,
    folder: str | None = None,
    budget: int | None = None,
) -> tuple[Target, Question]:
    """Return the model behind 'module:callable', and whom its outsider asks about.

    reference: a function of (n, d) float32 features that returns (n, classes) probabilities
    candidates, outsiders: tables whose feature columns are the numbers that the model takes, in its order
    truth: the candidates' column that says who is a member; folder: where to import the module from

    Raises:
        InputError: a table does not fit, or the function answers with anything else than probabilities.
    """
    where = f"--predict {reference}"
    function = load(reference, folder, where)
    asked, member = _read(candidates, label, truth)
    known = None if outsiders is None else _fitting(_read(outsiders, label, truth)[0], asked, outsiders)
    probe = asked.features[:2]
    classes = _answered(function, probe, where).shape[1]
    _check_labels(asked, classes, where)
    columns = tuple(Column(name, "number") for name in asked.feature_names)
    schema = Schema(columns, label, tuple(map(str, range(classes))))

    def ask(features: np.ndarray) -> np.ndarray:
        return _answered(function, features, where)

    target = Target(reference, ask, ReleasedSchema(schema, ()), OutputPolicy(), budget)
    nobody = asked.records(np.arange(0))
    return target, Question(Persons(asked.records(), member), nobody if known is None else known)


def _read(path: Path, label: str, truth: str | None) -> tuple[Encoded, np.ndarray | None]:
    settings = DataSettings(path=str(path), label=label)
    given = table.read(settings)
    if truth is None or truth not in given.frame:
        return as_they_stand(given, settings), None
    return as_they_stand(given, settings, [truth]), said_by(given, truth)


def _fitting(others: Encoded, asked: Encoded, path: Path) -> Records:
    """Return the known outsiders with the candidates' columns and classes."""
    place = {name: k for k, name in enumerate(others.feature_names)}
    for name in asked.feature_names:
        if name not in place:
            raise InputError(f"{path}: column '{name}' is missing{suggestion(name, place)}")
    strange = next((name for name in others.classes if name not in asked.classes), None)
    if strange is not None:
        raise InputError(f"{path}: class '{strange}' is none of the candidates'")
    classes = np.array([asked.classes.index(name) for name in others.classes])
    features = others.features[:, [place[name] for name in asked.feature_names]]
    return replace(others, features=features, labels=classes[others.labels]).records()


def _answered(function: Ask, features: np.ndarray, where: str) -> np.ndarray:
    """Return what the function answers, (n, classes) float64."""
    try:
        answers = np.asarray(function(features), dtype=np.float64)
    except Exception as error:
        raise InputError(f"{where}: asking about {features.shape} features failed: {short(error)}") from error
    if answers.ndim != 2 or len(answers) != len(features) or answers.shape[1] < 2:
        raise InputError(
            f"{where}: it answers {features.shape} features with {answers.shape}; it must return a "
            "probability for each class, (n, classes)"
        )
    sums = answers.sum(axis=1)
    if not (np.isfinite(answers).all() and (answers >= 0).all() and (np.abs(sums - 1) <= TOLERANCE).all()):
        raise InputError(f"{where}: its answers are no probabilities: each row must be ≥ 0 and add up to 1")
    return answers


def _check_labels(asked: Encoded, classes: int, where: str) -> None:
    if len(asked.classes) > classes:
        raise InputError(
            f"{where}: it answers with {classes} classes, and {asked.name} has {len(asked.classes)}: "
            f"{', '.join(asked.classes[:8])}"
        )
