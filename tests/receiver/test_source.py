"""What the source really writes is what the receiver reads: made by the product's own functions, so neither drifts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from pve_zfsbackup.app.target_check import Checked, check_target
from pve_zfsbackup.config import Target
from pve_zfsbackup.host import destroying, listing, pipeline, zfs
from pve_zfsbackup.host.runner import Completed, Piped, Runner
from pve_zfsbackup.host.ssh import Destination, Host, Link
from pve_zfsbackup.model import Dataset, Guid, PointDisk, PointId, Resume, Send, Snapshot, encode_disks
from pve_zfsbackup.receiver import DeniedError, parse
from tests.receiver.conftest import ROOT

STAMP = "20261123T180000Z-ab12"
PLAIN = Link()
DISK = Dataset(f"{ROOT}/local-zfs/vm-100-disk-0")
PROPERTIES = {
    "pve-zfsbackup:point": f"100/{STAMP}",
    "pve-zfsbackup:disks": encode_disks(
        [
            PointDisk(key="scsi0", volid="local-zfs:base-9-disk-0/vm-100-disk-0", guid=Guid("17")),
            PointDisk(key="efidisk0", volid="fast:vm-100-disk-1", guid=Guid("18446744073709551615"), same=Guid("7")),
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

    def run_each(self, argvs: Sequence[Sequence[str]], **_: object) -> list[Completed]:
        return [self.run(argv) for argv in argvs]

    def pipe(self, producers: Iterable[Sequence[str]], consumers: Sequence[Sequence[str]], flow: object) -> Piped:
        """Streams of no bytes."""
        sent = tuple(Completed(argv=tuple(argv), returncode=0, stdout="", stderr="") for argv in producers)
        self.argvs.append(tuple(consumers[-1]))
        received = tuple(Completed(argv=tuple(argv), returncode=0, stdout="", stderr="") for argv in consumers)
        return Piped(sent=sent, moved=(0,) * len(sent), received=received)


def remote(link: Link) -> tuple[Recorder, Host]:
    recorder = Recorder()
    paths = {"identity": Path("/id"), "known_hosts": Path("/known"), "control": Path("/run/x")}
    destination = Destination(host="backup1", user="pve-zfsbackup", port=22, **paths)
    return recorder, Host(name="backup1", runner=cast(Runner, recorder), destination=destination, link=link)


def sent_lines(use: Callable[[Host], object], link: Link = PLAIN) -> list[str]:
    """The command lines that reach the target's sshd: the last word of every ssh command."""
    runner, host = remote(link)
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


def _carried(host: Host, *, compress: bool = False) -> None:
    """Streams of several disks in one session, one of them resumed, some with two streams in a row."""
    here = Host(name="source", runner=host.runner)
    snapshot = _ours()
    names = [Dataset(f"{ROOT}/local-zfs/vm-100-disk-{n}") for n in range(40)]
    sends = [Send(host="backup1", snapshot=snapshot, base=None, dataset=name, raw=False) for name in names]
    resume = Resume(host="backup1", snapshot=snapshot, dataset=DISK, token="1-a", raw=False)
    pipeline.carry(here, host, [pipeline.Chain(streams=(send,), compress=compress) for send in sends], Silent())
    pipeline.carry(here, host, [pipeline.Chain(streams=(resume, sends[0]), size=1 << 40, compress=compress)], Silent())


class Silent:
    """A meter that nobody reads."""

    def begin(self, stream: object) -> None:
        assert stream

    moved = end = lambda self, *told: None


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("mbuffer", [0, 1 << 20, 64 << 20, 4 << 30])
def test_every_way_streams_travel_is_understood(compress: bool, mbuffer: int) -> None:
    lines = sent_lines(partial(_carried, compress=compress), Link(mbuffer=mbuffer))
    requests = [parse(line, ROOT) for line in lines]
    assert max(sum(command.action == "receive" for command in request.commands) for request in requests) == 40
    assert all(bool(request.filters) >= bool(mbuffer) for request in requests)
    assert any("zstd -dqc" in line for line in lines) is compress


def test_what_setups_check_asks_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of `setup target --check` on a restricted account, whose receiver answers `hello`."""
    recorder, host = remote(Link())
    answered = recorder.run
    hello = json.dumps({"receiver": "0", "protocol": 1, "root": ROOT, "allow": [], "time": 0, "maintained": 0})

    def run(argv: Sequence[str], **_: object) -> Completed:
        done = answered(argv)
        replies = {"hello": hello, "zfs list": "\t".join(["-"] * 64)}
        found = [text for words, text in replies.items() if argv[-1].startswith(words)]
        return replace(done, stdout=found[0] if found else "")

    monkeypatch.setattr(Recorder, "run", lambda self, argv, **more: run(argv, **more))
    target = Target(name="backup1", host="backup1", root=Dataset(ROOT), append_only=True)
    local = Host(name="source", runner=host.runner)
    check_target(Checked(target=target, host=host, local=local, owner="pve1/x", now=0))
    lines = [argv[-1] for argv in recorder.argvs if argv[0] == "ssh"]
    assert {line.partition(" ")[0] for line in lines} == {"hello", "grep", "zpool", "zfs"}
    for line in lines:
        assert parse(line, ROOT).commands


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda host: zfs.hold(host, "pve-zfsbackup", [_ours()]), id="hold"),
        pytest.param(lambda host: zfs.release(host, "pve-zfsbackup", [_ours()]), id="release"),
        pytest.param(lambda host: destroying.destroy(host, [_ours()]), id="destroy"),
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
