"""The DP switch of anyone's Flower app: the same training, a ledger over all rounds, a budget, a refusal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant
from flwr.app import Context, RecordDict
from support.runs import prepared_run

from clients import dp, node
from clients.dp import BudgetSpent, train_or_refuse
from clients.party import party_of
from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.errors import InputError
from fedsim.core.privacy.plan import make_plan
from fedsim.core.scenario.protection import DPSettings
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training.dp import train_private
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.steps import LocalTraining
from fedsim.engines import flower_cli, flower_internals

APP = Path(__file__).resolve().parents[2] / "experiments" / "flower_app"
TRAINING = TrainingSettings(batch=10, epochs=1)
SETTINGS = DPSettings(epsilon=2.0, accountant="rdp")


def context(**node_config: Any) -> Context:
    return Context(1, 2, {"partition-id": 0, **node_config}, RecordDict(), {})


def records(n: int = 40) -> Records:
    stream = np.random.default_rng(0)
    return Records(stream.normal(size=(n, 4)).astype(np.float32), stream.integers(0, 2, n))


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))


def rounds_of(
    where: Context, count: int, settings: DPSettings = SETTINGS
) -> tuple[torch.nn.Module, list[dp.Spent]]:
    """Train ``count`` rounds of three, each as in a new process: of the context, only bytes stay."""
    module, mine, spent = net(), records(), []
    for _ in range(count):
        where.state = flower_internals.from_bytes(flower_internals.to_bytes(where.state))
        spent.append(
            train_or_refuse(module, mine.features, mine.labels, where, settings, TRAINING, rounds=3, seed=7)
        )
    return module, spent


def test_it_trains_as_fedsims_own_parties_do() -> None:
    module, spent = rounds_of(context(), 3)
    plan, twin = make_plan(SETTINGS, TRAINING, n=40, rounds=3), net()
    for round in (1, 2, 3):
        draws = PartyDraws(
            rng.torch_generator(7, "poisson sampling", party="0", round=round),
            rng.torch_generator(7, "dp noise", party="0", round=round),
        )
        train_private(twin, records(), LocalTraining(TRAINING), plan, draws)
    for own, other in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own, other)
    assert [at.rounds for at in spent] == [1, 2, 3]


def test_epsilon_is_that_of_all_rounds_by_googles_accountant_too() -> None:
    where = context()
    _, spent = rounds_of(where, 3)
    [(noise, rate, steps)] = dp.ledger_of(where).entries
    accountant = RdpAccountant()
    step = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
    accountant.compose(step, steps)
    assert spent[-1].epsilon == pytest.approx(accountant.get_epsilon(SETTINGS.delta), rel=0.02)
    assert spent[0].epsilon < spent[1].epsilon < spent[2].epsilon <= 2.0


def test_it_refuses_once_the_budget_is_spent_and_does_not_train() -> None:
    where = context()
    _, [first, second] = rounds_of(where, 2)
    budget = (first.epsilon + second.epsilon) / 2  # room for one round
    poor, module = context(), net()
    rounds_of(poor, 1, SETTINGS.model_copy(update={"budget": budget}))
    before = [parameter.clone() for parameter in module.parameters()]
    with pytest.raises(BudgetSpent, match=f"of {budget:.4g} is spent"):
        train_or_refuse(
            module, records().features, records().labels, poor,
            SETTINGS.model_copy(update={"budget": budget}), TRAINING, rounds=3, seed=7,
        )  # fmt: skip
    assert all(torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))
    assert dp.ledger_of(poor).epsilon(SETTINGS.delta, "rdp") == first.epsilon


def test_the_nodes_own_budget_holds_whatever_the_app_asks_for() -> None:
    with pytest.raises(BudgetSpent):
        rounds_of(context(**{node.BUDGET: 0.01}), 1, SETTINGS.model_copy(update={"budget": 100.0}))


def test_a_ledger_on_disk_outlives_the_node_and_the_run(tmp_path: Path) -> None:
    kept = {node.LEDGER: str(tmp_path / "ledger.json")}
    _, [one] = rounds_of(context(**kept), 1)
    _, [two] = rounds_of(context(**kept), 1)  # another run, or the node was started again
    _, [_, in_one_run] = rounds_of(context(), 2)
    assert two.epsilon == in_one_run.epsilon > one.epsilon
    between = (one.epsilon + two.epsilon) / 2
    with pytest.raises(BudgetSpent):
        rounds_of(context(**kept, **{node.BUDGET: between}), 1)
    (tmp_path / "ledger.json").write_text('{"steps": 3}')
    with pytest.raises(InputError, match="is not a ledger of ε"):
        rounds_of(context(**kept), 1)


def test_a_large_delta_buys_nothing_at_a_node_with_a_budget() -> None:
    careless = DPSettings(noise_multiplier=0.7, delta=0.5, accountant="rdp")
    mine = records()
    with pytest.raises(BudgetSpent):
        train_or_refuse(
            net(), mine.features, mine.labels, context(**{node.BUDGET: 1.0}), careless, TRAINING, rounds=1
        )


@pytest.mark.parametrize("budget", [0, -1.0, "much"])
def test_a_budget_that_is_no_number_is_refused(budget: object) -> None:
    with pytest.raises(InputError, match="--node-config epsilon-budget"):
        rounds_of(context(**{node.BUDGET: budget}), 1)


@pytest.mark.parametrize(
    ("switch", "said"),
    [({"epsilon": 8.0}, r"exceeds this node's own epsilon-budget of 1"), (None, r"under DP-SGD only")],
)
def test_a_party_refuses_a_scenario_above_its_nodes_budget(
    tmp_path: Path, switch: dict[str, float] | None, said: str
) -> None:
    run = prepared_run(tmp_path, **({"dp": {"all": switch}} if switch else {}))
    where = Context(
        1, 2, {"partition-id": 1, "num-partitions": 3, node.BUDGET: 1.0}, RecordDict(),
        {"run": str(run.path), "game": 0},
    )  # fmt: skip
    with pytest.raises(BudgetSpent, match=said):
        dp.plan_of(party_of(where), where)


def test_other_settings_make_another_plan_on_the_same_ledger() -> None:
    where = context()
    rounds_of(where, 1)
    module, mine = net(), records()
    louder = DPSettings(noise_multiplier=5.0, accountant="rdp")
    spent = train_or_refuse(module, mine.features, mine.labels, where, louder, TRAINING, rounds=3, seed=7)
    assert [entry[0] for entry in dp.ledger_of(where).entries][-1] == 5.0
    assert spent.rounds == 2 and spent.epsilon > make_plan(louder, TRAINING, 40, 1).epsilon


def test_a_module_that_mixes_records_is_refused() -> None:
    module, mine = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2)), records()
    with pytest.raises(InputError, match="BatchNorm"):
        train_or_refuse(module, mine.features, mine.labels, context(), SETTINGS, TRAINING, rounds=1)


@pytest.mark.slow
@pytest.mark.xdist_group("flower")
def test_the_example_app_runs_under_flwr_run(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    log = tmp_path / "flower.log"
    with (
        flower_cli.private_home(log, {}) as home,
        flower_cli.superlink(home, ["--insecure", "--simulation"]),
    ):
        flower_cli.run_app(home, APP, "", "num-supernodes=3 init-args-num-cpus=2")
    said = log.read_text(encoding="utf-8", errors="replace")
    means = dict(re.findall(r"round (\d): mean ε of the clinics that trained ([\d.]+)", said))
    assert set(means) == {"1", "2", "3", "4"}
    assert 1.9 < float(means["4"]) <= 2.0  # the plan's, of all four rounds
    assert re.search(r"BudgetSpent.*of 1\.5 is spent", said)
