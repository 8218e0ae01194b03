"""Rows 7, 9, 10 and 56-65: storage boxes, and what is remembered of them."""

from __future__ import annotations

import re

from tests.lab.matrix import inject
from tests.lab.matrix.boxes import NAME, Box
from tests.lab.matrix.context import Context
from tests.lab.matrix.guests import Guest
from tests.lab.matrix.rows import row

_OOM = """#!/bin/sh
[ "$1" = --encrypt ] || exec /usr/bin/age "$@"
head -c 300000 | /usr/bin/age "$@"
kill -9 $$
"""


# Puts another file under the name before sftp is told to give it to the manifest; `@`: nothing of it is echoed.
_TAKEN = """#!/usr/bin/python3
import os, re, subprocess, sys, threading
sftp = subprocess.Popen(["/usr/bin/sftp", *sys.argv[1:]], stdin=subprocess.PIPE)

def give():
    for line in sys.stdin.buffer:
        if found := re.match(r"rename -l \\S+ (\\S+/manifest\\.age)$", line.decode().rstrip("\\n")):
            sftp.stdin.write(b"-@put /run/matrix/foreign " + found[1].encode() + b"\\n")
        try:
            sftp.stdin.write(line)
            sftp.stdin.flush()
        except BrokenPipeError:
            return
    sftp.stdin.close()

giving = threading.Thread(target=give, daemon=True)
giving.start()
status = sftp.wait()
if sftp.stdin.closed:
    giving.join()
os._exit(status if status >= 0 else 255)  # the thread may be reading
"""


@row("7", "age is killed for want of memory", "the point fails, nothing of it is published")
def out_of_memory(ctx: Context) -> str:
    guest = ctx.guest()
    box = Box(ctx)
    ctx.baseline()
    ctx.write(guest, 2)
    with box.before("age", _OOM):
        done = ctx.run()
    ctx.expect(done.code != 0 and "age" in done.short, f"{done.short}")
    box.whole(1)
    return done.short


@row("9", "the state directory becomes read-only", "nothing reaches the box; told; the next run goes on")
def state_read_only(ctx: Context) -> str:
    guest = ctx.guest()
    box = Box(ctx)
    ctx.baseline()
    ctx.write(guest, 2)
    before = box.files("")
    ctx.pve1.script('mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"', f"{ctx.directory}/state")
    try:
        done = ctx.run()
    finally:
        ctx.pve1.run(("umount", f"{ctx.directory}/state"))
    ctx.expect(done.code != 0 and "ead-only" in done.short, done.short)
    ctx.expect(box.files("") == before, "something was put into the box")
    return done.short


@row("10", "what is remembered of the box is lost, then damaged", "found again in box and ZFS: an increment, no full")
def state_lost(ctx: Context) -> str:
    guest = ctx.guest()
    box = Box(ctx)
    ctx.baseline()
    ctx.write(guest, 2)
    ctx.pve1.script('rm -rf "$1"', f"{ctx.directory}/state/boxes")
    done = ctx.run()
    ctx.expect(done.code == 0 and "increment" in box.said(done), f"{done.short} {box.said(done)}")
    ctx.write(guest, 2)
    text = 'for file in "$1"/manifests/*; do truncate -s 10 "$file"; done'
    ctx.pve1.script(text, f"{ctx.directory}/state/boxes/{NAME}")
    done = ctx.run()
    ctx.expect(done.code == 0 and "increment" in box.said(done), f"{done.short} {box.said(done)}")
    box.whole(3)
    return "both times an increment followed"


@row("56", "connection cut in the middle of a segment", "that segment alone is sent again")
def cut_in_segment(ctx: Context) -> str:
    guest = ctx.guest()
    box = Box(ctx)
    ctx.baseline()
    ctx.write(guest, 6)
    box.configure(rate="1M")
    cuts = 0
    running = ctx.start()
    for _ in range(200):
        if running.process.poll() is not None or cuts == 3:
            break
        # Only a session that is taking a file: its temporary name is there.
        text = 'ls "$1"/w-*/*/*/tmp-* > /dev/null 2>&1 && pkill -9 -u box && echo cut || sleep 0.1'
        cuts += ctx.backup1.script(text, box.place).stdout.count("cut")
    done = running.end()
    ctx.expect(done.code == 0, done.short)
    ctx.expect(cuts > 0, "no upload was cut")
    newest = box.points()[-1]["path"]
    found = [path for path in box.files() if newest in path]
    (count,) = re.findall(r"(\d+) segments", box.said(done))
    ctx.expect(len(found) == int(count), f"{len(found)} files for {count} segments: one was sent twice")
    box.whole(2)
    return f"{cuts} cuts in {count} segments of one point, each there once"


@row("57", "killed before the manifest", "no point; finished by the next run, no segment sent again")
def cut_before_manifest(ctx: Context) -> str:
    guest = ctx.guest()
    box = Box(ctx)
    ctx.baseline()
    ctx.write(guest, 3)
    with box.cut("manifest.json"):
        done = ctx.run()
    ctx.expect(done.code != 0 and box.reached(), f"it was not killed: {done.short}")
    ctx.expect(len(box.points()) == 1, "a point without a manifest is listed")
    segments = box.files()
    again = box.archive()
    ctx.expect(again.code == 0, again.short)
    ctx.expect(box.files() == segments, "segments were sent again")
    box.whole(2)
    return box.said(again)


@row("58", "box full", "told; older chains whole; goes on when there is room")
def box_full(ctx: Context) -> str:
    guest = ctx.guest()
    box = Box(ctx)
    ctx.baseline()
    ctx.write(guest, 6)
    text = 'free=$(df -B1 --output=avail /srv/box | tail -n 1); fallocate -l $((free - 2500000)) /srv/box/filler'
    ctx.backup1.script(text)
    try:
        done = ctx.run()
    finally:
        ctx.backup1.run(("rm", "/srv/box/filler"))
    ctx.expect(done.code != 0 and ("room" in done.short or "free" in done.short), done.short)
    box.whole(1)
    return done.short


@row("59", "segment flipped, missing, swapped", "each is named by verifying")
def segments_damaged(ctx: Context) -> str:
    ctx.guest()
    box = Box(ctx)
    ctx.baseline()
    one, two = box.files()[:2]
    told = []
    for level, harm in (
        ("hashed", 'cp -p "$1" "$1.kept"; printf X | dd of="$1" bs=1 seek=500 conv=notrunc status=none'),
        ("listed", 'mv "$1" "$1.kept"'),
        ("hashed", 'cp -p "$1" "$1.kept"; cp "$2" "$1"'),
    ):
        ctx.backup1.script(harm, one, two)
        found = box.verify(level)
        ctx.backup1.script('mv "$1.kept" "$1"', one)
        problems = [problem for point in found["points"] for problem in point["problems"]]
        ctx.expect(not found["good"] and any("seg-000001" in text for text in problems), f"not named: {found}")
        told.append(problems[0][:120])
    box.whole(1)
    return "; ".join(told)


@row("60", "an older state of the box put in its place", "refused, told, and nothing is built on it")
def replayed(ctx: Context) -> str:
    guest = ctx.guest()
    box = Box(ctx)
    ctx.baseline()
    ctx.backup1.script('cp -a "$1" "$1.old"', box.place)
    ctx.write(guest, 2)
    ctx.baseline()
    ctx.backup1.script('mv "$1" "$1.new"; mv "$1.old" "$1"', box.place)
    arguments = ("restore", str(guest.vmid), "--from", NAME, "--to", "fast", "--identity", f"{box.keys}/identity")
    refused = ctx.run(*arguments)
    told = refused.stderr.strip()
    ctx.expect(refused.code == 2 and "was seen" in told, f"restored from an older state: {told}")
    done = box.archive()
    ctx.expect("was seen before" in box.said(done), f"not told: {box.said(done)}")
    # What was hidden comes back, beside a full one of the same point if that was made meanwhile: built on nothing.
    ctx.backup1.script('cp -an "$1.new/." "$1"; rm -r "$1.new"', box.place)
    box.whole(2)
    return told[:300]


@row("61", "no rename, no fsync; another file has the name", "archived all the same; told, and nothing replaced")
def no_rename(ctx: Context) -> str:
    guest = ctx.guest()
    box = Box(ctx)
    conf = "/etc/ssh/sshd_config.d/box.conf"
    text = ctx.backup1.read(conf)
    ctx.backup1.write(conf, text.replace("internal-sftp", "internal-sftp -P rename,posix-rename,fsync"))
    ctx.backup1.run(("systemctl", "reload", "ssh"))
    try:
        ctx.baseline()
        ctx.write(guest, 2)
        done = ctx.run()
    finally:
        ctx.backup1.write(conf, text)
        ctx.backup1.run(("systemctl", "reload", "ssh"))
    ctx.expect(done.code == 0, done.short)
    box.whole(2)
    return f"{box.said(done)}; {_taken(ctx, box, guest)}"


def _taken(ctx: Context, box: Box, guest: Guest) -> str:
    """Somebody's file takes the name of the manifest right before it gets it. It stays, and nothing is published; when
    it is away the point is finished. (What lies there before a point goes on was left by an attempt of our own.)"""
    ctx.write(guest, 2)
    ctx.pve1.write("/run/matrix/foreign", "foreign\n")
    with box.before("sftp", _TAKEN):
        refused = ctx.run()
    said = box.said(refused)
    text = 'find "$1" -name manifest.age -size -2 | while read -r name; do echo "$name $(cat "$name")"; done'
    ctx.expect(refused.code != 0 and "another file lies at" in said, f"not told: {refused.short} {said}")
    (place,) = ctx.backup1.script(text, box.place).lines
    ctx.expect(place.endswith("/manifest.age foreign"), f"the foreign file was replaced: {place}")
    ctx.backup1.run(("rm", place.split()[0]))
    done = ctx.run()
    ctx.expect(done.code == 0, done.short)
    ctx.publish()
    box.whole(3)
    return said[:200]


@row("62", "the server takes one connection at a time", "waited for; nothing is lost")
def connection_limit(ctx: Context) -> str:
    guest = ctx.guest()
    box = Box(ctx)
    ctx.baseline()
    ctx.write(guest, 5)
    ctx.run("snapshot")
    rule = "INPUT -i eth1 -p tcp --syn --dport 22 -m connlimit --connlimit-above 1 -j REJECT --reject-with tcp-reset"
    ctx.backup1.run(("iptables", "-w", "-I", *rule.split()))
    try:
        done = box.archive(timeout=500)
        counted = ctx.backup1.run(("iptables", "-w", "-nvL", "INPUT")).stdout
    finally:
        ctx.backup1.run(("iptables", "-w", "-D", *rule.split()))
    ctx.expect(done.code == 0, done.short)
    box.whole(2)
    refused = re.search(r"^\s*(\d+)\s.*connlimit|^\s*(\d+)\s.*#conn", counted, re.MULTILINE)
    return f"{box.said(done)}; {refused[0].split()[0] if refused else '?'} connections were refused"


@row("63", "the stream is another one when the archive is resumed", "the point begins anew, and is right")
def stream_differs(ctx: Context) -> str:
    guest = ctx.guest()
    box = Box(ctx)
    ctx.baseline()
    ctx.write(guest, 3)
    with box.cut("manifest.json"):
        ctx.run()
    ctx.expect(box.reached(), "it was not killed")
    inject.lay(ctx.pve1, "send", "flip", 1 << 20, once=True)
    done = box.archive()
    inject.unlay(ctx.pve1)
    ctx.expect(done.code == 0 and "earlier attempt" not in box.said(done), f"{done.short} {box.said(done)}")
    box.whole(2)
    return box.said(done)


@row("64", "killed at every step of removing old points", "no manifest without its segments, ever")
def removal_killed(ctx: Context) -> str:
    guest = ctx.guest()
    box = Box(ctx, keep="{keep-last: 1}")
    box.configure(full_increments="1")
    for number in range(4):
        ctx.write(guest, 1, at=8 + number)
        if number < 3:
            ctx.baseline()
    ctx.expect(box.verify("hashed").get("good") is True, "not whole before")
    kills = 0
    while kills < 12:
        with box.cut("^-rm(dir)? |manifest.json$", kills + 1):
            done = ctx.run()
        if not box.reached():
            break
        kills += 1
        found = box.verify("listed")
        ctx.expect(found.get("good") is True, f"after kill {kills}: {found}")
    ctx.expect(kills >= 3, f"only {kills} kills: {done.short}")
    ctx.expect(box.verify().get("good") is True, "not whole after all")
    return f"{kills} kills, each left only whole points; {len(box.points())} points are left"


@row("65", "the wrong identity in the drill", "it fails loudly")
def wrong_identity(ctx: Context) -> str:
    ctx.guest()
    box = Box(ctx)
    ctx.baseline()
    ctx.pve1.script('age-keygen -o "$1" 2> /dev/null', f"{box.keys}/other")
    wrong = ctx.run("key", "drill", NAME, "--identity", f"{box.keys}/other")
    right = ctx.run("key", "drill", NAME, "--identity", f"{box.keys}/identity")
    told = wrong.stderr + str(wrong.report)
    ctx.expect(wrong.code == 2 and "identity" in told, f"exit {wrong.code}: {told[:300]}")
    ctx.expect(right.code == 0, f"the right one fails: {right.stderr}")
    return f"exit {wrong.code}: {told[:200]}"
