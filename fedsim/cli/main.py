"""The command line: a thin shell over `fedsim.runs`, without logic of its own.

A command's file is imported when that command is called, so that none waits for what only another needs.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import click

from fedsim import __version__
from fedsim.cli.streams import VERBOSITY, on_standard_streams, printable
from fedsim.core import own_packages
from fedsim.core.errors import FedsimError, InputError, suggestion
from fedsim.core.parallel import missing_facilities, stop_signals

_UNUSABLE_PATH = (errno.ENAMETOOLONG, errno.ELOOP)
"""What the operating system says of a path that cannot be that of any file."""
_UNWRITABLE = (errno.ENOSPC, errno.EIO, errno.EBADF)
"""What it says of an open file, such as standard output, that takes no more."""

COMMANDS = {
    "run": ("run:run", "Run a scenario and show the result."),
    "exposure": ("exposure:exposure", "Before joining: how exposed each record of a party would be."),
    "show": ("run:show", "Show a run: the verdict, then leakage, guarantee and utility."),
    "report": ("run:report", "Write a run's report.html, one page that needs no network."),
    "runs": ("runs:runs", "List the runs in a folder, delete some, or remove their private records."),
    "tag": ("runs:tag", "Give a run tags to find it by."),
    "compare": ("runs:compare", "Compare runs: scenarios, and paired differences with intervals."),
    "export": ("runs:export", "Write a run's results as CSV or LaTeX."),
    "attack": ("attack:attack", "Repeat a run's attacks, or attack a released model as an outsider."),
    "sweep": ("sweep:sweep", "Run every combination of settings, and make one table of all."),
    "policy": ("policy:policy", "Judge a run by its policy; exit code 4 where it does not pass."),
    "recommend": ("policy:recommend", "The cheapest DP-SGD setting that meets a policy."),
    "evidence": ("evidence:evidence", "Was this record in the training set? With odds and errors."),
    "attribute": ("beyond:attribute", "Infer a hidden column of a run's records."),
    "invert": ("beyond:invert", "Reconstruct the typical record of each class from a run's models."),
    "reconstruct": ("beyond:reconstruct", "Reconstruct training records from the updates of a run."),
    "extract": ("letters:extract", "Secrets that a run's language models memorised and give away."),
    "count": ("beyond:count", "Count a run's members and shares of groups: how many, not who."),
    "persons": ("persons:persons", "Ask whether a person is in a run's data, and what DP promises her."),
    "poison": ("poison:poison", "Aim poison at those called members of a run, and see what it does."),
    "audit": ("audit:audit", "Audit a party's DP: the ε that can be shown to be spent."),
    "deploy": ("deploy:deploy", "A federation between organisations: folders, server, nodes."),
    "serve": ("serve:serve", "Serve the final model of a run over HTTP."),
    "keys": ("serve:keys", "Who may ask a served model, and how much."),
    "log": ("serve:log", "The audit log of a served model."),
    "attacks": ("attacks:attacks", "The attacks there are."),
    "data": ("data:data", "The named data sets."),
    "init": ("init:init", "Draft a scenario for a table of your own."),
    "doctor": ("doctor:doctor", "Look whether fedsim can run here."),
    "completion": ("doctor:completion", "The script by which a shell completes fedsim's commands."),
    "experiments": ("experiments:experiments", "The scenarios that come along: list or copy them."),
    "scenario": ("scenario:scenario", "Scenario files: check one, or print the schema."),
}
"""Command → where it stands in `fedsim.cli`, and what the list of commands says of it."""


def with_verbosity(command: click.Command) -> click.Command:
    """Return a command, and all below it, with --quiet and --verbose beside its own options."""
    if isinstance(command, click.Group):
        for below in command.commands.values():
            with_verbosity(below)
    elif not any(option.name == "quiet" for option in command.params):
        if command.name in IMPORTING:
            command.params.append(_trust_code())
        command.params += [_verbosity("quiet", "q", "Say errors only."),
                           _verbosity("verbose", "v", "Say every step.")]  # fmt: skip
    return command


IMPORTING = (
    "run", "attack", "attribute", "invert", "reconstruct", "extract", "count", "persons", "evidence", "serve"
)  # fmt: skip
"""Commands that may import code that a run's folder names."""


def _trust_code() -> click.Option:
    def note(ctx: click.Context, option: click.Parameter, said: bool) -> None:
        if said:
            os.environ["FEDSIM_TRUST_CODE"] = "1"  # processes below this one read it too

    text = "Import code that a run folder from elsewhere brings."
    return click.Option(["--trust-code"], is_flag=True, expose_value=False, callback=note, help=text)


def _verbosity(name: str, letter: str, text: str) -> click.Option:
    def note(ctx: click.Context, option: click.Parameter, asked: bool) -> None:
        if asked:
            setattr(VERBOSITY, name, True)

    return click.Option(
        [f"--{name}", f"-{letter}"], is_flag=True, expose_value=False, callback=note, help=text
    )


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called; to list them none of them is.

    lazy: command → (module:attribute below `fedsim.cli`, its line in the list of commands)
    """

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of ``lazy``."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command, or return None where there is none of this name."""
        if cmd_name not in self.lazy:
            return None
        module, _, attribute = self.lazy[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(f"fedsim.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return with_verbosity(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that ``args`` begin with, and the rest of them.

        Raises:
            InputError: there is no such command.
        """
        if args[0] not in self.lazy and not ctx.resilient_parsing:
            raise InputError(f"'{args[0]}' is no command of fedsim{suggestion(args[0], self.lazy)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the lines of ``lazy``."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.lazy.items()])


class FedsimGroup(LazyGroup):
    """Turns fedsim's own errors into one line and an exit code; bugs keep their trace."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line; standard streams may be closed, and may become so."""
        VERBOSITY.quiet = VERBOSITY.verbose = False
        with on_standard_streams():
            missing = missing_facilities()
            if missing:
                _say(f"fedsim: this system has no {' and no '.join(missing)}, which stopping and locking "
                     "a run need; use Linux or macOS, on Windows in WSL")  # fmt: skip
                sys.exit(InputError.exit_code)
            try:
                return super().main(*args, **kwargs)
            except OSError as error:
                if error.filename is not None or error.errno not in _UNWRITABLE:
                    raise
                _say(f"fedsim: cannot write: {error.strerror}")
                sys.exit(FedsimError.exit_code)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named."""
        try:
            if "doctor" not in (*ctx.protected_args, *ctx.args)[:1]:  # which says by itself what is wrong
                own_packages.check()
            with stop_signals():
                return super().invoke(ctx)
        except FedsimError as error:
            if ctx.params.get("debug"):
                raise
            _say(f"fedsim: {printable(str(error), keep='' if isinstance(error, InputError) else chr(10))}")
            ctx.exit(error.exit_code)
        except OSError as error:
            if ctx.params.get("debug") or error.errno not in _UNUSABLE_PATH:
                raise
            _say(f"fedsim: cannot use {printable(_shortened(str(error.filename)))}: {error.strerror}")
            ctx.exit(InputError.exit_code)
        except KeyboardInterrupt:
            _say(f"fedsim: stopped; {_after_stopping(ctx.invoked_subcommand)}")
            ctx.exit(130)


def _after_stopping(command: str | None) -> str:
    """Say what a command that was stopped has left behind."""
    return {
        "run": "go on with the same command and --resume",
        "sweep": "go on with the same command",
        "attack": "the run's tables are as they were before; repeat the command to attack again",
    }.get(command or "", "what was there before is unchanged")


def _say(sentence: str) -> None:
    """Write to standard error; where nobody can read it, the exit code has to do."""
    with contextlib.suppress(OSError):
        click.echo(sentence, err=True)


def _shortened(text: str, length: int = 60) -> str:
    return text if len(text) <= length else f"{text[:length]}… ({len(text)} characters)"


@click.group(cls=FedsimGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fedsim")
@click.option("--debug", is_flag=True, help="Show stack traces.")
def main(debug: bool) -> None:
    """Measure what a participant of a federation could learn about who is in your data.

    \b
    Examples:
      fedsim run experiments/hospitals.toml
      fedsim run experiments/heart.toml --dp all=8 --set federation.rounds=20
      fedsim show runs/heart
      fedsim attacks list
    """


if __name__ == "__main__":
    main(prog_name="fedsim")
