"""Guests that went to another node of the cluster, where nobody may go on with them: that node has no `check` then."""

from __future__ import annotations

from collections.abc import Iterator

from pve_zfsbackup.app.gather import job_names
from pve_zfsbackup.app.history import History
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.host.guest_files import read_others
from pve_zfsbackup.model.health import Finding, Level


def moved(session: Session, found: History) -> Iterator[Finding]:
    """Those that our jobs would bring to a target, and which have no young point that is seen from here. Nothing is
    said of any while a place does not answer, or where no job has a target: what their new node keeps is not seen
    then. Raises `PveError`."""
    gone = set(found.orphans)
    if not gone or found.errors:
        return
    for guest in read_others(session.api, session.node):
        jobs = [session.config.jobs[name] for name in job_names(session.config, guest)]
        limits = [job.critical_age for job in jobs if job.targets]
        if guest.vmid not in gone or guest.template or not limits:
            continue
        newest = max((one.creation for place in found.places if (one := found.newest(place, guest.vmid))), default=0)
        hours = (found.now - newest) / 3600
        if newest and hours > min(limits):
            text = f"is on node {guest.node} now, and its newest point that is seen here is {hours:.1f} h old: "
            text += "is pve-zfsbackup set up there?"
            yield Finding(level=Level.WARNING, about=f"guest {guest.vmid} {guest.name}".rstrip(), text=text)
