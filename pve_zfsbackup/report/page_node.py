"""The report on the node and its hosts: room, what history costs, the last runs."""

from __future__ import annotations

from collections.abc import Iterator

from pve_zfsbackup.app.health import SOON_WARN
from pve_zfsbackup.app.history import Coverage
from pve_zfsbackup.app.overview import Overview
from pve_zfsbackup.model import SOURCE
from pve_zfsbackup.model.health import Condition, Pool
from pve_zfsbackup.model.room import Outlook
from pve_zfsbackup.model.runs import PastRun, Trouble
from pve_zfsbackup.report.drawing import bar, columns
from pve_zfsbackup.report.format import cost, moment, size
from pve_zfsbackup.report.markup import Child, Markup, tag
from pve_zfsbackup.report.page_parts import guest_cell, here, pill, section, table

DAYS = 30
RUNS = 20
TROUBLES = 5  # of one run


def space(view: Overview) -> Markup:
    lead = "What is available where points are kept, and when it is used up if it goes on as in the last weeks."
    roots = table(
        ("Root", "Use", "Used", "Available", "Full in"),
        [_root(one, view.health.now) for one in view.health.outlooks],
        numbers=("Used", "Available"),
        kind="roots",
    )
    pools = table(
        ("Pool of this node", "Use", "State", "Size", "Free"),
        [_pool(pool, view.health.conditions.get((SOURCE, pool.name))) for pool in view.health.pools],
        numbers=("Size", "Free"),
        kind="roots",
    )
    return section("Space", lead, roots, pools if view.health.pools else None, *_history(view), *_aside(view))


def _aside(view: Overview) -> Iterator[Markup]:
    """What restores and their kind put aside: nobody but a person gives it up."""
    rows = [
        (
            one.dataset,
            f"{one.by} of guest {one.vmid}",
            moment(one.since, view.zone)[:-3],
            size(one.bytes),
            tag("small", one.look),
            tag("small", one.remove),
        )
        for one in view.health.aside
    ]
    if rows:
        yield tag("h3", "Put aside")
        yield tag("p", "What lost its place and is kept until somebody gives it up.", class_="lead")
        names = ("Dataset", "By", "Since", "Size", "Look at it", "Give it up")
        yield table(names, rows, numbers=("Size",), kind="aside")


def _root(one: Outlook, now: int) -> tuple[Child, ...]:
    room = one.room
    drawn = bar([("used", room.share)], f"{room.share:.0%} used")
    seen = here(room.host) if room.dataset else f"box, as a run saw it {(now - room.at) / 3600:.1f} h ago"
    return (
        tag("span", tag("span", room.dataset or room.host, class_="name"), " ", tag("small", seen)),
        drawn,
        size(room.used),
        size(room.available),
        _full(one),
    )


def _full(one: Outlook) -> Child:
    if not one.known:
        return tag("small", "five days of runs are needed to say")
    if one.days is None:
        return "not filling"
    text = f"{one.days:.0f} days"
    return tag(
        "span",
        pill("warning", text) if one.days < SOON_WARN else text,
        " ",
        tag("small", f"{size(int(one.per_day))} a day"),
    )


def _pool(pool: Pool, condition: Condition | None) -> tuple[Child, ...]:
    """The devices that are not as they should be stand beside the state: ONLINE says little of them."""
    state: Child = pool.health if pool.health == "ONLINE" else pill("critical", pool.health)
    if condition and condition.devices:
        state = tag("span", state, " ", tag("small", condition.told))
    return (
        pool.name,
        bar([("used", pool.used_share)], f"{pool.used_share:.0%} used"),
        state,
        size(pool.size),
        size(pool.free),
    )


def _history(view: Overview) -> Iterator[Markup]:
    """What each guest's points cost in each place, beside what it has now."""
    told = {(one.vmid, one.host): one for one in view.costs}
    hosts = [host for host in view.history.hosts if any(one.host == host for one in view.costs)]
    if not hosts:
        return
    highest = max([one.freed or 0 for one in view.costs] + [1])
    rows = []
    for entry in view.history.coverage:
        cells: list[Child] = []
        for host in hosts:
            one = told.get((entry.guest.vmid, host))
            cells.append(_cost(one.freed, highest, one.reason, len(one.points)) if one else None)
        if any(cell is not None for cell in cells):
            rows.append((guest_cell(entry.guest.vmid, entry.guest.name), size(_live(view, entry)), *cells))
    yield tag("h3", "What history costs")
    yield tag("p", "What would come back if all points of a guest were destroyed, as ZFS tells.", class_="lead")
    names = ("Guest", "Disks now", *("History here" if host == SOURCE else f"History on {host}" for host in hosts))
    yield table(names, rows, numbers=("Disks now",), kind="costs")


def _cost(freed: int | None, highest: int, reason: str, points: int) -> Child:
    if freed is None:
        return tag("small", f"unknown: {reason}")
    drawn = bar([("history", freed / highest)], f"{size(freed)} for {points} points")
    return tag("span", drawn, tag("span", cost(freed), class_="amount"), class_="measured")


def _live(view: Overview, entry: Coverage) -> int:
    volumes = view.history.listings[SOURCE].volumes if SOURCE in view.history.listings else {}
    names = (disk.dataset for disk in entry.guest.protected_disks)
    return sum(volumes[name].refer for name in names if name and name in volumes)


def runs(view: Overview) -> Markup:
    lead = f"Of the last {DAYS} days, as the journal has them; the newest {RUNS} in words."
    if not view.runs:
        return section("Runs", lead, tag("p", "There is none."))
    rows = [_run(view, run) for run in reversed(view.runs[-RUNS:])]
    names = ("Began", "Stages", "Result", "Took", "Sent", "To look at")
    return section("Runs", lead, _sent(view), table(names, rows, numbers=("Took", "Sent"), kind="runs"))


def _sent(view: Overview) -> Markup:
    """A column for each day, red where a run of that day failed."""
    today = view.history.now // 86_400
    sent, kinds = [0] * DAYS, [""] * DAYS
    for run in view.runs:
        number = DAYS - 1 - (today - int(run.started) // 86_400)
        if 0 <= number < DAYS:
            sent[number] += run.bytes
            kinds[number] = kinds[number] or ("bad" if run.exit_code else "")
    label = f"bytes sent on each of the last {DAYS} days, at most {size(max(sent))}"
    said = tag(
        "figcaption",
        f"Sent a day, at most {size(max(sent))}",
        tag("span", "days with a failure are red", class_="hint"),
    )
    return tag("figure", said, columns([float(count) for count in sent], label, kinds=kinds), class_="sent")


def _run(view: Overview, run: PastRun) -> tuple[Child, ...]:
    told = [tag("li", _trouble(one)) for one in run.troubles[:TROUBLES]]
    if run.broken_off:
        told.insert(0, tag("li", f"broken off: {run.broken_off}"))
    if len(run.troubles) > TROUBLES:
        told.append(tag("li", f"and {len(run.troubles) - TROUBLES} more"))
    return (
        moment(int(run.started), view.zone)[:-3],
        ", ".join(run.stages),
        _ended(run),
        f"{run.seconds:.0f} s" if run.ended else None,
        size(run.bytes) if run.bytes else None,
        tag("ul", told) if told else None,
    )


def _trouble(one: Trouble) -> str:
    where = f" -> {one.host}" if one.host else ""
    return f"{one.stage}{where}{f', guest {one.guest}' if one.guest else ''}: {one.message}"


def _ended(run: PastRun) -> Markup:
    if run.ended is None:
        return pill("unknown", "no end")
    if run.broken_off:
        return pill("critical", "broken off")
    return (
        pill("ok", "well")
        if run.exit_code == 0
        else pill("critical" if run.exit_code == 2 else "warning", "failed" if run.exit_code == 2 else "partly failed")
    )
