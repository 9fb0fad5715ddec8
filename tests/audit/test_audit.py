"""The audit: below the guarantee of correct DP-SGD, above a broken one's, and far from any real run."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.runs import document, final_sha, prepared_run, scenario

from attacks.signals.gradients import gradient_products
from attacks.views import observations
from fedsim import report
from fedsim.audit import audit, bounds, worst_case
from fedsim.audit import white_box as audit_white_box
from fedsim.audit.party import plan_of, train_as_set
from fedsim.audit.settings import VANTAGES, Audit, AuditSettings, settings_for
from fedsim.audit.verdict import MAIN_SHARE
from fedsim.audit.white_box import Target, Train, white_box
from fedsim.cli import main
from fedsim.core.data.records import Records
from fedsim.core.data.store import read_party
from fedsim.core.errors import InputError
from fedsim.core.models import zoo
from fedsim.core.models.weights import load_weights
from fedsim.core.privacy.ledger import Ledger
from fedsim.core.privacy.plan import Plan, make_plan
from fedsim.core.scenario import reading
from fedsim.core.scenario.protection import DPSettings
from fedsim.core.scenario.training import ModelSettings, TrainingSettings
from fedsim.core.training import clipping, dp, draws
from fedsim.core.training.draws import PartyDraws
from fedsim.runs import play, prepare
from fedsim.runs.prepare import Prepared
from fedsim.terminal import audit_tables

CLASSES = 3


def a_plan(n: int = 32, epsilon: float = 8.0, rounds: int = 4, steps: int = 15, **dp_settings) -> Plan:
    settings = DPSettings(epsilon=epsilon, **dp_settings)
    return make_plan(settings, TrainingSettings(batch=16, steps=steps), n, rounds)


def a_party(hidden: tuple[int, ...] = (), n: int = 32) -> tuple[torch.nn.Module, Records]:
    stream = np.random.default_rng(0)
    records = Records(stream.normal(size=(n, 5)).astype(np.float32), stream.integers(0, CLASSES, n))
    return zoo.build(ModelSettings(hidden=list(hidden)), (5,), CLASSES, seed=1), records


def outcome(plan: Plan, train: Train = dp.train_private, hidden=(), **settings) -> Audit:
    return white_box(AuditSettings(**settings), Target(plan, *a_party(hidden), train))


# ----------------------------------------------------------------- correct DP-SGD
@pytest.mark.slow
def test_ten_audits_of_correct_dp_sgd_reach_half_of_epsilon_8_and_never_exceed_it() -> None:
    """Many runs, each of 8 steps."""
    plan = a_plan(rounds=1, steps=8)
    assert plan.epsilon == pytest.approx(8, rel=0.01)
    found = [outcome(plan, method="many-run", runs=800, seed=seed) for seed in range(10)]
    lower = np.array([each.lower["dp-sgd"] for each in found])
    assert (lower >= plan.epsilon / 2).all(), lower
    assert (lower <= plan.epsilon).all(), lower
    assert not any(each.violated for each in found)


def test_one_run_of_correct_dp_sgd_reaches_half_of_epsilon_8_on_average_and_never_exceeds_it() -> None:
    plan = a_plan()
    found = [outcome(plan, canaries=3000, seed=seed) for seed in range(3)]
    lower = np.array([each.lower["f-dp"] for each in found])
    assert lower.mean() >= plan.epsilon / 2, lower
    for each in found:
        assert 0 < each.lower["steinke"] < each.lower["f-dp"] < each.upper
        assert each.lower["f-dp"] < each.estimate["gaussian"] < each.upper * 1.15
        assert all(each.lower[name] <= each.ceiling[name] for name in each.lower)
        assert each.upper == plan.epsilon


@pytest.mark.parametrize("method", ["one-run", "many-run"])
@pytest.mark.parametrize(
    ("dp_settings", "gradients"),
    [({}, "per-sample"), ({"clipping": "adaptive"}, "auto"), ({"clipping_norm": 0.01}, "auto")],
    ids=["opacus", "adaptive clipping", "a small clipping norm"],
)
def test_every_way_to_train_can_be_audited(method: str, dp_settings: dict, gradients: str) -> None:
    train = functools.partial(train_as_set, gradients=gradients, device="cpu", secure=False)
    plan = a_plan(rounds=2, steps=4, **dp_settings)
    found = outcome(plan, train, hidden=(6,), method=method, canaries=600, runs=160)
    assert 0.5 < max(found.lower.values()) < found.upper


def test_an_image_model_is_audited_through_a_layer_beside_it() -> None:
    stream = np.random.default_rng(0)
    records = Records(stream.normal(size=(32, 1, 4, 4)).astype(np.float32), stream.integers(0, 3, 32))
    module = zoo.build(ModelSettings(name="cnn", hidden=[2]), (1, 4, 4), 3, seed=1)
    found = white_box(AuditSettings(canaries=500), Target(a_plan(rounds=2), module, records))
    assert 0.5 < found.lower["f-dp"] < found.upper


def test_the_same_audit_twice_is_the_same_whatever_the_workers() -> None:
    target = Target(a_plan(rounds=2, steps=3), *a_party())
    settings = AuditSettings(canaries=600)
    alone, again = (white_box(settings, target) for _ in range(2))
    assert alone == again
    assert alone == white_box(settings, target, workers=2)
    assert alone != white_box(replace(settings, seed=1), target)


def test_progress_is_told_run_by_run() -> None:
    told: list[tuple[int, int]] = []
    settings = AuditSettings(canaries=600)
    target = Target(a_plan(rounds=1, steps=2), *a_party())
    white_box(settings, target, progress=lambda *at: told.append(at))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_another_delta_changes_both_bounds() -> None:
    plan = a_plan(rounds=2)
    strict, loose = (outcome(plan, canaries=500, delta=delta) for delta in (1e-7, 1e-3))
    assert strict.upper > plan.epsilon > loose.upper
    assert strict.lower["f-dp"] > loose.lower["f-dp"] > 0
    again = Ledger().add(plan.noise_multiplier, plan.sample_rate, 30).epsilon(1e-7)
    assert strict.upper == pytest.approx(again)


# ---------------------------------------------------------------------- broken
def too_little_noise(*arguments, factor: float, **named):
    module, records, local, plan, draws = arguments
    plan = replace(plan, noise_multiplier=factor * plan.noise_multiplier)
    return dp.train_private(module, records, local, plan, draws, **named)


def the_same_noise_every_round(*arguments, **named):
    def noise(self, step, pieces, deviation):
        stream = self.__dict__.setdefault("repeated", torch.Generator().manual_seed(3))
        for piece in pieces:
            piece.normal_(0, deviation, generator=stream)

    with mock.patch.object(PartyDraws, "noise", noise):
        return dp.train_private(*arguments, **named)


def no_clipping(*arguments, **named):
    with mock.patch.object(clipping, "clipping_factors", lambda norms, _: torch.ones_like(norms)):
        return dp.train_private(*arguments, **named)


def no_noise_on_biases(*arguments, **named):
    draw = draws.normal_

    def normal_(tensor, deviation, noise):
        return draw(tensor, deviation, noise).mul_(tensor.ndim > 1)

    with mock.patch.object(draws, "normal_", normal_):
        return dp.train_private(*arguments, **named)


def clipping_each_layer(*arguments, **named):
    def write(stack, x, target, bound, masks):
        errors = stack.errors(torch.softmax(stack.forward(x), 1).sub_(target))
        norms = [e.norm(dim=1) * a.norm(dim=1) for e, a in zip(errors, stack._inputs, strict=True)]
        pairs = zip(errors, norms, strict=True)
        stack.accumulate([e * (bound / (n + 1e-6)).clamp(max=1)[:, None] for e, n in pairs])
        return stack.gradient_norms(errors)

    with mock.patch.object(clipping, "write_clipped_sum", write):
        return dp.train_private(*arguments, **named)


@pytest.mark.parametrize(
    "broken",
    [
        functools.partial(too_little_noise, factor=0.0),
        functools.partial(too_little_noise, factor=0.5),
        the_same_noise_every_round,
        no_clipping,
    ],
    ids=["no noise", "half the noise", "the same noise every round", "no clipping"],
)
def test_one_run_finds_what_is_broken_everywhere(broken) -> None:
    found = outcome(a_plan(epsilon=2.0), broken, canaries=1500)
    assert found.violated
    assert found.lower["f-dp"] > found.upper


@pytest.mark.parametrize("broken", [no_noise_on_biases, clipping_each_layer])
def test_many_runs_find_what_is_broken_layer_by_layer(broken) -> None:
    plan = a_plan(rounds=1, steps=8)
    assert outcome(plan, broken, hidden=(8, 8), method="many-run", runs=200).violated
    assert not outcome(plan, hidden=(8, 8), method="many-run", runs=200).violated


def test_an_accountant_that_forgets_rounds_is_found() -> None:
    plan = a_plan(rounds=8)
    one_round = Ledger().add(plan.noise_multiplier, plan.sample_rate, plan.steps_per_round)
    claimed = replace(plan, epsilon=one_round.epsilon(plan.delta))
    assert outcome(claimed, canaries=1500).violated
    assert not outcome(plan, canaries=1500).violated


def test_a_wrong_alarm_is_not_raised_at_chance() -> None:
    """Canaries that are never put in: nothing can be known."""
    empty = mock.patch.object(
        audit_white_box.canaries.GradientCanaries, "with_canaries", lambda self, _: self.records
    )
    with empty:
        found = [outcome(a_plan(rounds=1, steps=2), canaries=400, seed=seed).lower for seed in range(10)]
    assert sum(max(each.values()) > 0 for each in found) <= 2


# ------------------------------------------------------------------- a scenario's party
def checked(folder: Path, **sections: object) -> Prepared:
    return prepare.check(scenario(folder, **sections), None)


def audited(folder: Path, prepared: Prepared, **how) -> Audit:
    return audit.audit(prepared, settings_for(prepared, **how), folder)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"  # it has the time of day
    }


def test_no_audit_ever_touches_a_run(tmp_path: Path) -> None:
    """A normal run's data and result are the same bits whether audits happened or not."""
    dp_on = {"dp": {"all": {"epsilon": 8}}}
    before = prepared_run(tmp_path, out="before", **dp_on)
    kept = files(before.path)
    prepared = checked(tmp_path, **dp_on)
    for vantage in VANTAGES:
        audited(tmp_path / vantage, prepared, vantage=vantage, canaries=20)
    after = prepared_run(tmp_path, out="after", **dp_on)
    assert files(before.path) == kept
    assert files(after.path) == kept
    play.federate(before)
    play.federate(after)
    assert final_sha(before) == final_sha(after)


def test_a_participant_s_canaries_are_in_the_audited_party_of_the_audit_s_run_alone(tmp_path: Path) -> None:
    plain = prepared_run(tmp_path, out="plain")
    prepared = checked(tmp_path)
    found = audited(tmp_path / "audit", prepared, vantage="participant", canaries=40)
    names, sizes = list(prepared.rows), []
    for partition, name in enumerate(names):
        own, info = read_party(tmp_path / "audit" / "parties" / "game-000" / f"{partition:03d}-{name}")
        normal, _ = read_party(plain.party_folder(0, partition, name))
        planted = len(own.train) - len(normal.train)
        assert (8 <= planted <= 32) if name == found.party else planted == 0
        np.testing.assert_array_equal(own.train.features[: len(normal.train)], normal.train.features)
        np.testing.assert_array_equal(own.heldout.features, normal.heldout.features)
        sizes.append((len(own.train), info.sizes))
    assert all(list(told) == [n for n, _ in sizes] for _, told in sizes)


def test_a_participant_finds_canaries_of_a_party_without_dp_and_none_under_strong_dp(tmp_path: Path) -> None:
    training = {"training": {"epochs": 30, "batch": 8, "lr": 0.5}, "model": {"hidden": [64, 64]}}
    open_party = checked(tmp_path, **training)
    found = audited(tmp_path / "open", open_party, vantage="participant", canaries=100)
    assert found.upper == math.inf
    assert found.lower["f-dp"] > 0.3
    private = checked(tmp_path, dp={"all": {"epsilon": 0.5}}, **training)
    guarded = audited(tmp_path / "private", private, vantage="participant", canaries=100)
    assert guarded.upper <= 0.5
    assert not guarded.violated
    assert guarded.lower["f-dp"] < found.lower["f-dp"]


def test_a_participant_audits_game_by_game(tmp_path: Path) -> None:
    prepared = checked(tmp_path, federation={"rounds": 1})
    how = {"vantage": "participant", "method": "many-run", "runs": 10}
    found = audited(tmp_path / "audit", prepared, **how)
    assert found.upper == math.inf
    assert set(found.lower) == {"clopper-pearson", "gaussian"}, "the third is for DP-SGD"
    assert len(list((tmp_path / "audit" / "parties").iterdir())) == 10
    planted = [
        len(read_party(next(game.glob(f"*-{found.party}")))[0].train)
        for game in sorted((tmp_path / "audit" / "parties").iterdir())
    ]
    assert planted == [planted[0], planted[0] - 1] * 5


@pytest.mark.parametrize("secure", [False, True])
def test_the_white_box_of_a_party_has_its_own_plan(tmp_path: Path, secure: bool) -> None:
    prepared = checked(tmp_path, n=200, dp={"all": {"epsilon": 3, "secure": secure}})
    found = audited(tmp_path / "audit", prepared, canaries=600)
    n = len(read_party(next((tmp_path / "audit").rglob(f"*-{found.party}")))[0].train)
    expected = make_plan(prepared.scenario.dp["all"], prepared.scenario.training, n, 3)
    assert found.upper == expected.epsilon
    assert 0 < found.lower["f-dp"] < found.upper


def test_a_party_without_dp_hides_nothing_from_the_white_box(tmp_path: Path) -> None:
    for method, canaries in (("one-run", 500), ("many-run", None)):
        found = audited(tmp_path / method, checked(tmp_path), method=method, canaries=canaries, runs=20)
        assert found.upper == math.inf
        assert not found.violated
        assert found.correct == found.guesses
        statistic = max(found.lower, key=lambda name: found.lower[name])
        assert found.lower[statistic] > 0.5 * found.ceiling[statistic]


# ---------------------------------------------------------- a participant's worst case
def test_worst_case_weights_fit_every_record_and_the_canary_keeps_pulling(tmp_path: Path) -> None:
    run = prepared_run(tmp_path, dp={"hospital-2": {"epsilon": 10}}, model={"hidden": [64, 64]})
    names = [f"hospital-{k + 1}" for k in range(len(list((run.path / "parties/game-000").iterdir())))]
    party, info = read_party(run.party_folder(0, 1, "hospital-2"))
    plan = plan_of(run.scenario, "hospital-2", len(party.train) + 1)
    canary = worst_case.craft(run, names, "hospital-2", plan)
    weights = run.read_initial()
    assert weights is not None
    module = zoo.build(run.scenario.model, party.train.shape, info.classes, seed=0)
    load_weights(module, weights)
    still = {name: np.zeros(tuple(p.shape)) for name, p in module.named_parameters()}
    _, ordinary = gradient_products(module, party.train, still)
    _, crafted = gradient_products(module, canary, still)
    assert crafted.min() >= plan.clipping_norm > 20 * np.median(ordinary)
    again = worst_case.craft(run, names, "hospital-2", plan)
    np.testing.assert_array_equal(again.features, canary.features)


def test_the_clipped_descent_is_the_sum_of_each_rounds_step_along_the_clipped_gradient(
    tmp_path: Path,
) -> None:
    """Against autograd, round by round; and a record that was trained on scores above one that was not."""
    run = prepared_run(tmp_path)
    play.federate(run)
    view = observations.load_view(run.observations(0))
    record = read_party(run.party_folder(0, 1, "hospital-2"))[0].train.take(np.arange(1))
    expected = 0.0
    for t in view.trained_rounds:
        module = view.module(view.models[t - 1]).double()
        x, y = torch.from_numpy(record.features).double(), torch.from_numpy(record.labels)
        torch.nn.functional.cross_entropy(module(x), y).backward()
        gradients = {name: p.grad for name, p in module.named_parameters()}
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        for name, g in gradients.items():
            step = torch.from_numpy(view.models[t - 1][name] - view.models[t][name])
            expected += float((step * g).sum()) * min(1.0, 0.5 / norm)
    found = worst_case.scores(view, record, clipping_norm=0.5)["clipped descent"]
    assert found[0] == pytest.approx(expected, rel=1e-4)


def test_the_worst_case_tells_nearly_every_run_and_never_more_than_epsilon(tmp_path: Path) -> None:
    still = {"epochs": 1, "batch": 8, "lr": 1e-3}
    own = {"epochs": 2, "batch": 8, "lr": 0.1}
    prepared = checked(
        tmp_path,
        dp={"hospital-2": {"epsilon": 60}},
        federation={"rounds": 2},
        model={"hidden": [64, 64]},
        training=still | {"private": own},
    )
    how = {"party": "hospital-2", "vantage": "participant", "runs": 24}
    found = audited(tmp_path / "crafted", prepared, worst_case=True, **how)
    assert found.method == "many-run" and found.worst_case
    assert found.correct >= 17, "of 18: six runs are for the threshold"
    assert 0 < max(found.lower.values()) <= found.upper
    assert "crafted as the worst case" in audit_tables.audit_words(found)


def test_no_canary_is_crafted_among_letters(tmp_path: Path) -> None:
    run = prepared_run(tmp_path)
    language = run.scenario.model.model_copy(update={"name": "gpt"})
    run.__dict__["scenario"] = run.scenario.model_copy(update={"model": language})
    with pytest.raises(InputError, match="letters are of tokens"):
        worst_case.craft(run, [], "hospital-2", a_plan())


def test_the_worst_case_is_a_participants_many_runs_alone(tmp_path: Path) -> None:
    file = toml(tmp_path)
    for wrong in (["--vantage", "white-box"], ["--method", "one-run"]):
        code, text = command(file, "--dp", "all=8", "--worst-case", *wrong)
        assert code == 2 and "one canary is crafted, for a participant" in text


# ----------------------------------------------------------------------- choices
def test_the_party_is_the_first_with_dp_or_the_first_that_is_no_adversary(tmp_path: Path) -> None:
    names = list(checked(tmp_path).rows)
    assert settings_for(checked(tmp_path)).party == names[1]
    with_dp = checked(tmp_path, dp={names[2]: {"epsilon": 8}})
    assert settings_for(with_dp).party == names[2]


def test_wrong_choices_are_one_sentence_that_names_what_is_valid(tmp_path: Path) -> None:
    prepared = checked(tmp_path)
    names = list(prepared.rows)
    with pytest.raises(InputError, match=f"--party hospitl-2: no such party; did you mean '{names[1]}'"):
        settings_for(prepared, party="hospitl-2")
    with pytest.raises(InputError, match="the participant who audits"):
        settings_for(prepared, party=names[0], vantage="participant")
    for wrong, said in (
        ({"canaries": 3}, "--canaries 3"),
        ({"runs": 11}, "even number"),
        ({"runs": 8}, "even number"),
        ({"confidence": 95}, "between 0 and 1"),
    ):
        with pytest.raises(InputError, match=said):
            settings_for(prepared, **wrong)
    with pytest.raises(InputError, match="guesses = 50"):
        AuditSettings(canaries=20, guesses=50)


def test_fewer_guesses_can_be_asked_for() -> None:
    found = outcome(a_plan(rounds=2), canaries=400, guesses=40)
    assert found.guesses == 40
    assert found.lower["steinke"] == bounds.steinke(40, found.correct, 400, 1e-5, 0.05 * MAIN_SHARE)


# ------------------------------------------------------------------------- command
def command(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main.main, ["audit", *arguments])
    return done.exit_code, " ".join(done.output.split())


def toml(folder: Path, **sections: object) -> str:
    path = folder / "tiny.toml"
    reading.save(reading.parse(document(folder, **sections)), path)
    return str(path)


def test_the_command_prints_both_bounds_and_what_they_mean(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, text = command(toml(tmp_path), "--dp", "all=8", "--vantage", "both", "--canaries", "60")
    assert code == 0, text
    for word in ("white-box", "participant", "steinke", "f-dp", "lower", "upper", "ceiling", "95%", "≈"):
        assert word in text
    assert "the truth is in between" in text


def test_the_command_ends_with_code_3_where_the_implementation_is_broken(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(draws, "normal_", lambda tensor, deviation, noise: tensor.zero_())
    code, text = command(toml(tmp_path), "--dp", "all=1", "--canaries", "400")
    assert code == 3, text
    assert "BROKEN" in text


def test_the_command_refuses_in_one_sentence_with_code_2(tmp_path: Path) -> None:
    code, text = command(toml(tmp_path), "--party", "nobody")
    assert code == 2
    assert text.startswith("fedsim: --party nobody: no such party")
    assert "Traceback" not in text


def test_the_command_keeps_the_run_only_where_it_is_told_to(tmp_path: Path) -> None:
    file, kept = toml(tmp_path), tmp_path / "kept"
    assert command(file, "--canaries", "20")[0] == 0
    assert not kept.exists()
    assert command(file, "--canaries", "20", "--out", str(kept))[0] == 0
    assert [folder.name.rpartition("-white-box")[1] for folder in kept.iterdir()] == ["-white-box"]


def test_words_without_dp_say_so() -> None:
    found = Audit(
        "bank-1", "participant", "one-run", {"f-dp": 1.5}, {"f-dp": 4.0}, math.inf, 10, 9, 20, 0.95, 1e-5
    )
    assert "without DP (ε = ∞)" in audit_tables.audit_words(found)
    assert "1.50" in audit_tables.audit_words(found)


def test_an_audit_of_a_run_stands_on_its_page_beside_the_accountants_epsilon(tmp_path: Path) -> None:
    run = prepared_run(tmp_path, dp={"all": {"epsilon": 8}}, adversary={"attacks": ["loss"]})
    play.federate(run)
    before = final_sha(run)
    page = report.write(run).read_text(encoding="utf-8")
    assert f"<code>fedsim audit {run.path.name}</code>" in page
    words = ["audit", str(run.path), "--canaries", "40", "--party", "hospital-2"]
    for _ in range(2):  # the second takes the first one's place
        done = CliRunner().invoke(main.main, words)
        assert done.exit_code == 0, done.output
    table = run.table("audits")
    assert set(table["party"]) == {"hospital-2"} and table["statistic"].is_unique
    page = (run.path / "report.html").read_text(encoding="utf-8")
    best = table.loc[table["lower"].idxmax()]
    section = page[page.index("What an audit shows") :].partition("</table>")[0]
    assert f">{best['lower']:.2f}<" in section and f">{best['upper']:.2f}<" in section
    assert f"{best['correct']} of {best['guesses']}" in section
    assert final_sha(run) == before
    other = CliRunner().invoke(main.main, [*words, "--dp", "all=4"])  # of another scenario than the run's
    assert other.exit_code == 0 and run.table("audits").equals(table)
