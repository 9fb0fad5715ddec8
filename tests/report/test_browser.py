"""The page in a real browser: it is quiet, asks nothing of the network, and draws every chart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.browser import Browser, browser
from support.runs import finished_run

from fedsim import report

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dp = {"all": {"noise_multiplier": 1.0}}
    adversary = {"attacks": ["loss", "gap", "confidence"]}
    return report.write(finished_run(tmp_path_factory.mktemp("page"), dp=dp, adversary=adversary))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as one:
        yield one


@pytest.mark.parametrize(("width", "theme"), [(1200, "light"), (390, "dark")])
def test_the_page_is_quiet_and_draws_every_chart(
    page: Path, chromium: Browser, width: int, theme: str
) -> None:
    chromium.troubles.clear()
    chromium.requests.clear()
    chromium.open(page, width, theme)
    assert chromium.troubles == []
    assert {url.partition(":")[0] for url in chromium.requests} == {"file"}, "the page itself, and no more"
    drawn = chromium.ask(
        "Array.from(document.querySelectorAll('.chart-live')).map(place => ({id: place.id, "
        "traces: place.querySelectorAll('.scatterlayer .trace').length, height: place.offsetHeight}))"
    )
    assert {place["id"].removeprefix("chart-") for place in drawn} == {
        "gap", "by-round", "parties", "roc", "accuracy", "auc", "epsilon",
    }  # fmt: skip
    assert all(place["traces"] >= 1 and place["height"] > 200 for place in drawn), drawn
    assert chromium.ask("Array.from(document.querySelectorAll('.still')).every(one => !one.offsetHeight)")
    wide = chromium.ask("document.documentElement.scrollWidth")
    assert wide <= width, "only tables scroll sideways"
    verdicts = chromium.ask(
        "Array.from(document.querySelectorAll('.badge, .answer')).filter(one => one.offsetParent)"
        ".every(one => one.getBoundingClientRect().right <= innerWidth)"
    )
    assert verdicts, "every verdict is on the screen"
    dark = chromium.ask("getComputedStyle(document.documentElement).backgroundColor")
    assert (dark == "rgb(18, 24, 31)") == (theme == "dark")


def test_the_slider_moves_the_picture(page: Path, chromium: Browser) -> None:
    chromium.open(page, 1200)
    first = chromium.ask("[document.getElementById('gap-words').textContent, "
                         "JSON.stringify(document.getElementById('chart-gap').data[0].y)]")  # fmt: skip
    assert first[0].startswith("Round 3:")
    second = chromium.ask(
        "(() => { const one = document.getElementById('gap-round'); one.value = 0; one.oninput(); "
        "return [document.getElementById('gap-words').textContent, "
        "JSON.stringify(document.getElementById('chart-gap').data[0].y)]; })()"
    )
    assert second[0].startswith("Round 0:") and second[1] != first[1]
    assert chromium.ask("document.getElementById('gap-round').type") == "range", "the arrow keys move it"


def test_tables_are_sorted_and_copied(page: Path, chromium: Browser) -> None:
    chromium.open(page, 1200)
    table = "document.querySelector('table[data-name=leakage]')"
    names = f"Array.from({table}.tBodies[0].rows).map(row => row.cells[0].querySelector('code')?.textContent)"
    before = [name for name in chromium.ask(names) if name]
    chromium.ask(f"{table}.tHead.rows[0].cells[0].click()")
    down = [name for name in chromium.ask(names) if name]
    assert down == sorted(before, reverse=True)
    csv = chromium.ask(f"window.fedsim.csv({table})").splitlines()
    assert csv[0].startswith('"attack","AUC"') and len(csv) == chromium.ask(f"{table}.rows.length")
    latex = chromium.ask(f"window.fedsim.latex({table})")
    assert latex.startswith("\\begin{tabular}{lrr") and "\\bottomrule" in latex
    assert "\\%" in latex and latex.count(" % ") == 0


def test_print_shows_the_static_pictures(page: Path, chromium: Browser) -> None:
    chromium.open(page, 1000)
    chromium.call("Emulation.setEmulatedMedia", media="print")
    assert chromium.ask(
        "Array.from(document.querySelectorAll('.chart-live')).every(one => !one.offsetHeight)"
    )
    assert chromium.ask(
        "Array.from(document.querySelectorAll('.still')).every(one => one.offsetHeight > 100)"
    )
    pdf = chromium.call("Page.printToPDF", preferCSSPageSize=True)["data"]
    assert pdf.startswith("JVBERi"), "%PDF"
    chromium.call("Emulation.setEmulatedMedia", media="")
