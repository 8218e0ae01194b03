"""Run the phases of `make test` and its parts: `phases.py PHASE...`; says what runs and for how long.

Every phase runs even if one before it failed (but for the set-up), so that one run tells everything. A phase of
tests fails when a test fails, when no test ran, and when it takes longer than its limit. Ends with one line per
phase and pytest's kind of summary over all of them; the exit status is 0 only if every phase succeeded.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

PROJECT = Path(__file__).resolve().parent.parent
REPORTS = PROJECT / "build" / "reports"
VENV = Path(os.environ.get("PZB_VENV") or "build/venv")
PYTHON = str((PROJECT / VENV) / "bin" / "python")
TOOLS = ("age", "openssh-client", "openssh-server", "procps", "rclone", "zstd")  # unit tests run the real ones
GRACE = 60.0  # seconds for pytest to end its fixtures (virtual machines) after an interrupt


@dataclass(frozen=True)
class Phase:
    name: str
    commands: tuple[tuple[str, ...], ...]
    limit: float = 600.0  # seconds
    report: Path | None = None  # of pytest, in JUnit's format


@dataclass
class Result:
    phase: Phase
    seconds: float
    ok: bool
    counts: dict[str, int] = field(default_factory=dict)

    def line(self) -> str:
        counted = ", ".join(f"{number} {word}" for word, number in self.counts.items() if number)
        said = "ok" if self.ok else "FAILED"
        return f"{self.phase.name:<8} {said:<7} {counted:<40} {self.seconds:7.1f} s"


ELSEWHERE = ("browser", "lab", "package")  # phases of their own
RELEASES = ("-n", "2", "--dist=loadgroup", f"--basetemp=/tmp/pzb-{os.getpid()}-roots")
PARALLEL = ("-n", "auto", "--dist=worksteal", f"--basetemp=/tmp/pzb-{os.getpid()}")  # short: for ssh's sockets


def tests(name: str, *arguments: str, limit: float) -> Phase:
    report = REPORTS / f"{name}.xml"
    command = (PYTHON, "-m", "pytest", f"--junitxml={report}", "--durations=10", "--durations-min=5", *arguments)
    return Phase(name, (command,), limit, report)


PHASES = {
    phase.name: phase
    for phase in (
        Phase("set-up", (("tools/need", *TOOLS), (sys.executable, "tools/venv.py", str(VENV)))),
        Phase("ruff", ((PYTHON, "-m", "ruff", "check", "."),)),
        Phase("mypy", ((PYTHON, "-m", "mypy", "-p", "pve_zfsbackup"),)),
        tests("unit", *PARALLEL, "tests", *(f"--ignore=tests/{name}" for name in ELSEWHERE), limit=1500.0),
        Phase("chromium", (("tools/need", "chromium", "fonts-dejavu-core"),)),
        tests("report", "-v", "tests/browser", limit=600.0),
        Phase("deb", (("tools/build-deb",),), 900.0),
        tests("package", "-v", "-m", "not long", *RELEASES, "tests/package", limit=2400.0),
        tests("lab", "-v", "-m", "not long", "tests/lab", limit=4000.0),
        tests("long", "-v", "tests/package", "tests/lab", limit=14400.0),
    )
}


def run(command: tuple[str, ...], limit: float) -> bool:
    """Whether the command succeeded in time. It gets a process group of its own, of which nothing stays."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(command, cwd=PROJECT, env=environment, process_group=0)
    try:
        return child.wait(limit) == 0
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as stopped:
        print(f"!! {'interrupted' if isinstance(stopped, KeyboardInterrupt) else f'longer than {limit:.0f} s'}")
        stop(child)
        if isinstance(stopped, KeyboardInterrupt):
            raise
        return False


def stop(child: subprocess.Popen[bytes]) -> None:
    os.killpg(child.pid, signal.SIGINT)
    try:
        child.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def counts(report: Path) -> dict[str, int]:
    """What pytest's report says; empty when there is none."""
    try:
        suites = ElementTree.parse(report).getroot().iter("testsuite")  # noqa: S314 - our own file
        suite = next(suites)
    except (OSError, ElementTree.ParseError, StopIteration):
        return {}
    number = {key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")}
    passed = number["tests"] - number["failures"] - number["errors"] - number["skipped"]
    return {
        "failed": number["failures"],
        "passed": passed,
        "skipped": number["skipped"],
        "errors": number["errors"],
    }


def perform(phase: Phase) -> Result:
    print(f"\n== {phase.name} ==", flush=True)
    started = time.monotonic()
    if phase.report:
        phase.report.parent.mkdir(parents=True, exist_ok=True)
        phase.report.unlink(missing_ok=True)
    ok = all(run(command, phase.limit) for command in phase.commands)
    found = counts(phase.report) if phase.report else {}
    if phase.report and not found.get("passed"):
        ok = False  # no test ran, or all were skipped: nothing was shown
    result = Result(phase, time.monotonic() - started, ok, found)
    print(f"== {phase.name}: {'ok' if ok else 'FAILED'} after {result.seconds:.1f} s ==", flush=True)
    return result


def summary(results: list[Result]) -> str:
    """One line in pytest's words over all its phases; a phase that failed otherwise than by a test is an error."""
    words = ("failed", "passed", "skipped", "errors")
    total = {word: sum(result.counts.get(word, 0) for result in results) for word in words}
    total["errors"] += sum(not result.ok and not result.counts.get("failed") for result in results)
    said = [f"{number} {word}" for word, number in total.items() if number] or ["no tests ran"]
    seconds = sum(result.seconds for result in results)
    return f" {', '.join(said)} in {seconds:.2f}s ".center(80, "=")


def main(names: list[str]) -> int:
    results: list[Result] = []
    for name in names:
        results.append(perform(PHASES[name]))
        if name == "set-up" and not results[-1].ok:
            break
    print()
    for result in results:
        print(result.line())
    print(summary(results), flush=True)
    return 0 if all(result.ok for result in results) else 1


if __name__ == "__main__":
    if not sys.argv[1:] or set(sys.argv[1:]) - set(PHASES):
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(PHASES)} ...")
    # Started in the background of a shell, an interrupt is ignored, here and in every child: tests need theirs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
