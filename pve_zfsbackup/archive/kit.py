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

`list` shows the points that lie here, oldest first; `restore` receives every disk of one of them below POOL/DATASET
(which must exist) with `zfs receive -s -u`, starting with the full archive, and writes the guest's configuration to a
file. Every signature, and the hash of every file before and after decryption, is checked; it stops at the first that
is wrong. Datasets that were encrypted on the source arrive encrypted and need their own key (`zfs load-key`).

By hand: seg-* files in order of their number, each `age -d -i IDENTITY`, then `zstd -d` where the manifest says codec
zstd, one after another into `zfs receive`. The manifest is `age -d -i IDENTITY manifest.age`: text, JSON.
The format is described in docs/archive-format.md of pve-zfsbackup.
"""

_SCRIPT: Final = r"""#!/bin/sh
# Restores an archive of pve-zfsbackup with nothing but coreutils, sed, grep, age, zstd, ssh-keygen and zfs.
#   sh restore.sh list    IDENTITY SIGNERS
#   sh restore.sh restore IDENTITY SIGNERS POINT POOL/DATASET
set -eu
umask 077

die() {
	echo "restore.sh: $*" >&2
	exit 1
}

usage="usage: restore.sh list IDENTITY SIGNERS | restore IDENTITY SIGNERS POINT POOL/DATASET"
[ $# -ge 3 ] || die "$usage"
verb=$1 identity=$2 signers=$3
here=$(cd -- "$(dirname -- "$0")" && pwd)
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

# check DIRECTORY: both manifests are genuine and belong here; leaves the inner one in $work/NAME.
check() {
	name=$(basename "$1")
	writer=$(member "$1/manifest.json" writer)
	for part in manifest.json manifest.age; do
		ssh-keygen -q -Y verify -f "$signers" -I "$writer" -n pve-zfsbackup-archive -s "$1/$part.sig" \
			<"$1/$part" >/dev/null || die "$name: the signature of $part is not good"
	done
	[ "$(member "$1/manifest.json" point)" = "$name" ] || die "$name: the manifest of another point"
	[ "$(member "$1/manifest.json" manifest_sha256)" = "$(hash_of "$1/manifest.age")" ] ||
		die "$name: manifest.age is not the one manifest.json speaks of"
	age -d -i "$identity" "$1/manifest.age" >"$work/$name" || die "$name: the identity does not open it"
	for key in series generation point sequence parent parent_point; do
		[ "$(member "$1/manifest.json" $key)" = "$(member "$work/$name" $key)" ] ||
			die "$name: its manifests do not agree about $key"
	done
}

points() { # sequence and name of each, oldest first
	for file in "$here"/*/manifest.json; do
		[ -f "$file" ] || continue
		grep -q '^"what":"point",$' "$file" || continue
		echo "$(member "$file" sequence) $(basename "$(dirname "$file")")"
	done | sort -n
}

case $verb in
list)
	points | while read -r sequence name; do
		check "$here/$name"
		echo "$name  guest and point $(member "$work/$name" guest_point)  sequence $sequence"
	done
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
		cat "$work/plain"
	done <"$work/segments"
}

# Which disks the wanted point has, and for each the streams that make it, from its last full one on.
disks=$(sed -n 's/^{"stream":[0-9]*,"disk":"\([^"]*\)".*/\1/p' "$work/$wanted")
for disk in $disks; do
	case $disk in *[!A-Za-z0-9_]*) die "a disk with a strange name: $disk" ;; esac
	steps=
	for name in $chain; do
		line=$(grep "^{\"stream\":[0-9]*,\"disk\":\"$disk\"," "$work/$name" || true)
		[ -n "$line" ] || continue
		number=$(echo "$line" | sed 's/^{"stream":\([0-9]*\),.*/\1/')
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

config="$(pwd)/guest-$wanted.json"
sed -n 's/^"config"://p' "$work/$wanted" | sed 's/,$//' >"$config"
echo "restored below $target; the guest's configuration, as JSON, is in $config" >&2
"""  # noqa: E501 - one command of sed

FILES: Final = {README: _README, SCRIPT: _SCRIPT}
