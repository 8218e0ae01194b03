#!/usr/bin/python3 -IS
"""A running VM of the lab: its disks' file systems, a writer on each, and a real qemu-ga, in a mount namespace.

usage: guestd.py VMID      (as pve-guest@VMID.service; SIGTERM ends it, SIGHUP applies a new agent mode)

qemu-ga freezes every mount with a block device that it finds in its namespace. So the namespace holds a tmpfs with a
copy of qemu-ga and the guest's own file systems, nothing else; `check_mounts` refuses to go on otherwise, because a
frozen root would stop the lab host. Uses the standard library alone and imports all it needs before pivot_root.
"""

import ctypes
import errno
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

RUN = Path("/run/pvesim")
VMRUN = Path("/run/qemu-server")
PROGRAMS = ("/usr/sbin/qemu-ga", "/bin/sh", "/bin/sleep")
BUSY = (100, 101)
"""VMs whose writers hurry: 0.4 s between rounds, 2 s in the others; all at once would eat the emulated processors."""
FITHAW = 0xC0045878
MS_BIND, MS_REC, MS_PRIVATE, MS_NOATIME, MNT_DETACH = 0x1000, 0x4000, 0x40000, 0x400, 2
PIVOT_ROOT = 155  # x86_64
ERESTARTSYS = 512
_HOOK = """#!/bin/sh
[ "$1" = freeze ] || exit 0
read -r seconds < /run/pvesim/{vmid}.slow || exit 0
exec /bin/sleep "$seconds"
"""
_DISK = re.compile(r"^(scsi|virtio|sata|ide)\d+$")
libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: Path, kind: str, flags: int = 0) -> None:
    """mount(2), again while another thread of the kernel has locked the zvol."""
    deadline = time.monotonic() + 60.0
    while (done := libc.mount(source.encode(), str(target).encode(), kind.encode(), flags, None)) != 0:
        if ctypes.get_errno() != ERESTARTSYS or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    _checked(done, f"mount {source} {target}")


def disks(vmid: int, etc: Path = Path("/etc/pve")) -> dict[str, str]:
    """Drive name to /dev/zvol link, of the drives whose storage is a zfspool, or that are named by such a link (what
    runs: no pending changes)."""
    pools, current = {}, ""
    for line in (etc / "storage.cfg").read_text().splitlines():
        if line.startswith("zfspool:"):
            current = line.split()[1]
        elif line and not line[0].isspace():
            current = ""
        elif current and line.split()[:1] == ["pool"]:
            pools[current] = line.split()[1]
    found = {}
    for line in (etc / f"qemu-server/{vmid}.conf").read_text().splitlines():
        if line.startswith("["):
            break
        key, _, value = line.partition(": ")
        volume = value.partition(",")[0].removeprefix("file=")
        store, _, name = volume.partition(":")
        if not _DISK.match(key) or "media=cdrom" in value:
            continue
        if volume.startswith("/dev/zvol/"):
            found[key] = volume
        elif store in pools:
            found[key] = f"/dev/zvol/{pools[store]}/{name.rpartition('/')[2]}"
    return found


def agent_on(vmid: int) -> bool:
    """Whether the guest has an agent running inside."""
    conf = Path(f"/etc/pve/qemu-server/{vmid}.conf").read_text().partition("\n[")[0]
    value = re.search(r"^agent: (?:enabled=)?(\S+?)(?:,|$)", conf, re.MULTILINE)
    return value is not None and value[1] in ("1", "on", "yes", "true")


def file_system(device: str) -> str | None:
    """ext4, xfs or None, from the magic numbers; waits up to 30 s for the device link."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with open(device, "rb") as disk:
                head = disk.read(2048)
            break
        except OSError as error:
            # A zvol that another thread of the kernel has locked answers 512, which no program should ever see.
            if error.errno not in (errno.ENOENT, ERESTARTSYS) or time.monotonic() > deadline:
                raise
        time.sleep(0.1)
    return "xfs" if head[:4] == b"XFSB" else "ext4" if head[0x438:0x43A] == b"\x53\xef" else None


def copy_program(program: str, root: Path) -> None:
    """Copy a program and its libraries into the new root."""
    listing = subprocess.run(("ldd", program), capture_output=True, text=True, check=True).stdout
    for path in (program, *re.findall(r"(/\S+) \(0x", listing)):
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        target.chmod(0o755)


def enter(vmid: int) -> list[str]:
    """Leave the host's mounts behind for a minimal tree; returns the mount points of the guest's file systems."""
    devices = {key: (link, kind) for key, link in disks(vmid).items() if (kind := file_system(link))}
    libc.unshare(0x00020000)
    mount("none", Path("/"), "", MS_REC | MS_PRIVATE)
    root = RUN / f"root.{vmid}"
    root.mkdir(exist_ok=True)
    mount("tmpfs", root, "tmpfs")
    for name in ("proc", "sys", "dev", "tmp", "etc", "old", "run/qemu-server", "run/pvesim"):
        (root / name).mkdir(parents=True)
    for program in PROGRAMS:
        copy_program(program, root)
    shutil.copyfile("/etc/os-release", root / "etc/os-release")
    (root / "hook").write_text(_HOOK.format(vmid=vmid))
    (root / "hook").chmod(0o755)
    if devices:  # what is written below /var lies on the first disk, as in a guest that has a system there
        (root / "var").symlink_to(f"guest/{next(iter(devices))}/var")
    os.mknod(root / "dev/null", 0o20666, os.makedev(1, 3))
    mount("proc", root / "proc", "proc")
    mount("sysfs", root / "sys", "sysfs")
    mount(str(VMRUN), root / "run/qemu-server", "", MS_BIND)
    mount(str(RUN), root / "run/pvesim", "", MS_BIND)
    points = []
    for key, (link, kind) in devices.items():
        (root / "guest" / key).mkdir(parents=True)
        mount(os.path.realpath(link), root / "guest" / key, kind, MS_NOATIME)
        points.append(f"/guest/{key}")
    _checked(libc.syscall(PIVOT_ROOT, str(root).encode(), str(root / "old").encode()), "pivot_root")
    os.chdir("/")
    _checked(libc.umount2(b"/old", MNT_DETACH), "umount the host")
    check_mounts(points)
    if points:
        os.makedirs(f"{points[0]}/var/lib", exist_ok=True)
    return points


def check_mounts(points: list[str]) -> None:
    """Every mount with a block device must be the guest's: anything else would be frozen with it."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        number, point = line.split()[2:5:2]
        if not number.startswith("0:") and point not in points:
            raise SystemExit(f"guestd: {point} ({number}) is not the guest's; refusing to start the agent")


def write_forever(vmid: int, point: str) -> None:
    """The guest's load: small synced appends and changes of names, and a count of what has been synced."""
    place = f"{point}/writer"
    os.makedirs(place, exist_ok=True)
    count = os.open(f"/run/pvesim/{vmid}-{point.rpartition('/')[2]}.progress", os.O_RDWR | os.O_CREAT, 0o644)
    log = os.open(f"{place}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    number = 0
    while True:
        number += 1
        os.write(log, f"{number} {time.time():.6f}\n".encode() * 16)
        os.fsync(log)
        fresh = f"{place}/new"
        with open(fresh, "wb") as out:
            out.write(os.urandom(2048))
        os.replace(fresh, f"{place}/file{number % 24}")
        if number % 8 == 0:
            os.mkdir(f"{place}/directory{number}")
            os.rmdir(f"{place}/directory{number}")
        if number % 512 == 0:
            os.ftruncate(log, 0)
        os.pwrite(count, b"%020d\n" % number, 0)
        time.sleep(0.4 if vmid in BUSY else 2.0)


class Guest:
    """The supervisor: one writer per file system and the agent in its current mode."""

    def __init__(self, vmid: int, points: list[str], agent: bool) -> None:
        self.vmid = vmid
        self.points = points
        self.agent = agent
        self.mode = ""
        self.qga: subprocess.Popen[bytes] | None = None
        self.writers = [self._writer(point) for point in points]

    def _writer(self, point: str) -> int:
        pid = os.fork()
        if pid == 0:
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            write_forever(self.vmid, point)
        return pid

    def apply(self) -> None:
        """Bring the agent into the mode of /run/pvesim/VMID.agent: ok, hang, dead, refuse."""
        path = RUN / f"{self.vmid}.agent"
        mode = path.read_text().strip() if path.exists() else "ok"
        if not self.agent or mode == self.mode:
            return
        if self.qga and (mode == "dead" or "refuse" in (mode, self.mode)):
            self._end_agent()
        if mode != "dead" and self.qga is None:
            self._start_agent(("-b", "guest-fsfreeze-freeze") if mode == "refuse" else ())
        if self.qga:
            self.qga.send_signal(signal.SIGSTOP if mode == "hang" else signal.SIGCONT)
        self.mode = mode

    def _start_agent(self, extra: tuple[str, ...]) -> None:
        socket = f"/run/qemu-server/{self.vmid}.qga"
        Path(socket).unlink(missing_ok=True)
        argv = ("/usr/sbin/qemu-ga", "-m", "unix-listen", "-p", socket, "-t", "/tmp", "-F/hook", "-l", "/tmp/qga.log")
        self.qga = subprocess.Popen((*argv, *extra), stdin=subprocess.DEVNULL)

    def _end_agent(self) -> None:
        if self.qga:
            self.qga.send_signal(signal.SIGCONT)
            self.qga.kill()
            self.qga.wait()
            self.qga = None
        Path(f"/run/qemu-server/{self.vmid}.qga").unlink(missing_ok=True)

    def thaw(self) -> None:
        """Release every freeze, so that the writers can end and the disks come free."""
        for point in self.points:
            fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.ioctl(fd, FITHAW, 0)
            except OSError:
                continue  # it was not frozen
            finally:
                os.close(fd)

    def stop(self) -> None:
        """End everything and give the disks back."""
        self._end_agent()
        self.thaw()
        for pid in self.writers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for point in self.points:
            _checked(libc.umount2(point.encode(), 0), f"umount {point}")
        for name in ("pid", "qmpstatus"):
            Path(f"/run/qemu-server/{self.vmid}.{name}").unlink(missing_ok=True)


def main(vmid: int) -> None:
    """Run the guest until SIGTERM."""
    for path in (RUN, VMRUN):
        path.mkdir(mode=0o755, exist_ok=True)
    agent = agent_on(vmid)
    points = enter(vmid)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGHUP, signal.SIGINT))
    guest = Guest(vmid, points, agent)
    guest.apply()
    Path(f"/run/qemu-server/{vmid}.pid").write_text(f"{os.getpid()}\n")
    while signal.sigwait((signal.SIGTERM, signal.SIGHUP, signal.SIGINT)) == signal.SIGHUP:
        guest.apply()
    guest.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]))
