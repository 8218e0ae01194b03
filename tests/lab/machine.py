"""One emulated computer: its QEMU process, its disks, its serial log."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.image import Image

GUARDIAN = Path(__file__).with_name("guardian.py")

# Emulating AVX costs more than it brings: a fifth of the time to boot, and slower checksums.
EMULATION = ("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem,+aes,+pclmulqdq,+rdrand")
VIRTUALIZATION = ("-accel", "kvm", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max")
COMMAND_LINE = (
    "root=/dev/vda rw console=ttyS0 mitigations=off quiet net.ifnames=0 nokaslr audit=0 no_timer_check panic=-1"
)


class LabError(Exception):
    """The lab cannot do its part; never a verdict about the product."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """An empty virtual disk, `/dev/disk/by-id/virtio-<name>` in the host; the file is sparse."""

    name: str
    gib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a host is made of. `number` gives its address on the link, 10.77.0.<number>."""

    name: str
    number: int
    disks: tuple[Disk, ...] = ()
    memory_mib: int = 3072
    cpus: int = 2

    @property
    def address(self) -> str:
        return f"10.77.0.{self.number}"


@dataclass(slots=True, kw_only=True)
class Machine:
    """A host's hardware within one run. Start it, kill it, start it again: the disks stay."""

    spec: Spec
    image: Image
    run: Path
    logs: Path
    peers: tuple[str, ...] = ()
    port: int = field(init=False, default=0)
    attached: bool = field(init=False, default=False)  # started by somebody else, see Lab.attach
    process: subprocess.Popen[bytes] | None = field(init=False, default=None)

    @property
    def serial_log(self) -> Path:
        return self.logs / f"{self.spec.name}.serial.log"

    @property
    def qemu_log(self) -> Path:
        return self.logs / f"{self.spec.name}.qemu.log"

    def start(self) -> None:
        """Start QEMU; the management ssh will answer on 127.0.0.1:`port` once the host is up."""
        if self.running:
            raise LabError(f"{self.spec.name} is running already")
        self._make_disks()
        self.port = _free_port()
        (self.run / f"{self.spec.name}.port").write_text(str(self.port))  # for Lab.attach
        with self.qemu_log.open("ab") as log:
            self.process = subprocess.Popen(
                (sys.executable, "-IS", str(GUARDIAN), *self.command()),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self.attached or (self.process is not None and self.process.poll() is None)

    @property
    def died(self) -> bool:
        """Whether it ended without the lab's doing; `kill` it before it is started again."""
        return self.process is not None and not self.running

    @property
    def fate(self) -> str:
        """Why it does not run: switched off by the lab, or how it died by itself, with its last words."""
        if self.process is None:
            return f"{self.spec.name} is switched off"
        words = [line for log in (self.serial_log, self.qemu_log) for line in _tail(log)]
        told = "\n".join((f"{self.spec.name} died by itself, status {self.process.poll()}:", *words))
        return told if words else f"{told} no last words"

    def kill(self) -> None:
        """Cut the power: QEMU gets SIGKILL, nothing inside is told. Harmless when it is off already."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process = None

    def wait_off(self, timeout: float) -> None:
        """Wait until the host has switched itself off (seconds); LabError when it does not."""
        if self.process is None:
            return
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{self.spec.name} did not switch off; see {self.serial_log}") from error
        self.kill()

    def _make_disks(self) -> None:
        overlay = self.run / f"{self.spec.name}.qcow2"
        if not overlay.exists():
            backing = ("-b", str(self.image.root.resolve()), "-F", "raw")
            subprocess.run(("qemu-img", "create", "-q", "-f", "qcow2", *backing, str(overlay)), check=True)
        for disk in self.spec.disks:
            path = self.disk_file(disk.name)
            if not path.exists():
                with path.open("wb") as handle:
                    handle.truncate(disk.gib << 30)

    def disk_file(self, name: str) -> Path:
        """The raw file behind a virtual disk, for tests that look at it from outside."""
        return self.run / f"{self.spec.name}-{name}.raw"

    def command(self) -> tuple[str, ...]:
        spec = self.spec
        boot = ("-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd))
        link = f" lab.address={spec.address}" if self.peers else ""
        append = ("-append", f"{COMMAND_LINE} systemd.hostname={spec.name}{link}")
        size = ("-smp", str(spec.cpus), "-m", str(spec.memory_mib))
        quiet = ("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot")
        serial = ("-chardev", f"file,id=serial,path={self.serial_log},append=on", "-serial", "chardev:serial")
        extra = ("-device", "virtio-rng-pci")
        start = ("qemu-system-x86_64", *acceleration(), *size, *quiet)
        return (*start, *boot, *append, *serial, *extra, *self._drives(), *self._networks())

    def _drives(self) -> tuple[str, ...]:
        # cache=unsafe: a killed QEMU loses nothing it had acknowledged, only a crash of this machine would.
        root = _drive("root", self.run / f"{self.spec.name}.qcow2", "qcow2")
        return (*root, *(a for d in self.spec.disks for a in _drive(d.name, self.disk_file(d.name), "raw")))

    def _networks(self) -> tuple[str, ...]:
        management = f"user,id=management,hostfwd=tcp:127.0.0.1:{self.port}-:22"
        arguments = ["-netdev", management, "-device", _network_device("management", 0, self.spec.number)]
        for peer in self.peers:
            # Datagrams between two named sockets: either end may vanish and come back.
            own, other = (self.run / f"{a}-{b}.link" for a, b in ((self.spec.name, peer), (peer, self.spec.name)))
            own.unlink(missing_ok=True)
            ends = f"local.type=unix,local.path={own},remote.type=unix,remote.path={other}"
            device = _network_device("link", 1, self.spec.number) + ",host_mtu=9000"
            arguments += ["-netdev", f"dgram,id=link,{ends}", "-device", device]
        return tuple(arguments)


def _drive(name: str, path: Path, form: str) -> Sequence[str]:
    return (
        *("-drive", f"if=none,id={name},file={path},format={form},cache=unsafe,discard=unmap"),
        *("-device", f"virtio-blk-pci,drive={name},serial={name}"),
    )


def _network_device(netdev: str, segment: int, number: int) -> str:
    # No boot ROM: the kernel is given, and looking for a boot server costs seconds under emulation.
    return f"virtio-net-pci,netdev={netdev},mac=52:54:00:77:{segment:02x}:{number:02x},romfile="


def acceleration() -> tuple[str, ...]:
    """KVM only where the processor itself virtualizes.

    /dev/kvm alone proves nothing: on a kernel with kvm-pvm it opens, but an unmodified kernel runs instruction by
    instruction in its emulator, slower than TCG, until the first instruction that it does not know (seen: shlx in the
    decompressor, cmpxchg16b, xrstor).
    """
    flags = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    return VIRTUALIZATION if flags & {"vmx", "svm"} and os.access("/dev/kvm", os.R_OK | os.W_OK) else EMULATION


def _tail(log: Path, lines: int = 40) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-lines:] if log.exists() else []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
