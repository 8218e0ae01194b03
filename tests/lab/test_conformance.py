"""Real OpenZFS still answers as recorded, and so as the fake of the unit tests (tests/conformance)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance import record
from tests.conformance.cases import CASES
from tests.conformance.test_fake import RECORDED
from tests.lab.host import Host


@pytest.fixture(scope="module")
def answers(pve1: Host) -> dict[str, list[dict[str, Any]]]:
    return record.play(pve1)


@pytest.mark.parametrize("name", CASES)
def test_openzfs_answers_as_recorded(answers: dict[str, list[dict[str, Any]]], name: str) -> None:
    assert answers[name] == RECORDED[name]
