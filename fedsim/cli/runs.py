"""`fedsim runs`, `tag`, `compare` and `export`: finished runs beside each other, and their results as
files."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from fedsim.cli.common import busy, err, json_option, line, out, print_json
from fedsim.core.errors import InputError


class _Listing(click.Group):
    """A group that lists where no command is named, so that `fedsim runs FOLDER --sort auc` needs none."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put 'list' before what is neither a command nor a request for help."""
        named = args and (args[0] in self.commands or args[0] in ("-h", "--help"))
        return super().parse_args(ctx, args if named else ["list", *args])


@click.group(cls=_Listing)
def runs() -> None:
    """List the runs in a folder, delete some, or remove the private records of finished ones.

    \b
    Examples:
      fedsim runs
      fedsim runs runs/sweeps/epsilon/cells --sort auc     (see `fedsim runs list --help`)
      fedsim runs --delete hospitals-2
      fedsim runs prune runs/hospitals
    """


@runs.command("list")
@click.argument("parent", default="runs", type=click.Path(path_type=Path))
@click.option("--where", default="", metavar="TEXT", help="Only runs with this in name, scenario or tags.")
@click.option("--tag", default="", help="Only runs with this tag.")
@click.option(
    "--sort", default="created", show_default=True, help="created, run, scenario, auc, accuracy or epsilon."
)
@click.option("--delete", "doomed", multiple=True, metavar="RUN", help="Delete a run of PARENT, by its name.")
@click.option("--yes", is_flag=True, help="Delete without a question.")
@json_option
def list_runs(
    parent: Path, where: str, tag: str, sort: str, doomed: tuple[str, ...], yes: bool, as_json: bool
) -> None:
    """List the runs in PARENT (default: runs) with what was found, or delete some.

    \b
    Examples:
      fedsim runs list
      fedsim runs --sort auc --where hospitals
      fedsim runs runs/sweeps/epsilon/cells --json
      fedsim runs --delete hospitals-2
    """
    from fedsim.core.run_directory import runs_in
    from fedsim.terminal import runs_table

    if doomed:
        _delete(parent, doomed, yes)
        return
    rows = runs_table.listed(runs_in(parent), sort, tag, where)
    if as_json:
        print_json(rows)
    else:
        out().print(runs_table.runs(rows))


def _delete(parent: Path, names: tuple[str, ...], yes: bool) -> None:
    from fedsim.core.errors import suggestion
    from fedsim.core.run_directory import runs_in

    there = {run.path.name: run for run in runs_in(parent)}
    for name in names:
        if name not in there:
            raise InputError(f"--delete {name}: no run of {parent}{suggestion(name, there)}")
    for name in names:
        with there[name].locked():  # nobody is running it
            if not yes and not click.confirm(f"Delete {there[name].path} with all that was kept?", err=True):
                line(f"{name} is kept", err())
                continue
            shutil.rmtree(there[name].path)
        line(f"{name} is deleted", err())


@runs.command()
@click.argument("folders", metavar="RUN…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def prune(folders: tuple[Path, ...], yes: bool) -> None:
    """Remove the private records of finished RUNs, what the adversary saw, and who is a member.

    Results, models and report stay, `show` and `serve` go on working; nothing else does.

    \b
    Examples:
      fedsim runs prune runs/hospitals
      fedsim runs prune runs/* --yes
    """
    from fedsim.cli.run import write_report
    from fedsim.core.run_directory import RunDirectory
    from fedsim.runs.integrity import check_prunable, forget_private

    directories = [RunDirectory.open(folder) for folder in folders]
    for directory in directories:
        check_prunable(directory)
    sizes = [sum(path.stat().st_size for path in run.private_parts()) for run in directories]
    for folder, size in zip(folders, sizes, strict=True):
        line(f"{folder}: {size:,} bytes of private records, of what was seen of them, and of who is a member")
    if not yes:
        click.confirm("Remove them for good?", abort=True)
    for folder, directory in zip(folders, directories, strict=True):
        if not (directory.path / "report.html").exists():  # it could not be made afterwards
            write_report(directory)
        line(f"{folder}: {forget_private(directory):,} bytes freed; its results stay")


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("words", metavar="TAG", nargs=-1, required=True)
@click.option("--remove", is_flag=True, help="Take the tags away.")
def tag(folder: Path, words: tuple[str, ...], remove: bool) -> None:
    """Give RUN tags, words of your own, to find it by.

    \b
    Examples:
      fedsim tag runs/hospitals baseline paper
      fedsim tag runs/hospitals paper --remove
    """
    from fedsim.core.run_directory import RunDirectory

    run = RunDirectory.open(folder)
    for word in words:
        if "," in word or not word.strip():
            raise InputError(f"tag '{word}': a tag is a word without commas")
    before = run.manifest.get("tags", [])
    kept = [word for word in before if word not in words]
    run.update_manifest(tags=kept if remove else [*kept, *dict.fromkeys(words)])
    line(f"{run.path.name}: {', '.join(run.manifest['tags']) or 'no tags'}")


@click.command()
@click.argument("folders", metavar="RUN RUN…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--html", "page", type=click.Path(path_type=Path), help="Also write a page.")
@json_option
def compare(folders: tuple[Path, ...], page: Path | None, as_json: bool) -> None:
    """Compare runs with the first: scenarios, leakage, utility and ε, with intervals of the differences.

    \b
    Examples:
      fedsim compare runs/hospitals runs/hospitals-dp-all-8
      fedsim compare runs/a runs/b runs/c --html compare.html
    """
    from fedsim.report import compared
    from fedsim.runs.integrity import open_results
    from fedsim.terminal import runs_table

    if len(folders) < 2:
        raise InputError("compare needs two runs or more; list them with `fedsim runs`")
    opened = [open_results(folder) for folder in folders]
    for run in opened:
        if not run.has("leakage"):
            raise InputError(f"{run.path} has no leakage yet; finish it with `fedsim run … --resume`")
    names = [run.path.name for run in opened]
    if len(set(names)) < len(names):
        raise InputError(f"two runs have the same name ({', '.join(names)}); give each folder its own")
    with busy("Comparing…"):
        tables = compared.settings(opened), compared.summary(opened), compared.differences(opened)
    if as_json:
        print_json(dict(zip(("settings", "runs", "differences"), tables, strict=True)))
    else:
        runs_table.compare(*tables, out())
    if page is not None:
        from fedsim.report.compared_page import write

        line(f"Page: {write(page, *tables)}", err() if as_json else out())


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--csv", "as_csv", is_flag=True, help="The tables of results, whole.")
@click.option("--latex", "as_latex", is_flag=True, help="Attacks and parties as tables for a paper.")
@click.option("--out", "place", type=click.Path(path_type=Path), help="Folder. [default: RUN/export]")
def export(folder: Path, as_csv: bool, as_latex: bool, place: Path | None) -> None:
    """Write RUN's results as CSV or LaTeX.

    \b
    Examples:
      fedsim export runs/hospitals --csv
      fedsim export runs/hospitals --latex --out paper/tables
    """
    from fedsim.report import export as writing
    from fedsim.runs.integrity import open_results

    if not (as_csv or as_latex):
        raise InputError("say --csv or --latex, or both")
    run = open_results(folder)
    place = place or run.path / "export"
    for path in (
        *(writing.csv(run, place) if as_csv else []),
        *(writing.latex(run, place) if as_latex else []),
    ):
        line(str(path))
