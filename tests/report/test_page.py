"""`report`: one file that needs nothing else, in which no name is more than a name. tests/browser looks at it drawn."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pve_zfsbackup.app.box import Proof
from pve_zfsbackup.app.boxes import BoxContent, BoxPoint
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.overview import Overview, overview
from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.model import Dataset, Point, PointId, Vmid
from pve_zfsbackup.model.archive import Archived
from pve_zfsbackup.model.aside import PutAside
from pve_zfsbackup.model.health import Condition, Device, Finding, Level, Verification
from pve_zfsbackup.model.room import Outlook
from pve_zfsbackup.model.runs import PastProof, PastRun, StageTold, Trouble
from pve_zfsbackup.report.drawing import FARTHEST, NEAREST, TICKS, bar, columns, place, strip
from pve_zfsbackup.report.markup import Markup, join, tag
from pve_zfsbackup.report.page import overview_json, report_page, report_summary
from tests.fakes.world import TARGET, World

CSS = Path(__file__).parent.parent.parent / "pve_zfsbackup/report/page.css"
VOID = {"meta", "br", "col"}
EVIL = '</style></title><script>alert(1)</script><img src=x onerror="y">\'&amp;\x1b[2J\u202e\n'


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Overview:
    """Three guests here and on a target, one that is not protected, an hour and a half after the last run."""
    with pytest.MonkeyPatch.context() as patch:
        world = World(tmp_path_factory.mktemp("world"))
        patch.setattr(Session, "now", lambda self: datetime.fromtimestamp(world.clock.now, UTC))
        patch.setattr("syslog.syslog", lambda *words: None)
        world.node.define(103, "cores: 1\nname: alone\nscsi0: local:103/vm-103-disk-0.qcow2,size=1G\n", running=False)
        world.run()
        world.write()
        world.run(Stage.SNAPSHOT)
        world.clock.now += 5400
        with world.session() as session:
            found = overview(session, Scope())
    now = found.history.now
    health = dataclasses.replace(found.health, aside=(put_aside(now),))
    return dataclasses.replace(found, health=health, runs=made_runs(now), proofs=made_proofs(now))


def put_aside(now: int) -> PutAside:
    name = Dataset("rpool/data/pzb-aside/100/vm-100-disk-0-71c4130e")
    return PutAside(dataset=name, vmid=Vmid(100), by="rollback", since=now - 86_400, bytes=3 << 30)


def made_runs(now: int) -> tuple[PastRun, ...]:
    """The journal has the time of the machine, the world its own."""
    good = PastRun(
        name="a", started=now - 90_000, ended=now - 89_940, exit_code=0, seconds=60.0,
        stages={"snapshot": StageTold(outcomes={"ok": 3}), "replicate": StageTold(outcomes={"ok": 3}, bytes=5 << 20)},
    )  # fmt: skip
    trouble = Trouble(stage="replicate", outcome="failed", guest="100 web", host=TARGET, message="out of space")
    bad = dataclasses.replace(good, name="b", started=now - 5400, exit_code=1, troubles=(trouble,) * 7)
    died = PastRun(name="c", started=now - 600)
    return good, bad, dataclasses.replace(bad, name="d", exit_code=2, troubles=(), broken_off="oops"), died


def proof(now: int, **more: Any) -> PastProof:
    told = PastProof(
        stage="verify-drill", at=now - 86_400, vmid=100, place="source", point="100/x", outcome="ok", level="files",
        seconds=12.4, message="drill: files",
    )  # fmt: skip
    return dataclasses.replace(told, **more)


def made_proofs(now: int) -> tuple[PastProof, ...]:
    wrong = "scsi0 partition 2: ext4: e2fsck: Inode 2 has illegal blocks.  Clear? no"
    return (
        *(proof(now, at=now - (20 - number) * 86_400) for number in range(7)),
        proof(now, at=now - 3600, outcome="failed", level="failed", message=wrong),
        proof(now, stage="verify-points", place=TARGET, level="", message="3 of 3 points are whole", seconds=0.0),
        proof(now, stage="restore", place=TARGET, level="", message="guest 300 of 2 disks", seconds=4.25),
        proof(now, stage="restore", vmid=101, level="", message="some", seconds=4.25, whole=False),
    )


class Reader(HTMLParser):
    """The elements and texts of a page; fails where one is not closed in its turn."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


ELEMENTS = frozenset(
    [
        "html", "head", "meta", "title", "style", "body", "header", "main", "section", "footer", "h1", "h2", "h3", "p",
        "strong", "b", "i", "span", "small", "ul", "li", "dl", "dt", "dd", "div", "table", "thead", "tbody", "tr", "th",
        "td", "figure", "figcaption", "svg", "path", "rect",
    ]
)  # fmt: skip


def assert_harmless(page: str) -> None:
    read = Reader(page)
    assert set(read.tags) <= ELEMENTS
    names = {name for name, _ in read.attributes}
    assert not [name for name in names if name.startswith("on") or name in ("src", "href", "action", "xlink:href")]
    styles = [value for name, value in read.attributes if name == "style"]
    assert all(re.fullmatch(r"left:[\d.]+%", value) for value in styles)


# -- how it is built


def test_whatever_is_no_markup_is_text() -> None:
    made = tag("p", "a < b & c", tag("b", '"'), ["x", ("y", None)], class_="one", data_label='"><script>')
    assert made == '<p class="one" data-label="&quot;&gt;&lt;script&gt;">a &lt; b &amp; c<b>&quot;</b>xy</p>'
    assert join(made) is made
    assert isinstance(made, Markup)
    assert tag("i", class_=None, title="") == "<i></i>"
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'
    assert tag("rect", x=0, width=12.5) == '<rect x="0" width="12.5"/>'
    assert tag("p", "a\x1b\u202e\n") == "<p>a\\x1b\\u202e\\n</p>"
    assert type(made + "<") is str, "what is put together by hand is text again"


def test_the_axis_of_ages_has_now_on_the_right() -> None:
    ages = [0, NEAREST, *(age for _, age in TICKS), FARTHEST, 1e12]
    places = [place(age) for age in ages]
    assert places == sorted(places, reverse=True)
    assert (places[0], places[1], places[-1]) == (1, 1, 0)


def test_points_upon_each_other_are_one_mark() -> None:
    drawn = strip({"quiet": [3600.0] * 500 + [86_400.0]}, "two")
    assert drawn.count("M") - drawn.count("<path") == len(TICKS) + 2 - 2
    assert len(strip({"quiet": [float(age) for age in range(0, 10**8, 1000)]}, "many")) < 6000


def test_drawings_stay_within_their_frame() -> None:
    for drawn in (columns([0, 1, 50], "x", limit=10), columns([], "x"), bar([("a", 0.7), ("b", 0.9)], "x")):
        number = '="([\\d.-]+)"'
        for x, y, width, height in re.findall(f"x{number} y{number} width{number} height{number}", drawn):
            assert float(x) >= 0
            assert float(x) + float(width) <= 1000.1
            assert 0 <= float(y) <= 20
            assert float(y) + float(height) <= 20.1


# -- what it says


def test_it_needs_nothing_from_elsewhere(view: Overview) -> None:
    page = report_page(view)
    assert_harmless(page)
    assert "url(" not in page
    assert "@import" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src &#x27;none&#x27;" in page
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert 'content="width=device-width, initial-scale=1"' in page


def test_every_guest_is_told_in_every_place(view: Overview) -> None:
    text = Reader(report_page(view)).text
    for words in ("3 of 4", "100 web", "101 db", "200 files", "103 alone", "scsi0 not protected: ", "quiesced"):
        assert words in re.sub(r"\s+", " ", text), words
    page = report_page(view)
    assert page.count('<span class="pill ok">90 min</span>') == 3, "here"
    assert page.count('<span class="pill ok">2 h</span>') == 3, "on the target, an hour behind"


def test_what_is_late_missing_or_silent_stands_out(view: Overview) -> None:
    ages = view.health.ages
    late = dataclasses.replace(ages[0], seconds=4 * 3600)
    very = dataclasses.replace(ages[1], seconds=27 * 3600)
    none = dataclasses.replace(ages[2], seconds=None)
    page = report_page(dataclasses.replace(view, health=dataclasses.replace(view.health, ages=(late, very, none))))
    for words in ('"pill warning">4 h<', '"pill critical">27 h<', '"pill critical">no point<'):
        assert words in page
    away = {TARGET: BackupError("no route to host")}
    points = {host: own for host, own in view.history.points.items() if host != TARGET}
    silent = dataclasses.replace(view.history, errors=away, points=points)
    page = report_page(dataclasses.replace(view, history=silent))
    assert page.count('"pill critical">no answer<') == 3


def test_runs_are_told_newest_first_with_what_failed(view: Overview) -> None:
    page = report_page(view)
    told = [page.index(word) for word in (">no end<", ">broken off<", ">partly failed<", ">well<")]
    assert told == sorted(told)
    assert "replicate -&gt; backup1, guest 100 web: out of space" in page
    assert "and 2 more" in page
    assert 'class="column bad"' in page
    assert "There is none." in report_page(dataclasses.replace(view, runs=()))


def test_a_forecast_is_told_only_where_there_is_one(view: Overview) -> None:
    (one, *_) = view.health.outlooks
    assert "five days of runs are needed" in report_page(view)
    outlooks = (
        dataclasses.replace(one, known=True, per_day=1 << 30, days=9.6),
        dataclasses.replace(one, known=True, per_day=1 << 30, days=400.0),
        Outlook(room=one.room, known=True),
    )
    page = report_page(dataclasses.replace(view, health=dataclasses.replace(view.health, outlooks=outlooks)))
    assert '"pill warning">10 days<' in page
    assert ">400 days <small>1.0 GiB a day<" in page
    assert "not filling" in page


def test_devices_stand_beside_the_state_of_their_pool(view: Overview) -> None:
    pool = view.health.pools[0]
    lost = tuple(Device(name=f"sd{number}", state="FAULTED") for number in range(7))
    conditions = {("source", pool.name): Condition(state="ONLINE", devices=lost)}
    page = report_page(dataclasses.replace(view, health=dataclasses.replace(view.health, conditions=conditions)))
    named = "; ".join(f"sd{number} FAULTED" for number in range(5))
    assert f"ONLINE <small>{named}; 2 more devices</small>" in page


def test_names_and_messages_are_only_text(view: Overview) -> None:
    """Every name anybody else chose, at once."""
    coverage = tuple(
        dataclasses.replace(entry, guest=dataclasses.replace(entry.guest, name=EVIL)) for entry in view.history.coverage
    )
    history = dataclasses.replace(view.history, coverage=coverage, errors={EVIL: BackupError(EVIL)})
    ages = tuple(dataclasses.replace(one, guest=EVIL, consistency=EVIL) for one in view.health.ages)
    finding = Finding(level=Level.CRITICAL, about=EVIL, text=EVIL)
    pools = tuple(dataclasses.replace(pool, name=EVIL, health=EVIL) for pool in view.health.pools)
    lost = {("source", EVIL): Condition(state=EVIL, errors=EVIL, devices=(Device(name=EVIL, state=EVIL, why=EVIL),))}
    health = dataclasses.replace(view.health, ages=ages, findings=(finding,), pools=pools, conditions=lost)
    trouble = Trouble(stage=EVIL, outcome="failed", guest=EVIL, host=EVIL, message=EVIL)
    run = PastRun(name=EVIL, started=view.history.now, stages={EVIL: StageTold()}, troubles=(trouble,), broken_off=EVIL)
    costs = tuple(dataclasses.replace(one, freed=None, reason=EVIL) for one in view.costs)
    past = (proof(0, outcome="failed", message=EVIL, place="source"), proof(0, level=EVIL, stage=EVIL, place="source"))
    aside = dataclasses.replace(put_aside(0), dataset=Dataset(EVIL), by=EVIL)
    health = dataclasses.replace(health, aside=(aside,))
    evil = dataclasses.replace(
        view, node=EVIL, history=history, health=health, runs=(run,), costs=costs, notes=(EVIL,), proofs=past
    )
    page = report_page(evil)
    assert_harmless(page)
    read = Reader(page)
    assert read.tags["style"] == read.tags["title"] == 1
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert read.text.count("<script>alert(1)</script>") >= 15, "they are all there, as text"


def test_a_page_of_a_node_without_anything(view: Overview) -> None:
    health = dataclasses.replace(view.health, findings=(), ages=(), pools=(), disks={}, outlooks=())
    history = dataclasses.replace(view.history, coverage=(), points={}, listings={}, targets={})
    page = report_page(dataclasses.replace(view, health=health, history=history, costs=(), runs=(), notes=()))
    assert_harmless(page)
    assert "All is well" in page


def test_the_mails_first_lines_and_the_json_say_the_same(view: Overview) -> None:
    summary = report_summary(view)
    assert summary.startswith("Somebody should look.\n\nWARNING: guest 103 alone: scsi0 not protected: ")
    told = json.loads(json.dumps(overview_json(view)))
    assert told["format"] == 1
    assert told["health"]["level"] == "warning"
    assert [run["exit_code"] for run in told["runs"]] == [0, 1, 2, None]
    assert {one["host"] for one in told["costs"]} == {"source", TARGET}


def test_drills_comparisons_and_restores_are_told_guest_by_guest(view: Overview) -> None:
    page = report_page(view)
    assert_harmless(page)
    text = re.sub(r"\s+", " ", Reader(page).text)
    assert "drill failed scsi0 partition 2: ext4: e2fsck: Inode 2 has illegal blocks." in text
    assert "drill: files, 12 s" in text
    assert "and 2 before" in text
    assert "compared: 3 of 3 points are whole" in text
    assert "restored: guest 300 of 2 disks, 4.2 s" in text
    rows = re.findall(r"<tr>.*?</tr>", page[page.index('id="verification"') : page.index('id="runs"')])
    took = [re.search(r'data-label="Took" class="number( empty)?">([^<]*)<', row) for row in rows[1:4]]
    assert [found[2] for found in took if found] == ["12 s", "4.2 s", ""]
    told = json.loads(json.dumps(overview_json(view)))
    assert told["proofs"][-1]["whole"] is False


def test_what_lies_aside_is_told_with_what_to_do_about_it(view: Overview) -> None:
    page = report_page(view)
    text = re.sub(r"\s+", " ", Reader(page).text)
    name = "rpool/data/pzb-aside/100/vm-100-disk-0-71c4130e"
    assert f"{name} rollback of guest 100 2026-11-17 " in text
    assert f"3.0 GiB zfs list -r -t all -o name,used,creation {name} zfs destroy -r {name}" in text
    health = dataclasses.replace(view.health, aside=())
    assert "Put aside" not in report_page(dataclasses.replace(view, health=health))


def test_a_guest_whose_drill_is_late_is_told_though_there_never_was_one(view: Overview) -> None:
    health = dataclasses.replace(
        view.health, verified=(Verification(vmid=Vmid(100), guest="web", last=None, limit=86_400.0),)
    )
    page = report_page(dataclasses.replace(view, health=health, proofs=()))
    section = page[page.index('id="verification"') : page.index('id="runs"')]
    assert section.count('"pill warning">never<') == 1
    points = {
        host: {vmid: tuple(proven(point, "failed 20261118T110640Z") for point in own) for vmid, own in guests.items()}
        for host, guests in view.history.points.items()
    }
    page = report_page(dataclasses.replace(view, history=dataclasses.replace(view.history, points=points)))
    assert '"pill critical">failed<' in page


def proven(point: Point, value: str) -> Point:
    snapshots = {key: dataclasses.replace(snap, verified=value) for key, snap in point.snapshots.items()}
    return dataclasses.replace(point, snapshots=snapshots)


# -- colours


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def palettes() -> list[dict[str, str]]:
    """Of the light page, the dark one and the printed one."""
    blocks = re.findall(r":root \{(.*?)\}", CSS.read_text(), re.DOTALL)
    found = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", block)) for block in blocks]
    return [{name: _long(colour) for name, colour in own.items()} for own in found]


def _long(colour: str) -> str:
    return colour if len(colour) == 7 else "#" + "".join(2 * digit for digit in colour[1:])


@pytest.mark.parametrize("number", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_has_contrast(number: int) -> None:
    """WCAG 2.1: 4.5 for text, 3 for what is drawn."""
    colours = palettes()[number]
    for text in ("ink", "soft"):
        assert contrast(colours[text], colours["sheet"]) >= 4.5, text
        assert contrast(colours[text], colours["paper"]) >= 4.5, text
    for state in ("ok", "warning", "critical", "unknown"):
        assert contrast(colours[state], colours[f"{state}-back"]) >= 4.5, state
        assert contrast(colours[state], colours["sheet"]) >= 4.5, state
        assert contrast(colours["ink"], colours[f"{state}-back"]) >= 4.5, state
    for drawn in ("accent", "frozen", "crash", "critical"):
        assert contrast(colours[drawn], colours["track"]) >= 3, drawn


# -- boxes


def test_boxes_have_their_ages_their_line_and_their_proof(view: Overview) -> None:
    point = Archived(
        point=PointId("100/20261118T110640Z-0001"), vmid=Vmid(100), creation=view.history.now - 86_400,
        consistency="quiesced", series="s", generation="g", name="n", sequence=0,
    )  # fmt: skip
    read = BoxPoint(archived=point, sound=True, proof=Proof(level="hashed", at=float(view.history.now)))
    content = BoxContent(points={Vmid(100): (read,), Vmid(101): (BoxPoint(archived=point, sound=False),)})
    boxes = {Vmid(100): ("box1",), Vmid(101): ("box1",)}
    history = dataclasses.replace(view.history, archived={"box1": content}, boxes=boxes)
    old = dataclasses.replace(view.health.ages[0], vmid=Vmid(100), host="box1", seconds=86_400)
    health = dataclasses.replace(view.health, ages=(*view.health.ages, old))
    page = report_page(dataclasses.replace(view, history=history, health=health))
    assert_harmless(page)
    text = re.sub(r"\s+", " ", Reader(page).text)
    assert "24 h" in text
    assert "1 point, back 24 h" in text
    assert "hashed, 2026-11-18" in text
    assert "never" in text
    away = dataclasses.replace(view.history, boxes=boxes, errors={"box1": BackupError("gone")})
    assert report_page(dataclasses.replace(view, history=away)).count('"pill critical">no answer<') == 2
    assert "Verification" not in report_page(dataclasses.replace(view, proofs=()))
