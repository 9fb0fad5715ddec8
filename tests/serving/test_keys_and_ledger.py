"""Keys and budgets: shown once, ended at once, never overspent by however many ask at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.serving import Clock

from fedsim.core.errors import InputError
from fedsim.core.scenario.protection import OutputPolicy
from fedsim.serving import keys, ledger, state
from fedsim.serving.keys import Key, Limits
from fedsim.serving.ledger import OverBudget, epsilon_spent, spend

FULL = OutputPolicy()
LAPLACE = OutputPolicy(policy="laplace", epsilon=0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return state.folder(tmp_path)


@pytest.fixture
def database(folder: Path) -> state.Database:
    return state.Database(folder / "keys.sqlite")


@pytest.fixture
def secret(folder: Path) -> state.Secret:
    return state.secret(folder)


def a_key(database: state.Database, policy: OutputPolicy = FULL, now: float = 0.0, **limits: object) -> Key:
    limited = Limits(**{"per_minute": None, **limits})  # type: ignore[arg-type]
    return keys.add(database, state.Secret(b"x" * 32), f"k{time.monotonic_ns()}", policy, limited, now)[0]


def again(database: state.Database, key: Key) -> Key:
    return next(other for other in keys.everyone(database) if other.id == key.id)


def digests(*numbers: int) -> list[bytes]:
    return [number.to_bytes(16) for number in numbers]


def test_what_a_service_keeps_is_for_its_owner_alone(
    folder: Path, database: state.Database, secret: state.Secret
) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}
    (folder / "secret").chmod(0o644)
    with pytest.raises(InputError, match="is open to others; `chmod 600` it"):
        state.secret(folder)


def test_a_key_is_kept_as_a_hash_and_found_again(
    folder: Path, database: state.Database, secret: state.Secret
) -> None:
    key, text = keys.add(database, secret, "clinic", LAPLACE, Limits(60, 100, 2.0), 7.0, expires=9.0)
    found = keys.authenticate(database, secret, text.encode(), 8.0)
    assert found == key and found is not None and found.policy == LAPLACE
    assert keys.authenticate(database, secret, text.encode(), 9.0) is None
    assert keys.authenticate(database, state.Secret(b"other" * 7), text.encode(), 8.0) is None
    assert text.encode() not in b"".join(path.read_bytes() for path in folder.iterdir())


def test_a_name_is_used_again_only_after_its_key_has_ended(
    database: state.Database, secret: state.Secret
) -> None:
    keys.add(database, secret, "clinic", FULL, Limits(), 0.0)
    with pytest.raises(InputError, match="there is an active key named 'clinic'"):
        keys.add(database, secret, "clinic", FULL, Limits(), 1.0)
    with pytest.raises(InputError, match="no active key 'clinik'; did you mean 'clinic'"):
        keys.revoke(database, "clinik", 1.0)
    keys.revoke(database, "clinic", 1.0)
    keys.add(database, secret, "clinic", FULL, Limits(), 2.0)


def test_a_policy_with_an_epsilon_needs_a_budget_of_it(
    database: state.Database, secret: state.Secret
) -> None:
    with pytest.raises(InputError, match="policy 'laplace' spends ε"):
        keys.add(database, secret, "clinic", LAPLACE, Limits(), 0.0)
    with pytest.raises(InputError, match="policy 'full' states no ε"):
        keys.add(database, secret, "clinic", FULL, Limits(epsilon=1.0), 0.0)


def test_a_repeated_record_counts_but_costs_no_epsilon(database: state.Database) -> None:
    key = a_key(database, LAPLACE, epsilon=0.3, queries=6)
    assert spend(database, key, digests(1, 2, 2), 0.0) == ledger.Charge(3, 2, 0.2, 0.0)
    assert spend(database, key, digests(1), 0.0) == ledger.Charge(1, 0)
    with pytest.raises(OverBudget) as error:
        spend(database, key, digests(3, 4), 0.0)
    assert error.value.limit == "epsilon"
    assert spend(database, key, digests(3), 0.0).epsilon == pytest.approx(0.1), "refused is not spent"
    with pytest.raises(OverBudget) as error:
        spend(database, key, digests(1, 2), 0.0)
    assert error.value.limit == "queries" and error.value.retry_after == 86_400
    now = again(database, key)
    assert (now.asked, now.fresh) == (5, 3) and epsilon_spent(now) == pytest.approx(0.3)


def test_ten_answers_of_a_tenth_are_one(database: state.Database) -> None:
    key = a_key(database, LAPLACE, epsilon=1.0)
    for number in range(10):
        spend(database, key, digests(number), 0.0)
    with pytest.raises(OverBudget):
        spend(database, key, digests(10), 0.0)


def test_a_key_does_not_pay_for_another(database: state.Database) -> None:
    one, two = (a_key(database, LAPLACE, epsilon=0.1, queries=1) for _ in range(2))
    spend(database, one, digests(1), 0.0)
    assert spend(database, two, digests(1), 0.0).fresh == 1


@given(asks=st.lists(st.tuples(st.floats(0, 200), st.integers(1, 5)), max_size=60))
def test_no_60_seconds_hold_more_than_the_limit(
    asks: list[tuple[float, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    database = state.Database(tmp_path_factory.mktemp("keys") / "keys.sqlite", sync=60.0)
    clock, answered = Clock(1e9), []
    key = a_key(database, per_minute=7)
    for wait, records in asks:
        clock.now += wait / 10
        try:
            spend(database, key, digests(*range(records)), clock.now)
            answered.append((clock.now, records))
        except OverBudget as error:
            assert error.limit == "per-minute" and 1 <= error.retry_after <= 61
            spend(database, a_key(database, per_minute=7), digests(*range(records)), clock.now)
            at = clock.now + error.retry_after  # whoever waits as told is answered
            try:
                spend(database, key, digests(*range(records)), at)
            except OverBudget:
                pytest.fail(f"{records} records were refused after {error.retry_after} s")
            clock.now = at
            answered.append((at, records))
    for start, _ in answered:
        assert sum(n for at, n in answered if start <= at < start + 60) <= 7
    database.close()


SPENDER = """
import sys, time
from pathlib import Path
from fedsim.serving import keys, state
from fedsim.serving.ledger import OverBudget, spend
database = state.Database(Path(sys.argv[1]))
key = next(k for k in keys.everyone(database) if k.id == sys.argv[2])
start, got = int(sys.argv[3]), 0
print("ready", flush=True)
for number in range(start, start + 100000):
    try:
        spend(database, key, [number.to_bytes(16)], 0.0)
    except OverBudget:
        break
    got += 1
    print(got, flush=True)
    time.sleep(0.001)
"""


def test_fifty_clients_and_two_processes_never_overspend(folder: Path, database: state.Database) -> None:
    key = a_key(database, LAPLACE, epsilon=20.0, queries=300)
    command = [sys.executable, "-c", SPENDER, str(folder / "keys.sqlite"), key.id, "1000000"]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "ready\n"

    def client(number: int) -> int:
        for turn in range(100):
            try:
                spend(database, key, digests(number * 100 + turn), 0.0)
            except OverBudget:
                return turn
        return 100

    with ThreadPoolExecutor(50) as pool:
        mine = sum(pool.map(client, range(50)))
    theirs = len(other.communicate(timeout=60)[0].split())
    now = again(database, key)
    assert mine + theirs == now.asked == now.fresh == 200, "the ε of 20 is 200 answers of 0.1"
    assert mine > 0 and theirs > 0


def test_what_was_spent_stays_spent_after_a_kill(folder: Path, database: state.Database) -> None:
    key = a_key(database, LAPLACE, epsilon=1e6)
    command = [sys.executable, "-c", SPENDER, str(folder / "keys.sqlite"), key.id, "0"]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    said = [other.stdout.readline() for _ in range(30)]
    other.send_signal(signal.SIGKILL)
    said += other.stdout.read().splitlines()
    other.wait(60)
    acknowledged = int([line for line in said if line.strip().isdigit()][-1])
    now = again(state.Database(folder / "keys.sqlite"), key)
    assert acknowledged <= now.asked <= acknowledged + 1 and now.fresh == now.asked
    with pytest.raises(OverBudget):
        spend(database, a_key(database, queries=1), digests(1, 2), 0.0)


def test_a_secret_is_drawn_once(tmp_path: Path) -> None:
    place, found = state.folder(tmp_path), []
    barrier = threading.Barrier(8)

    def draw() -> None:
        barrier.wait()
        found.append(state.secret(place).content)

    threads = [threading.Thread(target=draw) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 8
    assert sorted(path.name for path in place.iterdir()) == ["secret"]


def test_the_secret_is_in_no_text(tmp_path: Path) -> None:
    secret = state.secret(state.folder(tmp_path))
    assert "content" not in repr(secret) and secret.key("a") != secret.key("b")
    assert json.dumps(textwrap.shorten(repr(secret), 100)) == '"Secret()"'
