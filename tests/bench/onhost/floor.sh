#!/bin/sh
# The least that does the job: no listing where the names are known, no check, no state. What the others are held to.
# usage: floor.sh streams BASE NEW NAME...     BASE may be empty: full streams
#        floor.sh single NEW NAME              floor.sh nothing
#        floor.sh destroy SNAPSHOTS NAME...    floor.sh snapshot NEW NAME...
set -eu
source=rpool/bench
root=tank/bench
socket=/run/bench-floor
what=$1
shift

over() { ssh -o ControlPath=$socket "$@"; }

# Many streams through one session: the receives take turns on its one input.
lane() {
  base=$1 new=$2
  shift 2
  for name; do
    zfs send -L -c ${base:+-i "@$base"} "$source/$name@$new"
  done | over backup1 "for name in $*; do zfs receive -u $root/\$name || exit; done"
}

streams() {
  base=$1 new=$2
  shift 2
  over -M -N -f backup1
  one='' two='' three='' four=''
  while [ $# -gt 0 ]; do
    one="$one $1" two="$two ${2-}" three="$three ${3-}" four="$four ${4-}"
    if [ $# -gt 4 ]; then shift 4; else shift $#; fi
  done
  lanes=
  for names in "$one" "$two" "$three" "$four"; do
    # shellcheck disable=SC2086 # words are wanted
    lane "$base" "$new" $names &
    lanes="$lanes $!"
  done
  for pid in $lanes; do wait "$pid"; done
  over -O exit backup1 2> /dev/null
}

case $what in
  streams) streams "$@" ;;
  single) zfs send -L -c "$source/$2@$1" | ssh backup1 "zfs receive -u $root/$2" ;;
  nothing)
    zfs list -Hp -r -t snapshot -o name,guid $source > /run/bench-here
    ssh backup1 zfs list -Hp -r -t snapshot -o name,guid $root > /run/bench-there
    sed -i "s!^$root/!$source/!" /run/bench-there
    cmp /run/bench-here /run/bench-there
    ;;
  destroy)
    old=$1
    shift
    for name; do zfs destroy "$source/$name@$old"; done
    ;;
  snapshot)
    new=$1
    shift
    for name; do
      shift
      set -- "$@" "$source/$name@$new"
    done
    zfs snapshot "$@"
    ;;
esac
