"""Whatever standard output is, and whatever names there are, what was computed is kept and shown."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w
from click.testing import CliRunner, Result
from support.runs import document, finished_run, write_table

from fedsim.cli.main import main
from fedsim.cli.streams import SafeStream, printable
from fedsim.core.run_directory import RunDirectory

QUICK = {
    "federation": {"rounds": 2},
    "adversary": {"attacks": ["loss"]},
    "dp": {"all": {"noise_multiplier": 1.0}},
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fedsim(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `fedsim` is the command line of this interpreter."""
    program = f'fedsim() {{ "{sys.executable}" -m fedsim "$@"; }}; {line}'
    environment = {**os.environ, **variables}
    return subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, env=environment, timeout=120
    )


def quick(folder: Path, **sections: object) -> str:
    (folder / "tiny.toml").write_text(tomli_w.dumps(document(folder, **{**QUICK, **sections})))
    return "tiny.toml"


# ------------------------------------------------------------------ what standard output is
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_output_in_an_encoding_without_epsilon(tmp_path: Path, encoding: str) -> None:
    done = shell(f"fedsim run {quick(tmp_path)} > out.txt", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "runs" / "tiny" / "report.html").exists()
    text = (tmp_path / "out.txt").read_bytes().decode(encoding)
    assert "hospital-2" in text and "? = " in text and "Report: " in text


def test_a_closed_output_costs_nothing(tmp_path: Path) -> None:
    done = shell(f"fedsim run {quick(tmp_path)} >&- 2>&-; echo code $?")
    assert done.stdout == "code 0\n"
    run = RunDirectory.open(tmp_path / "runs" / "tiny")
    assert run.manifest["complete"] and (run.path / "report.html").exists()
    assert run.last_round(0) == 2 and len(run.read_model(0, 2)), "no file took standard output's place"
    done = shell("fedsim show runs/tiny >&-; echo code $? >&2; fedsim --version >&-; echo code $? >&2")
    assert done.stderr == "code 0\ncode 0\n"


def test_a_reader_that_goes_away_costs_nothing(tmp_path: Path) -> None:
    done = shell(f"(fedsim run {quick(tmp_path)} 2>&1; echo code $? > code.txt) | true; cat code.txt")
    assert done.stdout == "code 0\n" and done.stderr == ""
    assert RunDirectory.open(tmp_path / "runs" / "tiny").manifest["complete"]
    assert (tmp_path / "runs" / "tiny" / "report.html").exists()
    done = shell(
        "fedsim show runs/tiny | head -n 1; fedsim scenario schema | head -c 1; fedsim attacks list | true"
    )
    assert done.stderr == ""


def test_a_full_output_is_one_sentence_after_the_report(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    done = shell(f"fedsim run {quick(tmp_path)} > /dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "fedsim: cannot write to standard output: No space left on device"
    assert (tmp_path / "runs" / "tiny" / "report.html").exists()
    assert shell("fedsim --help > /dev/full").stderr == "fedsim: cannot write: No space left on device\n"


def test_the_report_is_written_before_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("a bug in the tables")

    monkeypatch.setattr("fedsim.terminal.run_tables.show", fail)
    assert isinstance(fedsim("run", quick(tmp_path)).exception, RuntimeError)
    report = tmp_path / "runs" / "tiny" / "report.html"
    assert report.exists()
    report.unlink()
    assert isinstance(fedsim("attack", "runs/tiny").exception, RuntimeError)
    assert report.exists()


def test_a_system_without_its_signals_and_locks_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows is."""
    monkeypatch.delattr("signal.SIGHUP")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_refused(fedsim("show", "x"), "this system has no SIGHUP and no fcntl")


# ------------------------------------------------------------------ what names there are
@pytest.mark.parametrize(
    "name", ["x[/bold]y", "[red]x", "a\\", "[link=x]", ":smile:", "b\x1b[31mr", "e\u202ed"]
)
def test_paths_are_shown_as_they_are(tmp_path: Path, name: str) -> None:
    out = str(tmp_path / name)
    result = fedsim("run", quick(tmp_path), "--out", out)
    assert result.exit_code == 0, result.output
    text = result.output.replace("\n", "")
    assert f"Report: {printable(out)}/report.html" in text and f"Run folder: {printable(out)}" in text
    assert "\x1b" not in text and "\u202e" not in text
    for command in (["show", out], ["report", out], ["runs", str(Path(out).parent)]):
        result = fedsim(*command)
        assert result.exit_code == 0 and printable(Path(out).name) in result.output, result.output
        assert "\x1b" not in result.output


def test_a_column_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    """Names of columns are in notices and in errors; '\\x1b]0;…' would set the window's title."""
    table = write_table(tmp_path / "x.csv").read_text().replace("pressure", "\x1b]0;owned\x07\x1b[2Jpressure")
    (tmp_path / "x.csv").write_text(table)
    data = {"path": "x.csv", "label": "ill", "bounds": {"age": [0, 100]}}
    for sections in ({}, {"label": "absent"}, {"bounds": {"pressur": [0, 1]}}):
        result = fedsim("scenario", "check", quick(tmp_path, data={**data, **sections}))
        assert result.exit_code == (2 if sections else 0), result.output
        assert "\x1b" not in result.output and "\x07" not in result.output
    result = fedsim("scenario", "check", quick(tmp_path, data={**data, "label": "a\nfedsim: all is well"}))
    assert (
        result.exit_code == 2
        and result.output.count("\nfedsim: ") + result.output.startswith("fedsim: ") == 1
    )


def test_control_characters_are_written_out() -> None:
    assert printable("a\x1b[2J\x07\r\tb\n\x9b\u202eü€") == "a\\x1b[2J\\x07\\r\tb\n\\x9b\\u202eü€"
    assert printable("a\nb", keep="") == "a\\nb"


def test_a_safe_stream_leads_to_what_stands_in_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert SafeStream("stdout").write("ε\n") == 2
    assert capsys.readouterr().out == "ε\n"
    assert not SafeStream("stdout").isatty() and SafeStream("stdout").writable()


# ------------------------------------------------------------------ what is no file
def _fifo(folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    return "pipe"


def _loop(folder: Path) -> str:
    (folder / "loop").symlink_to("loop")
    return "loop"


def _written(text: str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / "x.toml").write_text(text)
        return "x.toml"

    return write


NO_SCENARIO = {
    "a pipe": (_fifo, "cannot read pipe: it is a pipe or a device, not a file"),
    "zeros without end": (lambda f: "/dev/zero", "cannot read /dev/zero: it is a pipe or a device"),
    "a loop of links": (_loop, "cannot read loop: Too many levels of symbolic links"),
    "a folder": (lambda f: ".", "cannot read scenario.toml: there is no such file"),
    "a long name": (lambda f: "a" * 300, "File name too long"),
    "a longer path": (lambda f: "a/" * 5000, "File name too long"),
    "an empty file": (_written(""), "x.toml: the scenario is empty; begin with data.name"),
    "a comment": (_written("# to be done\n"), "x.toml: the scenario is empty"),
    "deep brackets": (_written("a = " + "[" * 5000), "x.toml: not valid TOML: it is nested too deeply"),
    "a long number": (_written("seed = " + "9" * 5000), "x.toml: not valid TOML: Exceeds the limit"),
    "no UTF-8": (lambda f: (f / "x.toml").write_bytes(b"name = '\xff'") and "x.toml", "cannot read x.toml"),
    "data in a loop": (
        lambda f: _loop(f) and _written('[data]\npath = "loop"\nlabel = "y"')(f),
        "x.toml: data.path = 'loop': it names no file: Symlink loop",
    ),
    "data of nobody": (
        _written('[data]\npath = "~nobody-at-all/x.csv"\nlabel = "y"'),
        "data.path = '~nobody-at-all/x.csv': it names no file",
    ),
    "data with a zero": (
        _written('[data]\npath = "a\\u0000"\nlabel = "y"'),
        "a path cannot hold a zero byte",
    ),
    "data of no party": (
        _written('[data]\nlabel = "y"\n[data.path]'),
        "it names no file; name a table, or one for each party",
    ),
}


@pytest.mark.parametrize("name", NO_SCENARIO)
def test_what_is_no_scenario_is_one_sentence(tmp_path: Path, name: str) -> None:
    make, sentence = NO_SCENARIO[name]
    path = make(tmp_path)
    for command in (["scenario", "check"], ["run"], ["audit"]):
        assert_refused(fedsim(*command, path), sentence)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("make", [_fifo, _loop, lambda f: "/dev/zero", lambda f: "a" * 300, _written("")])
@pytest.mark.parametrize("command", ["show", "report", "attack", "sweep"])
def test_what_is_no_run_or_sweep_is_one_sentence(
    tmp_path: Path, command: str, make: Callable[[Path], str]
) -> None:
    assert_refused(fedsim(command, make(tmp_path)), "")


def assert_refused(result: Result, sentence: str) -> None:
    assert result.exit_code == 2, result.output
    assert len(result.output.splitlines()) == 1 and result.output.startswith("fedsim: "), result.output
    assert sentence in result.output


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("games", "true"),
        ("training.lr", "false"),
        ("model.hidden", "[true]"),
        ("data.bounds", "{age = [false, 1]}"),
        ("federation.options", "{proximal_mu = true}"),
        ("adversary.rounds", "[true]"),
        ("dp.all", "{epsilon = true}"),
        ("parties.member_share", "true"),
        ("adversary.candidates", "true"),
    ],
)
def test_truth_is_no_number(tmp_path: Path, key: str, value: str) -> None:
    result = fedsim("scenario", "check", quick(tmp_path, dp={}), "--set", f"{key}={value}")
    assert_refused(result, "it should be a number, neither true nor false")
    assert key.split(".")[-1] in result.output


def test_truth_is_truth(tmp_path: Path) -> None:
    path = quick(tmp_path, adversary={"attacks": ["loss"], "knows_party": True})
    assert fedsim("scenario", "check", path, "--set", "dp.all.secure=true").exit_code == 0


@pytest.mark.parametrize("rounds", ["1-99999999999", "99999999999", "1-" + "9" * 5000, "last-99999999999"])
def test_a_range_of_rounds_has_an_end(tmp_path: Path, rounds: str) -> None:
    run = finished_run(tmp_path, **QUICK)
    assert_refused(fedsim("attack", str(run.path), "--rounds", rounds), "round")
