"""A pytest plugin for runs with nothing but Debian's packages: `pytest -p tools.pytest_debian tests`.

Leaves out what belongs elsewhere: virtual machines (tests/lab, tests/bench), a browser (tests/browser), what builds
this very package (tests/package), and what needs fakepve, a library only PyPI has (the lab's simulated node,
tests/pvesim, and single tests, told by the fixture they ask for and counted as deselected). All of it but the browser
runs in `make test`, that in `make test-report`.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent / "tests"
ELSEWHERE = {TESTS / "lab", TESTS / "package", TESTS / "pvesim", TESTS / "bench", TESTS / "browser"}
FIXTURES = {"fakepve"}

if importlib.util.find_spec("fakepve") is None:
    # Test modules import it beside much that does not need it; nobody calls it, and calling it is an error.
    absent = types.ModuleType("fakepve")
    absent.__dict__["FakePve"] = None
    sys.modules["fakepve"] = absent


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return True if collection_path in ELSEWHERE else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    outside = [item for item in items if FIXTURES & set(getattr(item, "fixturenames", ()))]
    config.hook.pytest_deselected(items=outside)
    items[:] = [item for item in items if item not in outside]
