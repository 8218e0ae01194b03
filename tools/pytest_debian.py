"""A pytest plugin for runs with nothing but Debian's packages: `pytest -p tools.pytest_debian tests`.

Used by the package's build, by autopkgtest and by tests/package in a root of every release, to see what may differ
there: Python, click, rich, requests, proxmoxer, YAML, and the programs age, zstd and OpenSSH. Leaves out what takes
long and comes out the same with any of them (`SAME_EVERYWHERE`), and what belongs elsewhere: virtual machines
(tests/lab, tests/bench), a browser (tests/browser), what builds this very package (tests/package), and what needs
fakepve, a library only PyPI has (the lab's simulated node, tests/pvesim, and single tests, told by the fixture they ask
for and counted as deselected). All of it but the browser runs in `make test`, that in `make test-report`.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent / "tests"
ELSEWHERE = {TESTS / "lab", TESTS / "package", TESTS / "pvesim", TESTS / "bench", TESTS / "browser"}
ELSEWHERE |= {TESTS / "host/pve/test_restore_calls.py"}  # all of it is asked of fakepve
SAME_EVERYWHERE = {  # and what meets the release's libraries and programs in its place
    TESTS / "test_architecture.py": "reads source text; every module is imported by the tests of commands",
    TESTS / "plan": "pure, over every history; whole runs in tests/app plan with the release's Python",
    TESTS / "receiver/test_same.py": "pure, on thousands of random targets; test_maintain.py runs the same code",
    TESTS / "archive/test_tampering.py": "every flipped byte of a box; test_stage.py reads whole ones",
    TESTS / "archive/test_sftp_faults.py": "our waiting for a cut line; test_store_conformance.py has the real sshd",
}
FIXTURES = {"fakepve"}
KILLS = "killed_at_every"  # in the name of a test: simulated runs, ended at each of their commands

if importlib.util.find_spec("fakepve") is None:
    # Test modules import it beside much that does not need it; nobody calls it, and calling it is an error.
    absent = types.ModuleType("fakepve")
    absent.__dict__["FakePve"] = None
    sys.modules["fakepve"] = absent


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return True if collection_path in ELSEWHERE or collection_path in SAME_EVERYWHERE else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    outside = [item for item in items if KILLS in item.name or FIXTURES & set(getattr(item, "fixturenames", ()))]
    config.hook.pytest_deselected(items=outside)
    items[:] = [item for item in items if item not in outside]
