"""The report, guest by guest: where its newest points are, all of them on one line, how long it stood still."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from statistics import median

from pve_zfsbackup.app.history import Coverage
from pve_zfsbackup.app.overview import Overview
from pve_zfsbackup.model import SOURCE, Consistency, Vmid
from pve_zfsbackup.model.health import Age
from pve_zfsbackup.report.drawing import TICKS, columns, place, strip
from pve_zfsbackup.report.format import age, moment
from pve_zfsbackup.report.markup import Child, Markup, tag
from pve_zfsbackup.report.page_parts import guest_cell, here, pill, section, table
from pve_zfsbackup.report.status import problems

FREEZE_LIMIT = 10.0  # seconds: what `freeze-limit` is when nobody says otherwise, and Windows' own
SHOWN = 60  # freeze windows of one guest
_KINDS = {
    Consistency.QUIESCED: "quiet",
    Consistency.OFFLINE: "quiet",
    Consistency.FROZEN: "frozen",
    Consistency.CRASH: "crash",
}


def protection(view: Overview) -> Markup:
    hosts = _places(view)
    ages = {(one.vmid, one.host): one for one in view.health.ages}
    rows = []
    for entry in view.history.coverage:
        guest = entry.guest
        cells: list[Child] = [_age(view, entry, host, ages.get((guest.vmid, host))) for host in hosts]
        own = ages.get((guest.vmid, SOURCE))
        word = own.consistency.partition(":")[0] if own else ""
        taken = tag("span", word, class_="word") if word else None
        rows.append((guest_cell(guest.vmid, guest.name), *cells, taken, _disks(view, entry), _told(view, entry)))
    names = ("Guest", *(_title(host) for host in hosts), "Newest taken as", "Disks", "To look at")
    lead = "Age of the newest complete point of each guest, in each place where its jobs want one."
    return section("Protection", lead, table(names, rows, kind="protection"))


def _places(view: Overview) -> tuple[str, ...]:
    return tuple(dict.fromkeys((SOURCE, *view.history.places, *view.history.errors)))


def _title(host: str) -> str:
    return here(host).capitalize() if host == SOURCE else host


def _age(view: Overview, entry: Coverage, host: str, found: Age | None) -> Child:
    if entry.excluded:
        return tag("span", "left out", class_="quiet") if host == SOURCE else None
    if not entry.jobs or not entry.guest.to_protect:
        return pill("warning", "nothing" if entry.jobs else "in no job") if host == SOURCE else None
    meant = (*view.history.targets.get(entry.guest.vmid, ()), *view.history.boxes.get(entry.guest.vmid, ()))
    if host in view.history.errors and host in meant:
        return pill("critical", "no answer")
    if found is None:
        return tag("span", "not sent here", class_="quiet")
    if found.seconds is None:
        return pill("critical", "no point")
    level = "critical" if found.seconds > found.critical else "warning" if found.seconds > found.warn else "ok"
    when = moment(view.history.now - found.seconds, view.zone)[:-3]
    return tag("span", pill(level, age(found.seconds)), " ", tag("small", when), class_="age")


def _disks(view: Overview, entry: Coverage) -> Child:
    found = view.health.disks.get(entry.guest.vmid)
    if found is None:
        return "template"
    left = f", {found.left_out} left out" if found.left_out else ""
    text = f"{found.protected} of {found.protected + found.open}{left}"
    return pill("warning", text) if found.open else text


def _told(view: Overview, entry: Coverage) -> Child:
    told = [text for text in problems(view.history, entry) if text != "in no job"]
    return tag("ul", [tag("li", text) for text in told]) if told else None


def timeline(view: Overview) -> Markup:
    names = {entry.guest.vmid: entry.guest.name for entry in view.history.coverage}
    blocks = []
    for vmid in view.history.vmids:
        strips = list(_strips(view, vmid))
        if strips:
            label = (
                guest_cell(vmid, names[vmid]) if vmid in names else guest_cell(vmid, "(no guest of this node any more)")
            )
            blocks.append(tag("div", tag("h3", label), strips, class_="line"))
    labels = [tag("span", name, style=f"left:{place(seconds) * 100:.1f}%") for name, seconds in TICKS]
    axis = tag(
        "div", tag("div", labels, tag("span", "now", class_="now"), class_="scale"), class_="axis", aria_hidden="true"
    )
    kinds = (("quiet", "quiesced or offline"), ("frozen", "frozen"), ("crash", "crash-consistent"))
    keys = [tag("span", tag("i", class_=f"key {kind}"), text) for kind, text in (*kinds, ("partial", "incomplete"))]
    legend = tag("p", keys, class_="legend")
    lead = "Every point there is, by its age: the last hours take as much room as the last months."
    return section("Timeline", lead, legend, tag("div", axis, blocks, class_="timeline"))


def _strips(view: Overview, vmid: Vmid) -> Iterator[Markup]:
    now = view.history.now
    for host in view.history.places:
        marks: dict[str, list[float]] = defaultdict(list)
        for kind, creation in _made(view, host, vmid):
            marks[kind].append(now - creation)
        ages = [one for own in marks.values() for one in own]
        if ages:
            count = "1 point" if len(ages) == 1 else f"{len(ages)} points"
            told = f"{count}, back {age(int(max(ages)))}"
            where = tag("span", _title(host), class_="where")
            drawn = strip(marks, f"{here(host)}: {told}")
            yield tag("div", where, drawn, tag("span", told, class_="count"), class_="row")


def _made(view: Overview, host: str, vmid: Vmid) -> Iterator[tuple[str, int]]:
    """How each point of a guest in one place was taken, and when."""
    if box := view.history.archived.get(host):
        for kept in box.points.get(vmid, ()):
            yield _kind(kept.archived.consistency, whole=kept.sound), kept.archived.creation
    for point in view.history.points.get(host, {}).get(vmid, ()):
        yield _kind(point.consistency, whole=point.complete), point.creation


def _kind(consistency: str, *, whole: bool) -> str:
    if not whole:
        return "partial"
    return next((kind for words, kind in _KINDS.items() if consistency.startswith(words)), "crash")


def freezes(view: Overview) -> Markup | None:
    rows = []
    for entry in view.history.coverage:
        own = view.history.points.get(SOURCE, {}).get(entry.guest.vmid, ())
        seconds = [point.window / 1000 for point in own if point.window][-SHOWN:]
        if seconds:
            drawn = columns(seconds, f"the last {len(seconds)}: up to {_span(max(seconds))}", limit=FREEZE_LIMIT)
            rows.append(
                (
                    guest_cell(entry.guest.vmid, entry.guest.name),
                    drawn,
                    *(_span(value) for value in (seconds[-1], median(seconds), max(seconds))),
                )
            )
    if not rows:
        return None
    lead = f"How long each guest stood still for the points that are still here, oldest on the left; at most {SHOWN}."
    names = ("Guest", "Windows", "Last", "Median", "Longest")
    return section("Freeze windows", lead, table(names, rows, numbers=names[2:], kind="freezes"))


def _span(seconds: float) -> str:
    """How long a guest stood still: mostly less than a second."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
