"""What an administrator would have done on the hosts before the product comes: pools, accounts, keys."""

from __future__ import annotations

from tests.lab.host import Host

# Seen once: "cannot create 'fast': no such pool or dataset", right after the boot of a lab on a quiet machine.
_POOL = r"""
for try in 1 2 3 4 5; do
  udevadm settle
  zpool create -f -o ashift=12 -o autotrim=on -O compression=on -O atime=off -O xattr=sa -O acltype=posix \
    "$1" "/dev/disk/by-id/virtio-$1" && break
  sleep 2
done
zpool list "$1" > /dev/null
"""

_BOX = r"""
mkfs.ext4 -q -L box /dev/disk/by-id/virtio-box
mkdir -p /srv/box
echo 'LABEL=box /srv/box ext4 nofail,noatime 0 2' >> /etc/fstab
systemctl daemon-reload
mount /srv/box
useradd --no-create-home --home-dir / --shell /usr/sbin/nologin box
chmod 755 /srv/box
install -d -o box -g box -m 750 /srv/box/uploads
rmdir /srv/box/lost+found
install -d -m 755 /etc/ssh/authorized_keys.d
cat > /etc/ssh/sshd_config.d/box.conf <<'CONF'
Match User box
    AuthorizedKeysFile /etc/ssh/authorized_keys.d/box
    ChrootDirectory /srv/box
    ForceCommand internal-sftp
    AllowTcpForwarding no
    AllowAgentForwarding no
    PermitTunnel no
    X11Forwarding no
CONF
systemctl reload ssh
"""

# Synced at once: tests cut the power soon after, and a line appended within a file's last block is zeros then, to which
# the next line would be appended.
_OWN_KEY = r"""
[ -e /root/.ssh/id_ed25519 ] || ssh-keygen -q -t ed25519 -N '' -C "root@$(hostname)" -f /root/.ssh/id_ed25519
sync /root/.ssh/id_ed25519 /root/.ssh/id_ed25519.pub /root/.ssh
cat /root/.ssh/id_ed25519.pub
"""

_AUTHORIZE = r"""
mkdir -p "$(dirname "$1")"
touch "$1"
grep -qxF "$2" "$1" || printf '%s\n' "$2" >> "$1"
sync "$1" "$(dirname "$1")"
"""

_KNOW = r"""
touch /root/.ssh/known_hosts
for name in $1; do
  ssh-keygen -R "$name" > /dev/null 2>&1 || :
  printf '%s %s\n' "$name" "$2" >> /root/.ssh/known_hosts
done
sync /root/.ssh/known_hosts
"""


def prepare(host: Host) -> None:
    """First boot of a host: its pools, and what else its name says."""
    for disk in host.machine.spec.disks:
        if disk.name == "box":
            host.script(_BOX)
        else:
            host.script(_POOL, disk.name)
    if host.name == "pve1":
        host.run(("zfs", "create", "rpool/data"))


def public_key(host: Host) -> str:
    """Public ssh key of the host's root, made when there is none."""
    return host.script(_OWN_KEY).stdout.strip()


def trust(source: Host, target: Host, user: str = "root") -> None:
    """Let root on `source` log in on `target` (as root, or `box` by SFTP), with the target's host key known.

    By hand: ssh-keygen, ssh-copy-id, ssh-keyscan. Repeating it changes nothing.
    """
    authorize(target, public_key(source), user)
    know(source, target)


def authorize(target: Host, key: str, user: str = "root") -> None:
    """Let whoever has this key log in on `target` as root, or as `box` by SFTP."""
    paths = {"root": "/root/.ssh/authorized_keys", "box": "/etc/ssh/authorized_keys.d/box"}
    target.script(_AUTHORIZE, paths[user], key)


def know(source: Host, target: Host) -> None:
    """Put the host key of `target` into root's known_hosts on `source`, under its names and its address."""
    kind, key = target.read("/etc/ssh/ssh_host_ed25519_key.pub").split()[:2]
    source.script(_KNOW, f"{target.name} {target.name}.lab.test {target.address}", f"{kind} {key}")
