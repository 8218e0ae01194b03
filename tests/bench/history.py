"""A history for W3: so many snapshots of every dataset, an hour apart, in a contender's own manner."""

from __future__ import annotations

from tests.bench.contenders import OURS, SOURCE, Contender
from tests.lab.host import Host

# Peers go by the age of a snapshot, so the host's clock is turned back for a while; one step for all datasets.
_STEPS = r"""
source=$1 count=$2 form=$3; shift 3
now=$(date +%s) up=$(cut -d. -f1 /proc/uptime)
trap 'date -s "@$((now + $(cut -d. -f1 /proc/uptime) - up))" > /dev/null' EXIT
for hours in $(seq "$count" -1 1); do
  date -s "@$((now - hours * 3600 + 600))" > /dev/null
  name=$(date -u +"$form")
  snapshots "$name" "$@"
done
"""
_PLAIN = r"""
snapshots() {
  at=$1; shift
  for dataset; do shift; set -- "$@" "$source/$dataset@$at"; done
  zfs snapshot "$@"
}
"""
# Ours carry a property that differs from dataset to dataset: one channel program instead of a command for each.
_OURS = r"""
cat > /run/points.lua <<'LUA'
args = ...
argv = args["argv"]
source, stamp = argv[1], argv[2]
for number = 3, #argv do
  guid, name = string.match(argv[number], "^(%d+)=(.*)$")
  vmid = string.match(name, "^subvol%-(%d+)%-")
  snapshot = source .. "/" .. name .. "@pzb:" .. stamp
  failed = zfs.sync.snapshot(snapshot)
  if failed ~= 0 then error(snapshot .. ": error " .. failed) end
  zfs.sync.set_prop(snapshot, "pve-zfsbackup:point", vmid .. "/" .. stamp)
  zfs.sync.set_prop(snapshot, "pve-zfsbackup:disks", "rootfs=bench:" .. name .. "#" .. guid)
  zfs.sync.set_prop(snapshot, "pve-zfsbackup:consistency", "offline")
end
LUA
all=$(zfs list -Hp -r -d 1 -o guid,name "$1" | sed -n "s!\t$1/!=!p")
snapshots() { zfs program -m 67108864 "${source%%/*}" /run/points.lua "$source" "$1" $all > /dev/null; }
"""
OUR_FORM = "%Y%m%dT%H%M%SZ-0000"


def make(host: Host, contender: Contender, names: tuple[str, ...], count: int) -> None:
    """Give the datasets below SOURCE (they have no snapshots yet) this history."""
    if contender is OURS:
        host.script(_OURS + _STEPS, SOURCE, str(count), OUR_FORM, *names, timeout=1800)
    else:
        host.script(_PLAIN + _STEPS, SOURCE, str(count), contender.form, *names, timeout=1800)
