"""Who is measured, and the command each is given. Every peer has what its documents call fast, and nothing unsafe.

No buffer and no compression (the link is local and the data does not compress), no snapshots of its own (they are
made before the clock starts), no thinning while it sends, and the ssh configuration of root with the same cipher.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "rpool/bench"
"""Parent of the datasets that are replicated, snapshotted and pruned; a storage of the simulated Proxmox node."""
TARGET = "tank/bench"
"""Where the floor and the peers replicate to."""
OUR_TARGET = "tank/pve-zfsbackup"
LOCAL_CONFIG = "/root/bench-local.yaml"
KEPT = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """The datasets as they are now. Snapshot names without `@`; `base` is empty before the first replication."""

    names: tuple[str, ...]
    base: str = ""
    new: str = ""
    pruned: tuple[str, ...] = ()
    """The snapshots W3 wants gone, where all datasets have the same names."""

    @property
    def volume(self) -> bool:
        return self.names[0].startswith("vm-")


@dataclass(frozen=True, slots=True)
class Contender:
    """A program by its name in the results. `form` is how its own snapshots are called, for strftime."""

    name: str
    form: str = "bench-%Y%m%d%H%M%S"
    target: str = TARGET

    def replicate(self, tree: Tree, *, nothing: bool = False) -> tuple[str, ...]:
        raise NotImplementedError

    def prune(self, tree: Tree) -> tuple[str, ...]:
        raise NotImplementedError

    def snapshot(self, tree: Tree) -> tuple[str, ...]:
        raise NotImplementedError


class Floor(Contender):
    """`zfs` and `ssh` from a shell that knows beforehand what is to be done."""

    script = "/opt/bench/floor.sh"

    def replicate(self, tree: Tree, *, nothing: bool = False) -> tuple[str, ...]:
        if nothing:
            return ("sh", self.script, "nothing")
        if len(tree.names) == 1:
            return ("sh", self.script, "single", tree.new, *tree.names)
        return ("sh", self.script, "streams", tree.base, tree.new, *tree.names)

    def prune(self, tree: Tree) -> tuple[str, ...]:
        return ("sh", self.script, "destroy", ",".join(tree.pruned), *tree.names)

    def snapshot(self, tree: Tree) -> tuple[str, ...]:
        return ("sh", self.script, "snapshot", "bench-floor", *tree.names)


class Ours(Contender):
    """As a user runs it."""

    def replicate(self, tree: Tree, *, nothing: bool = False) -> tuple[str, ...]:
        return ("pve-zfsbackup", "replicate")

    def prune(self, tree: Tree) -> tuple[str, ...]:
        return ("pve-zfsbackup", "prune", "--config", LOCAL_CONFIG)

    def snapshot(self, tree: Tree) -> tuple[str, ...]:
        return ("pve-zfsbackup", "snapshot", "--config", LOCAL_CONFIG)


class Sanoid(Contender):
    """syncoid for replication, sanoid for snapshots (one recursive command) and pruning."""

    def replicate(self, tree: Tree, *, nothing: bool = False) -> tuple[str, ...]:
        flags = ("--recursive", "--skip-parent", "--no-sync-snap", "--no-rollback", "--no-privilege-elevation")
        pipe = ("--compress=none", "--quiet", "--sendoptions=L c", "--recvoptions=u", "--sshconfig=/root/.ssh/config")
        return ("syncoid", *flags, *pipe, SOURCE, f"root@backup1:{TARGET}")

    def prune(self, tree: Tree) -> tuple[str, ...]:
        return ("sanoid", "--configdir=/etc/sanoid-prune", "--prune-snapshots", "--force-prune", "--quiet")

    def snapshot(self, tree: Tree) -> tuple[str, ...]:
        return ("sanoid", "--configdir=/etc/sanoid-snapshot", "--take-snapshots", "--quiet")


class Bzfs(Contender):
    """In parallel as it comes; its cache of snapshots switched on."""

    common = ("--recursive", "--skip-parent", "--no-privilege-elevation", "--quiet", "--pv-program=-")

    def replicate(self, tree: Tree, *, nothing: bool = False) -> tuple[str, ...]:
        pipe = ("--compression-program=-", "--mbuffer-program=-", "--no-estimate-send-size", "--cache-snapshots")
        opts = ("--zfs-send-program-opts=-L -c", "--ssh-dst-config-file=/root/.ssh/bzfs_ssh_config")
        return ("bzfs", SOURCE, f"root@backup1:{TARGET}", *self.common, *pipe, *opts)

    def prune(self, tree: Tree) -> tuple[str, ...]:
        which = ("--include-snapshot-times-and-ranks", "notime", f"all except latest {KEPT}")
        return ("bzfs", "dummy", SOURCE, *self.common, "--skip-replication", "--delete-dst-snapshots", *which)

    def snapshot(self, tree: Tree) -> tuple[str, ...]:
        plan = "{'bench': {'onsite': {'hourly': 1}}}"
        make = ("--create-src-snapshots", "--create-src-snapshots-plan", plan, "--create-src-snapshots-even-if-not-due")
        return ("bzfs", SOURCE, "dummy", *self.common, "--skip-replication", *make)


class Autobackup(Contender):
    """zfs-autobackup with the ssh configuration its documents recommend (a connection that is shared)."""

    common = ("--no-progress", "--no-holds")

    def replicate(self, tree: Tree, *, nothing: bool = False) -> tuple[str, ...]:
        flags = ("--no-snapshot", "--no-thinning", "--clear-mountpoint", "--zfs-compressed", "--strip-path=2")
        ssh = ("--ssh-config", "/root/.ssh/shared_config", "--ssh-target", "root@backup1")
        return ("zfs-autobackup", *self.common, *flags, *ssh, "bench", TARGET)

    def prune(self, tree: Tree) -> tuple[str, ...]:
        return ("zfs-autobackup", *self.common, "--no-snapshot", f"--keep-source={KEPT}", "bench")

    def snapshot(self, tree: Tree) -> tuple[str, ...]:
        return ("zfs-autobackup", *self.common, "--no-thinning", "--allow-empty", "bench")


FLOOR = Floor("floor")
OURS = Ours("pve-zfsbackup", target=OUR_TARGET)
ALL: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        FLOOR,
        OURS,
        Bzfs("bzfs"),
        Autobackup("zfs-autobackup"),
        Sanoid("sanoid", form="autosnap_%Y-%m-%d_%H:%M:%S_hourly"),
    )
}
