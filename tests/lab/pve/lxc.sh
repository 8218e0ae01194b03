#!/bin/sh
# lxc-info -s -H, lxc-freeze and lxc-unfreeze -n VMID, as LXC 6 has them: a container is the control group of
# pve-container@VMID.service, and the kernel's freezer stops all that is in it. Without that group there is nothing to
# freeze, and it fails; whether the container runs is known all the same.
set -eu
name=${0##*/}
[ "${1:-}" = -n ] && [ $# -ge 2 ] || { echo "$name: missing container name, use --name option" >&2; exit 1; }
group=$(systemctl show -P ControlGroup "pve-container@$2")
events=/sys/fs/cgroup$group/cgroup.events
state() {
  if [ ! -e "/run/lxc/$1.running" ]; then echo STOPPED
  elif [ -n "$group" ] && grep -qx 'frozen 1' "$events"; then echo FROZEN
  else echo RUNNING; fi
}
turn() {  # the group is told, and then waited for: a process in the kernel stops when it comes out
  [ -n "$group" ] || { echo "$name: $1: failed: no control group" >&2; exit 1; }
  echo "$2" > "/sys/fs/cgroup$group/cgroup.freeze"
  until grep -qx "frozen $2" "$events"; do sleep 0.05; done
}
case $name in
  lxc-info) state "$2" ;;
  lxc-freeze) turn "$2" 1 ;;
  lxc-unfreeze) turn "$2" 0 ;;
esac
