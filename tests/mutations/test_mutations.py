"""The mutation proof: each of the field's known bugs, planted in the real code, is caught by something."""

from __future__ import annotations

from functools import lru_cache

import pytest

from fedsim.core.privacy import plan
from fedsim.core.privacy.ledger import Ledger
from fedsim.core.privacy.plan import steps_per_round
from fedsim.core.scenario.training import TrainingSettings
from mutations import audited, checks
from mutations.bugs import BUGS, Bug
from mutations.planting import Edit, planted
from mutations.world import PATHS

FASTEST = "written out"
# Where a bug is not in the steps themselves, the paths do not differ.
on_its_paths = [(bug, path) for bug in BUGS for path in PATHS if bug.in_training or path == FASTEST]
audits = [(bug, path) for bug, path in on_its_paths if bug.audited or path == FASTEST]


def each(pairs: list[tuple[Bug, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("bug", "path"), pairs, ids=[f"{bug.name}-{path}" for bug, path in pairs])


each_path = pytest.mark.parametrize("path", PATHS)


@lru_cache
def correct(path: str) -> audited.Finding:
    return audited.audit(path)


@each_path
@pytest.mark.parametrize("check", checks.CHECKS)
def test_the_code_as_it_stands_passes(check: str, path: str) -> None:
    assert checks.CHECKS[check](path) is None


@each_path
def test_the_audit_of_the_code_as_it_stands_finds_less_than_is_claimed(path: str) -> None:
    found = correct(path)
    assert 0.5 < found.lower < found.claimed < audited.TARGET.epsilon


@each(on_its_paths)
def test_unit_checks(bug: Bug, path: str) -> None:
    """Exactly the checks of the registry catch the bug, and do so on every path."""
    with planted(bug.edits):
        found = checks.problems(path)
    assert set(found) == bug.checks, found


@each(audits)
def test_audit(bug: Bug, path: str) -> None:
    """The audit says what the registry says: also of a bug that it cannot see."""
    with planted(bug.edits):
        found = audited.audit(path)
    assert found.caught == bug.audited, found


def test_nothing_goes_unnoticed() -> None:
    assert all(bug.checks for bug in BUGS)
    assert set().union(*(bug.checks for bug in BUGS)) == set(checks.CHECKS), "a check that nothing needs"
    assert len({bug.name for bug in BUGS}) == len(BUGS)


def test_a_bug_is_met_by_whoever_imported_the_function_and_is_gone_afterwards() -> None:
    settings = TrainingSettings(batch=4, epochs=1)
    edit = Edit("fedsim.core.privacy.plan:steps_per_round", "training.steps or", "7 or")
    with planted((edit,)):
        assert plan.steps_per_round(settings, 10) == 7
    assert plan.steps_per_round(settings, 10) == 3


def test_a_bug_may_have_several_edits_and_the_accountants_forget_it() -> None:
    spent = Ledger().add(1.0, 0.1, 10)
    right = spent.epsilon(1e-5)
    edits = (
        Edit("fedsim.core.privacy.accountants:spent", "if not entries:", "if True:"),
        Edit("fedsim.core.privacy.accountants:spent", "return 0.0,", "return 100.0,"),
        Edit("fedsim.core.privacy.ledger:Ledger.epsilon", "[0]", "[0] + 1"),
    )
    with planted(edits):
        assert spent.epsilon(1e-5) == 101
    assert spent.epsilon(1e-5) == right


def test_what_a_bug_keeps_on_a_function_is_gone_with_it() -> None:
    edit = Edit(
        "fedsim.core.privacy.plan:steps_per_round",
        "training.steps or",
        "steps_per_round.__dict__.update(a=1) or",
    )
    with planted((edit,)):
        steps_per_round(TrainingSettings(), 10)
        assert vars(steps_per_round) == {"a": 1}
    assert vars(steps_per_round) == {}


def test_an_edit_of_code_that_has_changed_says_so() -> None:
    edit = Edit("fedsim.core.training.dp:train_private", "no such text", "")
    with pytest.raises(LookupError, match="stands 0 times"), planted((edit,)):
        pass
