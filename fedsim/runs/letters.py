"""What a run's language models memorised, asked of a finished run on letters.

For every canary of the victims, and for as many secrets that were never trained on: how exposed its number is
behind its prefix, whether it comes out, and whether it comes out unasked. Round 0 is the model that the
population alone gives, so that what is guessed and what is memorised stand side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from attacks.text import exposure, extraction
from attacks.text.exposure import Numbers
from attacks.text.extraction import GREEDY, Policy
from attacks.views.server import ServerView
from attacks.views.settings import Weights
from fedsim.core import rng
from fedsim.core.data.store import read_party
from fedsim.core.data.text import BEGIN, Vocabulary, read_vocabulary
from fedsim.core.errors import InputError
from fedsim.core.models import zoo
from fedsim.core.models.language import LanguageModel
from fedsim.core.models.weights import load_weights
from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation import secrets as judge
from fedsim.runs import integrity
from fedsim.runs.observers import observers_of, sight, victims_of

Progress = Callable[[int, int], object]

SAMPLES = 64
"""Numbers drawn for each exposure."""

START, WRITTEN = 6, 40
"""Tokens that the adversary takes from a letter of its own, and that it lets the model write after them."""

PROMPTS = 100
"""Letters of its own that the adversary begins; and prompts of one word said over and over, at most."""

SAID, TIMES = 20, 12
"""Words that are said over and over, and how often (Nasr et al. 2023, §5)."""


@dataclass(frozen=True, eq=False)
class _Asked:
    """The canaries of a game, as they are put to every model. prompts: token ids of the prefixes."""

    vocabulary: Vocabulary
    secrets: pd.DataFrame
    prompts: list[np.ndarray]
    digits: np.ndarray
    numbers: Numbers
    openings: list[np.ndarray]
    repeated: list[np.ndarray]


def memorise(
    run: RunDirectory,
    rounds: Sequence[int] | None = None,
    samples: int = SAMPLES,
    policy: Policy = GREEDY,
    progress: Progress = lambda done, total: None,
) -> pd.DataFrame:
    """Ask the models of some rounds for every secret, and write what they gave away.

    ``memorised.parquet`` has a row a secret and round, ``memorisation.parquet``, which is returned, what can
    be said of them (`fedsim.evaluation.secrets.summary`).

    A server that sees single answers is asked through each victim's last one, for that victim's secrets.

    rounds: default 0, the middle and the last; policy: how answers are drawn, greedily by default

    Raises:
        InputError: the run is not of text, holds no canaries, or has no such round.
    """
    integrity.verify_asked(run)
    vocabulary, planted = read_vocabulary(run.path), judge.read_secrets(run.path)
    victims = planted[planted["party"] != run.manifest["adversary"]]
    if victims.empty:
        raise InputError(f"{run.path}: no letter holds a secret; name a column 'secret' beside 'text'")
    chosen = {game: _rounds(run, game, rounds) for game in range(run.scenario.games)}
    answers = {game: _last_answers(run, game) for game in chosen}
    total, done, parts = sum(len(chosen[game]) + len(answers[game]) for game in chosen), 0, []
    for game, of_game in chosen.items():
        secrets = victims[victims["game"] == game].reset_index(drop=True)
        models = [("participant", "", t, run.read_model(game, t)) for t in of_game]
        models += [("server", party, t, weights) for party, (t, weights) in answers[game].items()]
        for observer, party, t, weights in models:
            progress(done, total)
            done += 1
            own = secrets[secrets["party"] == party].reset_index(drop=True) if party else secrets
            stream = rng.generator(run.scenario.seed, "memorisation", game=game, party=party, round=t)
            asked = _asked(run, game, vocabulary, own)
            found = _ask(_module(run, weights), asked, samples, policy, stream)
            parts.append(found.assign(game=game, round=t, observer=observer))
    progress(total, total)
    measured = pd.concat(parts, ignore_index=True)
    run.write_table("memorised", measured)
    table = judge.summary(measured)
    run.write_table("memorisation", table)
    return table


def _rounds(run: RunDirectory, game: int, wanted: Sequence[int] | None) -> list[int]:
    last = run.last_round(game)
    chosen = sorted({0, last // 2, last} if wanted is None else set(wanted))
    if chosen[0] < 0 or chosen[-1] > last:
        raise InputError(f"--rounds: {chosen}: {run.path} has the models of rounds 0 to {last}")
    return chosen


def _last_answers(run: RunDirectory, game: int) -> dict[str, tuple[int, Weights]]:
    """Return each victim's last answer with its round, where the server is an observer and sees it."""
    settings = run.scenario.adversary
    if "server" not in observers_of(settings) or settings.secure_aggregation:
        return {}
    seen = sight(run, game, "server")
    assert isinstance(seen, ServerView)
    names, last = list(run.manifest["parties"]), max(seen.answers)
    return {names[k]: (last, seen.answers[last][k]) for k in victims_of(run) if k in seen.answers[last]}


def _module(run: RunDirectory, weights: Weights) -> LanguageModel:
    manifest = run.manifest
    module = zoo.build(run.scenario.model, tuple(manifest["input_shape"]), len(manifest["classes"]))
    load_weights(module, weights)
    if not isinstance(module, LanguageModel):
        raise InputError(
            f"{run.path}: model '{run.scenario.model.name}' cannot be asked for single tokens; a model of "
            "your own for text is a LanguageModel of fedsim.core.models.language"
        )
    return module.eval()


def _asked(run: RunDirectory, game: int, vocabulary: Vocabulary, secrets: pd.DataFrame) -> _Asked:
    digits = np.array([[int(digit) for digit in secret] for secret in secrets["secret"]])
    tokens_of_digits = [vocabulary.tokens(str(digit))[0] for digit in range(10)]
    prompts = [np.array([BEGIN, *vocabulary.tokens(prefix)]) for prefix in secrets["prefix"]]
    partition = list(run.manifest["parties"]).index(run.manifest["adversary"])
    own, _ = read_party(run.party_folder(game, partition, run.manifest["adversary"]))
    stream = rng.generator(run.scenario.seed, "memorisation/words", game=game)
    words = stream.permutation(np.arange(2, vocabulary.padding))[:SAID]
    return _Asked(
        vocabulary,
        secrets,
        prompts,
        digits,
        exposure.known_numbers(tokens_of_digits, digits),
        [ids[:START].astype(np.int64) for ids in own.train.features[:PROMPTS]],
        [np.array([BEGIN, *[word] * TIMES]) for word in words for _ in range(PROMPTS // SAID)],
    )


def _ask(
    model: LanguageModel, asked: _Asked, samples: int, policy: Policy, stream: np.random.Generator
) -> pd.DataFrame:
    """Return the canaries with what this model gives away of each."""
    table = asked.secrets.drop(columns="game").copy()
    measured = [
        exposure.exposures(model, prompt, digits[None], asked.numbers, samples, stream)
        for prompt, digits in zip(asked.prompts, asked.digits, strict=True)
    ]
    table["exposure"] = [float(bits[0]) for bits, _ in measured]
    table["exposure_fit"] = [float(bits[0]) for _, bits in measured]
    table["bits"] = asked.numbers.bits
    answers = [asked.numbers.digits[digits] for digits in asked.digits]
    written = extraction.write(model, asked.prompts, asked.numbers.length, stream, policy)
    table["extracted"] = [bool((w == a).all()) for w, a in zip(written, answers, strict=True)]
    table["answer"] = [asked.vocabulary.decode(ids) for ids in written]
    table["probability"] = [
        extraction.probability(model, prompt, answer)
        for prompt, answer in zip(asked.prompts, answers, strict=True)
    ]
    for name, prompts in (("from_own_letters", asked.openings), ("by_repetition", asked.repeated)):
        texts = extraction.write(model, prompts, WRITTEN, stream, Policy())
        whole = "\n".join(asked.vocabulary.decode(ids) for ids in texts)
        table[name] = [secret in whole for secret in table["secret"]]
    return table
