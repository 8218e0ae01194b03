"""The report in a real browser: nothing is wider than a phone, nothing asks for anything. Pictures of it lie in
build/reports/report-*.png afterwards, to be looked at.

Not among the unit tests: `make test-report` installs the browser and runs this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from pve_zfsbackup.app.overview import Overview
from pve_zfsbackup.report.page import report_page
from tests.browser.chromium import Browser, browser
from tests.report.test_page import EVIL, view  # noqa: F401 - a fixture

PICTURES = Path(__file__).parent.parent.parent / "build/reports"
LOOKS = {"wide": (1280, False), "phone": (360, False), "dark": (1280, True), "phone-dark": (360, True)}
# What sticks out of the window, or is cut off within its own box.
TOO_WIDE = """
[...document.querySelectorAll('body *')].filter(e => !e.closest('thead') && !e.closest('.scale'))
  .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
  .map(e => e.outerHTML.slice(0, 80))
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("look", LOOKS)
def test_it_fits_and_is_seen(page: Browser, view: Overview, tmp_path: Path, look: str) -> None:  # noqa: F811
    width, dark = LOOKS[look]
    file = tmp_path / "report.html"
    file.write_text(report_page(view))
    page.show(width, dark=dark)
    page.open(file)
    page.picture(PICTURES / f"report-{look}.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(TOO_WIDE) == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(17, 21, 27)" if dark else "rgb(246, 247, 249)")
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0


def test_paper_is_white_whatever_the_screen_is(page: Browser, view: Overview, tmp_path: Path) -> None:  # noqa: F811
    file = tmp_path / "report.html"
    file.write_text(report_page(view))
    page.show(720, dark=True, media="print")
    page.open(file)
    page.picture(PICTURES / "report-print.png")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"


def test_a_long_and_hostile_name_widens_nothing(page: Browser, view: Overview, tmp_path: Path) -> None:  # noqa: F811
    name = EVIL + "x" * 200
    coverage = tuple(
        dataclasses.replace(entry, guest=dataclasses.replace(entry.guest, name=name)) for entry in view.history.coverage
    )
    history = dataclasses.replace(view.history, coverage=coverage)
    file = tmp_path / "report.html"
    file.write_text(report_page(dataclasses.replace(view, node=name, history=history)))
    for width in (360, 1280):
        page.show(width)
        page.open(file)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.scripts.length + document.images.length") == 0
