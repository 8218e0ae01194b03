"""`report`: one HTML file that needs nothing else: no script, no network, no font. For a screen, a phone, paper."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from importlib.resources import files
from typing import Any

from pve_zfsbackup import __version__
from pve_zfsbackup.app.overview import Overview
from pve_zfsbackup.model import SOURCE
from pve_zfsbackup.model.health import Finding, Level
from pve_zfsbackup.report.format import FORMAT, age, size
from pve_zfsbackup.report.health import health_json
from pve_zfsbackup.report.markup import Markup, tag
from pve_zfsbackup.report.page_guests import freezes, protection, timeline
from pve_zfsbackup.report.page_node import runs, space
from pve_zfsbackup.report.page_parts import here, section
from pve_zfsbackup.report.page_proofs import verification

_SAID = {
    Level.OK: "All is well",
    Level.WARNING: "Somebody should look",
    Level.CRITICAL: "Not protected as promised",
    Level.UNKNOWN: "Not everything could be asked",
}
# The page asks for nothing; with this no name on it can make a browser ask either.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def report_page(view: Overview) -> str:
    """The whole file."""
    title = f"Backup report of {view.node}, {_day(view)}"
    style = files("pve_zfsbackup.report").joinpath("page.css").read_text("ascii")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="robots", content="noindex"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    body = tag(
        "body",
        _header(view),
        tag(
            "main",
            _findings(view.health.findings),
            protection(view),
            timeline(view),
            space(view),
            verification(view),
            freezes(view),
            runs(view),
            _notes(view),
        ),
        _footer(view),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def overview_json(view: Overview) -> dict[str, Any]:
    """What the page shows, for machines; the points themselves are in `list --json`."""
    return {
        "format": FORMAT,
        "node": view.node,
        "at": view.history.now,
        "health": health_json(view.health),
        "costs": [
            {"vmid": one.vmid, "host": one.host, "points": len(one.points), "freed": one.freed, "reason": one.reason}
            for one in view.costs
        ],
        "runs": [
            {
                "run": run.name,
                "started": int(run.started),
                "ended": None if run.ended is None else int(run.ended),
                "exit_code": run.exit_code,
                "seconds": round(run.seconds, 3),
                "bytes": run.bytes,
                "stages": {name: dict(stage.outcomes) for name, stage in run.stages.items()},
                "broken_off": run.broken_off,
            }
            for run in view.runs
        ],
        "proofs": [
            {
                "stage": proof.stage,
                "at": int(proof.at),
                "vmid": proof.vmid,
                "where": proof.place,
                "point": proof.point,
                "outcome": proof.outcome,
                "level": proof.level,
                "seconds": round(proof.seconds, 3),
                "message": proof.message,
                "whole": proof.whole,
                **({"boot_seconds": round(proof.boot, 3)} if proof.boot else {}),
            }
            for proof in view.proofs
        ],
        "notes": list(view.notes),
    }


def report_summary(view: Overview) -> str:
    """The first lines of the mail that carries the file."""
    findings = [f"{finding.level.name}: {finding.about}: {finding.text}" for finding in view.health.findings]
    return "\n".join(
        [f"{_SAID[view.health.level]}.", "", *findings, *([""] if findings else []), "The report is attached.", ""]
    )


def _day(view: Overview) -> str:
    return datetime.fromtimestamp(view.history.now, view.zone).strftime("%Y-%m-%d %H:%M")


def _header(view: Overview) -> Markup:
    level = view.health.level
    when = datetime.fromtimestamp(view.history.now, view.zone)
    verdict = tag(
        "p",
        tag("strong", _SAID[level]),
        tag("span", _counted(view.health.findings)),
        class_=f"verdict {level.name.lower()}",
    )
    facts = tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in _facts(view)], class_="facts")
    title = tag(
        "div",
        tag("p", f"pve-zfsbackup on {view.node}", class_="eyebrow"),
        tag("h1", "Backup report"),
        tag("p", f"{when:%A, %-d %B %Y, %H:%M} {when.tzname() or ''}".rstrip(), class_="when"),
    )
    return tag("header", tag("div", title, verdict, class_="top"), facts)


def _counted(findings: Iterable[Finding]) -> str:
    found = list(findings)
    counts = [
        f"{count} {level.name.lower()}{'s' if level is Level.WARNING and count > 1 else ''}"
        for level in (Level.CRITICAL, Level.WARNING, Level.UNKNOWN)
        if (count := sum(finding.level is level for finding in found))
    ]
    return ", ".join(counts) or "every guest is as protected as its jobs promise"


def _facts(view: Overview) -> Iterable[tuple[str, str]]:
    covered = view.history.coverage
    protected = sum(bool(entry.jobs and entry.guest.protected_disks) for entry in covered)
    yield "Guests protected", f"{protected} of {sum(not entry.guest.template for entry in covered)}"
    for host in (SOURCE, *(name for name in view.history.hosts if name != SOURCE)):
        own = [one.seconds for one in view.health.ages if one.host == host and one.seconds is not None]
        yield f"Oldest last point {here(host)}", age(max(own)) if own else "none"
    total = sum(len(points) for guests in view.history.points.values() for points in guests.values())
    yield "Points in all", str(total)
    yield "Sent in 30 days", size(sum(run.bytes for run in view.runs))


def _findings(findings: Iterable[Finding]) -> Markup | None:
    """What is only to be known stands where it belongs."""
    rows = [
        tag(
            "li",
            tag("b", finding.level.name.lower(), class_="word"),
            tag("span", tag("strong", finding.about), " ", finding.text),
            class_=finding.level.name.lower(),
        )
        for finding in findings
        if finding.level is not Level.OK
    ]
    return section("What is wrong", "", tag("ul", rows, class_="findings")) if rows else None


def _notes(view: Overview) -> Markup | None:
    notes = tag("ul", [tag("li", note) for note in view.notes], class_="notes")
    return section("Notes", "", notes) if view.notes else None


def _footer(view: Overview) -> Markup:
    text = (
        f"Written by pve-zfsbackup {__version__} from what the hosts listed at that moment; runs are from the journal. "
        "Ages are judged by warn-age and critical-age of each guest's jobs."
    )
    return tag("footer", tag("p", text))
