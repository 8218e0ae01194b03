"""The two hosts as the benchmark wants them: a Proxmox node without the lab's guests, our product, the peers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.bench.contenders import KEPT, LOCAL_CONFIG, OUR_TARGET, SOURCE
from tests.lab import image, product, setup
from tests.lab.host import Host
from tests.lab.lab import TREE, Lab, LabError
from tests.lab.product import Product
from tests.lab.pve import provision

HERE = Path(__file__).parent
PACKAGES = ("bzfs_main", "zfs_autobackup")  # of the wheels; the rest are tests

_NODE = r"""
target=$1
for name in pvesh qm pct; do install -m 755 "$target/thin.py" "/usr/bin/$name"; done
mkdir -p /etc/pve /run/lxc
printf 'zfspool: bench\n\tpool %s\n\tcontent images,rootdir\n\tmountpoint /%s\n\tsparse 1\n' "$2" "$2" \
  > /etc/pve/storage.cfg
echo 'user:root@pam:1:0::::::' > /etc/pve/user.cfg
zfs list "$2" > /dev/null 2>&1 || zfs create "$2"
zfs set autobackup:bench=child "$2"
systemctl daemon-reload
systemctl restart pvesim
"""
_PROGRAMS = r"""
launch() {
  printf '#!/usr/bin/python3\nimport sys\nsys.path.insert(0, "/opt/peers")\n' > "/usr/local/bin/$1"
  printf 'from %s import %s as main\nsys.exit(main())\n' "$2" "$3" >> "/usr/local/bin/$1"
  chmod 755 "/usr/local/bin/$1"
}
python3 -m compileall -q /opt/peers
launch bzfs bzfs_main.bzfs main
launch zfs-autobackup zfs_autobackup.ZfsAutobackup cli
"""
_PEERS = r"""
for kind in prune snapshot; do mkdir -p /etc/sanoid-$kind; done
keep="daily = 0\nweekly = 0\nmonthly = 0\nyearly = 0\nfrequently = 0"
printf "[$1]\nuse_template = bench\nrecursive = yes\nprocess_children_only = yes\n" > /etc/sanoid-prune/sanoid.conf
printf "[template_bench]\nhourly = $2\n$keep\nautosnap = no\nautoprune = yes\n" >> /etc/sanoid-prune/sanoid.conf
printf "[$1]\nuse_template = bench\nrecursive = zfs\n" > /etc/sanoid-snapshot/sanoid.conf
printf "[template_bench]\nhourly = 1\n$keep\nautosnap = yes\nautoprune = no\n" >> /etc/sanoid-snapshot/sanoid.conf
"""
_SSH = """\
Host backup1
  User root
  BatchMode yes
  Ciphers ^aes128-gcm@openssh.com
"""
_SHARED = "  ControlMaster auto\n  ControlPath /run/bench-shared\n  ControlPersist 600\n"
_CONFIG = f"""\
targets:
  backup1:
    host: backup1
    root: {OUR_TARGET}
jobs:
  all:
    guests: [all]
    quiesce: off
    targets: [backup1]
"""
_LOCAL = f"""\
jobs:
  all:
    guests: [all]
    quiesce: off
    keep: {{keep-last: {KEPT}}}
"""


def prepare(lab: Lab) -> Product:
    """Everything that is there before the first measurement."""
    node(lab)
    install(lab.pve1)
    setup.trust(lab.pve1, lab.backup1)
    ours = product.connect(lab)
    ours.configure(_CONFIG)
    ours.configure(_LOCAL, LOCAL_CONFIG)
    peers(lab.pve1)
    lab.pve1.run(("mkdir", "-p", "/opt/bench"))
    for file in sorted((HERE / "onhost").iterdir()):
        lab.pve1.put(file, f"/opt/bench/{file.name}")
    return ours


def node(lab: Lab) -> None:
    """The simulated Proxmox VE node with one storage and no guests yet."""
    host = lab.pve1
    host.run(("mkdir", "-p", provision.TARGET))
    host.put(provision.HERE, str(Path(provision.TARGET).parent))
    unit = provision._SERVER.format(name=host.name, address=host.address)
    host.write("/etc/systemd/system/pvesim.service", unit)
    host.script(_NODE, provision.TARGET, SOURCE)
    provision.wait_ready(host, ())


def install(host: Host) -> None:
    """Our package of these sources."""
    subprocess.run(("make", "-s", "-C", str(TREE), "deb"), check=True, stdout=subprocess.DEVNULL)
    deb = next((TREE / "build" / "deb").glob("pve-zfsbackup_*.deb"), None)
    if deb is None:
        raise LabError(f"no package of pve-zfsbackup in {TREE / 'build' / 'deb'}")
    host.put(deb, f"/root/{deb.name}")
    host.run(("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "-i", f"/root/{deb.name}"), timeout=600)


def programs(host: Host) -> None:
    """The peers of PyPI, unpacked and compiled as pip would leave them; sanoid is in the lab's image already."""
    with tempfile.TemporaryDirectory() as scratch:
        unpacked = Path(scratch) / "peers"
        for wheel in wheels():
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked, [n for n in archive.namelist() if n.split("/")[0] in PACKAGES])
        host.put(unpacked, "/opt")
    host.script(_PROGRAMS)


def peers(host: Host) -> None:
    """The peers as they are measured."""
    programs(host)
    host.script(_PEERS, SOURCE, str(KEPT))
    host.write("/root/.ssh/config", _SSH, mode=0o600)
    host.write("/root/.ssh/bzfs_ssh_config", _SSH, mode=0o600)
    host.write("/root/.ssh/shared_config", _SSH + _SHARED, mode=0o600)


def wheels() -> list[Path]:
    """The wheels of peers.txt, downloaded once into the lab's cache by pip."""
    cache = image.cache_root() / "peers"
    wanted = (HERE / "peers.txt").read_text().split()
    names = [line.replace("-", "_").replace("==", "-") + "-" for line in wanted]
    if not all(list(cache.glob(f"{name}*.whl")) for name in names):
        command = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(cache))
        subprocess.run((*command, *wanted), check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    return [next(cache.glob(f"{name}*.whl")) for name in names]
