"""The report on proofs: drills, comparisons, restores and what was read back, guest by guest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pve_zfsbackup.app.history import Coverage
from pve_zfsbackup.app.overview import Overview
from pve_zfsbackup.model.proof import Level, Proof
from pve_zfsbackup.model.runs import PastProof
from pve_zfsbackup.model.stages import CHAIN, DRILL, FAILBACK, FAILOVER, READ_BACK, RESTORE, ROLLBACK
from pve_zfsbackup.report.format import moment
from pve_zfsbackup.report.markup import Child, Markup, tag
from pve_zfsbackup.report.page_parts import guest_cell, here, pill, section, table

SHOWN = 6  # of the history of one guest in one place
_WORDS = {
    DRILL: "drill", CHAIN: "compared", READ_BACK: "read back", RESTORE: "restored", ROLLBACK: "rolled back",
    FAILOVER: "failover", FAILBACK: "failback",
}  # fmt: skip
_TIMED = (DRILL, RESTORE, ROLLBACK, FAILOVER, FAILBACK)


def verification(view: Overview) -> Markup | None:
    """How far each guest is proven, in every place, and how that went before."""
    proofs, boxes = list(_proofs(view)), list(_boxes(view))
    if not proofs and not boxes:
        return None
    lead = (
        "A drill opens the newest point as a restore would; a comparison reads no data; both as the points themselves "
        "say, with what the journal of half a year tells of them."
    )
    names = ("Guest", "Where", "Last drill", "Took", "History")
    drills = table(names, proofs, numbers=("Took",), kind="proofs") if proofs else None
    titles = ("Guest", "Box", "Read back", "Point of", "Points read back", "History")
    return section("Verification", lead if proofs else "", drills, table(titles, boxes) if boxes else None)


def _proofs(view: Overview) -> Iterator[tuple[Child, ...]]:
    late = {one.vmid for one in view.health.verified if one.late(view.health.now)}
    known = {(proof.vmid, proof.place) for proof in view.proofs}
    for entry in view.history.coverage:
        vmid = entry.guest.vmid
        rows = 0
        for place in view.history.hosts:
            drill = view.history.last_drill(place, vmid)
            if drill is None and (vmid, place) not in known:
                continue
            past = _past(view, vmid, place)
            told = _last(view, drill, late=vmid in late)
            yield _guest(entry), here(place), told, _took(past), _history(view, past)
            rows += 1
        if not rows and vmid in late:
            yield _guest(entry), None, pill("warning", "never"), None, None


def _past(view: Overview, vmid: int, place: str) -> list[PastProof]:
    return [proof for proof in view.proofs if (proof.vmid, proof.place) == (vmid, place)]


def _last(view: Overview, drill: Proof | None, *, late: bool) -> Child:
    if drill is None:
        return pill("warning", "never") if late else None
    kind = "critical" if drill.level is Level.FAILED else "warning" if late else "ok"
    return tag("span", pill(kind, drill.level.value), " ", tag("small", moment(drill.at, view.zone)[:-3]), class_="age")


def _took(past: Sequence[PastProof]) -> Child:
    """The newest drill or restore of the whole guest that went well."""
    good = [proof for proof in past if proof.stage in (DRILL, RESTORE) and proof.passed and proof.whole]
    return _seconds(good[-1].seconds) if good else None


def _history(view: Overview, past: Sequence[PastProof]) -> Child:
    items = [tag("li", _told(view, proof)) for proof in reversed(past[-SHOWN:])]
    if len(past) > SHOWN:
        items.append(tag("li", tag("small", f"and {len(past) - SHOWN} before")))
    return tag("ul", items) if items else None


def _told(view: Overview, proof: PastProof) -> Child:
    what = _WORDS.get(proof.stage, proof.stage)
    when = tag("small", moment(int(proof.at), view.zone)[:-3])
    if proof.outcome == "failed":
        return tag("span", when, " ", pill("critical", f"{what} failed"), f" {proof.message}")
    took = f", {_seconds(proof.seconds)}" if proof.stage in _TIMED else ""
    took += f", up after {_seconds(proof.boot)}" if proof.boot else ""
    said = proof.level or proof.message
    if proof.stage == READ_BACK and said in ("listed", "sampled"):
        what = "looked at"  # not all of it was read
    return tag("span", when, f" {what}{f': {said}' if said else ''}{took}")


def _seconds(count: float) -> str:
    return f"{count:.0f} s" if count >= 10 else f"{count:.1f} s"


def _boxes(view: Overview) -> Iterator[tuple[Child, ...]]:
    """How far the newest archive of each guest that was read back was."""
    for entry in view.history.coverage:
        for name, box in sorted(view.history.archived.items()):
            kept = box.points.get(entry.guest.vmid, ())
            read = [one for one in kept if one.proof]
            if kept:
                proof = read[-1].proof if read else None
                made = moment(read[-1].archived.creation, view.zone)[:-3] if read else None
                state = f"{proof.level}, {moment(int(proof.at), view.zone)[:-3]}" if proof else pill("warning", "never")
                past = _history(view, _past(view, entry.guest.vmid, name))
                yield _guest(entry), name, state, made, f"{len(read)} of {len(kept)}", past


def _guest(entry: Coverage) -> Markup:
    return guest_cell(entry.guest.vmid, entry.guest.name)
