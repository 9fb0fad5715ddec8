from __future__ import annotations

import dataclasses
import html.parser
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from click.testing import CliRunner
from support.attacks import PARTICIPANTS
from support.runs import finished_run, prepared_run

from fedsim import report
from fedsim.cli.main import main
from fedsim.core.errors import InputError
from fedsim.core.privacy import gaussian
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.adversary import AdversarySettings
from fedsim.evaluation import guarantees
from fedsim.report import findings, words
from fedsim.report.findings import Findings, Party
from fedsim.report.page import library, number
from fedsim.report.verdicts import Leak
from fedsim.runs import play

LIGHT_ATTACKS = {"attacks": ["loss", "confidence", "loss-series"]}
VOID = {"meta", "br", "path", "circle", "rect", "link", "img", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Checks that every element is closed, and keeps text, ids and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words).replace("\u202f", " "))

    @property
    def sections(self) -> set[str]:
        return {str(attrs["id"]) for tag, attrs in self.tags if tag == "section"}


def page_of(run: RunDirectory) -> Page:
    page = Page(report.write(run).read_text(encoding="utf-8"))
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Three games; one party under DP."""
    dp = {"hospital-2": {"epsilon": 3.0}}
    return finished_run(tmp_path_factory.mktemp("mixed"), games=3, dp=dp, adversary=LIGHT_ATTACKS)


ANSWERS = {"question-1", "question-2", "not-said"}
ALL_SECTIONS = ANSWERS | {
    "picture", "parties", "asked", "leakage", "exposure", "records", "rounds", "guarantee", "assumptions",
    "outside", "reproduce",
}  # fmt: skip


def test_the_page_has_every_section_and_asks_nothing_of_the_network(mixed: RunDirectory) -> None:
    page = page_of(mixed)
    assert page.sections == ALL_SECTIONS
    text = (mixed.path / "report.html").read_text(encoding="utf-8")
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "embed"}
    assert not any({"src", "xlink:href"} & set(attrs) for _, attrs in page.tags)
    places = {str(attrs["href"]) for tag, attrs in page.tags if tag == "a"}
    assert all(place.startswith("#") for place in places)
    ids = {attrs.get("id") for _, attrs in page.tags}
    assert {place.removeprefix("#") for place in places} <= ids, "every link of the page leads somewhere"
    policy = next(attrs for _, attrs in page.tags if "http-equiv" in attrs)["content"]
    assert policy is not None and policy.startswith("default-src 'none';"), "nor may any script"
    own = text.replace(library(), "")
    assert "url(" not in own and "@import" not in own
    assert set(re.findall(r"https?://[^\"\s<]+", own)) <= {"http://www.w3.org/2000/svg"}
    assert len(own) < 250_000 and len(text) < 8_000_000


def test_every_chart_has_its_place_and_a_static_twin(mixed: RunDirectory) -> None:
    page_of(mixed)
    text = (mixed.path / "report.html").read_text(encoding="utf-8")
    drawn = json.loads(re.findall(r'id="charts" type="application/json">(.*?)</script>', text)[0])
    assert set(drawn) == {"gap", "by-round", "parties", "roc", "accuracy", "auc", "epsilon"}
    for name in drawn:
        place = text.index(f'id="chart-{name}"')
        assert text.index('<div class="still"><svg', place) < text.index("</figure>", place)


def test_the_page_says_what_the_tables_say(mixed: RunDirectory) -> None:
    page, leakage = page_of(mixed), mixed.table("leakage")
    rows = leakage[(leakage["game"] == "all") & (leakage["metric"] == "auc")]
    for row in rows.itertuples():
        assert f"{number(row.value)}{number(row.low)}–{number(row.high)}" in page.text, row
    rounds = mixed.table("rounds")
    spent = rounds[rounds["party"] == "hospital-2"]["epsilon"].max()
    assert f"ε = {spent:.3g}, δ = 10⁻⁵" in page.text
    final = rounds[(rounds["round"] == 3) & (rounds["party"] == "all")]["accuracy"].mean()
    assert f"accuracy {number(final, 2)}" in page.text
    for entry in mixed.manifest["games"].values():
        assert entry["final_model_sha256"] in page.text
    for digest in mixed.manifest["data_sha256"].values():
        assert digest in page.text
    assert "hospital-1 is curious" in page.text and "This was run 3 times" in page.text


def test_the_same_run_gives_the_same_bytes(mixed: RunDirectory) -> None:
    def files() -> dict[str, bytes]:
        report.write(mixed)
        paths = [mixed.path / "report.html", *(mixed.path / "figures").iterdir()]
        return {path.name: path.read_bytes() for path in paths}

    assert files() == files()


def test_each_figure_is_an_svg_file_of_its_own(mixed: RunDirectory) -> None:
    report.write(mixed)
    names = {path.stem for path in (mixed.path / "figures").iterdir()}
    assert names == {"accuracy", "auc", "epsilon", "parties", "roc", "records", "gap", "by-round"}
    for path in (mixed.path / "figures").iterdir():
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and int(root.attrib["width"]) > 100
        assert "var(" not in path.read_text(encoding="utf-8")


def test_one_game_without_dp(tmp_path: Path) -> None:
    run = finished_run(tmp_path, adversary=LIGHT_ATTACKS)
    page = page_of(run)
    assert "nobody has a guarantee" in page.text and "--twin all=8" in page.text
    assert "One federation cannot tell which records are exposed" in page.text
    names = {path.stem for path in (run.path / "figures").iterdir()}
    assert names == {"accuracy", "auc", "parties", "roc", "gap", "by-round"}


def test_a_run_that_is_not_finished_says_so(tmp_path: Path) -> None:
    run = prepared_run(tmp_path, adversary=LIGHT_ATTACKS)
    page = page_of(run)
    assert "no attack has been run" in page.text and "Not measured yet" in page.text
    unmeasured = ANSWERS | {"parties", "asked", "guarantee", "assumptions", "outside", "reproduce"}
    assert page.sections == unmeasured
    play.federate(run)
    (run.path / "leakage.parquet").unlink()
    assert page_of(run).sections == unmeasured | {"rounds", "picture"}


def test_a_failed_party_is_named(tmp_path: Path) -> None:
    run = finished_run(tmp_path, adversary=LIGHT_ATTACKS)
    rounds = run.table("rounds")
    failed = (rounds["party"] == "hospital-3") & (rounds["round"] == 2)
    rounds.loc[failed, "status"], rounds.loc[failed, "detail"] = "failed", "out of memory <&> paper"
    run.write_table("rounds", rounds)
    assert "hospital-3failed1out of memory <&> paper" in page_of(run).text.replace(" failed", "failed")


def test_names_that_look_like_markup_stay_text(tmp_path: Path) -> None:
    run = finished_run(tmp_path, adversary=LIGHT_ATTACKS)
    run.update_manifest(notices=["<script>alert(1)</script>"])
    for name in ("leakage", "scores", "strongest"):
        table = run.table(name)
        run.write_table(name, table.assign(attack=table["attack"].replace("loss", "<b>loss</b>")))
    page = page_of(run)
    assert "<script>alert(1)</script>" in page.text and "<b>loss</b>" in page.text
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 3 and "b" not in tags, "the page's own, and no other"


def test_the_matrix_of_adversaries(tmp_path: Path, mixed: RunDirectory) -> None:
    def other(name: str) -> RunDirectory:
        folder = tmp_path / name
        folder.mkdir()
        return finished_run(folder, adversary={**LIGHT_ATTACKS, "party": name})

    second = other("hospital-3")
    path = report.write(mixed, [second])
    page = Page(path.read_text(encoding="utf-8"))
    assert "Adversary × victim" in page.text
    matrix = findings.gather(mixed, [second]).matrix
    assert set(zip(matrix["adversary"], matrix["victim"], strict=True)) == {
        ("hospital-1", "hospital-2"), ("hospital-1", "hospital-3"),
        ("hospital-3", "hospital-1"), ("hospital-3", "hospital-2"),
    }  # fmt: skip
    with pytest.raises(InputError, match="its adversary is 'hospital-1' as well"):
        report.write(mixed, [mixed])
    (second.path / "leakage.parquet").unlink()
    with pytest.raises(InputError, match="has no leakage yet"):
        report.write(mixed, [second])


def test_the_command_writes_the_page(mixed: RunDirectory) -> None:
    (mixed.path / "report.html").unlink(missing_ok=True)
    result = CliRunner().invoke(main, ["report", str(mixed.path), "--prior", "0.25"])
    assert result.exit_code == 0, result.output
    assert str(mixed.path / "report.html") in result.output.replace("\n", "")
    page = Page((mixed.path / "report.html").read_text(encoding="utf-8"))
    assert "25 %" in page.text and "where 1 in 4 of those it asks about" in page.text
    wrong = CliRunner().invoke(main, ["report", str(mixed.path), "--prior", "1.5"])
    assert wrong.exit_code == 2


# Observers, the active adversary, DP


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """All observers, one of them behind private answers; all parties under DP, and defences."""
    adversary = {
        **LIGHT_ATTACKS,
        "observers": ["outsider", "participant", "coalition", "server"],
        "coalition": ["hospital-3"],
        "output": {"policy": "gaussian", "epsilon": 0.5, "delta": 1e-6},
    }
    dp, defences = {"all": {"epsilon": 1.0}}, {"hospital-2": {"label_smoothing": 0.2}}
    return finished_run(
        tmp_path_factory.mktemp("watched"),
        n=120,
        parties={"count": 4},
        dp=dp,
        defences=defences,
        adversary=adversary,
    )


def test_observers_stand_side_by_side_on_the_same_candidates(watched: RunDirectory) -> None:
    page, found = page_of(watched), findings.gather(watched)
    assert "observers" in page.sections
    assert [each.name for each in found.observers] == ["outsider", "participant", "coalition", "server"]
    assert len({(each.leak.n_members, each.leak.n_nonmembers) for each in found.observers}) == 1
    leakage = watched.table("leakage")
    auc = leakage.query("metric == 'auc' and party == 'all' and game == 'all'")
    auc = auc.set_index(["observer", "attack"])["value"]
    participant = auc["participant"].max()
    for each in found.observers:
        own = auc[each.name]
        assert own[each.leak.attack] == own.max() == pytest.approx(each.leak.value)
        assert each.leak.attacks == len(own)
        if each.gain is None:
            assert each.leak.value == participant
        else:
            assert each.gain.value == pytest.approx(each.leak.value - participant)
        assert words.sees(found, each.name) in page.text
    assert set(found.attacks) == set(auc["participant"].index), "the headline is the participant's"
    assert "shares what it has with hospital-1" in page.text


def test_what_an_outsiders_queries_cost_is_said(watched: RunDirectory) -> None:
    page, found = page_of(watched), findings.gather(watched)
    n = len(watched.read_candidates(0))
    spent = {attack: (asked, epsilon, delta) for attack, asked, epsilon, delta in found.answers}
    assert spent["loss"] == (n, n * 0.5, n * 1e-6)
    asked, epsilon, delta = spent["noise-robustness"]
    assert asked == 32 * n
    assert f"asks {asked} times in a game, which is ε = {epsilon:.6g}, δ = {delta:.2g} in all" in page.text
    assert "Gaussian noise: ε = 0.5, δ = 10⁻⁶ an answer; against outsiders alone" in page.text


def test_source_inference_is_shown_beside_guessing(watched: RunDirectory) -> None:
    page, table = page_of(watched), watched.table("sources")
    rows = findings.source_rows(findings.gather(watched))
    assert {(row["observer"], row["rule"]) for row in rows} >= {("server", "source-loss")}
    for row in rows:
        keys = (table["observer"] == row["observer"]) & (table["attack"] == row["attack"])
        own = table[keys & (table["game"] == "all")].set_index("metric")
        assert row["value"] == own["value"]["accuracy"]
        assert (row["chance"], row["prior"]) == (own["value"]["chance"], own["value"]["label_prior"])
        shown = f"{number(row['value'])} {number(row['low'])}–{number(row['high'])}"
        assert shown + f" {number(row['chance'])} {number(row['prior'])} {row['n']}" in spaced(page)


def spaced(page: Page) -> str:
    """The page's text with cells apart."""
    return re.sub(r"\s+", " ", " ".join(page.words).replace("\u202f", " "))


def test_under_dp_every_attack_stands_beside_what_dp_allows(watched: RunDirectory) -> None:
    page, found = page_of(watched), findings.gather(watched)
    victims = [each for each in found.parties if each.leak is not None]
    assert found.guarantee == (max(each.epsilon or 0 for each in victims), 1e-5)
    epsilon, delta = found.guarantee
    for alpha in (0.1, 0.01, 0.001):
        assert number(guarantees.tpr_bound(alpha, epsilon, delta)) in page.text
    assert number(guarantees.auc_bound(epsilon, delta)) in page.text and "DP allows at most" in page.text
    assert 'class="line allowed"' in (watched.path / "report.html").read_text(encoding="utf-8")
    for each in victims:
        assert each.plan is not None and f"{each.plan['noise_multiplier']:.3f}" in page.text
        assert each.accountant in ("prv", "rdp") and each.rounds == {"ok": 3}
    assert "hospital-2: defences label_smoothing = 0.2; no guarantee" in spaced(page)


def test_no_bound_is_drawn_where_a_victim_has_no_guarantee(mixed: RunDirectory) -> None:
    assert findings.gather(mixed).guarantee is None
    page = page_of(mixed)
    assert "DP allows at most" not in page.text
    assert 'class="line allowed"' not in (mixed.path / "report.html").read_text(encoding="utf-8")
    assert "All other parties train without DP-SGD" in page.text


def test_the_epsilon_that_the_rates_prove_is_the_tables_own(watched: RunDirectory) -> None:
    found = findings.gather(watched)
    leakage = watched.table("leakage").query("party == 'all' and game == 'all'")
    cells = leakage[leakage["observer"] == "participant"].set_index(["attack", "metric"])
    rows = findings.empirical(found)
    assert [row["attack"] for row in rows] == found.attacks[:6]
    for row in rows:
        tpr = float(cells["low"][row["attack"], "tpr_at_threshold"])
        fpr = float(cells["high"][row["attack"], "fpr"])
        assert row["epsilon"] == guarantees.epsilon_needed(tpr, fpr, 1e-5)
        assert row["epsilon"] <= 1.0, "of correct DP-SGD, never above the accountant's"


def test_an_active_adversary_is_named_and_its_updates_compared(tmp_path: Path) -> None:
    adversary = {"attacks": ["loss"], "active": "poisoning", "candidates": 20, "poison_copies": 3}
    run = finished_run(tmp_path, adversary=adversary)
    page, rounds = page_of(run), run.table("rounds")
    assert "active" in page.sections and "is malicious" in page.text
    assert "3 mislabelled copies of each" in page.text
    mine = rounds[(rounds["party"] == "hospital-1") & (rounds["round"] > 0)]["update_norm"]
    assert f"In the median round its update is {mine.median():.3g} long" in page.text
    assert (run.path / "figures" / "norms.svg").exists()


def test_central_dp_is_named_as_a_promise_about_parties(tmp_path: Path) -> None:
    federation = {"rounds": 2, "central_dp": {"noise_multiplier": 2.0}}
    run = finished_run(tmp_path, federation=federation, adversary=LIGHT_ATTACKS)
    page = page_of(run)
    spent = gaussian.epsilon_of(1e-5, 2.0, 2)
    assert f"each party as a whole has ε = {spent:.3g} at δ = 10⁻⁵" in page.text
    assert f"hospital-2 2 {spent:.4g}" in spaced(page)
    assert "hides nothing of a record beyond what that noise hides" in page.text


# Words


def leak(value: float, low: float, high: float) -> Leak:
    return Leak("participant", "loss", 6, value, low, high, 50, 50)


def party(name: str, found: Leak | None, epsilon: float | None = None) -> Party:
    delta = None if epsilon is None else 1e-5
    return Party(name, 100, found is None, epsilon, delta, False, 0.7, 0.8, 0.5, found)


def test_a_guarantee_that_limits_nothing_is_not_called_a_limit() -> None:
    assert "can exceed an AUC of 0.816" in words.switch([party("a", None, 1.0), party("b", None)])
    assert "The other 1 have" not in words.switch([party("a", None, 1.0)])
    assert "hardly any attack" in words.switch([party("a", None, 9.0)])
    assert "nobody has a guarantee" in words.switch([party("a", None)])


@pytest.mark.parametrize(("value", "shown"), [(1e-5, "10⁻⁵"), (1e-10, "10⁻¹⁰"), (2.5e-6, "2.5e-06"),
                                              (1 / 300, "0.00333333")])  # fmt: skip
def test_delta(value: float, shown: str) -> None:
    assert words.delta(value) == shown


def test_what_is_outside_names_the_parties_without_dp(mixed: RunDirectory) -> None:
    found = findings.gather(mixed)
    points = " ".join(words.outside(found, "patient"))
    assert "hospital-1, hospital-3" in points and "hospital-2" not in points
    for matter in (
        "Held-out figures",
        "Sample counts",
        "Hyperparameters",
        "random stream",
        "several records",
    ):
        assert matter in points


def test_the_strongest_attacks_interval_is_at_least_as_wide_as_its_own(mixed: RunDirectory) -> None:
    found = findings.gather(mixed)
    rows = found.leakage[(found.leakage["game"] == "all") & (found.leakage["metric"] == "auc")]
    for each in found.parties:
        if each.leak is not None:
            mine = rows[(rows["party"] == each.name) & (rows["attack"] == each.leak.attack)].iloc[0]
            assert each.leak.value == pytest.approx(mine["value"])
            assert each.leak.low <= mine["low"] + 1e-12 and each.leak.high >= mine["high"] - 1e-12


def test_numbers() -> None:
    assert [number(value) for value in (0.5861, 1.0, -0.028, math.nan, 0.0)] == [
        ".586", "1.000", "-.028", "–", ".000",
    ]  # fmt: skip


def test_the_closed_world_is_named_where_it_is_assumed(mixed: RunDirectory) -> None:
    def said(attack: str, auxiliary: str) -> str:
        settings = AdversarySettings(auxiliary=auxiliary, shadows=64)  # type: ignore[arg-type]
        run = RunDirectory(mixed.path)
        run.__dict__["scenario"] = mixed.scenario.model_copy(update={"adversary": settings})
        leak = Leak("participant", attack, 3, 0.8, 0.7, 0.9, 50, 50)
        return words.world(Findings(run, [], leak, suite=suite), "patient")

    declared = [("participant", name, attack.shadows) for name, attack in PARTICIPANTS.items()]
    suite = pd.DataFrame(declared, columns=["observer", "attack", "shadows"])

    closed = said("joint", "population")
    assert "closed world" in closed and "own every candidate's full record" in closed and "64 whole" in closed
    assert "closed world" not in said("lira-offline", "disjoint")
    assert "no candidate's record but the one it asks about" in said("lira-offline", "disjoint")
    assert "its own records alone" in said("lira-offline", "own")
    assert "nothing more of the other parties" in said("loss", "population")


def test_secret_noise_is_not_called_repeatable(mixed: RunDirectory) -> None:
    secret = mixed.scenario.dp["hospital-2"].model_copy(update={"secure": True})  # type: ignore[union-attr]
    run = RunDirectory(mixed.path)
    run.__dict__["scenario"] = mixed.scenario.model_copy(update={"dp": {"hospital-2": secret}})
    found = findings.gather(mixed)
    assert "random stream" in " ".join(words.outside(found, "patient"))
    assert "random stream" not in " ".join(words.outside(dataclasses.replace(found, run=run), "patient"))


@pytest.mark.parametrize(("place", "said"), [(1, "the longest"), (2, "the second-longest"),
                                             (5, "the 5th-longest"), (21, "the 21st-longest")])  # fmt: skip
def test_places(place: int, said: str) -> None:
    assert words.ordinal(place, "longest") == said
