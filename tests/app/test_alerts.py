"""After a run whoever is to know is told; telling never changes how the run ended."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from pve_zfsbackup.app.alerts import alerted_run, held_back, send_test, tell_broken, tell_results
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.messages import Alert, alert_text, message_for
from pve_zfsbackup.app.pools import PoolFound
from pve_zfsbackup.app.pools import as_result as pool_result
from pve_zfsbackup.app.run import ALL_STAGES, Report, Stage
from pve_zfsbackup.config import WebhookType, load_config
from pve_zfsbackup.errors import BackupError, ExitCode, LockedError, PveError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host import notify
from pve_zfsbackup.host.lock import run_lock
from pve_zfsbackup.model import SOURCE, Vmid
from pve_zfsbackup.model.alerts import Known, Problem
from pve_zfsbackup.model.health import Scan
from pve_zfsbackup.model.secrets import redacted
from tests.fakes.pools import no, ok
from tests.fakes.runner import Fault
from tests.fakes.world import CONFIG, TARGET, World

ADDRESS = "https://hooks.example/T0PSECRET"
HOUR = 3600
HOSTILE = "</a>*b*`c`@everyone <!channel> [x](https://evil.example)\n```\x1b[31m\u202e"


class Outbox:
    """What was sent, as (service, text); services named in `down` take nothing."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []
        self.pings: list[str] = []
        self.down: set[str] = set()

    def mail(self, runner: Any, to: Any, subject: str, text: str) -> None:
        self._take("mail", f"{subject}\n{text}")

    def post(self, address: str, body: bytes, headers: Any, *, local: bool = False) -> None:
        assert address == ADDRESS
        self._take("ops", body.decode())

    def ping(self, address: str, *, local: bool = False) -> None:
        if "ping" in self.down:
            raise BackupError("the service did not take it: ConnectTimeout")
        self.pings.append(address.removeprefix(ADDRESS))

    def _take(self, name: str, text: str) -> None:
        if name in self.down:
            raise BackupError("the service did not take it: status 500")
        self.sent.append((name, text))

    def by(self, name: str) -> list[str]:
        return [text for service, text in self.sent if service == name]


@pytest.fixture
def outbox(monkeypatch: pytest.MonkeyPatch) -> Outbox:
    made = Outbox()
    for way in ("mail", "post", "ping"):
        monkeypatch.setattr(notify, way, getattr(made, way))
    return made


@pytest.fixture
def told(world: World) -> World:
    """A world whose configuration has every way out."""
    secret = world.place / "url"
    secret.write_text(ADDRESS + "\n")
    secret.chmod(0o600)
    alerts = f"alerts: {{{{mail: [root], ping-file: {secret}}}}}\nwebhooks: {{{{ops: {{{{url-file: {secret}}}}}}}}}\n"
    world.configure(CONFIG + alerts)
    world.impatient()
    return world


def run(world: World, *stages: Stage) -> tuple[Report, tuple[str, ...]]:
    world.clock.now += HOUR
    with world.session() as session:
        return alerted_run(session, Scope(), stages or ALL_STAGES)


def test_when_all_is_well_only_the_switch_is_called(told: World, outbox: Outbox) -> None:
    report, troubles = run(told)
    assert (report.exit_code, troubles, outbox.sent) == (ExitCode.OK, (), [])
    assert outbox.pings == ["/start", ""]


def test_what_the_switch_is_told_stands_in_the_path_and_not_in_the_query(
    told: World, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind `status=up` a failure would be taken for a sign of life."""
    monkeypatch.setattr(notify, "post", lambda *_, **__: None)  # its address is in the same file
    (told.place / "url").write_text(f"{ADDRESS}/?status=up&msg=OK&ping=\n")
    told.runner.down[TARGET] = "no route to host"
    run(told)
    assert outbox.pings == ["/start?status=up&msg=OK&ping=", "/fail?status=up&msg=OK&ping="]


def test_a_failure_and_its_end_are_told_to_everybody(told: World, outbox: Outbox) -> None:
    run(told)
    told.runner.down[TARGET] = "no route to host"
    run(told)
    assert outbox.pings[-2:] == ["/start", "/fail"]
    (text,) = outbox.by("mail")
    assert text.startswith("pve-zfsbackup on pve1: 2 problems\nreplicate, target backup1: ")
    assert "\n\nprune, target backup1: " in text
    assert "no route to host" in text
    (data,) = (json.loads(body) for body in outbox.by("ops"))
    assert (data["format"], data["node"], len(data["problems"])) == (1, "pve1", 2)
    told.runner.down.clear()
    run(told)
    assert "2 recovered" in outbox.by("mail")[-1]
    assert "replicate, target backup1: well again, after trouble since" in outbox.by("mail")[-1]
    count = len(outbox.sent)
    run(told)
    assert len(outbox.sent) == count


def test_guests_that_may_be_hidden_are_told_once_a_run_until_all_are_seen(told: World, outbox: Outbox) -> None:
    """Nothing of theirs fails, and nothing of theirs is backed up: the run is no success."""
    told.node.hidden = {100, 200}
    report, _ = run(told)
    assert (report.exit_code, outbox.pings[-1]) == (ExitCode.PARTIAL, "/fail")
    (warning,) = [result for result in report.results if result.outcome is Outcome.FAILED]
    assert "lacks VM.Audit on /vms" in warning.message
    (mail,) = outbox.by("mail")
    assert warning.message in mail
    assert "run pve-zfsbackup setup" in mail
    told.node.hidden = set()
    run(told)
    assert "1 recovered" in outbox.by("mail")[-1]


@pytest.mark.parametrize("stage", ["replicate", "prune"])
def test_what_was_left_to_a_later_run_proves_no_recovery(told: World, outbox: Outbox, stage: str) -> None:
    """Every other run finds the lock taken, or a restore at work, while the target is down: nobody asked it."""
    run(told)
    told.runner.down[TARGET] = "no route to host"
    run(told)
    problems = len(outbox.by("mail"))
    skipped = Result(stage=stage, outcome=Outcome.SKIPPED, message=f"{stage}: left to a later run")
    remark = Result(stage=stage, outcome=Outcome.WARNING, message="the newest points of 100 are from the future")
    with run_lock(told.place / "run", "replicate"):
        report, _ = run(told)
    assert any(result.outcome is Outcome.SKIPPED and not result.vmid for result in report.results)
    with told.session() as session:
        tell_results(session, [skipped, remark])
    assert len(outbox.by("mail")) == problems
    told.runner.down.clear()
    run(told)
    assert f"{stage}, target backup1: well again" in outbox.by("mail")[-1]


def test_each_pool_of_a_node_is_a_problem_of_its_own(told: World, outbox: Outbox) -> None:
    def verified(**pools: str) -> list[str]:
        found = [PoolFound(host=SOURCE, pool=name, scan=Scan(state="ONLINE"), problems=(state,) if state else ())
                 for name, state in pools.items()]  # fmt: skip
        before = len(outbox.by("mail"))
        told.clock.now += HOUR
        with told.session() as session:
            tell_results(session, [pool_result(one) for one in found])
        return outbox.by("mail")[before:]

    for _ in range(3):
        assert verified(rpool="is FAULTED", tank="")
    (text,) = verified(rpool="is FAULTED", tank="is DEGRADED")
    assert ("1 problem\n" in text, "pool tank: is DEGRADED" in text, "rpool" in text) == (True, True, False)
    (text,) = verified(rpool="is FAULTED", tank="")
    assert ("1 recovered\n" in text, "tank" in text, "rpool" in text) == (True, True, False)
    (text,) = verified(rpool="", tank="")
    assert ("1 recovered\n" in text, "rpool" in text) == (True, True)


def test_what_a_box_puts_off_proves_nothing_of_the_box(told: World, outbox: Outbox) -> None:
    broken, put_off, fine = (
        Result(stage="archive", outcome=outcome, host="box1", message="a series")
        for outcome in (Outcome.FAILED, Outcome.SKIPPED, Outcome.OK)
    )
    counts = []
    for result in (broken, put_off, fine):
        with told.session() as session:
            tell_results(session, [result])
        counts.append(len(outbox.by("mail")))
    assert counts == [1, 1, 2]


def test_a_clock_that_was_set_back_is_told_once_for_all_guests_until_it_is_right(told: World, outbox: Outbox) -> None:
    """Fault 12: nothing is pruned then, and who looks at no monitoring would not know for years."""
    run(told)
    told.clock.now -= 4 * HOUR
    report, _ = run(told)
    assert report.exit_code is ExitCode.OK
    (text,) = outbox.by("mail")
    assert text.startswith("pve-zfsbackup on pve1: 1 problem\nprune: the newest points of 100, 101 and 1 more are ")
    assert "from the future" in text
    assert "timedatectl" in text
    told.clock.now += 4 * HOUR
    run(told)
    assert "prune: well again, " in outbox.by("mail")[-1]
    assert len(outbox.by("mail")) == 2


def test_clocks_differ_by_minutes(told: World, outbox: Outbox) -> None:
    """It was set right after the last run: the next one is an hour later, whatever it says."""
    run(told)
    told.clock.now -= 2 * HOUR - 600
    run(told)
    assert not outbox.sent


def test_a_guest_is_told_with_what_to_do_and_its_last_good_point(told: World, outbox: Outbox) -> None:
    report, _ = run(told)
    good = next(result.point for result in report.results if (result.stage, result.vmid) == ("snapshot", 101))
    told.runner.faults.append(Fault(words=("snapshot", "--"), nth=3, answer=(1, "out of space")))
    run(told)
    (text,) = outbox.by("mail")
    assert "guest 101 db, snapshot: " in text
    assert "out of space\n  what to do: free space on the pool\n" in text
    assert f"  last good point: {good}" in text


def test_what_lasts_is_told_three_times_and_then_after_a_day(told: World, outbox: Outbox) -> None:
    told.runner.down[TARGET] = "no route to host"
    for _ in range(26):
        run(told)
    assert len(outbox.by("mail")) == 3
    run(told)
    assert len(outbox.by("mail")) == 4


def test_what_a_service_did_not_take_is_sent_after_the_next_run(told: World, outbox: Outbox) -> None:
    told.runner.down[TARGET] = "no route to host"
    outbox.down = {"ops", "ping"}
    report, troubles = run(told)
    assert report.exit_code is ExitCode.PARTIAL
    assert troubles == (
        "ping: the service did not take it: ConnectTimeout",
        "alert by webhook ops: the service did not take it: status 500",
        "ping: the service did not take it: ConnectTimeout",
    )
    assert len(outbox.by("mail")) == 1
    told.runner.down.clear()
    run(told)
    assert (len(outbox.by("mail")), len(outbox.by("ops"))) == (2, 0), "mail does not get it twice"
    outbox.down.clear()
    run(told)
    titles = [json.loads(body)["title"].partition(": ")[2] for body in outbox.by("ops")]
    assert titles == ["2 problems", "2 recovered"]
    assert len(outbox.by("mail")) == 2


def test_old_news_of_a_dead_service_is_dropped_and_never_grows(told: World, outbox: Outbox) -> None:
    outbox.down = {"ops"}
    for number in range(40):
        told.runner.down.clear()
        if number % 2 == 0:
            told.runner.down[TARGET] = "no route to host"
        run(told)
    waiting = json.loads((told.place / "state/alerts.json").read_text())["waiting"]
    assert len(waiting) == 20
    told.clock.now += 30 * 86_400
    told.runner.down.clear()
    outbox.down.clear()
    run(told)
    assert not outbox.by("ops")


def test_a_run_that_breaks_off_is_told_and_raised(told: World, outbox: Outbox) -> None:
    told.node.api = "ipcc_send_rec[1] failed: Connection refused"
    with pytest.raises(PveError):
        run(told)
    assert outbox.pings == ["/start", "/fail"]
    assert "ipcc_send_rec" in outbox.by("mail")[0]
    told.node.api = "ok"
    run(told)
    assert "1 recovered" in outbox.by("mail")[-1]


def test_runs_of_different_stages_that_break_off_are_problems_of_their_own(told: World, outbox: Outbox) -> None:
    """The hourly run is well every hour: that says nothing of the retention, which breaks off every night."""
    hourly, nightly = (Stage.SNAPSHOT, Stage.REPLICATE), (Stage.PRUNE,)
    told.node.api = "ipcc_send_rec[1] failed: Connection refused"
    for stages in (hourly, nightly):
        with pytest.raises(PveError):
            run(told, *stages)
    assert len(outbox.by("mail")) == 2
    told.node.api = "ok"
    run(told, *hourly)
    assert "1 recovered" in outbox.by("mail")[-1]
    run(told, *hourly)
    assert len(outbox.by("mail")) == 3
    run(told, *nightly)
    assert len(outbox.by("mail")) == 4


def test_what_is_left_to_a_later_run_has_not_ended(told: World, outbox: Outbox) -> None:
    told.node.api = "ipcc_send_rec[1] failed: Connection refused"
    with pytest.raises(PveError):
        run(told)
    told.node.api = "ok"
    with run_lock(told.place / "run", "replicate"):
        run(told)
    assert len(outbox.by("mail")) == 1
    run(told)
    assert "1 recovered" in outbox.by("mail")[-1]


def test_a_stage_that_a_command_kept_from_being_done_is_well_once_it_was_done(told: World, outbox: Outbox) -> None:
    told.config.write_text(f"{told.config.read_text()}hooks: {{before-replicate: [/bin/ready]}}\n")
    told.runner.hooks = lambda argv: no(argv, "not today")
    run(told)
    assert "before-replicate command failed" in outbox.by("mail")[-1]
    told.runner.hooks = ok
    run(told)
    assert "replicate: well again" in outbox.by("mail")[-1]


def test_a_guest_that_was_thawed_and_a_journal_that_is_written_again_are_told(told: World, outbox: Outbox) -> None:
    broken = [Result(stage="thaw", outcome=Outcome.FAILED, vmid=Vmid(100), message="may still be frozen"),
              Result(stage="journal", outcome=Outcome.FAILED, message="the disk is full")]  # fmt: skip
    with told.session() as session:
        tell_results(session, broken)
    run(told, Stage.PRUNE)
    (mail,) = outbox.by("mail")[1:]
    assert "journal: well again" in mail
    run(told, Stage.SNAPSHOT)
    assert "guest 100, thaw: well again" in outbox.by("mail")[-1]
    assert "1 recovered" in outbox.by("mail")[-1]


def test_two_that_tell_at_once_forget_nothing_of_each_other(
    told: World, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drill ends while the hourly run tells: what was read first must not be written last."""
    sending, go_on = threading.Event(), threading.Event()

    def slowly(*_: Any) -> None:
        sending.set()
        assert go_on.wait(30)

    monkeypatch.setattr(notify, "mail", slowly)

    def tell(stage: str) -> threading.Thread:
        with told.session() as session:
            home = session
        thread = threading.Thread(target=tell_broken, args=(home, stage, BackupError("broke")))
        thread.start()
        return thread

    first = tell("verify-drill")
    assert sending.wait(30)
    second = tell("restore")
    second.join(0.2)
    go_on.set()
    first.join(30)
    second.join(30)
    known = json.loads((told.place / "state/alerts.json").read_text())["known"]
    assert known.keys() == {"verify-drill", "restore"}


def stuck(world: World, work: str, hours: float) -> None:
    """The lock was taken so long ago, by another process."""
    (world.place / f"run/{work}.lock").write_text("4711\n")
    since = world.clock.now - hours * HOUR
    os.utime(world.place / f"run/{work}.lock", (since, since))


def test_a_run_is_no_success_while_another_one_hangs(told: World, outbox: Outbox) -> None:
    """Its locks are taken, and so every later run has nothing to do that could fail."""
    run(told)
    with run_lock(told.place / "run", "replicate"):
        stuck(told, "replicate", 24)
        report, _ = run(told)
        assert (report.exit_code, outbox.pings[-1], outbox.sent) == (ExitCode.OK, "", [])
        stuck(told, "replicate", 26)
        report, _ = run(told)
        stuck(told, "replicate", 26)
        named = told.run(Stage.SNAPSHOT, guests=["100"])
    assert named.exit_code is ExitCode.OK, "nor does a backup by vzdump fail for it, whose hook makes a point"
    assert (report.exit_code, outbox.pings[-1]) == (ExitCode.PARTIAL, "/fail")
    (mail,) = outbox.by("mail")
    assert "replicate: another run (process 4711) has been at work on this for 27 hours" in mail
    report, _ = run(told)
    assert (report.exit_code, outbox.pings[-1]) == (ExitCode.OK, "")
    assert "replicate: well again" in outbox.by("mail")[-1]


def test_a_run_that_yields_to_one_that_hangs_tells(told: World, outbox: Outbox) -> None:
    with run_lock(told.place / "run", "snapshot"):
        stuck(told, "snapshot", 50)
        with pytest.raises(LockedError):
            run(told)
    assert "snapshot: another run" in outbox.by("mail")[0]
    assert outbox.pings[-1] == "/fail"


def test_an_upload_may_take_weeks(told: World, outbox: Outbox) -> None:
    with run_lock(told.place / "run", "archive"):
        stuck(told, "archive", 500)
        report, _ = run(told)
    assert (report.exit_code, outbox.pings[-1]) == (ExitCode.OK, "")


def test_a_run_that_yields_to_another_tells_nobody(told: World, outbox: Outbox) -> None:
    with run_lock(told.place / "run", "snapshot"), pytest.raises(LockedError):
        run(told)
    assert not outbox.sent


@pytest.mark.parametrize("damage", ["{", "[]", '{"known": 7}', '{"known": {"a": {}}}', '{"good": []}'])
def test_a_damaged_memory_costs_at_most_a_repetition(told: World, outbox: Outbox, damage: str) -> None:
    told.runner.down[TARGET] = "no route to host"
    run(told)
    (told.place / "state/alerts.json").write_text(damage)
    run(told)
    assert len(outbox.by("mail")) == 2


FINE = {"service": "mail", "since": 1, "alert": {"node": "pve1", "news": [], "recovered": []}}


@pytest.mark.parametrize(
    "entry",
    [
        "text", None, [], {}, {**FINE, "since": "soon"}, {**FINE, "since": None}, {**FINE, "alert": []},
        {**FINE, "alert": {"node": "pve1", "news": [{"problem": {"stage": "x"}}], "recovered": []}},
        {**FINE, "alert": {"node": "pve1", "recovered": [], "news": [{
            "problem": {"key": "k", "message": "m", "colour": "red"}, "since": 1, "seen": 1}]}},
        {**FINE, "alert": {"node": "pve1", "recovered": [], "news": [{
            "problem": {"key": "k", "message": "m"}, "since": "soon", "seen": 1}]}},
    ],
)  # fmt: skip
def test_a_queue_of_another_version_breaks_nothing_and_masks_no_error(
    told: World, outbox: Outbox, entry: object
) -> None:
    state = told.place / "state/alerts.json"
    state.parent.mkdir(exist_ok=True)
    state.write_text(json.dumps({"format": 1, "known": {}, "good": {}, "waiting": [entry]}))
    with told.session() as session:
        assert held_back(session).waiting == {"mail": 0, "webhook ops": 0}
        troubles = tell_broken(session, "restore", BackupError("the disk broke"))
    assert troubles == ("alerts: 1 messages that waited cannot be read: given up",)
    assert [text for text in outbox.by("mail") if "the disk broke" in text]
    assert json.loads(state.read_text())["waiting"] == []
    with told.session() as session:
        assert tell_results(session, [Result(stage="restore", outcome=Outcome.OK)]) == ()


def test_what_waits_outlives_damage_beside_it(told: World, outbox: Outbox) -> None:
    state = told.place / "state/alerts.json"
    outbox.down = {"mail"}
    with told.session() as session:
        tell_broken(session, "restore", BackupError("the disk broke"))
    memory = json.loads(state.read_text())
    state.write_text(json.dumps({**memory, "known": {"k": {"problem": 7}}, "waiting": [{}, *memory["waiting"]]}))
    outbox.down = set()
    with told.session() as session:
        tell_results(session, ())
    assert [text for text in outbox.by("mail") if "the disk broke" in text]


def test_a_memory_that_cannot_be_kept_is_told_and_fails_no_run(told: World, outbox: Outbox) -> None:
    told.runner.down[TARGET] = "no route to host"
    (told.place / "state").mkdir(exist_ok=True)
    (told.place / "state/alerts.json").mkdir()
    report, troubles = run(told)
    assert report.exit_code is ExitCode.PARTIAL
    assert any("alerts.json" in trouble for trouble in troubles)


def test_the_address_stands_nowhere_but_in_its_file(told: World, outbox: Outbox) -> None:
    told.runner.down[TARGET] = "no route to host"
    outbox.down = {"ops", "ping"}
    _, troubles = run(told)
    written = [path for path in told.place.rglob("*") if path.is_file() and path.name != "url"]
    assert len(written) > 3
    assert not [path for path in written if b"T0PSECRET" in path.read_bytes()]
    assert "T0PSECRET" not in " ".join(troubles)


def test_a_test_message_goes_everywhere_and_says_what_failed(told: World, outbox: Outbox) -> None:
    outbox.down = {"ops"}
    found = send_test(load_config(told.config), told.runner, "pve1")
    assert found == {"mail": "", "webhook ops": "the service did not take it: status 500"}
    assert "test" in outbox.by("mail")[0]


def hostile() -> Alert:
    problem = Problem(key="k", stage="snapshot", guest=f"100 {HOSTILE}", host=HOSTILE, message=HOSTILE, hint=HOSTILE)
    return Alert(node="pve1", news=(Known(problem=problem, since=0, seen=0, told=0, tellings=2),))


def test_hostile_text_becomes_no_markup(tmp_path: Path) -> None:
    bodies = {kind: message_for(kind, hostile()).body.decode() for kind in WebhookType}
    assert "\x1b" not in alert_text(hostile())
    assert "\u202e" not in alert_text(hostile())
    slack = json.loads(bodies[WebhookType.SLACK])
    assert "<" not in slack["text"]
    assert slack["mrkdwn"] is False
    discord = json.loads(bodies[WebhookType.DISCORD])
    assert discord["allowed_mentions"] == {"parse": []}
    for kind, key in ((WebhookType.DISCORD, "content"), (WebhookType.MATTERMOST, "text")):
        text = json.loads(bodies[kind])[key]
        assert text.count("```") == 2
        assert text.endswith("```")
    card = json.loads(bodies[WebhookType.TEAMS])["attachments"][0]["content"]
    assert {block["type"] for block in card["body"]} == {"RichTextBlock"}
    headers = message_for(WebhookType.NTFY, hostile()).headers
    assert all(value.isascii() and value.isprintable() for value in headers.values())


@pytest.mark.parametrize("kind", list(WebhookType))
def test_a_flood_stays_within_what_a_service_takes(kind: WebhookType) -> None:
    many = tuple(
        Known(problem=Problem(key=str(n), guest=f"{n} x", message="m" * 500), since=0, seen=0, tellings=1)
        for n in range(100)
    )
    body = message_for(kind, Alert(node="pve1", news=many)).body.decode()
    if kind is WebhookType.DISCORD:
        assert len(json.loads(body)["content"]) <= 2000
    if kind is not WebhookType.GENERIC:
        assert len(body) < 28_000


def test_a_flood_for_programs_ends_somewhere_and_says_how_much_is_left_out() -> None:
    many = tuple(
        Known(problem=Problem(key=str(n), guest=f"{n} x", message="\x1b" * 9000, hint="h" * 9000), since=0, seen=0)
        for n in range(350)
    )
    data = json.loads(message_for(WebhookType.GENERIC, Alert(node="pve1", news=many, recovered=many[:7])).body)
    assert [item["problem"]["key"] for item in data["problems"]] == [str(n) for n in range(100)]
    assert (len(data["recovered"]), data["left_out"]) == (7, 250)
    assert "350 problems, 7 recovered" in data["title"]
    assert len(json.dumps(data)) < 1 << 20
    few = json.loads(message_for(WebhookType.GENERIC, Alert(node="pve1", news=many[:3])).body)
    assert (len(few["problems"]), few["left_out"]) == (3, 0)


def test_a_new_generation_is_told_though_nothing_failed(told: World, outbox: Outbox) -> None:
    """A vmid that was recreated: the next stream is a full one, and the old replica stands beside it."""
    run(told)
    told.source.drop("rpool/crypt/vm-101-disk-0")
    told.source.add("rpool/crypt/vm-101-disk-0", zvol=True, crypt="aes-256-gcm")
    told.source.write("rpool/crypt/vm-101-disk-0")
    report, _ = run(told)
    assert report.exit_code is ExitCode.OK
    (text,) = outbox.by("mail")
    assert "guest 101 db, replicate, target backup1: " in text
    assert "new generation" in text
    run(told)
    assert "well again" in outbox.by("mail")[-1]
    run(told)
    assert len(outbox.by("mail")) == 2


@pytest.mark.parametrize(("mode", "told_by"), [(0o600, ["sent"]), (0o644, [])])
def test_apprise_gets_its_file_only_when_nobody_else_can_read_it(
    world: World, monkeypatch: pytest.MonkeyPatch, mode: int, told_by: list[str]
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(notify, "apprise", lambda runner, path, title, text: sent.append("sent"))
    file = world.place / "apprise.yaml"
    file.write_text("slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ\n")
    file.chmod(mode)
    world.configure(CONFIG + f"alerts: {{{{apprise-file: {file}}}}}\n")
    (trouble,) = send_test(load_config(world.config), world.runner, "pve1").values()
    assert sent == told_by
    assert bool(trouble) is not bool(told_by)
    assert ("lets others read" in trouble) is not bool(told_by)
    shown = redacted("apprise: no answer from slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ")
    assert ("TIiajkdnlazkc" not in shown) or not told_by
