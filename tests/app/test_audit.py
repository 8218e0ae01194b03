"""`discover --check`: what is unprotected and not explained fails; what somebody decided does not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pve_zfsbackup.app.audit import Audit, audit
from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.report.audit import audit_json, audit_table
from tests.fakes.runner import Fault
from tests.fakes.world import CT, DB, WEB, World

GOLDEN = Path(__file__).parents[1] / "golden/audit"


def look(world: World) -> Audit:
    with world.session() as session:
        return audit(session)


def edit(world: World, vmid: int, text: str) -> None:
    path = next(world.node.etc.glob(f"*/{vmid}.conf"))
    path.write_text(path.read_text() + text)


def job(world: World, text: str) -> None:
    world.config.write_text(world.config.read_text().replace("    guests: [all]\n", f"    {text}\n"))


def kinds(found: Audit) -> set[tuple[int, str, str]]:
    return {(finding.vmid, finding.disk, finding.kind) for finding in found.open}


def test_a_node_in_order_has_no_findings(world: World) -> None:
    assert look(world).open == ()
    assert audit_table(look(world)).rows == ()
    world.run()
    assert look(world).open == ()


@pytest.mark.parametrize(
    ("vmid", "line", "kind"),
    [
        (DB, "scsi1: local:101/vm-101-disk-1.qcow2,size=1G", "not-protected"),
        (DB, "scsi1: /dev/disk/by-id/ata-X", "not-protected"),
        (DB, "scsi1: /srv/image.raw", "not-protected"),
        (DB, "scsi1: local-zfs:vm-101-disk-9", "lost"),
        (CT, "mp0: /srv/data,mp=/data", "not-protected"),
        (CT, "mp0: /srv/CD-ROM,mp=/data", "not-protected"),  # a name is no reason
        (CT, "mp0: local-zfs:subvol-200-disk-1,mp=/data", "not-protected"),
    ],
)
def test_a_disk_nobody_decided_about_is_a_finding(world: World, vmid: int, line: str, kind: str) -> None:
    edit(world, vmid, line + "\n")
    disk = line.partition(":")[0]
    assert kinds(look(world)) == {(vmid, disk, kind)}
    job(world, f"guests: [all]\n    exclude-disks: ['{vmid}:{disk}']")
    found = look(world)
    assert found.open == (), "decided now"
    assert f"excludes {vmid}:{disk}" in found.findings[-1].explained


@pytest.mark.parametrize(
    "line",
    [
        "scsi1: local-zfs:vm-101-disk-1,backup=0",
        "ide2: local:iso/debian.iso,media=cdrom",
        "ide2: local-zfs:vm-101-cloudinit,media=cdrom",
        "ide2: none,media=cdrom",
        "unused0: local-zfs:vm-101-disk-7",
    ],
)
def test_what_is_decided_or_nothing_to_protect_is_explained(world: World, line: str) -> None:
    world.source.add("rpool/data/vm-101-disk-1", zvol=True)
    edit(world, DB, line + "\n")
    found = look(world)
    assert found.open == ()
    assert [finding.disk for finding in found.findings] == [line.partition(":")[0]]
    assert all(finding.explained for finding in found.findings)


def test_a_disk_added_since_the_last_point_is_new_until_the_next(world: World) -> None:
    world.run(Stage.SNAPSHOT)
    world.source.add("rpool/data/vm-101-disk-1", zvol=True)
    edit(world, DB, "scsi1: local-zfs:vm-101-disk-1\n")
    assert kinds(look(world)) == {(DB, "scsi1", "new-disk")}
    world.run(Stage.SNAPSHOT)
    assert look(world).open == ()


def test_a_guest_in_no_job_is_a_finding_unless_it_is_left_out_by_name(world: World) -> None:
    job(world, "guests: [100, 200]")
    assert kinds(look(world)) == {(DB, "", "no-job")}
    job_text = world.config.read_text().replace("guests: [100, 200]", "guests: [all, '!101']")
    world.config.write_text(job_text)
    found = look(world)
    assert found.open == ()
    (finding,) = [finding for finding in found.findings if finding.kind == "no-job"]
    assert finding.explained == "job all excludes 101"


def test_an_agent_that_is_off_or_silent_is_a_finding_where_quiescing_is_wanted(world: World) -> None:
    path = next(world.node.etc.glob("*/101.conf"))
    path.write_text(path.read_text().replace("agent: 1", "agent: 0"))
    assert kinds(look(world)) == {(DB, "", "agent")}
    path.write_text(path.read_text().replace("agent: 0", "agent: 1,freeze-fs=0"))
    assert look(world).open == ()
    path.write_text(path.read_text().replace("agent: 1,freeze-fs=0", "agent: 1"))
    world.guest(DB).agent = "dead"
    world.run(Stage.SNAPSHOT)
    assert kinds(look(world)) == {(DB, "", "agent")}
    job(world, "guests: [all]\n    quiesce: off")
    assert look(world).open == ()


def test_templates_are_explained(world: World) -> None:
    edit(world, DB, "template: 1\n")
    world.guest(DB).running = False
    job(world, "guests: [100, 200]")
    found = look(world)
    assert found.open == ()
    assert {finding.kind for finding in found.findings} >= {"no-job", "template"}


def test_a_guest_that_cannot_be_read_is_a_finding(world: World) -> None:
    fault = Fault(words=("get", "/nodes/pve1/qemu/101/pending"), answer=(2, "unable to parse"), again=True)
    world.runner.faults.append(fault)
    assert kinds(look(world)) == {(DB, "", "unreadable")}


def test_guests_that_may_be_hidden_are_a_finding(world: World) -> None:
    world.node.hidden = {WEB, CT}
    found = look(world)
    (finding,) = found.open
    assert (finding.vmid, finding.kind) == (None, "hidden")
    assert "lacks VM.Audit on /vms" in finding.text
    assert audit_table(found).rows[0][0] == ""


def test_golden_json(world: World, request: pytest.FixtureRequest) -> None:
    world.run(Stage.SNAPSHOT)
    edit(world, DB, "scsi1: local:101/vm-101-disk-1.qcow2,size=1G\nide2: none,media=cdrom\nhostpci0: 01:00\n")
    edit(world, DB, "virtiofs0: share\nscsi2: /dev/sdb\nscsi3: crypt:vm-101-disk-3\n")
    edit(world, DB, "usb0: host=0951:1666\nargs: -drive file=/dev/sdc\n")
    edit(world, CT, "mp0: /srv/data,mp=/data\nmp1: local-zfs:subvol-200-disk-1,mp=/x\n")
    path = next(world.node.etc.glob("*/100.conf"))
    path.write_text(path.read_text().replace("agent: 1\n", ""))
    world.node.define(105, "cores: 1\nname: base\ntemplate: 1\nscsi0: local-zfs:base-105-disk-0\n", running=False)
    world.source.add("rpool/data/base-105-disk-0", zvol=True)
    job(world, "guests: ['100-104', '200']")
    assert WEB in {finding.vmid for finding in look(world).open}
    told = json.dumps(audit_json(look(world)), indent=2, ensure_ascii=False) + "\n"
    path = GOLDEN / "findings.json"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(told)
    assert told == path.read_text(), f"{path} differs; --update-golden takes it over"
    assert not re.search(r'"explained": "",\n *"resolve": ""', told), "a finding tells what to do"
