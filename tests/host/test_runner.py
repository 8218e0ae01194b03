"""The only spawner, with real processes: how they end, what they leave, and that none outlives its call."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pve_zfsbackup.errors import CommandError, CommandTimeoutError
from pve_zfsbackup.host import runner
from pve_zfsbackup.host.runner import Completed, ProcessRunner, failure

pytestmark = pytest.mark.processes
MIB = 1 << 20


def sh(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script)


def pipe(first: Sequence[str], second: Sequence[str], stall: float = 30.0) -> tuple[Completed, Completed, int]:
    return ProcessRunner().pipe(first, second, progress=lambda moved: None, stall=stall)


@pytest.fixture(autouse=True)
def no_child_is_left() -> object:
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


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
    sent, received, moved = ProcessRunner().pipe(source, ("wc", "-c"), progress=seen.append, stall=30)
    assert (sent.returncode, received.returncode) == (0, 0)
    assert received.stdout.strip() == str(200 * MIB)
    assert moved == seen[-1] == 200 * MIB


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
    assert len(sent.stderr) == runner.STDERR_LIMIT
    assert moved == 2


def test_progress_that_fails_ends_both(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(moved: int) -> None:
        raise RuntimeError("terminal is gone")

    with pytest.raises(RuntimeError, match="terminal is gone"):
        ProcessRunner().pipe(("echo", "x"), ("cat",), progress=broken, stall=5)


def test_cancel_ends_the_streams_of_other_threads_and_lets_none_begin() -> None:
    busy = ProcessRunner()
    ended: list[Completed] = []
    flowing = threading.Event()

    def stream() -> None:
        sent, _, _ = busy.pipe(
            ("yes",), sh("exec cat >/dev/null"), progress=lambda moved: flowing.set() if moved else None, stall=60
        )
        ended.append(sent)

    thread = threading.Thread(target=stream)
    thread.start()
    assert flowing.wait(10)
    busy.cancel()
    thread.join(10)
    assert not thread.is_alive()
    assert ended[0].returncode in (-9, -13)
    with pytest.raises(CommandError, match="interrupted"):
        busy.pipe(("echo", "x"), ("cat",), progress=lambda moved: None, stall=5)
    assert busy.run(("echo", "thaw")).stdout == "thaw\n", "single commands still run: a guest must be thawed"
