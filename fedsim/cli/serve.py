"""The commands around a released model: `serve`, `keys`, `log`."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from fedsim.cli.common import err, json_option, line, print_json
from fedsim.core.errors import FedsimError, InputError

if TYPE_CHECKING:
    from fedsim.core.run_directory import RunDirectory
    from fedsim.core.scenario.protection import OutputPolicy
    from fedsim.serving.keys import Key

_run = click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
_SECONDS = {"m": 60, "h": 3600, "d": 86_400}


@click.command("serve")
@_run
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65_535), help="0: a free one."
)
@click.option("--game", default=0, show_default=True, type=click.IntRange(0), help="Whose final model.")
@click.option(
    "--max-batch", default=512, show_default=True, type=click.IntRange(1), help="Records a request."
)
@click.option(
    "--max-body", default=1_000_000, show_default=True, type=click.IntRange(1), help="Bytes of one."
)
@click.option(
    "--timeout", default=10.0, show_default=True, help="Seconds until a request's body must be there."
)
@click.option(
    "--sync",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds between flushes of the log to the disk; 0: before every answer.",
)
@click.option("--seed", type=int, help="Repeatable noise, for experiments. [default: a secret of the run]")
def serve(
    folder: Path,
    host: str,
    port: int,
    game: int,
    max_batch: int,
    max_body: int,
    timeout: float,
    sync: float,
    seed: int | None,
) -> None:
    """Serve the final model of RUN over HTTP, to those who have a key.

    It listens on this machine alone unless --host says otherwise, and speaks plain HTTP: put it behind a
    server that does TLS before others reach it.

    \b
    Examples:
      fedsim keys add runs/hospitals clinic-a --policy rounded --queries 10000
      fedsim serve runs/hospitals
      curl -H "Authorization: Bearer $KEY" http://127.0.0.1:8000/model
    """
    _need_serving()
    from fedsim.core.data import released
    from fedsim.core.run_directory import RunDirectory
    from fedsim.runs import integrity
    from fedsim.serving import service
    from fedsim.serving.app import Settings

    settings = Settings(max_body, max_batch, timeout)
    run = RunDirectory.open(folder)
    opened = service.opened(run, settings, game=game, seed=seed, sync=sync)
    integrity.verify_released(run, game, released.FILE)
    service.serve(opened, host, port, lambda address, _: line(f"Serving {folder} on {address}"))
    line("Stopped", err())


@click.group("keys")
def keys() -> None:
    """Who may ask a served model, and how much.

    \b
    Examples:
      fedsim keys add runs/hospitals clinic-a --policy rounded --queries 10000
      fedsim keys list runs/hospitals
    """


@keys.command("add")
@_run
@click.argument("name")
@click.option("--policy", help="What answers tell: full, rounded, top-k, label, … [default: the run's]")
@click.option("--digits", type=int, help="Decimals of 'rounded'.")
@click.option("--top", type=int, help="Probabilities of 'top-k'.")
@click.option("--noise", type=float, help="Standard deviation of 'noisy'.")
@click.option("--temperature", type=float, help="Of 'temperature'.")
@click.option("--epsilon", type=float, help="ε of one answer of 'laplace', 'gaussian' or 'votes'.")
@click.option("--delta", type=float, help="δ of one answer of 'gaussian'.")
@click.option("--distortion", type=float, help="How far 'memguard' moves an answer, in expectation.")
@click.option("--epsilon-budget", type=click.FloatRange(0, min_open=True), help="ε of all answers.")
@click.option("--queries", type=click.IntRange(1), help="Records in all. [default: no limit]")
@click.option(
    "--per-minute",
    default=600,
    show_default=True,
    type=click.IntRange(0),
    help="Records a minute; 0: no limit.",
)
@click.option("--expires", metavar="TIME", help="When it ends: 90m, 12h, 30d. [default: never]")
@click.option("--role", default="client", show_default=True, help="client, or operator: /metrics as well.")
def add(
    folder: Path,
    name: str,
    epsilon_budget: float | None,
    queries: int | None,
    per_minute: int,
    expires: str | None,
    role: str,
    **options: Any,
) -> None:
    """Make a key for NAME to ask the model of RUN; it is shown once.

    \b
    Examples:
      fedsim keys add runs/hospitals clinic-a --policy label --queries 1000 --expires 30d
      fedsim keys add runs/hospitals clinic-b --policy laplace --epsilon 0.1 --epsilon-budget 10
    """
    from fedsim.core.errors import suggestion
    from fedsim.serving import keys as service_keys
    from fedsim.serving import state

    if role not in service_keys.ROLES:
        raise InputError(f"--role {role}: no such role{suggestion(role, service_keys.ROLES)}")
    run, place = _opened(folder)
    now = time.time()
    policy = _policy(run, options)
    _check_policy(run, policy)
    key, text = service_keys.add(
        state.Database(place / "keys.sqlite"),
        state.secret(place),
        name,
        policy,
        service_keys.Limits(per_minute or None, queries, epsilon_budget),
        now,
        role=role,
        expires=None if expires is None else now + _duration(expires),
    )
    line(f"Key {key.id} of {name}, shown this once:", err())
    line(text)


@keys.command("list")
@_run
@json_option
def list_keys(folder: Path, as_json: bool) -> None:
    """List the keys of RUN and what each has spent.

    \b
    Example:
      fedsim keys list runs/hospitals
    """
    from fedsim.serving import keys as service_keys
    from fedsim.serving import state

    _, place = _opened(folder)
    everyone = service_keys.everyone(state.Database(place / "keys.sqlite"))
    if as_json:
        print_json([vars(key) | {"policy": key.policy.model_dump(exclude_none=True)} for key in everyone])
        return
    for key in everyone:
        line(_words(key))
    if not everyone:
        line(f"no keys yet; make one with `fedsim keys add {folder} NAME`", err())


@keys.command("revoke")
@_run
@click.argument("key")
def revoke(folder: Path, key: str) -> None:
    """End KEY of RUN, an id or a name, at once.

    \b
    Example:
      fedsim keys revoke runs/hospitals clinic-a
    """
    from fedsim.serving import keys as service_keys
    from fedsim.serving import state

    _, place = _opened(folder)
    ended = service_keys.revoke(state.Database(place / "keys.sqlite"), key, time.time())
    line(f"Key {ended.id} of {ended.name} is revoked")


@click.group("log")
def log() -> None:
    """The audit log of a served model.

    \b
    Examples:
      fedsim log verify runs/hospitals
      fedsim log watch runs/hospitals
    """


@log.command("verify")
@_run
def verify(folder: Path) -> None:
    """Check that no line of RUN's log was changed, removed or reordered; exit code 1 where one was.

    Note the number of lines and the last mac elsewhere: they show it if the whole log is put back to what
    it was earlier.

    \b
    Example:
      fedsim log verify runs/hospitals
    """
    from fedsim.serving import log as audit
    from fedsim.serving import state

    _, place = _opened(folder)
    verdict = audit.verify(place, state.secret(place))
    if verdict.problem is not None:
        raise FedsimError(f"{place / audit.LOG}: {verdict.problem}; {verdict.head.lines} line(s) before hold")
    line(f"{verdict.head.lines} line(s) hold; the last mac is {verdict.head.mac}")


@log.command("watch")
@_run
@click.option("--every", type=click.FloatRange(0.1), help="Look again after so many seconds, until Ctrl-C.")
@json_option
def watch(folder: Path, every: float | None, as_json: bool) -> None:
    """Name the keys of RUN whose questions look like an attack: many records next to one another.

    A list of persons, each asked about once, looks like any other traffic and is not seen.

    \b
    Examples:
      fedsim log watch runs/hospitals
      fedsim log watch runs/hospitals --every 10
    """
    from fedsim.serving import log as audit
    from fedsim.serving import watch as watching

    _, place = _opened(folder)
    if as_json:
        if every is not None:
            raise InputError("--json: it says what the log shows now; leave --every out")
        names = ("key", "name", "requests", "records", "near", "repeated", "refused", "probing")
        patterns = watching.patterns(audit.read(place))
        print_json([{name: getattr(pattern, name) for name in names} for pattern in patterns])
        return
    named: set[str] = set()
    with contextlib.suppress(KeyboardInterrupt):
        _name_probing(place, named)
        while every is not None:
            time.sleep(every)
            _name_probing(place, named)
    if not named:
        line("no key's questions look like an attack", err())


def _name_probing(place: Path, named: set[str]) -> None:
    """Print the keys that look like an attack and are not in ``named``, and add them to it."""
    from fedsim.serving import log as audit
    from fedsim.serving import watch as watching

    for pattern in watching.patterns(audit.read(place)):
        if pattern.probing and pattern.key not in named:
            named.add(pattern.key)
            line(
                f"{pattern.key} {pattern.name}: {pattern.near} of {pattern.records} records lie next to "
                f"an earlier one; {pattern.repeated} repeated, {pattern.refused} request(s) over budget"
            )


def _need_serving() -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(f"`fedsim serve` needs {error.name}; pip install 'fedsim[serve]'") from error


def _opened(folder: Path) -> tuple[RunDirectory, Path]:
    from fedsim.core.run_directory import RunDirectory
    from fedsim.serving import state

    run = RunDirectory.open(folder)
    return run, state.folder(run.path)


def _policy(run: RunDirectory, options: dict[str, Any]) -> OutputPolicy:
    """Return the policy that the options name, the run's own where they name none."""
    from pydantic import ValidationError

    from fedsim.core.errors import suggestion
    from fedsim.core.scenario.protection import OutputPolicy

    own = run.scenario.adversary.output
    chosen = {key: value for key, value in options.items() if value is not None}
    known = get_args(OutputPolicy.model_fields["policy"].annotation)
    if chosen.get("policy", own.policy) not in known:
        raise InputError(f"--policy {chosen['policy']}: no such policy{suggestion(chosen['policy'], known)}")
    try:
        return OutputPolicy.model_validate(own.model_dump() | chosen | {"queries": None})
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(f"--{problem['loc'][0]} {problem['input']}: {problem['msg'].lower()}") from error


def _check_policy(run: RunDirectory, policy: OutputPolicy) -> None:
    """Refuse a policy that the run's release cannot have; to know it takes the model."""
    if policy.policy in ("memguard", "votes"):
        from fedsim.core.models import released

        released.load(run).backing(policy, run)


def _duration(text: str) -> int:
    match = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if match is None or int(match[1]) == 0:
        raise InputError(f"--expires {text}: a number and m, h or d, such as 90m, 12h or 30d")
    return int(match[1]) * _SECONDS[match[2]]


def _words(key: Key) -> str:
    """Return one line about a key."""
    from fedsim.serving.ledger import epsilon_spent

    limits = key.limits
    parts = [f"{key.asked} of {limits.queries or 'any number of'} records"]
    if limits.epsilon is not None:
        parts.append(f"ε {epsilon_spent(key):g} of {limits.epsilon:g}")
    if limits.per_minute is not None:
        parts.append(f"{limits.per_minute} a minute")
    if key.expires is not None:
        parts.append(f"until {time.strftime('%Y-%m-%d %H:%M', time.localtime(key.expires))}")
    state = key.state(time.time())
    return f"{key.id}  {key.name}  {state}  {key.role}  {key.policy.policy}  {', '.join(parts)}"
