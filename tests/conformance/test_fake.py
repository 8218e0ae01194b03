"""The fake answers as real OpenZFS did: whatever the other tests show on it holds there, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import fake
from tests.conformance.cases import CASES
from tests.conformance.transcript import comparable

RECORDED: dict[str, list[dict[str, Any]]] = json.loads(Path(__file__).with_name("openzfs.json").read_text())["cases"]


@pytest.mark.parametrize("name", CASES)
def test_the_fake_answers_as_openzfs(name: str) -> None:
    mine = comparable(CASES[name], fake.play(name, CASES[name]), f"{fake.ROOT}/{name}")
    assert mine == RECORDED[name]


def test_every_case_is_recorded_and_no_other() -> None:
    assert RECORDED.keys() == CASES.keys()
