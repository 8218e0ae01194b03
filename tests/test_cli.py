"""The command line as cron and people see it: golden output, exit codes, what goes where, dry runs that touch nothing.

`pytest tests/test_cli.py --update-golden` writes the golden files anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest

from pve_zfsbackup import cli, terminal
from pve_zfsbackup.app import files
from pve_zfsbackup.app.session import Session, open_session
from pve_zfsbackup.app.setup_account import Action
from pve_zfsbackup.cli import archive, options, prepare
from pve_zfsbackup.config import Config
from pve_zfsbackup.errors import ConfigError
from pve_zfsbackup.events import Emit
from pve_zfsbackup.host import notify
from pve_zfsbackup.host.clones import Bench
from pve_zfsbackup.host.lock import being_read, run_lock
from pve_zfsbackup.host.ssh import Host
from tests.fakes.disks import Content, Disks, linux
from tests.fakes.runner import HERE, Fault
from tests.fakes.world import CONFIG, DB, REPLICAS, TARGET, WEB, World

GOLDEN = Path(__file__).parent / "golden/cli"
COMMANDS = (
    "thaw", "discover", "list", "status", "snapshot", "replicate", "prune", "run", "check", "metrics", "report",
    "alert-test", "restore", "rollback",
)  # fmt: skip
GROUPED = (("why", "replicate"), ("why", "prune"), ("verify", "points"), ("verify", "pools"), ("verify", "drill"))
Compare = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Compare:
    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        text = re.sub(r"\b\d+\.\d+ s\b", "# s", text)
        text = re.sub(r'("seconds"): [\d.]+', r"\1: 0", text)
        text = re.sub(r'("window"): [1-9]\d*', r"\1: 1", text)
        text = re.sub(r"\b[\d.]+ [KMG]?i?B/s", "# B/s", text)
        if request.config.getoption("--update-golden"):
            path.write_text(text)
        assert text == path.read_text(), f"{path} differs; --update-golden takes it over"

    return compare


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token_hex: None) -> World:
    made = World(tmp_path)

    @contextlib.contextmanager
    def opened(config: Config, emit: Emit) -> Iterator[Session]:
        with open_session(config, emit, made.runner) as session:
            yield made.at_home(session)

    monkeypatch.setattr(options, "open_session", opened)
    monkeypatch.setattr("syslog.syslog", lambda *words: None)
    monkeypatch.setattr(Session, "now", lambda self: datetime.fromtimestamp(made.clock.now, UTC))
    skipped, monotonic = [0.0], time.monotonic
    monkeypatch.setattr(time, "sleep", lambda seconds: skipped.__setitem__(0, skipped[0] + seconds))
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + skipped[0])  # who sleeps finds that time went by
    return made


@pytest.fixture
def old(world: World) -> World:
    """Three points of every guest on both sides, a fourth only here; the disks of one guest tell a story."""
    text = (world.node.etc / "qemu-server/101.conf").read_text()
    more = "ide2: local:iso/debian.iso,media=cdrom\nscsi1: local:101/vm-101-disk-1.qcow2,size=1G\n"
    world.node.define(DB, text + more)
    world.node.define(103, "cores: 1\nname: alone\nscsi0: local:103/vm-103-disk-0.qcow2,size=1G\n", running=False)
    for _ in range(3):
        world.run()
        world.write()
    world.runner.down[TARGET] = "down"
    world.run()
    world.runner.down.clear()
    world.clock.now += 1800
    world.runner.revive()
    return world


@pytest.fixture
def call(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ended]]:
    """A command line, with the configuration of the world, through `main`: the way out is part of the contract."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def run(*words: str, config: Path | None = None) -> Ended:
        takes = config or words[0] in COMMANDS or words[:2] in GROUPED
        named = ("--config", str(config or world.config)) if takes else ()
        monkeypatch.setattr(sys, "argv", ["pve-zfsbackup", *words, *named])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


Call = Callable[..., Ended]
READING = (
    ("discover",), ("list",), ("list", "--disks", "100"), ("list", "--where", "source", "101"), ("status",),
    ("list", "--cost", "100", "101"), ("list", "--cost", "--where", "backup1", "--since", "2026-11-18 13:30", "100"),
    ("prune", "--dry-run"), ("replicate", "--dry-run"), ("snapshot", "--dry-run"), ("run", "--dry-run"),
    ("why", "replicate", "100"), ("why", "prune", "100"),
)  # fmt: skip


def slug(words: tuple[str, ...]) -> str:
    return "-".join(re.sub("[ :]", "", word.strip("-")) for word in words)


@pytest.mark.parametrize("words", READING, ids=slug)
@pytest.mark.parametrize("form", ["txt", "json"])
def test_golden_output_of_what_only_looks(
    old: World, call: Call, golden: Compare, words: tuple[str, ...], form: str
) -> None:
    before = (old.source.datasets.keys(), old.points(HERE, WEB), old.points(TARGET, WEB))
    done = call(*words, *(("--json",) if form == "json" else ()))
    assert done.code == 0, done.stderr
    golden(f"{slug(words)}.{form}", done.stdout + "".join(f"stderr: {line}\n" for line in done.stderr.splitlines()))
    if form == "json":
        assert json.loads(done.stdout)["format"] == 1
    assert not old.runner.changes, "a dry run changes nothing"
    assert before == (old.source.datasets.keys(), old.points(HERE, WEB), old.points(TARGET, WEB))
    assert not (old.place / "log/journal.jsonl").read_text().count(f"{old.clock.now}")


@pytest.mark.parametrize("form", ["txt", "json"])
def test_golden_output_of_why_a_disk_is_not_sent(old: World, call: Call, golden: Compare, form: str) -> None:
    """A conflict with its evidence and the command that would resolve it; a base that is gone; nothing in common."""
    old.target.snap(f"{REPLICAS['fast/vm-100-disk-0']}@by-hand")
    disk = old.source.datasets["rpool/data/vm-100-disk-0"]
    (mark,) = disk.marks.values()
    del disk.snaps[mark.name.rpartition(":")[0]]
    done = call("why", "replicate", "100", "--target", TARGET, *(("--json",) if form == "json" else ()))
    golden(f"why-conflict.{form}", done.stdout)
    assert done.code == 0
    assert "zfs destroy tank/backups/fast/vm-100-disk-0@by-hand" in done.stdout


def test_why_for_a_target_or_a_guest_that_does_not_exist(old: World, call: Call) -> None:
    for words, said in ((("100", "--target", "moon"), "no target named moon"), (("999",), "no such guest")):
        done = call("why", "replicate", *words)
        assert (done.code, done.stdout) == (3, "")
        assert said in done.stderr
    old.runner.down[TARGET] = "No route to host"
    done = call("why", "replicate", "100")
    assert done.code == 1
    assert "no answer" in done.stdout


@pytest.mark.parametrize("form", ["txt", "json"])
def test_golden_output_of_a_run(world: World, call: Call, golden: Compare, form: str) -> None:
    world.guest(DB).agent = "refuse"
    world.runner.faults.append(Fault(words=("receive", REPLICAS["fast/vm-100-disk-0"]), answer=(1, "out of space")))
    done = call("run", "-v", *(("--json",) if form == "json" else ()))
    assert done.code == 1
    told = sorted(done.stderr.splitlines())  # streams end in threads: their order is a race
    golden(f"run-v.{form}", done.stdout + "".join(f"stderr: {line}\n" for line in told))


@pytest.mark.parametrize("command", ["", *COMMANDS, "setup", "why", "key"])
def test_golden_help(call: Call, golden: Compare, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("COLUMNS", "80")
    done = call(*((command,) if command else ()), "--help")
    assert (done.code, done.stderr) == (0, "")
    assert not [line for line in done.stdout.splitlines() if len(line) > 80]
    golden(f"help-{command or 'main'}.txt", done.stdout.replace("Usage: -c ", "Usage: pve-zfsbackup "))


@pytest.mark.parametrize("form", ["txt", "json"])
def test_golden_plans_of_the_way_back(old: World, call: Call, golden: Compare, form: str) -> None:
    as_json = ("--json",) if form == "json" else ()
    point = old.complete(HERE, WEB)[1]
    copy = call("restore", "100", "--as", "300", "--dry-run", *as_json)
    assert (copy.code, copy.stderr) == (0, "")
    golden(f"restore-dry-run.{form}", copy.stdout)
    there = call("restore", "100", "--dry-run", *as_json)
    assert there.code == 2
    golden(f"restore-conflict.{form}", there.stdout)
    old.guest(WEB).running = False
    back = call("rollback", "100", "--at", point, "--dry-run", *as_json)
    assert (back.code, back.stderr) == (0, "")
    golden(f"rollback-dry-run.{form}", back.stdout)
    assert old.runner.changes == []


def test_for_another_node_nothing_is_done_and_the_exit_status_says_so(old: World, call: Call) -> None:
    old.node.cluster = {"pve2": "online"}
    words = ("restore", "100", "--as", "300", "--node", "pve2", "--start", "--yes")
    asked = call(*words)
    assert asked.code == 2
    point = old.complete(TARGET, WEB)[-1]
    command = f"pve-zfsbackup restore 100 --at {point} --from backup1 --as 300 --start"
    assert asked.stdout.splitlines()[-1].strip() == command
    told = json.loads(call(*words, "--dry-run", "--json").stdout)
    assert (told["node"], " ".join(told["command"]), told["done"]) == ("pve2", command, False)
    assert call(*words, "--dry-run").code == 0
    assert old.runner.changes == []
    assert call(*words, "--files").code == 3
    here = call("restore", "100", "--as", "300", "--node", "pve1", "--yes")
    assert here.code == 0
    assert (old.node.etc / "qemu-server/300.conf").exists()


def test_the_way_back_is_confirmed_or_not_gone(old: World, call: Call) -> None:
    asked = call("restore", "100", "--as", "300")
    assert asked.code == 3
    assert asked.stderr == "error: not confirmed: nobody can be asked here\nhint: --yes says it beforehand\n"
    assert old.runner.changes == []
    done = call("restore", "100", "--as", "300", "--yes", "--json")
    assert done.code == 0
    assert json.loads(done.stdout)["done"]
    assert (old.node.etc / "qemu-server/300.conf").exists()
    old.guest(WEB).running = False
    back = call("rollback", "100", "--at", old.complete(HERE, WEB)[1], "--yes")
    assert back.code == 0
    assert "to give up what was put aside: zfs destroy -r rpool/data/pzb-aside/100/" in back.stdout


def test_files_are_listed_and_copied(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disks = Disks(place=tmp_path / "disks")
    disks.contents = {"rpool/data/vm-100-disk-0": linux("/etc/fstab"), "fast/vm-100-disk-0": Content(kind="ntfs")}
    world.runner.tools = disks.run
    world.runner.watchers.append(disks.watch)
    world.run()
    bench = files.bench

    def moved(host: Host, config: Config) -> Bench:
        assert being_read(config.runtime_dir), "from when the point is chosen"
        return disks.bench(bench(host, config))

    monkeypatch.setattr(files, "bench", moved)
    top = call("restore", "100", "--files")
    assert (top.code, top.stderr) == (0, "")
    assert "NTFS: recognised, not mounted" in top.stdout
    assert re.search(r"^drwx.* etc/$", top.stdout, re.MULTILINE)
    done = call("restore", "100", "/etc/fstab", "/none", "--files", "--to", str(tmp_path / "out"))
    assert done.code == 1
    assert done.stdout.startswith("1 files, 1 B, of point 100/")
    assert done.stderr == "note: /none: in no file system of this point\n"
    assert (tmp_path / "out/scsi0/etc/fstab").read_text() == "x"
    assert call("restore", "100", "/none", "--files").code == 2
    told = json.loads(call("restore", "100", "--files", "/etc", "--json").stdout)
    assert list(told) == ["format", "point", "file_systems", "others", "shown", "copied", "missing", "notes"]
    (shown,) = told["shown"]
    assert [entry["name"] for entry in shown["entries"]] == ["fstab", "os-release"]
    assert shown["entries"][1]["aim"] == "../usr/lib/os-release"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--files", "--as", "300"), "--files makes no guest: --as cannot go with it"),
        (("--files", "--from", "source", "--local", "tank/x"), "--from and --local name two places"),
        (("/etc",), "paths, --overwrite and --local go with --files"),
        (("--overwrite",), "paths, --overwrite and --local go with --files"),
        (("--files", "etc"), "a path begins with /"),
    ],
)
def test_files_and_guests_are_not_mixed(old: World, call: Call, words: tuple[str, ...], told: str) -> None:
    done = call("restore", "100", *words)
    assert done.code == 3
    assert told in done.stderr
    assert old.runner.changes == []


def test_a_plugin_answers_with_one_line_and_its_exit_code(old: World, call: Call, golden: Compare) -> None:
    """Also where nothing can be asked: silence would be taken for health."""
    done = call("check")
    golden("check.txt", done.stdout)
    assert (done.code, done.stderr) == (1, "")
    data = call("check", "--json")
    golden("check.json", data.stdout)
    assert data.code == 1
    line = call("check", "--checkmk")
    assert (line.code, line.stdout.count("\n"), line.stdout[:18]) == (0, 1, '1 "pve-zfsbackup" ')
    old.node.api = "ipcc_send_rec[1] failed: Connection refused"
    for config in (None, Path("/none.yaml")):
        failed = call("check", config=config)
        assert (failed.code, failed.stdout[:10], failed.stderr) == (3, "UNKNOWN - ", ""), config
    assert call("check", "--checkmk").stdout.startswith('3 "pve-zfsbackup" - ')


def test_metrics_replace_a_file_that_others_may_read(world: World, call: Call, tmp_path: Path) -> None:
    world.run()
    file = tmp_path / "pve-zfsbackup.prom"
    file.write_text("old")
    file.chmod(0o600)
    assert call("metrics", "--output", str(file)) == Ended(0, "", "")
    assert file.read_text() == call("metrics").stdout
    assert "\npve_zfsbackup_up 1.0\n" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o644
    assert json.loads(call("metrics", "--json").stdout)["format"] == 1
    assert [path.name for path in tmp_path.glob(".*")] == [], "nothing half written stays"


def test_metrics_tell_that_nothing_is_known(world: World, call: Call, tmp_path: Path) -> None:
    file = tmp_path / "pve-zfsbackup.prom"
    world.node.api = "ipcc_send_rec[1] failed: Connection refused"
    for config in (None, Path("/none.yaml")):
        done = call("metrics", "--output", str(file), config=config)
        assert (done.code, done.stdout) == (2, "")
        assert "error: " in done.stderr
        assert "\npve_zfsbackup_up 0.0\n" in file.read_text(), "and not what was good an hour ago"


def test_metrics_go_to_no_device_link_or_missing_place(world: World, call: Call, tmp_path: Path) -> None:
    link = tmp_path / "link.prom"
    link.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "directory").mkdir()
    for path, said in (
        ("/dev/null", "not a regular file"), (str(link), "not a regular file"),
        (str(tmp_path / "directory"), "not a regular file"), (str(tmp_path / "none/x.prom"), "No such file"),
    ):  # fmt: skip
        done = call("metrics", "--output", path)
        assert done.code == 2, path
        assert said in done.stderr
    assert Path("/dev/null").is_char_device()
    assert not (tmp_path / "elsewhere").exists()


def test_metrics_without_their_library_say_what_to_install(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "pve_zfsbackup.report.metrics", raising=False)
    done = call("metrics")
    assert (done.code, done.stdout) == (3, "")
    assert "hint: apt install python3-prometheus-client" in done.stderr


def test_a_report_goes_to_a_file_to_standard_output_or_by_mail(
    world: World, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[Any, ...]] = []
    monkeypatch.setattr("pve_zfsbackup.cli.overview.mail", lambda runner, *words: sent.append(words))
    world.run()
    file = tmp_path / "report.html"
    assert call("report", "--output", str(file)) == Ended(0, "", "")
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    assert call("report", "--output", str(file), "--mail", "root", "--mail", "ops@example.org") == Ended(0, "", "")
    assert file.stat().st_mode & 0o777 == 0o644, "as its owner wants it"
    assert call("report").stdout == file.read_text()
    ((to, subject, text, attached),) = sent
    assert (to, subject) == (("root", "ops@example.org"), "[pve1] backup report: OK")
    assert text.startswith("All is well.\n")
    assert (attached.name, attached.type, attached.text) == ("pve-zfsbackup-pve1.html", "text/html", file.read_text())
    assert json.loads(call("report", "--json").stdout)["health"]["level"] == "ok"


def test_a_report_tells_what_did_not_answer_and_refuses_what_is_no_address(world: World, call: Call) -> None:
    world.runner.down[TARGET] = "No route to host"
    done = call("report")
    assert done.code == 1
    assert "No route to host" in done.stderr
    assert "no answer" in done.stdout
    for address in ("-oQ/tmp", "a b", "x@y\nBcc: z"):
        done = call("report", f"--mail={address}")
        assert (done.code, done.stdout) == (3, ""), address


def test_cron_hears_nothing_when_all_is_well(world: World, call: Call) -> None:
    for command in ("run", "snapshot", "replicate", "prune"):
        world.clock.now += 3600
        assert call(command) == Ended(0, "", ""), command


def test_cron_hears_what_failed_and_what_to_do(world: World, call: Call) -> None:
    world.runner.down[TARGET] = "Host key verification failed."
    done = call("run")
    assert (done.code, done.stdout) == (1, "")
    assert "replicate -> backup1 failed: target backup1: host key of backup@backup1.example:22" in done.stderr
    assert "\n  hint: compare the key by hand" in done.stderr


def test_exit_codes_of_a_run(world: World, call: Call, tmp_path: Path) -> None:
    assert call("run").code == 0
    world.runner.down[TARGET] = "down"
    world.clock.now += 3600
    assert call("run").code == 1
    assert call("replicate").code == 2
    world.runner.down.clear()
    assert call("run", config=tmp_path / "none.yaml").code == 3
    with run_lock(world.place / "run", "snapshot"):
        locked = call("run")
    assert locked.code == 4
    assert f"error: another run is at work on this: snapshot (process {os.getpid()})\nhint: wait" in locked.stderr
    world.node.api = "ipcc_send_rec[1] failed: Connection refused"
    assert call("run").code == 2


@pytest.fixture
def outgoing(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What leaves for the services of the configuration, which are a switch and a webhook."""
    sent: list[str] = []
    monkeypatch.setattr(notify, "ping", lambda address, **_: sent.append(address.removeprefix("https://ping.example")))
    monkeypatch.setattr(notify, "post", lambda address, body, headers, **_: sent.append(body.decode()))
    (secret := world.place / "url").write_text("https://ping.example\n")
    secret.chmod(0o600)
    world.configure(
        CONFIG.replace("no.token", "a.token")
        + f"alerts: {{{{ping-file: {secret}}}}}\nwebhooks: {{{{ops: {{{{url-file: {secret}}}}}}}}}\n"
    )
    return sent


def test_a_run_that_cannot_begin_is_told_and_alarms_the_switch(
    world: World, call: Call, outgoing: list[str]
) -> None:
    """The file of the token was opened to others: cron's mail would be all there is of it, every hour."""
    (token := world.place / "a.token").write_text("backup@pve!zfs=aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee\n")
    token.chmod(0o644)
    for words in (("run", "--dry-run"), ("snapshot",), ("status",)):
        assert call(*words).code == 3
    assert not outgoing, "somebody sits there"
    done = call("run")
    assert (done.code, done.stdout) == (3, "")
    assert "lets others read the secret" in done.stderr
    text, ping = outgoing
    (problem,) = json.loads(text)["problems"]
    assert (problem["problem"]["stage"], problem["problem"]["hint"]) == ("run", f"chmod 600 {token}")
    assert "lets others read the secret" in problem["problem"]["message"]
    assert "aaaaaaaa" not in text
    assert ping == "/fail"
    token.unlink()  # before `setup` made one, pvesh serves
    world.clock.now += 3600
    assert call("run").code == 0
    start, text, end = outgoing[2:]
    assert [item["problem"]["key"] for item in json.loads(text)["recovered"]] == ["run"]
    assert (start, end) == ("/start", "")


def test_a_configuration_that_cannot_be_read_tells_nobody_for_it_would_say_whom(
    world: World, call: Call, outgoing: list[str]
) -> None:
    world.config.chmod(0o666)
    assert call("run").code == 3
    assert not outgoing


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--stage", "fly"),
        ("list", "1-x"),
        ("nonsense",),
        ("run", "--nope"),
        ("run", "999"),
        ("run", "--job", "x"),
    ],
    ids=slug,
)
def test_mistakes_of_the_caller_are_usage(world: World, call: Call, words: tuple[str, ...]) -> None:
    done = call(*words)
    assert (done.code, done.stdout) == (3, "")
    assert done.stderr
    assert "Traceback" not in done.stderr
    assert not world.runner.changes


def test_all_mistakes_in_the_configuration_at_once(world: World, call: Call) -> None:
    world.config.write_text("jobs:\n  all: {guests: [al], target: [x]}\ntargts: {}\n")
    done = call("run")
    assert (done.code, done.stdout) == (3, "")
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 3
    assert f"{world.config}:2:" in done.stderr
    assert "targets" in done.stderr
    assert not world.runner.ran


@pytest.mark.parametrize("words", [("list",), ("status",), ("prune", "--dry-run"), ("run", "--dry-run")], ids=slug)
def test_looking_without_the_target_tells_what_is_known_and_exits_1(
    old: World, call: Call, words: tuple[str, ...]
) -> None:
    old.runner.down[TARGET] = "ssh: connect to host backup1.example port 22: No route to host"
    done = call(*words)
    assert done.code == 1
    assert "100" in done.stdout
    assert "No route to host" in done.stdout + done.stderr
    assert json.loads(call(*words, "--json").stdout)["unreachable"]


def test_a_bug_of_ours_is_failed_and_not_partly_done(world: World, call: Call) -> None:
    world.runner.faults.append(Fault(words=("list",), error=ZeroDivisionError("oops")))
    done = call("run")
    assert done.code == 2
    assert "ZeroDivisionError: oops" in done.stderr
    last = json.loads((world.place / "log/journal.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["error"]) == ("broken-off", "ZeroDivisionError: oops")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("times", [1, 2])
def test_a_termination_thaws_and_ends_with_failed(world: World, call: Call, number: signal.Signals, times: int) -> None:
    left = [times]

    def terminate(ran: object) -> None:
        if world.guest(WEB).frozen and left[0]:
            left[0] -= 1
            signal.raise_signal(number)

    world.runner.watchers.append(terminate)
    done = call("run")
    assert (done.code, done.stdout, done.stderr.strip()) == (2, "", "interrupted")
    assert not world.points(HERE, WEB)
    if times == 2:  # the second one broke off the thaw: the watchdog is still there for it
        world.runner.fire_timers()
    assert not world.guest(WEB).frozen
    assert not world.runner.timers


def test_what_an_interruption_leaves_is_told(world: World, call: Call) -> None:
    cut = KeyboardInterrupt("SIGTERM")
    cut.add_note("guest 100 stays locked there")
    world.runner.faults.append(Fault(words=("list",), error=cut))
    done = call("run")
    assert (done.code, done.stderr.splitlines()[-2:]) == (2, ["interrupted", "note: guest 100 stays locked there"])


def test_an_interrupted_stream_is_cut_at_once_and_resumed_later(world: World, call: Call) -> None:
    world.runner.faults.append(Fault(words=("receive",), nth=2, error=KeyboardInterrupt()))
    assert call("run").code == 2
    assert world.runner.cancelled
    world.runner.revive()
    assert call("run").code == 0


def test_hostile_names_do_not_reach_the_terminal(world: World, call: Call) -> None:
    text = (world.node.etc / "qemu-server/100.conf").read_text()
    world.node.define(WEB, text.replace("name: web", "name: \x1b[2J[red]evil\u202e"))
    for words in (("discover",), ("run", "-v"), ("list",), ("status",), ("run", "--dry-run")):
        done = call(*words)
        assert "\x1b" not in done.stdout + done.stderr
        assert "\u202e" not in done.stdout + done.stderr
        assert "\\x1b[2J[red]evil\\u202e" in done.stdout
    assert "\x1b" not in call("discover", "--json").stdout


def test_a_terminal_gets_a_drawn_table_and_markup_stays_text(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (world.node.etc / "qemu-server/100.conf").read_text()
    world.node.define(WEB, text.replace("name: web", "name: [red]web"))
    monkeypatch.setattr(terminal.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    assert "[red]web" in call("discover").stdout


# -- guests that hang, Proxmox's hooks, a cluster's configuration


def test_thawing_by_hand(world: World, call: Call) -> None:
    assert call("thaw").stdout == "no guest was left frozen\n"
    world.guest(DB).frozen = True
    done = call("thaw", "101", "--json")
    assert json.loads(done.stdout)["results"] == [
        {"vmid": 101, "outcome": "ok", "message": "thawed, 2 were frozen", "hint": ""}
    ]
    assert not world.guest(DB).frozen
    world.guest(DB).agent = "hang"
    assert call("thaw", "101").code == 2


def test_vzdumps_call_is_answered_in_its_log(world: World, call: Call) -> None:
    done = call("hook", "vzdump", "backup-end", "snapshot", "100", config=world.config)
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.startswith("pve-zfsbackup: guest 100: snapshot ok: 2 disks, quiesced\n")
    assert len(world.complete(TARGET, WEB)) == 1
    assert call("hook", "vzdump", "job-end") == Ended(0, "", "")
    assert call("hook", "vzdump", "no-such-phase").code == 3
    assert call("hook", "guest", "100", "post-start") == Ended(0, "", "")


def test_the_clusters_configuration_serves_where_the_node_has_none(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = world.place / "pve-zfsbackup.yaml"
    monkeypatch.setattr(options, "CONFIG", world.place / "none.yaml")
    monkeypatch.setattr(options, "CLUSTER_CONFIG", shared)
    assert "No such file" in call("discover", config=world.place / "none.yaml").stderr, "pmxcfs is not mounted"
    shared.write_text(world.config.read_text())
    shared.chmod(0o640)  # as pmxcfs has it
    assert call("discover", config=world.place / "none.yaml").code == 0
    assert options.chosen(world.config) == world.config, "the node's own comes first"
    monkeypatch.setattr(options, "CONFIG", world.config)
    assert options.chosen(world.config) == world.config
    before = {path: path.stat().st_mtime_ns for path in world.node.etc.rglob("*") if path.is_file()}
    assert call("run", config=world.place / "none.yaml").code == 3, "a node's own path, when it is asked for, is meant"
    monkeypatch.setattr(options, "CONFIG", world.place / "none.yaml")
    assert call("run", config=world.place / "none.yaml").code == 0
    after = {path: path.stat().st_mtime_ns for path in world.node.etc.rglob("*") if path.is_file()}
    assert before == after, "nothing of ours is written to /etc/pve"


def configured(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Parameter]]:
    """Every command that reads a configuration."""
    for parameter in command.params:
        if parameter.name == "config_path":
            yield path, parameter
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            child = command.get_command(click.Context(command), name)
            assert child
            yield from configured(child, (*path, name))


def test_every_command_takes_the_clusters_configuration(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, own = world.place / "shared.yaml", world.place / "own.yaml"
    shared.touch()
    monkeypatch.setattr(options, "CONFIG", own)
    monkeypatch.setattr(options, "CLUSTER_CONFIG", shared)
    context = click.Context(click.Command("x"))
    found = dict(configured(cli.cli))
    assert {("setup",), ("setup", "target"), ("setup", "box"), ("key", "drill"), ("hook", "vzdump")} <= found.keys()
    wrong = [path for path, option in found.items() if option.process_value(context, str(own)) != shared]
    assert not wrong


@pytest.mark.parametrize(
    "words",
    [
        ("setup",),
        ("setup", "target", "backup1", "--print"),
        ("setup", "box", "b1"),
        ("verify", "archive", "b1"),
        ("key", "drill", "b1", "--identity", __file__),
        ("key", "escrow", "b1"),
    ],
)
def test_what_prepares_and_proves_takes_the_clusters_configuration(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """A first configuration without targets in the place of the node's own would hide the shared one for good."""
    shared, own = world.place / "shared.yaml", world.place / "own.yaml"
    key = f"identity-file: {world.place}/shared-key"
    text = world.config.read_text().replace("host: backup1.example,", f"host: backup1.example, {key},")
    shared.write_text(f"{text}boxes:\n  b1: {{host: /mnt/box}}\n")
    monkeypatch.setattr(options, "CONFIG", own)
    monkeypatch.setattr(options, "CLUSTER_CONFIG", shared)
    asked: list[Path] = []

    def setup_node(file: Path, **_: bool) -> tuple[Action, ...]:
        asked.append(file)
        return ()

    def open_box(config: Config, name: str, *_: object) -> None:
        raise ConfigError([f"box at {config.boxes[name].host}"])

    monkeypatch.setattr(prepare, "setup_node", setup_node)
    monkeypatch.setattr(archive, "open_box", open_box)
    done = call(*words, config=own)
    assert not own.exists()
    if words == ("setup",):
        assert asked == [shared]
        return
    assert done.code == 3
    assert ("shared-key.pub is missing" if words[1] == "target" else "box at /mnt/box") in done.stderr


# -- proofs


def recorded(world: World) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in (world.place / "log/journal.jsonl").read_text().splitlines()]
    return [(line["stages"][0], line["run"]) for line in lines if line["event"] == "start"]


def test_proofs_are_on_record_and_silent_while_all_is_well(world: World, call: Call) -> None:
    world.run()
    assert call("verify", "points") == Ended(0, "", "")
    world.runner.tools = Disks(place=world.place / "disks").run
    world.source.datasets["rpool/crypt/vm-101-disk-0"].key = False
    done = call("verify", "drill", "101")  # nothing but the chain can be proven
    assert (done.code, done.stdout) == (0, ""), done.stderr
    assert call("verify", "pools").code == 1, "the target was never scrubbed"
    assert [stage for stage, _ in recorded(world)][1:] == ["verify-points", "verify-drill", "verify-pools"]
    report = call("report").stdout
    assert "verify-pools" in report
    assert "compared: 1 of 1 points are whole" in report


def test_a_drill_that_waits_for_another_leaves_no_trace(world: World, call: Call) -> None:
    world.run()
    before = recorded(world)
    with run_lock(world.place / "run", "drill"):
        assert call("verify", "drill").code == 4
    assert recorded(world) == before


def test_a_proof_without_a_journal_is_done_and_told(world: World, call: Call) -> None:
    world.run()
    journal = world.place / "log/journal.jsonl"
    journal.unlink()
    journal.mkdir()
    done = call("verify", "points")
    assert done.code == 1
    assert "the journal cannot be written: Is a directory" in done.stderr
    assert "1 " in done.stdout
    told = json.loads(call("verify", "points", "--json").stdout)
    assert [guest["problems"] for guest in told["guests"]] == [[], [], []]
    assert "journal" in told["failed"][0]["message"]
    assert call("status").code == 0
    assert "nothing was measured" in call("status").stderr


# -- a status that is looked at again and again


@dataclass(slots=True)
class Sessions:
    opened: int = 0
    closed: int = 0


@pytest.fixture
def sessions(world: World, monkeypatch: pytest.MonkeyPatch) -> Sessions:
    counted, real = Sessions(), options.open_session

    @contextlib.contextmanager
    def opened(config: Config, emit: Emit) -> Iterator[Session]:
        counted.opened += 1
        with real(config, emit) as session:
            yield session
        counted.closed += 1

    monkeypatch.setattr(options, "open_session", opened)
    return counted


class Naps:
    """What happens while `--watch` sleeps: one after another, then Ctrl-C."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *happens: Callable[[], object]) -> None:
        self.slept: list[float] = []
        self._happens = list(happens)
        monkeypatch.setattr("pve_zfsbackup.cli.look.time.sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if not self._happens:
            raise KeyboardInterrupt
        self._happens.pop(0)()


@pytest.fixture
def watched(world: World, call: Call, monkeypatch: pytest.MonkeyPatch) -> Call:
    def run(*words: str) -> Ended:
        monkeypatch.setattr(terminal, "is_watched", lambda: True)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("LINES", "40")
        return call("status", *words)

    return run


def test_a_watched_status_looks_again_until_ctrl_c(
    world: World, watched: Call, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run()
    files = len(os.listdir("/proc/self/fd"))
    later = [lambda: setattr(world.clock, "now", world.clock.now + 4 * 3600)] * 5
    naps = Naps(monkeypatch, *later)
    done = watched("--watch=7")
    assert (done.code, done.stderr) == (0, "")
    assert naps.slept == [7] * 6
    assert (sessions.opened, sessions.closed) == (6, 6), "one for each look, none left"
    assert len(os.listdir("/proc/self/fd")) == files
    assert done.stdout.count("every 7 s, Ctrl-C ends") == 6
    looks = done.stdout.split("every 7 s")
    assert ["older than 3 h" in look for look in looks] == [False, False, *[True] * 5]


def test_watching_goes_on_while_nothing_can_be_known(
    world: World, watched: Call, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run()
    naps = Naps(
        monkeypatch,
        lambda: setattr(world.node, "api", "ipcc_send_rec[1] failed: Connection refused"),
        lambda: setattr(world.node, "api", "ok"),
    )
    done = watched("100", "--watch")
    assert (done.code, naps.slept) == (0, [10, 10, 10])
    told = done.stdout.split("Ctrl-C ends")
    assert "Connection refused" in told[2]
    assert "web" in told[3], "and well again"
    assert "files" not in done.stdout, "only who was named"


def test_what_keeps_a_first_look_from_knowing_ends_it(
    world: World, watched: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    Naps(monkeypatch)
    world.node.api = "ipcc_send_rec[1] failed: Connection refused"
    assert watched("--watch").code == 2
    assert watched("999", "--watch").code == 2
    world.node.api = "ok"
    assert watched("999", "--watch").code == 3


def test_a_signal_that_ends_programs_is_no_ctrl_c(world: World, watched: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    Naps(monkeypatch, lambda: signal.raise_signal(signal.SIGTERM))
    done = watched("--watch")
    assert (done.code, done.stderr.strip()) == (2, "interrupted")


def test_watching_is_for_people_at_a_terminal(world: World, call: Call) -> None:
    done = call("status", "--watch")
    assert (done.code, done.stdout) == (3, "")
    assert "error: --watch needs a terminal" in done.stderr
    assert "hint: `status` without it for a file, `check` and `metrics` for monitoring" in done.stderr
    assert call("status", "--watch", "--json").code == 3
    for wrong in ("0", "100", "web"):
        refused = call("status", "--watch", wrong)
        assert (refused.code, refused.stdout) == (3, "")
    assert not world.runner.ran
