"""What lies in every generation so that it can be restored without us: a text for people and a script."""

from __future__ import annotations

from typing import Final

from pve_zfsbackup.archive.names import README, SCRIPT

_README: Final = """\
This directory holds encrypted backups of one virtual machine or container, made by pve-zfsbackup from ZFS snapshots:
one full archive and the increments that build on it. It can be restored without pve-zfsbackup. Needed are

  - this directory, all of it, with the names it has
  - the age identity (AGE-SECRET-KEY-1...) that was put in the safe when the box was set up
  - the file with the public signing key (archive.signers), from the safe as well: without it nobody can tell whether
    what lies here is what was put here
  - a host with OpenZFS and the programs age, zstd, ssh-keygen and those of coreutils, sed and grep

  sh restore.sh list    IDENTITY SIGNERS
  sh restore.sh restore IDENTITY SIGNERS POINT POOL/DATASET

Nobody signed this text and restore.sh: who has the storage could have changed them, to get the identity. Where you have
a copy of your own (/usr/share/pve-zfsbackup/restore.sh of the package, or in the safe), take that, away from here:

  GENERATION=/path/to/this/directory sh /root/restore.sh list IDENTITY SIGNERS

`list` shows the points that lie here, oldest first, and what is missing or wrong; `restore` receives every disk of
one of them below POOL/DATASET (which must exist) with `zfs receive -s -u`, starting with the full archive, and writes
the guest's configuration to a file where you are (in your home, where that is in the storage). Every signature, and
the hash of every file before and after decryption, is checked; it stops at the first that is wrong. Datasets that
were encrypted on the source arrive encrypted and need their own key (`zfs load-key`).

By hand: seg-* files in order of their number, each `age -d -i IDENTITY`, then `zstd -d` where the manifest says codec
zstd, one after another into `zfs receive`. The manifest is `age -d -i IDENTITY manifest.age`: text, JSON.
The format is described in docs/archive-format.md of pve-zfsbackup.
"""

_SCRIPT: Final = r"""#!/bin/sh
# Restores an archive of pve-zfsbackup with nothing but coreutils, sed, grep, age, zstd, ssh-keygen and zfs.
#   sh restore.sh list    IDENTITY SIGNERS
#   sh restore.sh restore IDENTITY SIGNERS POINT POOL/DATASET
# It restores what lies beside it, or in the directory that GENERATION names in the environment.
set -eu
umask 077
LC_ALL=C
export LC_ALL

tell() { # not by echo, which in some shells makes something of backslashes; and nothing that moves a terminal
	printf 'restore.sh: %s\n' "$*" | tr -d '\001-\010\013-\037\177' >&2
}

die() {
	tell "$@"
	exit 1
}

usage="usage: restore.sh list IDENTITY SIGNERS | restore IDENTITY SIGNERS POINT POOL/DATASET"
[ $# -ge 3 ] || die "$usage"
verb=$1 identity=$2 signers=$3
here=$(CDPATH='' cd -- "${GENERATION:-$(dirname -- "$0")}" && pwd -P)
by=$(basename "$(dirname "$here")") # who wrote all of it; copied elsewhere, the first that is good tells
printf '%s\n' "$by" | grep -qx 'w-[0-9a-f]\{16\}' || by=
[ -r "$identity" ] || die "cannot read the identity $identity"
[ -r "$signers" ] || die "cannot read the signers $signers"
work=$(mktemp -d "${TMPDIR:-/var/tmp}/pzb-restore.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

hash_of() {
	sha256sum <"$1" | cut -d' ' -f1
}

member() { # of a manifest: text or number
	sed -n "s/^\"$2\":\"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" "$1" | head -n 1
}

within() { # FILE BYTES: it has no more
	[ "$(wc -c <"$1")" -le "$2" ]
}

genuine() { # DIRECTORY FILE: signed by its writer
	[ -f "$1/$2" ] && [ -f "$1/$2.sig" ] || die "$(basename "$1"): $2 or its signature is missing"
	within "$1/$2" 67108864 || die "$(basename "$1"): $2 is too large to be one"
	within "$1/$2.sig" 16384 || die "$(basename "$1"): the signature of $2 is too large to be one"
	ssh-keygen -q -Y verify -f "$signers" -I "$(member "$1/manifest.json" writer)" -n pve-zfsbackup-archive \
		-s "$1/$2.sig" <"$1/$2" >/dev/null || die "$(basename "$1"): the signature of $2 is not good"
}

# outer DIRECTORY: its manifest.json is genuine and belongs here.
outer() {
	genuine "$1" manifest.json
	writer=$(member "$1/manifest.json" writer)
	[ "$writer" = "${by:=$writer}" ] || die "$(basename "$1"): signed by $writer, and what lies here is of $by"
	[ "$(member "$1/manifest.json" point)" = "$(basename "$1")" ] ||
		die "$(basename "$1"): the manifest of another point"
	[ "$(member "$1/manifest.json" generation)" = "$(basename "$here")" ] ||
		die "$(basename "$1"): the manifest of a point that belongs elsewhere than to $(basename "$here")"
}

# check DIRECTORY: both manifests are genuine and belong here, every segment is there with its size; leaves the inner
# manifest in $work/NAME.
check() {
	name=$(basename "$1")
	outer "$1"
	genuine "$1" manifest.age
	[ "$(member "$1/manifest.json" manifest_sha256)" = "$(hash_of "$1/manifest.age")" ] ||
		die "$name: manifest.age is not the one manifest.json speaks of"
	age -d -i "$identity" "$1/manifest.age" >"$work/$name" || die "$name: the identity does not open it"
	for key in series generation point sequence parent parent_point; do
		[ "$(member "$1/manifest.json" $key)" = "$(member "$work/$name" $key)" ] ||
			die "$name: its manifests do not agree about $key"
	done
	sed -n 's/^{"n":\([0-9]*\),"bytes":\([0-9]*\),"sha256":"\([0-9a-f]*\)"}.*/\1 \2 \3/p' "$1/manifest.json" \
		>"$work/stored" || die "$name: its segments cannot be listed in $work"
	while read -r number bytes stored; do
		file=$(printf '%s/seg-%06d-%s' "$1" "$number" "$stored")
		[ -f "$file" ] || die "$name: segment $number is missing"
		[ "$(wc -c <"$file")" -eq "$bytes" ] || die "$name: segment $number does not have its $bytes bytes"
	done <"$work/stored"
}

manifests() { # sequence, whether it is a point, and name of all that lie here, oldest first: nobody signed them yet
	for file in "$here"/*/manifest.json; do
		[ -e "$file" ] || [ -L "$file" ] || continue
		name=$(basename "$(dirname "$file")") sequence= what=
		case $name in
		*[!0-9a-f]*)
			tell "$name is passed over: that is no name of a point"
			continue
			;;
		esac
		if [ -f "$file" ] && within "$file" 67108864; then
			sequence=$(member "$file" sequence) what=$(member "$file" what)
		fi
		case $sequence in *[!0-9]* | "") sequence=0 ;; esac
		[ "$what" = removal ] || what=point
		printf '%s %s %s\n' "$sequence" "$what" "$name"
	done | sort -n
}

missing() { # what the newest manifest here says is alive, of this generation, and is not here as it was
	sed -n 's/^{"sequence":[0-9]*,"generation":"\([0-9a-f]*\)","point":"\([0-9a-f]*\)","sha256":"\([0-9a-f]*\)"}.*/\1 \2 \3/p' \
		"$here/$1/manifest.json" >"$work/alive" || die "what is alive cannot be listed in $work"
	while read -r generation name hash; do
		[ "$generation" = "$(basename "$here")" ] || continue
		if [ ! -f "$here/$name/manifest.json" ]; then
			tell "$name is gone, although manifest $1 says that it is alive"
		elif [ "$(hash_of "$here/$name/manifest.json")" != "$hash" ]; then
			tell "$name is not the one that manifest $1 speaks of"
		else
			continue
		fi
		bad=1
	done <"$work/alive"
}

case $verb in
list)
	bad=
	newest=
	manifests >"$work/manifests"
	while read -r sequence what name; do
		# in a shell of its own: what is wrong with one is told, and the others are looked at all the same
		if [ "$what" = removal ] && (outer "$here/$name"); then
			newest=$name by=$(member "$here/$name/manifest.json" writer)
		elif [ "$what" = point ] && (check "$here/$name"); then
			printf '%s  guest and point %s  sequence %s\n' "$name" "$(member "$work/$name" guest_point)" "$sequence"
			newest=$name by=$(member "$here/$name/manifest.json" writer)
		else
			echo "$name  NOT GOOD  sequence $sequence"
			bad=1
		fi
	done <"$work/manifests"
	[ -z "$newest" ] || missing "$newest"
	twice=$(cut -d' ' -f1 "$work/manifests" | uniq -d | sed '/^0*$/d')
	[ -z "$twice" ] || die "more than one manifest has sequence" $twice
	[ -s "$work/manifests" ] || die "no point lies here"
	[ -z "$bad" ] || die "not everything that should lie here is good: see above"
	exit 0
	;;
restore) [ $# -eq 5 ] || die "$usage" ;;
*) die "$usage" ;;
esac

wanted=$4 target=$5
case $wanted in *[!0-9a-f]* | "") die "POINT is one of the names that list shows" ;; esac
[ -f "$here/$wanted/manifest.json" ] || die "no point $wanted here"

# The point and what it builds on, the full one first.
chain=
name=$wanted
while [ -n "$name" ]; do
	[ -f "$here/$name/manifest.json" ] || die "$name is missing, and what is wanted builds on it"
	check "$here/$name"
	if [ -n "$chain" ]; then
		[ "$expected" = "$(hash_of "$here/$name/manifest.json")" ] || die "$name is not what the next one builds on"
	fi
	chain="$name $chain"
	expected=$(member "$here/$name/manifest.json" parent)
	name=$(member "$here/$name/manifest.json" parent_point)
done

# stream NAME NUMBER: writes one stream to standard output, every segment checked before its first byte goes out.
stream() {
	sed -n "s/^{\"n\":\([0-9]*\),\"stream\":$2,\"codec\":\"\([a-z]*\)\",\"bytes\":\([0-9]*\),\"sha256\":\"\([0-9a-f]*\)\",\"stored_bytes\":[0-9]*,\"stored_sha256\":\"\([0-9a-f]*\)\".*/\1 \2 \3 \4 \5/p" \
		"$work/$1" >"$work/segments"
	[ -s "$work/segments" ] || die "$1: stream $2 has no segments"
	while read -r number codec bytes plain stored; do
		file=$(printf '%s/%s/seg-%06d-%s' "$here" "$1" "$number" "$stored")
		[ -f "$file" ] || die "$1: segment $number is missing"
		[ "$(hash_of "$file")" = "$stored" ] || die "$1: segment $number is damaged"
		if [ "$codec" = zstd ]; then
			age -d -i "$identity" "$file" >"$work/sealed" </dev/null || die "$1: segment $number does not open"
			zstd -q -d -c "$work/sealed" >"$work/plain" || die "$1: segment $number does not decompress"
		else
			age -d -i "$identity" "$file" >"$work/plain" </dev/null || die "$1: segment $number does not open"
		fi
		[ "$(hash_of "$work/plain")" = "$plain" ] || die "$1: segment $number is not what was stored ($bytes bytes)"
		cat "$work/plain" || die "$1: segment $number was not taken"
	done <"$work/segments"
}

place=$(pwd -P)
case $place/ in "$(dirname "$(dirname "$here")")"/*) place=${HOME:-/root} ;; esac # the box is not to read it
config="$place/guest-$wanted.json"
sed -n 's/^"config"://p' "$work/$wanted" | sed 's/,$//' >"$config" || die "$config cannot be written"

# Which disks the wanted point has, and for each the streams that make it, from its last full one on.
disks=$(sed -n 's/^{"stream":[0-9]*,"disk":"\([^"]*\)".*/\1/p' "$work/$wanted")
for disk in $disks; do
	case $disk in *[!A-Za-z0-9_]*) die "a disk with a strange name: $disk" ;; esac
	steps=
	for name in $chain; do
		line=$(grep "^{\"stream\":[0-9]*,\"disk\":\"$disk\"," "$work/$name" || true)
		[ -n "$line" ] || continue
		number=$(printf '%s\n' "$line" | sed 's/^{"stream":\([0-9]*\),.*/\1/')
		case $line in
		*'"from_guid":"",'*) steps="$name:$number" ;;
		*) steps="$steps $name:$number" ;;
		esac
	done
	for step in $steps; do
		echo "$disk: ${step%:*}" >&2
		# A reader that dies must fail the restore: the writer's end is told in a file, as sh has no pipefail.
		rm -f "$work/whole"
		{ stream "${step%:*}" "${step#*:}" && : >"$work/whole"; } |
			zfs receive -s -u -- "$target/$disk" || die "$disk: zfs receive failed"
		[ -f "$work/whole" ] || die "$disk: the stream was not whole"
	done
done

echo "restored below $target; the guest's configuration, as JSON, is in $config" >&2
"""  # noqa: E501 - one command of sed

FILES: Final = {README: _README, SCRIPT: _SCRIPT}
