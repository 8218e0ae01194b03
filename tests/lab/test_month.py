"""A simulated month of cron's runs on real ZFS: every alert counted and explained, retention, and what silence tells.

The clocks of both hosts are moved, not the program's (month.py says why). Some 90 calls in 12 to 20 minutes. What
happened stands in build/month.json. Alone: `python3 -m pytest tests/lab/test_month.py -s`.
"""

from __future__ import annotations

import base64
import contextlib
import email
import email.policy
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

import pytest

from tests.lab import month
from tests.lab.host import Result
from tests.lab.lab import TREE
from tests.lab.product import ROOT, Product, forget, quick, zfs
from tests.lab.pve.provision import guest_write

pytestmark = pytest.mark.long

GUESTS = {100: ("local-zfs/vm-100-disk-0", "fast/vm-100-disk-0"), 106: ("local-zfs/vm-106-disk-0",)}
CONFIG = f"""\
timezone: UTC
targets:
  backup1: {{host: backup1, root: {ROOT}, retries: 0, keep: {month.keep_text(month.TARGET_KEEP)}}}
jobs:
  all:
    guests: {[str(vmid) for vmid in GUESTS]}
    targets: [backup1]
    keep: {month.keep_text(month.KEEP)}
    quiesce: off  # freezes have tests of their own, and take a third of a run's time here
alerts: {{mail: [root], ping-file: /etc/pve-zfsbackup/month.url}}
"""
PLACE = "/run/month"
PORT = 8443
CERTIFICATE = "/usr/local/share/ca-certificates/month.crt"
SENDMAIL = f'#!/bin/sh\nexec cat > "{PLACE}/$(date +%s).$$.mail"\n'
# The dead man's switch: notes who calls, and when. It is on the node itself, where the outage does not reach it.
SWITCH = f"""\
import http.server, ssl, time

class Switch(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with open("{PLACE}/pings", "a") as file:
            file.write(f"{{int(time.time())}} {{self.path}}\\n")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words):
        pass

server = http.server.ThreadingHTTPServer(("", {PORT}), Switch)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("{PLACE}/cert.pem", "{PLACE}/key.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""
_SERVE = r"""
cd "$1"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out cert.pem -days 90 \
  -subj /CN=switch -addext "subjectAltName=IP:$2" -addext keyUsage=critical,digitalSignature,keyCertSign 2> /dev/null
systemctl stop month 2> /dev/null || :
systemd-run -q --collect --unit month python3 "$1/switch.py"
"""
# The program that is forked has read the certificates when it was loaded.
_TRUST = "update-ca-certificates > /dev/null 2>&1; rm -f /run/matrix/fork.stamp"
_MAILS = 'cd "$1"; for mail in *.mail; do [ ! -e "$mail" ] || { echo "$mail"; base64 -w0 "$mail"; echo; }; done'


@dataclass
class Happened:
    """The month after it is over; times in seconds since it began."""

    product: Product
    start: int
    done: list[tuple[month.Call, Result]] = field(default_factory=list)
    mails: list[tuple[int, str]] = field(default_factory=list)
    pings: list[tuple[int, str]] = field(default_factory=list)
    replicas: list[dict[str, str]] = field(default_factory=list)  # name -> guid: before the target was away, at the end
    before: dict[int, list[int]] = field(default_factory=dict)  # points here when it was about to come back
    check: str = ""  # said then

    def points(self, vmid: int, host: str) -> list[int]:
        """Each by the call that made it; its creation is what ZFS says."""
        return [month.call_of(point["creation"] - self.start).at for point in self.product.points(vmid, host)]


@pytest.fixture(scope="module")
def happened(product: Product) -> Iterator[Happened]:
    product = quick(product)
    forget(product)
    with contextlib.ExitStack() as after:
        after.callback(_clean, product)
        _prepare(product)
        today = int(product.pve1.run(("date", "+%s")).stdout) // month.DAY
        seen = Happened(product, (today + 1) * month.DAY + 600)  # no call comes near midnight
        _live(quick(product), seen)
        for name, text in _mails(product):
            seen.mails.append((int(name.partition(".")[0]) - seen.start, text))
        lines = product.pve1.run(("cat", f"{PLACE}/pings")).lines
        seen.pings = [(int(at) - seen.start, path) for at, path in (line.split(" ") for line in lines)]
        yield seen


def _prepare(product: Product) -> None:
    """Mail that is kept in files, and a dead man's switch."""
    pve1 = product.pve1
    url = f"https://{pve1.address}:{PORT}"
    pve1.script('rm -rf "$1"; mkdir "$1"', PLACE)
    pve1.write(f"{PLACE}/switch.py", SWITCH)
    pve1.script(_SERVE, PLACE, pve1.address)
    pve1.wait_for(("curl", "-fsk", f"{url}/up"))
    pve1.write(f"{PLACE}/pings", "")
    pve1.write("/usr/sbin/sendmail", SENDMAIL, mode=0o755)
    pve1.write("/etc/pve-zfsbackup/month.url", f"{url}\n", mode=0o600)
    pve1.write(CERTIFICATE, pve1.read(f"{PLACE}/cert.pem"))
    pve1.script(_TRUST)
    product.configure(CONFIG)


def _live(product: Product, seen: Happened) -> None:
    """Call after call, as cron would."""
    pve1, began = product.pve1, time.monotonic()
    away = False
    for call in month.calls():
        if call.away and not away:
            seen.replicas.append(_replicas(product))
            _route(product, "add")
        if away and not call.away:
            seen.before = {vmid: seen.points(vmid, "source") for vmid in GUESTS}
            seen.check = product.run("check", check=False).stdout
            _route(product, "del")
        away = call.away
        _clocks(product, seen.start + call.at)
        guest_write(pve1, 100, "month", os.urandom(64 << 10))
        stages = [word for stage in call.stages for word in ("--stage", stage) if stage != "archive"]
        seen.done.append((call, product.run("run", *stages, check=False)))
        print(f"{time.monotonic() - began:5.0f} s  day {call.at / month.DAY:5.2f}  {' '.join(stages)}", flush=True)
    seen.replicas.append(_replicas(product))


def _route(product: Product, verb: str, *, check: bool = True) -> None:
    """With it, no way leads from the node to the target."""
    product.pve1.run(("ip", "route", verb, "unreachable", f"{product.backup1.address}/32"), check=check)


def _clocks(product: Product, at: int) -> None:
    for host in (product.pve1, product.backup1):
        host.run(("date", "-u", "-s", f"@{at}"))


def _replicas(product: Product) -> dict[str, str]:
    rows = zfs(product.backup1, "list", "-Hp", "-r", "-t", "filesystem,volume", "-o", "name,guid", ROOT)
    return {name.removeprefix(f"{ROOT}/"): guid for name, guid in rows if "-disk-" in name}


def _mails(product: Product) -> Iterator[tuple[str, str]]:
    lines = product.pve1.script(_MAILS, PLACE).lines
    for name, data in zip(lines[::2], lines[1::2], strict=True):
        message = email.message_from_bytes(base64.b64decode(data), policy=email.policy.default)
        yield name, str(message.get_content())


def _clean(product: Product) -> None:
    """Back to the present, with nothing of the future left: the hosts are shared."""
    pve1 = product.pve1
    _route(product, "del", check=False)
    _clocks(product, int(time.time()))
    pve1.run(("systemctl", "stop", "month"), check=False)
    pve1.run(("rm", "-f", "/usr/sbin/sendmail", "/etc/pve-zfsbackup/month.url", CERTIFICATE))
    pve1.script(_TRUST)
    pve1.script('rm -rf "$1" /var/log/pve-zfsbackup/journal.jsonl*', PLACE)
    forget(product)


def test_every_alert_is_accounted_for(happened: Happened) -> None:
    lines = month.explained(happened.mails)
    print("\n".join(lines))
    told: dict[str, Any] = {
        "calls": len(happened.done),
        "mails": len(happened.mails),
        "told": lines,
        "alarms_of_the_switch": month.silences([at for at, _ in happened.pings]),
        "kept": {f"{vmid} {host}": happened.points(vmid, host) for vmid in GUESTS for host in ("source", "backup1")},
    }
    (TREE / "build").mkdir(exist_ok=True)
    (TREE / "build/month.json").write_text(json.dumps(told, indent=1) + "\n")
    assert len(lines) == len(happened.mails) == 15
    assert sum("well again" in line for line in lines) == 2, "each recovery once"


def test_cron_mails_nothing_while_all_is_well(happened: Happened) -> None:
    for call, done in happened.done:
        if call.away:
            assert done.returncode in (1, 2), done
            assert "backup1" in done.stderr
        else:
            assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), call


def test_the_dead_mans_switch_hears_each_run_and_alarms_when_the_node_is_off(happened: Happened) -> None:
    paths = [path.rstrip("/") for _, path in happened.pings]
    assert paths[::2] == ["/start"] * len(happened.done)
    assert paths[1::2] == ["/fail" if call.away else "" for call, _ in happened.done]
    ((alarm, heard),) = month.silences([at for at, _ in happened.pings])
    assert month.OFF[0] < alarm < month.OFF[1] < heard


def test_what_is_left_is_what_the_rules_say(happened: Happened) -> None:
    here, there = month.survivors(happened.start, UTC)
    for vmid in GUESTS:
        assert happened.points(vmid, "source") == here
        assert happened.points(vmid, "backup1") == there


def test_after_seventeen_days_the_target_goes_on_by_increments(happened: Happened) -> None:
    base, _ = month.bases()
    assert all(base in points for points in happened.before.values()), "retention waited for the target"
    assert happened.check.startswith("CRITICAL - ")
    assert "target backup1: " in happened.check
    before, after = happened.replicas
    assert set(after) == {name for names in GUESTS.values() for name in names}, "no new generation"
    assert after == before
