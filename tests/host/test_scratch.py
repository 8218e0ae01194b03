"""What is destroyed with all that is in it is ours beyond doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from pve_zfsbackup.errors import VerificationError, ZfsError
from pve_zfsbackup.host.runner import Completed
from pve_zfsbackup.host.scratch import MARK, scratch, sweep
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import SOURCE, Dataset

PARENT = Dataset("tank/x")


@dataclass
class Zfs:
    """The few commands a scratch needs, on names with a guid and a mark of their own or inherited."""

    datasets: dict[str, tuple[str, str, str]] = field(default_factory=lambda: {"tank/x": ("1", "-", "-")})
    destroyed: list[str] = field(default_factory=list)

    def run(
        self, argv: Sequence[str], *, input: bytes | None = None, timeout: float = 0.0, check: bool = True
    ) -> Completed:
        verb, name = argv[1], argv[-1]
        if verb == "create":
            assert "canmount=off" in argv
            mark = next(word for word in argv if word.startswith(MARK)).partition("=")[2]
            self.datasets[name] = (str(len(self.datasets) + 1), mark, "local")
        elif verb == "list":
            return self._told(argv, "\n".join(one for one in self.datasets if one.startswith(name)))
        elif verb == "get":
            guid, mark, source = self.datasets[name]
            return self._told(argv, f"guid\t{guid}\t-\n{MARK}\t{mark}\t{source}\n")
        elif verb == "destroy":
            assert argv[2] == "-r"
            self.destroyed.append(name)
            del self.datasets[name]
        return self._told(argv, "")

    def _told(self, argv: Sequence[str], text: str) -> Completed:
        return Completed(argv=tuple(argv), returncode=0, stdout=text, stderr="")


@pytest.fixture
def zfs() -> Zfs:
    return Zfs()


@pytest.fixture
def host(zfs: Zfs) -> Host:
    return Host(name=SOURCE, runner=zfs)  # type: ignore[arg-type]


def test_it_is_gone_afterwards_also_when_the_check_failed(zfs: Zfs, host: Host) -> None:
    with scratch(host, PARENT) as one:
        assert one in zfs.datasets
    with pytest.raises(ZfsError), scratch(host, PARENT) as other:
        raise ZfsError("cannot receive")
    assert zfs.destroyed == [one, other]
    assert list(zfs.datasets) == ["tank/x"]


CHANGED = [("9", "own", "local"), ("2", "pzb-other", "local"), ("2", "own", "inherited from x")]


@pytest.mark.parametrize("facts", CHANGED)
def test_what_is_no_longer_what_was_made_stays(zfs: Zfs, host: Host, facts: tuple[str, str, str]) -> None:
    """Another guid, another mark, or a mark it only inherits."""
    guid, mark, source = facts
    using = scratch(host, PARENT)
    made = using.__enter__()
    zfs.datasets[made] = (guid, made.rpartition("/")[2] if mark == "own" else mark, source)
    with pytest.raises(VerificationError, match="stays"):
        using.__exit__(None, None, None)
    assert zfs.destroyed == []


def test_what_a_killed_check_left_is_swept_and_nothing_else(zfs: Zfs, host: Host) -> None:
    left = "pzb-scratch-0123456789abcdef"
    zfs.datasets[f"tank/x/{left}"] = ("7", left, "local")
    zfs.datasets["tank/x/vm-100-disk-0"] = ("8", "-", "-")
    zfs.datasets["tank/x/pzb-scratch-mine"] = ("9", "pzb-scratch-mine", "local")
    assert sweep(host, PARENT) == [f"tank/x/{left}"]
    assert zfs.destroyed == [f"tank/x/{left}"]


def test_one_of_that_name_without_the_mark_stops_it(zfs: Zfs, host: Host) -> None:
    zfs.datasets["tank/x/pzb-scratch-0123456789abcdef"] = ("7", "-", "-")
    with pytest.raises(VerificationError, match="stays"):
        sweep(host, PARENT)
    assert zfs.destroyed == []
