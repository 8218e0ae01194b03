"""The only spawner, with real processes: how they end, what they leave, and that none outlives its call."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pve_zfsbackup.errors import CommandError, CommandTimeoutError, GivenUpError, InterruptedRunError
from pve_zfsbackup.host import runner, said
from pve_zfsbackup.host.pace import Pace
from pve_zfsbackup.host.pump import Flow, Progress
from pve_zfsbackup.host.runner import Completed, ProcessRunner, failure

pytestmark = pytest.mark.processes
MIB = 1 << 20


def sh(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script)


def flow(stall: float = 30.0, progress: Progress = lambda number, moved: None, pace: Pace | None = None) -> Flow:
    return Flow(progress=progress, stall=stall, pace=pace)


def pipe(first: Sequence[str], second: Sequence[str], stall: float = 30.0) -> tuple[Completed, Completed, int]:
    done = ProcessRunner().pipe([first], [second], flow(stall))
    return done.sent[0], done.received[0], done.moved[0]


def children() -> set[str]:
    """Processes whose parent this one is, dead ones that nobody waited for included."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if fields[1] == str(os.getpid()):
            found.add(entry.parent.name)
    return found


@pytest.fixture(autouse=True)
def no_child_is_left() -> object:
    """Of this test: as the first process of a namespace, pytest inherits what others left detached on purpose."""
    before = children()
    yield
    assert children() <= before


def test_what_a_program_says_comes_back_apart() -> None:
    done = ProcessRunner().run(sh("echo out; echo err >&2; exit 3"), check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_a_failure_is_raised_with_the_last_words() -> None:
    with pytest.raises(CommandError, match="sh: two; three; four") as caught:
        ProcessRunner().run(sh("printf 'one\\ntwo\\nthree\\nfour\\n' >&2; exit 7"))
    assert caught.value.returncode == 7


def test_a_program_that_does_not_exist_is_named() -> None:
    with pytest.raises(CommandError, match="no-such-program: not installed"):
        ProcessRunner().run(("no-such-program",))


def test_an_argument_the_kernel_does_not_take_is_an_error_of_ours() -> None:
    with pytest.raises(CommandError, match="echo: cannot be started: Argument list too long"):
        ProcessRunner().run(("echo", "x" * (MIB // 4)))


def test_programs_run_side_by_side_and_each_is_told_apart(tmp_path: Path) -> None:
    """Each waits for the other: one after another they would never end."""
    os.mkfifo(tmp_path / "to")
    os.mkfifo(tmp_path / "fro")
    first = sh(f"echo a > {tmp_path}/to; cat {tmp_path}/fro; exit 3")
    second = sh(f"cat {tmp_path}/to; echo b > {tmp_path}/fro")
    done = ProcessRunner().run_each([first, second], timeout=30)
    assert [(end.argv, end.returncode, end.stdout) for end in done] == [(first, 3, "b\n"), (second, 0, "a\n")]


@pytest.mark.parametrize("slow", [0, 1])
def test_of_programs_side_by_side_none_outlives_the_time(slow: int) -> None:
    argvs = [sh("echo quick"), sh("exec sleep 60")]
    with pytest.raises(CommandTimeoutError, match="sh: no end after 1 s"):
        ProcessRunner().run_each(argvs if slow else argvs[::-1], timeout=1)


def test_an_interrupt_ends_all_programs_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **rest: object) -> None:
        raise InterruptedRunError("TERM")

    monkeypatch.setattr(ProcessRunner, "_heard", interrupted)
    with pytest.raises(InterruptedRunError):
        ProcessRunner().run_each([sh("exec sleep 60"), sh("exec sleep 60")])


def test_no_end_in_time_is_a_timeout_and_the_program_is_gone() -> None:
    started = time.monotonic()
    with pytest.raises(CommandTimeoutError, match="sleep: no end after 0 s"):
        ProcessRunner().run(("sleep", "60"), timeout=0.2)
    assert time.monotonic() - started < 5


def test_the_environment_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "canary")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    done = ProcessRunner().run(("env",))
    assert "canary" not in done.stdout
    assert "LC_ALL=C\n" in done.stdout


def test_input_arrives_and_without_it_there_is_none() -> None:
    assert ProcessRunner().run(("cat",), input=b"text").stdout == "text"
    assert ProcessRunner().run(("cat",)).stdout == ""


def test_bytes_that_are_no_text_do_not_break_anything() -> None:
    assert ProcessRunner().run(sh(r"printf '\377name'")).stdout == "\ufffdname"


def test_arguments_reach_no_shell() -> None:
    hostile = "$(touch /tmp/x); `id` | 'a\" \n"
    assert ProcessRunner().run(("printf", "%s", hostile)).stdout == hostile


def test_usage_hints_do_not_hide_the_reason() -> None:
    text = "cannot open 'a': dataset does not exist\nusage:\n\tsnapshot …\n\nFor the property list, run: zfs set|get\n"
    error = failure(Completed(argv=("zfs", "snapshot"), returncode=2, stdout="", stderr=text))
    assert error.message == "zfs snapshot: cannot open 'a': dataset does not exist"


# -- streams


def test_200_mib_arrive_whole_and_are_counted(tmp_path: Path) -> None:
    seen: list[int] = []
    source = ("head", "-c", str(200 * MIB), "/dev/zero")
    done = ProcessRunner().pipe([source], [("wc", "-c")], flow(progress=lambda number, moved: seen.append(moved)))
    assert (done.sent[0].returncode, done.received[0].returncode) == (0, 0)
    assert done.received[0].stdout.strip() == str(200 * MIB)
    assert done.moved == (200 * MIB,)
    assert seen[-1] == 200 * MIB


def test_what_the_last_consumer_says_comes_back_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what arrived: the end of it alone would say of the first datasets that they have nothing."""
    line = "tank/backups/pve1/local-zfs/vm-100-disk-0@pzb:20261101T000000Z-0001\t1234567890123456789\n"
    talking = sh(f"cat >/dev/null; yes '{line.strip()}' | head -n 5000")
    _, received, _ = pipe(("true",), talking)
    assert received.stdout == line * 5000
    monkeypatch.setattr(said, "OUTPUT_LIMIT", 5000 * len(line) - 1)
    _, received, _ = pipe(("true",), talking)
    assert (received.returncode, received.stdout) == (0, "")


def test_content_is_not_touched() -> None:
    source = sh("seq 1 300000")
    _, received, _ = pipe(source, ("md5sum",))
    assert received.stdout == ProcessRunner().run(sh("seq 1 300000 | md5sum")).stdout


def test_both_exit_statuses_count() -> None:
    sent, received, moved = pipe(sh("echo data; echo why >&2; exit 4"), sh("cat >/dev/null; echo because >&2; exit 5"))
    assert (sent.returncode, sent.stderr) == (4, "why\n")
    assert (received.returncode, received.stderr) == (5, "because\n")
    assert moved == 5


def test_a_consumer_that_dies_early_ends_the_producer() -> None:
    sent, received, _ = pipe(("cat", "/dev/zero"), sh("head -c 1000 >/dev/null; echo full >&2; exit 1"))
    assert sent.returncode == -13
    assert (received.returncode, received.stderr) == (1, "full\n")


def test_a_consumer_that_never_reads_ends_the_producer() -> None:
    sent, received, _ = pipe(("cat", "/dev/zero"), ("false",))
    assert (sent.returncode, received.returncode) == (-13, 1)


def test_a_producer_that_dies_gives_the_consumer_its_end() -> None:
    sent, received, moved = pipe(sh("echo some; kill -9 $$"), ("cat",))
    assert sent.returncode == -9
    assert (received.returncode, received.stdout, moved) == (0, "some\n", 5)


def test_a_consumer_may_take_its_time_after_the_last_byte() -> None:
    _, received, _ = pipe(("echo", "x"), sh("cat >/dev/null; sleep 0.3; echo done"), stall=5)
    assert received.stdout == "done\n"


def test_a_stream_that_stalls_is_ended_on_both_sides() -> None:
    started = time.monotonic()
    with pytest.raises(CommandTimeoutError, match="no byte moved for 0 s"):
        pipe(sh("echo begun; exec sleep 60"), sh("exec cat >/dev/null"), stall=0.1)
    assert time.monotonic() - started < 10


def test_a_missing_consumer_leaves_no_producer() -> None:
    with pytest.raises(CommandError, match="not installed"):
        pipe(("cat", "/dev/zero"), ("no-such-program",))


def test_much_on_stderr_does_not_block_a_stream() -> None:
    sent, _, moved = pipe(sh("head -c 3000000 /dev/zero | tr '\\0' e >&2; echo x"), ("cat",))
    assert len(sent.stderr) == said.STDERR_LIMIT
    assert moved == 2


def test_progress_that_fails_ends_both(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(number: int, moved: int) -> None:
        raise RuntimeError("terminal is gone")

    with pytest.raises(RuntimeError, match="terminal is gone"):
        ProcessRunner().pipe([("echo", "x")], [("cat",)], flow(progress=broken))


def test_cancel_ends_the_streams_of_other_threads_and_lets_none_begin() -> None:
    busy = ProcessRunner()
    ended: list[Exception] = []
    flowing = threading.Event()

    def stream() -> None:
        try:
            busy.pipe([("yes",)], [sh("exec cat >/dev/null")], flow(progress=lambda number, moved: flowing.set()))
        except InterruptedRunError as error:
            ended.append(error)

    thread = threading.Thread(target=stream)
    thread.start()
    assert flowing.wait(10)
    busy.cancel()
    thread.join(10)
    assert not thread.is_alive()
    assert len(ended) == 1
    assert not ended[0].transient, "whoever interrupts us does not want it tried again"
    with pytest.raises(InterruptedRunError, match="interrupted"):
        busy.pipe([("echo", "x")], [("cat",)], flow())
    assert busy.run(("echo", "thaw")).stdout == "thaw\n", "single commands still run: a guest must be thawed"


@pytest.mark.parametrize("each", [False, True])
def test_cancel_gives_up_the_programs_of_other_threads(monkeypatch: pytest.MonkeyPatch, each: bool) -> None:
    """Whoever interrupts a run waits for those threads, and a pool that hangs lets them wait for minutes."""
    monkeypatch.setattr(runner, "GRACE", 0.5)
    busy, ended, before = ProcessRunner(), list[str](), children()

    def wait() -> None:
        try:
            busy.run_each([("sleep", "60")] * 2) if each else busy.run(("sleep", "60"))
        except InterruptedRunError as error:
            ended.append(error.message)

    early, late = threading.Thread(target=wait), threading.Thread(target=wait)
    early.start()
    while children() == before:
        time.sleep(0.01)
    busy.cancel()
    late.start()
    for thread in (early, late):
        thread.join(10)
    assert ended == ["sleep: no end after the run was interrupted"] * 2, "also what begins then"
    assert busy.run(("sleep", "1")).returncode == 0, "but not in this thread, which thaws"


def test_what_ends_soon_is_not_given_up() -> None:
    """A pool that is well makes a snapshot within its next transaction groups."""
    busy, ended = ProcessRunner(), list[Completed]()
    thread = threading.Thread(target=lambda: ended.append(busy.run(sh("sleep 2; echo whole"))))
    thread.start()
    busy.cancel()
    thread.join(10)
    assert [done.stdout for done in ended] == ["whole\n"]


# -- many streams, one after another


def test_many_producers_are_poured_into_one_consumer_in_order() -> None:
    seen: list[tuple[int, int]] = []
    producers = [sh(f"printf %{size}s") for size in (3, 0, 100_000, 7)]
    done = ProcessRunner().pipe(producers, [("wc", "-c")], flow(progress=lambda *told: seen.append(told)))
    assert done.moved == (3, 0, 100_000, 7)
    assert done.received[0].stdout.strip() == "100010"
    assert seen[-4:] == [(0, 3), (1, 0), (2, 100_000), (3, 7)]


def test_each_producer_starts_when_the_last_one_has_ended(tmp_path: Path) -> None:
    """What is done for a stream right before it is done then, not before all of them."""
    told: list[str] = []

    def producers() -> Iterator[tuple[str, ...]]:
        for number in range(3):
            told.append((tmp_path / "log").read_text() if number else "")
            yield sh(f"echo {number} >> {tmp_path}/log")

    ProcessRunner().pipe(producers(), [("cat",)], flow())
    assert told == ["", "0\n", "0\n1\n"]


def test_after_a_producer_that_fails_no_other_is_started(tmp_path: Path) -> None:
    producers = [("echo", "one"), sh("printf half; echo why >&2; exit 3"), ("touch", str(tmp_path / "x"))]
    done = ProcessRunner().pipe(producers, [("cat",)], flow())
    assert [sent.returncode for sent in done.sent] == [0, 3]
    assert (done.sent[1].stderr, done.moved) == ("why\n", (4, 4))
    assert done.received[0].stdout == "one\nhalf"
    assert not (tmp_path / "x").exists()


def test_when_the_consumer_is_gone_no_other_producer_is_started(tmp_path: Path) -> None:
    producers = [("cat", "/dev/zero"), ("touch", str(tmp_path / "x"))]
    done = ProcessRunner().pipe(producers, [sh("head -c 10 >/dev/null; exit 6")], flow())
    assert [sent.returncode for sent in done.sent] == [-13]
    assert done.received[0].returncode == 6
    assert not (tmp_path / "x").exists()


def test_without_any_producer_the_consumer_sees_the_end_at_once() -> None:
    done = ProcessRunner().pipe([], [sh("cat; echo end >&2; exit 1")], flow())
    assert (done.sent, done.moved, done.received[0].stderr) == ((), (), "end\n")


def test_several_consumers_read_from_each_other_and_each_status_counts() -> None:
    done = ProcessRunner().pipe(
        [("echo", "one"), ("echo", "two")],
        [("tr", "a-z", "A-Z"), sh("cat; echo second >&2; exit 4"), ("sed", "s/$/!/")],
        flow(),
    )
    assert [end.returncode for end in done.received] == [0, 4, 0]
    assert [end.stdout for end in done.received] == ["", "", "ONE!\nTWO!\n"]
    assert done.received[1].stderr == "second\n"


def test_a_filter_that_dies_ends_both_sides() -> None:
    done = ProcessRunner().pipe([("cat", "/dev/zero")], [sh("exec head -c 5"), ("wc", "-c")], flow())
    assert done.sent[0].returncode == -13
    assert done.received[1].stdout.strip() == "5"


def test_a_stall_in_the_second_stream_is_one(tmp_path: Path) -> None:
    with pytest.raises(CommandTimeoutError, match="no byte moved"):
        ProcessRunner().pipe([("echo", "x"), ("sleep", "60")], [("cat",)], flow(stall=0.1))


# -- the pace


def test_a_stream_that_is_not_wanted_any_more_is_ended_at_once() -> None:
    asked: list[int] = []

    def unwanted(number: int) -> str:
        asked.append(number)
        return "its guest is gone" if number == 1 and len(asked) > 2 else ""

    producers = [("echo", "x"), sh("echo begun; exec sleep 60")]
    begun = time.monotonic()
    with pytest.raises(GivenUpError, match="given up: its guest is gone") as told:
        ProcessRunner().pipe(producers, [sh("exec cat >/dev/null")], replace(flow(), unwanted=unwanted))
    assert not told.value.transient
    assert time.monotonic() - begun < 30


@pytest.fixture
def immortal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs that hang in the kernel: nothing ends a `sleep` until the test is over."""
    there: list[subprocess.Popen[bytes]] = []
    kill = subprocess.Popen.kill

    def spared(process: subprocess.Popen[bytes]) -> None:
        if "sleep" in process.args:  # type: ignore[operator]
            there.append(process)
        else:
            kill(process)

    monkeypatch.setattr(subprocess.Popen, "kill", spared)
    monkeypatch.setattr(subprocess.Popen, "terminate", spared)
    monkeypatch.setattr(runner, "GRACE", 0.1)
    yield there
    for process in there:
        kill(process)
        process.wait()


def test_what_cannot_be_killed_is_not_waited_for(immortal: list[subprocess.Popen[bytes]]) -> None:
    """On a suspended pool `zfs` does not even end by SIGKILL (openzfs #6138)."""
    begun = time.monotonic()
    with pytest.raises(CommandTimeoutError):
        ProcessRunner().run(("sleep", "600"), timeout=0.1)
    with pytest.raises(CommandTimeoutError, match="no byte moved"):
        ProcessRunner().pipe([("sleep", "600")], [("cat",)], flow(stall=0.1))
    assert time.monotonic() - begun < 60
    assert {process.poll() for process in immortal} == {None}


def test_a_pace_is_kept_by_all_streams_together_and_stalls_nothing() -> None:
    pace = Pace(lambda: 400_000)
    started = time.monotonic()

    def stream() -> None:
        source = ("head", "-c", "200000", "/dev/zero")
        assert ProcessRunner().pipe([source], [("cat",)], flow(pace=pace)).moved == (200_000,)

    threads = [threading.Thread(target=stream) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.7 < time.monotonic() - started < 10


@pytest.mark.parametrize("packed", [False, True])
def test_a_pace_holds_for_what_filters_leave_of_a_stream(packed: bool) -> None:
    """A stream that packs to a thousandth shall not take as long as one that does not."""
    filters = [("gzip", "-c")] if packed else [("cat",)]
    pace, started = Pace(lambda: 200_000), time.monotonic()
    source = ("head", "-c", "400000", "/dev/zero")
    done = ProcessRunner().pipe([source, source], [*filters, ("wc", "-c")], flow(pace=pace))
    took = time.monotonic() - started
    assert done.moved == (400_000, 400_000)
    assert (took < 2.5) is packed
    assert (int(done.received[1].stdout) < 5000) is packed
    assert [end.returncode for end in (*done.sent, *done.received)] == [0, 0, 0, 0]


def test_behind_a_pace_a_consumer_that_dies_ends_the_filters() -> None:
    pace = Pace(lambda: 50 << 20)
    done = ProcessRunner().pipe([("cat", "/dev/zero")], [("cat",), sh("head -c 5; exit 3")], flow(pace=pace))
    assert [end.returncode for end in (*done.sent, *done.received)] == [-13, -13, 3]


def test_cancel_does_not_wait_for_a_pace_behind_filters() -> None:
    busy = ProcessRunner()
    started = time.monotonic()
    threading.Timer(0.3, busy.cancel).start()
    with pytest.raises(InterruptedRunError):
        busy.pipe([("cat", "/dev/zero")], [("cat",), sh("exec cat >/dev/null")], flow(pace=Pace(lambda: 100)))
    assert time.monotonic() - started < 10
    assert threading.active_count() < 4, "the thread that holds the pace ends with the streams"


BUFFERING = """
import os, sys
data = sys.stdin.buffer.read()
for at in range(0, len(data), 65536):
    os.write(1, data[at : at + 65536])
"""


@pytest.mark.parametrize("pace", [Pace(lambda: 1 << 20), None])
def test_a_buffer_that_empties_is_no_stall(pace: Pace | None) -> None:
    """All was read long ago, and what lies in filters goes on at the pace of the link, or of who takes it."""
    buffering = (sys.executable, "-c", BUFFERING)
    taking = sh("exec cat >/dev/null" if pace else "while [ $(head -c 262144 | wc -c) -gt 0 ]; do sleep 0.3; done")
    source = ("head", "-c", str(5 << 20), "/dev/zero")
    done = ProcessRunner().pipe([source], [buffering, taking], flow(stall=2.0, pace=pace))
    assert done.moved == (5 << 20,)


def test_a_sink_that_hangs_behind_filters_is_a_stall() -> None:
    with pytest.raises(CommandTimeoutError, match="no byte moved"):
        ProcessRunner().pipe([("cat", "/dev/zero")], [("cat",), ("sleep", "60")], flow(stall=1.0))


def test_a_stream_that_fails_has_its_time_as_well() -> None:
    slow = "for i in 1 2 3; do head -c 4194304 > /dev/null; sleep 0.3; done; exit 1"
    assert ProcessRunner().pipe([("cat", "/dev/zero")], [sh(slow)], flow()).seconds > 0.5


def test_what_comes_before_the_first_byte_no_buffer_saves() -> None:
    late = sh("sleep 1; exec head -c 16777216 /dev/zero")
    slow = "while [ \"$(head -c 4194304 | wc -c)\" -gt 0 ]; do sleep 0.3; done"
    done = ProcessRunner().pipe([late], [sh(slow)], flow())
    assert done.lost < 0.1
    assert 0.5 < done.seconds < 5


def test_what_a_buffer_would_save_is_told_where_both_sides_take_turns() -> None:
    """A source that rests after much, and a sink that rests after little: either waits for the other one."""
    turns = "for i in 1 2 3; do head -c 16777216 /dev/zero; sleep 0.8; done"
    slow = "while [ \"$(head -c 4194304 | wc -c)\" -gt 0 ]; do sleep 0.2; done"
    assert ProcessRunner().pipe([sh(turns)], [sh(slow)], flow()).lost > 0.3
    assert ProcessRunner().pipe([sh(turns)], [sh("exec cat >/dev/null")], flow()).lost < 0.1
    assert ProcessRunner().pipe([("head", "-c", "16777216", "/dev/zero")], [sh(slow)], flow()).lost < 0.1


def test_a_slow_pace_is_no_stall() -> None:
    source = ("head", "-c", "16384", "/dev/zero")
    done = ProcessRunner().pipe([source], [("cat",)], flow(stall=1.5, pace=Pace(lambda: 8192)))
    assert done.moved == (16384,)


def test_cancel_does_not_wait_for_the_pace() -> None:
    busy = ProcessRunner()
    started = time.monotonic()
    threading.Timer(0.3, busy.cancel).start()
    with pytest.raises(InterruptedRunError):
        busy.pipe([("cat", "/dev/zero")], [sh("exec cat >/dev/null")], flow(pace=Pace(lambda: 100)))
    assert time.monotonic() - started < 10
