"""What the source really writes is what the receiver reads: made by the product's own functions, so neither drifts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from pve_zfsbackup.host import listing, zfs
from pve_zfsbackup.host.runner import Completed, Runner
from pve_zfsbackup.host.ssh import Destination, Host
from pve_zfsbackup.model import Dataset, Guid, PointDisk, PointId, Snapshot, encode_disks
from pve_zfsbackup.receiver import DeniedError, parse
from tests.receiver.conftest import ROOT

STAMP = "20261123T180000Z-ab12"
DISK = Dataset(f"{ROOT}/local-zfs/vm-100-disk-0")
PROPERTIES = {
    "pve-zfsbackup:point": f"100/{STAMP}",
    "pve-zfsbackup:disks": encode_disks(
        [
            PointDisk(key="scsi0", volid="local-zfs:base-9-disk-0/vm-100-disk-0", guid=Guid("17")),
            PointDisk(key="efidisk0", volid="fast:vm-100-disk-1", guid=Guid("18446744073709551615")),
        ]
    ),
    "pve-zfsbackup:guest": "qemu/pve1",
    "pve-zfsbackup:consistency": "crash-consistent: agent said 'no way' (\\u202e) \"$(id)\" `x` ; rm -rf / && {}|",
    "pve-zfsbackup:conf": "eJy_" * 2000,
    "pve-zfsbackup:conf2": "eJy_" * 2000,
    "pve-zfsbackup:conf3": "eJy_" * 2000,
    "pve-zfsbackup:conf4": "eJy-_w==",
    "pve-zfsbackup:volume": "18446744073709551615",
}


@dataclass(slots=True)
class Recorder:
    """A runner that only remembers; nothing succeeds and nothing fails."""

    argvs: list[tuple[str, ...]] = field(default_factory=list)

    def run(self, argv: Sequence[str], **_: object) -> Completed:
        self.argvs.append(tuple(argv))
        return Completed(argv=tuple(argv), returncode=0, stdout="", stderr="")


def remote() -> tuple[Recorder, Host]:
    recorder = Recorder()
    paths = {"identity": Path("/id"), "known_hosts": Path("/known"), "control": Path("/run/x")}
    destination = Destination(host="backup1", user="pve-zfsbackup", port=22, **paths)
    return recorder, Host(name="backup1", runner=cast(Runner, recorder), destination=destination)


def sent_lines(use: Callable[[Host], object]) -> list[str]:
    """The command lines that reach the target's sshd: the last word of every ssh command."""
    runner, host = remote()
    use(host)
    assert all(argv[0] == "ssh" for argv in runner.argvs)
    assert runner.argvs
    return [argv[-1] for argv in runner.argvs]


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda host: listing.list_host(host, [Dataset(ROOT)]), id="list"),
        pytest.param(lambda host: listing.read_guids(host, [DISK, Dataset(f"{ROOT}/fast/x")]), id="guids"),
        pytest.param(lambda host: zfs.create_parent(host, Dataset(f"{ROOT}/local-zfs")), id="create"),
        pytest.param(lambda host: zfs.create_parent(host, Dataset(ROOT)), id="create-root"),
        pytest.param(lambda host: zfs.set_properties(host, [f"{DISK}@pzb:{STAMP}"], PROPERTIES), id="set"),
        pytest.param(
            lambda host: zfs.set_properties(
                host, [f"{ROOT}/local-zfs/vm-100-disk-{n}@pzb:{STAMP}" for n in range(1000)], PROPERTIES
            ),
            id="set-many",
        ),
        pytest.param(lambda host: zfs.abort_receive(host, DISK), id="abort"),
    ],
)
def test_what_the_source_writes_is_understood(use: Callable[[Host], object]) -> None:
    for line in sent_lines(use):
        assert parse(line, ROOT).commands


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda host: zfs.hold(host, "pve-zfsbackup", [_ours()]), id="hold"),
        pytest.param(lambda host: zfs.release(host, "pve-zfsbackup", [_ours()]), id="release"),
        pytest.param(lambda host: zfs.destroy(host, [_ours()]), id="destroy"),
        pytest.param(lambda host: zfs.current_guids(host, [_ours().full_name]), id="get"),
        pytest.param(lambda host: zfs.set_properties(host, [DISK], {"readonly": "off"}), id="readonly"),
        pytest.param(lambda host: listing.list_host(host, [Dataset("tank/backups/pve2")]), id="other-root"),
    ],
)
def test_what_the_target_does_itself_is_denied(use: Callable[[Host], object]) -> None:
    for line in sent_lines(use):
        with pytest.raises(DeniedError):
            parse(line, ROOT)


def _ours() -> Snapshot:
    return Snapshot(
        dataset=DISK,
        name=f"pzb:{STAMP}",
        guid=Guid("1"),
        createtxg=1,
        creation=1,
        point=PointId(f"100/{STAMP}"),
    )
