"""N1-N8 of reliability §4, the same for every row: after the fault, and again after a run without one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.lab.matrix import guests, history, inject, state
from tests.lab.matrix.context import TARGET, Context, Done
from tests.lab.matrix.state import State
from tests.lab.product import hashes, zfs
from tests.lab.pve.provision import freeze_state

HOLD = "pve-zfsbackup"
FROZEN = 30.0  # seconds that a running guest may stand still at most
CLOCK = 90  # seconds a listing and our own look may lie apart under emulation
_SOCKET = "socket left: "
_SAYS_ANEW = re.compile(r"generation|in full|anew", re.IGNORECASE)


def check(ctx: Context, *, final: bool) -> None:
    """Look at everything; what does not hold is told to the row's outcome. `final`: after the run without a fault."""
    source, target = ctx.states()
    now = int(ctx.pve1.run(("date", "+%s")).stdout)
    checks: tuple[tuple[str, Callable[[], None]], ...] = (
        ("n1", lambda: _source_untouched(ctx, source)),
        ("n2", lambda: _points_restore(ctx, target)),
        ("n4", lambda: _common(ctx, source, target, now if final else None)),
        ("n5", lambda: _nothing_left(ctx, source, target, final=final)),
        ("n6", lambda: _foreign_untouched(ctx, target)),
        ("n7", lambda: _truth(ctx, source, target)),
        ("n8", lambda: _no_secret(ctx)),
    )
    for name, question in checks:
        ctx.outcome.checked.add(name)
        try:
            question()
        except Exception as error:
            ctx.outcome.complain(name, f"could not be looked at: {type(error).__name__}: {error}"[:300])


def _source_untouched(ctx: Context, source: State) -> None:
    for text in state.changed(ctx.before["source"], source, ()):
        ctx.outcome.complain("n1", f"source: {text}")
    present = tuple(disk for guest in ctx.guests for disk in guest.disks if disk in source)
    was = [line for line in ctx.before["properties"] if line.split("\t")[0] in present]
    if (now := ctx.properties(present)) != was:
        ctx.outcome.complain("n1", f"properties changed: {sorted(set(now) ^ set(was))[:4]}")
    found = ctx.contents(present)
    for disk, digest in ctx.before["contents"].items():
        if disk in found and found[disk] != digest:
            ctx.outcome.complain("n1", f"{disk}: its content changed")
    frozen = ctx.pve1.script('ls "$1/state/frozen" 2> /dev/null || :', ctx.directory).lines
    if frozen:
        ctx.outcome.complain("n1", f"marked as frozen: {frozen}")
    for guest in (guest for guest in ctx.guests if guest.running):
        now = freeze_state(ctx.pve1, guest.vmid, seconds=20)
        if now.agent != "thawed" or now.blocked:
            ctx.outcome.complain("n1", f"guest {guest.vmid} is frozen, or its agent ill: {now}")
        if (longest := guests.stalled(ctx.pve1, guest.vmid)) > FROZEN:
            ctx.outcome.complain("n1", f"guest {guest.vmid} stood still for {longest:.0f} s")


def _points_restore(ctx: Context, target: State) -> None:
    there = {e.guid: e.name for e in target.values() if e.type == "snapshot" and e.dataset.startswith(f"{ctx.root}/")}
    wanted: dict[str, str] = {}
    for published in ctx.ledger.values():
        if published.point in ctx.lost:
            continue
        for guid, digest in published.contents.items():
            if guid not in there:
                ctx.outcome.complain("n2", f"point {published.point}: snapshot {guid} is gone from the target")
            else:
                wanted[there[guid]] = digest
    with_keys = _open(ctx, sorted({name.partition("@")[0] for name in wanted}))
    try:
        found = hashes(ctx.backup1, list(wanted)) if wanted else {}
    finally:
        for dataset in with_keys:
            ctx.backup1.run(("zfs", "unload-key", dataset))
    for name, digest in wanted.items():
        if found.get(name) != digest:
            ctx.outcome.complain("n2", f"{name} does not restore to what was published")
    if not ctx.ledger:
        ctx.outcome.complain("n2", "nothing was ever published: the row had nothing to lose")


def _open(ctx: Context, datasets: list[str]) -> list[str]:
    """Load the key of replicas that are encrypted; which those are."""
    if not ctx.key or not datasets:
        return []
    rows = zfs(ctx.backup1, "get", "-H", "-o", "name,value", "keystatus", *datasets)
    closed = [name for name, status in rows if status == "unavailable"]
    for dataset in closed:
        text = 'echo "$1" | base64 -d > "$3"; zfs load-key -L "file://$3" "$2"; rm "$3"'
        ctx.backup1.script(text, ctx.key, dataset, "/dev/shm/matrix.key")
    return closed


def _common(ctx: Context, source: State, target: State, now: int | None) -> None:
    """`now`: at the end, when the newest point must be on both sides."""
    if ctx.apart and now is None:
        return
    for disk in (disk for guest in ctx.guests for disk in guest.disks if disk in source):
        if not state.common(source, disk, target, ctx.root):
            ctx.outcome.complain("n4", f"{disk} has no guid in common with the target")
    if now is not None:
        for guest in ctx.guests:
            here, there = (
                [name for name in _true_points(view, root, len(guest.disks), now) if name.startswith(f"{guest.vmid}/")]
                for view, root in ((source, ""), (target, ctx.root))
            )
            if here and here[-1:] != there[-1:]:
                ctx.outcome.complain("n4", f"the newest point {here[-1]} is not on the target ({there[-1:]})")


def _nothing_left(ctx: Context, source: State, target: State, *, final: bool) -> None:
    say = ctx.outcome.complain
    for entry in source.values():
        if (entry.ours and entry.userrefs) or (entry.ours and entry.clones):
            say("n5", f"source: {entry.name} is held or cloned")
    disks = [disk for guest in ctx.guests for disk in guest.disks]
    for disk in disks:
        marks = [e.name for e in source.values() if e.dataset == disk and e.mark_of == TARGET]
        if len(marks) > 2:
            say("n5", f"{len(marks)} bookmarks of ours: {marks}")
    for entry in target.values():
        clones = [name for name in entry.clones.split(",") if name and not name.endswith("/%recv")]  # of a token
        if entry.dataset.startswith(f"{ctx.root}/") and clones:
            say("n5", f"target: {entry.name} has clones {clones}")
    if final:
        _holds(ctx, source, target)
        text = 'find "$1/state/boxes" -path "*/pending/*.jsonl" 2> /dev/null || :'
        for ledger in ctx.pve1.script(text, ctx.directory).lines:
            say("n5", f"an archive is still under way: {ledger}")
        for dataset in state.below(target, ctx.root):
            if dataset.token:
                say("n5", f"{dataset.name} still has a partial receive")
    for text in _processes(ctx):
        if final or not text.startswith(_SOCKET):  # that of a client that was killed goes with the next run
            say("n5", text)


def _holds(ctx: Context, source: State, target: State) -> None:
    """Exactly one of ours on each replica that goes on, on its newest; none on what is no replica any more."""
    for dataset in state.below(target, ctx.root):
        snaps = state.snapshots(target, dataset.name)
        if not snaps:
            continue
        rows = zfs(ctx.backup1, "holds", "-H", *(snapshot.name for snapshot in snaps))
        ours = [row[0] for row in rows if row[1] == HOLD]
        here = {entry.guid for entry in source.values() if entry.type in ("snapshot", "bookmark")}
        newest = next((snap.name for snap in reversed(snaps) if snap.guid in here and snap.ours), None)
        if len(ours) > 1 or (newest and ours != [newest] and not _superseded(source, target, dataset.name, ctx)):
            ctx.outcome.complain("n5", f"holds on {dataset.name}: {ours}, expected on {newest}")


def _superseded(source: State, target: State, name: str, ctx: Context) -> bool:
    """Whether another dataset has a newer snapshot of the same source: an old generation needs no hold."""
    mine = {snapshot.guid for snapshot in state.snapshots(target, name)}
    for disk in (disk for guest in ctx.guests for disk in guest.disks):
        ordered = [snap.guid for snap in state.snapshots(source, disk)]
        there = {e.guid for e in target.values() if e.type == "snapshot" and e.dataset.startswith(f"{ctx.root}/")}
        common = [guid for guid in ordered if guid in there]
        if common and mine & set(ordered) and common[-1] not in mine:
            return True
    return False


def _processes(ctx: Context) -> list[str]:
    """Processes, locks, timers and files of a run that is over."""
    here = r"""
    mkdir -p "$1"
    for i in $(seq 50); do
      left=$(pgrep -fa '/usr/bin/pve-zfsbackup|^(/usr/sbin/)?zfs (send|receive)|^ssh -F none' | grep -v pgrep || :)
      [ -z "$left" ] && break; sleep 0.2
    done
    [ -z "$left" ] || echo "still running: $left"
    for lock in "$1"/*.lock "$1"/state/.*.lock; do
      [ ! -e "$lock" ] || flock -n "$lock" true || echo "locked: $lock"
    done
    # The connection of a run that was killed ends by itself, a minute after it.
    for i in $(seq 75); do [ -z "$(find "$1" -type s)" ] && break; sleep 1; done
    find "$1" -type s -exec echo 'socket left: {}' \;
    [ ! -d "$1/state" ] || find "$1/state" -type f ! -path '*/boxes/*' \
      ! -name alerts.json ! -name .alerts.json.lock ! -name drills.json ! -name partials.json \
      ! -name links.json -exec echo 'left: {}' \;
    systemctl list-units --all --no-legend 'pve-zfsbackup-thaw-*' | sed 's/^/timer: /'
    find /tmp /var/tmp -mindepth 1 -maxdepth 1 -newer "$2" \( -name 'tmp*' -o -name '*pzb*' -o -name '*zfsbackup*' \) |
      sed 's/^/left: /'
    """
    there = r"""
    for i in $(seq 50); do
      left=$(pgrep -fa '^(/usr/sbin/)?zfs receive' | grep -v pgrep || :)
      [ -z "$left" ] && break; sleep 0.2
    done
    [ -z "$left" ] || echo "still running on the target: $left"
    """
    return [*ctx.pve1.script(here, ctx.directory, ctx.config).lines, *ctx.backup1.script(there).lines]


def _foreign_untouched(ctx: Context, target: State) -> None:
    replicas = {entry.dataset for entry in target.values() if entry.dataset.startswith(f"{ctx.root}/")}
    for text in state.changed(ctx.before["target"], target, replicas):
        ctx.outcome.complain("n6", f"target: {text}")
    for (name, pool), lines in ctx.before["history"].items():
        host = ctx.product.lab.hosts[name]
        text = 'zpool history -i "$1" | tail -n "+$2"'
        found = history.events(host.script(text, pool, str(lines + 1)).lines)
        root = None if name == "pve1" else ctx.root
        for event in history.foreign(found, root, ctx.by_hand):
            ctx.outcome.complain("n6", f"{name}: {event}")


def _truth(ctx: Context, source: State, target: State) -> None:
    """`status` names the newest complete point on each side, with its true age."""
    done = ctx.run("status")
    now = int(ctx.pve1.run(("date", "+%s")).stdout)
    told: dict[int, Any] = {guest["vmid"]: guest["newest"] for guest in done.report.get("guests", ())}
    for guest in ctx.guests:
        if guest.vmid not in told:
            if any(disk in source for disk in guest.disks):
                ctx.outcome.complain("n7", f"status does not speak of {guest.vmid}: {done.short}")
            continue
        for host, view, where in (("source", source, ""), (TARGET, target, ctx.root)):
            prefix = f"{guest.vmid}/"
            found = _true_points(view, where, len(guest.disks), now)
            points = {name: entries for name, entries in found.items() if name.startswith(prefix)}
            said = told[guest.vmid].get(host)
            newest = list(points)[-1] if points else None
            if (said or {}).get("point") != newest:
                ctx.outcome.complain("n7", f"status calls {said} the newest on {host}, which is {newest}")
            elif said and newest:
                age = now - max(entry.creation for entry in points[newest])
                if abs(age - said["age"]) > CLOCK:
                    ctx.outcome.complain("n7", f"status says {said['age']} s for {newest} on {host}: it is {age} s")


def _true_points(view: State, root: str, disks: int, now: int) -> dict[str, list[state.Entry]]:
    if root:
        return state.in_order(state.points(view, root, disks), now)
    found: dict[str, list[state.Entry]] = {}
    for pool in sorted({entry.dataset.partition("/")[0] for entry in view.values()}):
        for point, entries in state.points(view, pool, 1).items():
            found.setdefault(point, []).extend(entries)
    whole = {point: entries for point, entries in found.items() if len({e.dataset for e in entries}) >= disks}
    return state.in_order(whole, now)


def _no_secret(ctx: Context) -> None:
    secrets = [inject.CANARY, *planted(ctx)]
    for text in ctx.outputs:
        for secret in secrets:
            if secret in text:
                ctx.outcome.complain("n8", f"{secret[:6]}… stands in an output or an argument list")
    grep = r"""
    cat > /run/matrix/secrets
    journalctl --no-pager -q --since "@$1" > /run/matrix/journal.txt 2>&1 || :
    grep -rlF -f /run/matrix/secrets /run/matrix/journal.txt /var/log $2 2> /dev/null || :
    rm -f /run/matrix/secrets /run/matrix/journal.txt
    """
    for host, folder in ((ctx.pve1, f"{ctx.directory}/journal"), (ctx.backup1, "")):
        argv = ("sh", "-euc", grep, "sh", ctx.before["since"], folder)
        for path in host.run(argv, input="\n".join(secrets) + "\n").lines:
            ctx.outcome.complain("n8", f"a secret stands in {host.name}:{path}")


def planted(ctx: Context) -> list[str]:
    """What must stand nowhere; a row may add to it."""
    if "secrets" not in ctx.before:
        token = ctx.pve1.read("/etc/pve-zfsbackup/api.token").strip().rpartition("=")[2]
        key = ctx.pve1.read("/etc/pve-zfsbackup/id_ed25519").splitlines()[2:4]
        ctx.before["secrets"] = [token, *key]
    return list(ctx.before["secrets"])


def next_run(ctx: Context) -> Done:
    """N3: the run after the fault. Succeeds unaided, or (rows marked so) fails with an action."""
    ctx.outcome.checked.add("n3")
    before: dict[str, str] = ctx.before.get("replicas", {})
    with ctx.pve1.executed() as record:
        done = ctx.run(timeout=400)
    ctx.outputs.append("\n".join(" ".join(e.arguments or ()) for e in record.execs))

    def say(text: str) -> None:
        ctx.outcome.complain("n3", text)

    if ctx.row.conflict:
        if done.code == 0:
            say(f"the next run succeeded where an administrator has to decide: {done.told[:300]}")
        if not done.advice:
            say(f"the next run failed without saying what to do: {done.told[:300]}")
    elif done.code:
        say(f"the next run failed: {done.short}")
    _not_silently(ctx, before, done, say)
    return done


def _not_silently(ctx: Context, before: dict[str, str], done: Done, say: Callable[[str], None]) -> None:
    """Replicas stay the same datasets; a new one beside them is told."""
    after = {entry.guid: entry.name for entry in state.below(ctx.states()[1], ctx.root)}
    for guid, name in before.items():
        if guid not in after and guid not in ctx.lost and ("rename", name) not in ctx.by_hand:
            say(f"{name} is no longer the dataset it was")
    parents = {name.rpartition("/")[0] for name in after.values()}
    known = {_vmid(name) for name in before.values()}
    new = [name for guid, name in after.items() if guid not in before and name not in parents and _vmid(name) in known]
    if new and not any(_SAYS_ANEW.search(text) for text in (done.told, *ctx.outputs)):  # a run of the row's, perhaps
        say(f"sent in full without a word: {new}")


def _vmid(name: str) -> str:
    """Of a replica's name; empty when it does not say."""
    match = re.search(r"/(?:vm|subvol|base)-(\d+)-", name)
    return match[1] if match else ""
