#!/bin/sh
# Makes this host a target of pve-zfsbackup: an account for pve-zfsbackup@pve1, and tank/backups/pve1 for its replicas.
# Run it as root. With --dry-run it only tells what it would do. It may be run again: what is right stays as it is.
ACCOUNT=pve-zfsbackup
ROOT=tank/backups/pve1
MODE=plain
KEY_KIND=ssh-ed25519
KEY_BLOB=AAAAC3NzaC1lZDI1NTE5AAAAIG5vZGVrZXlub2Rla2V5bm9kZWtleW5vZGVrZXlub2Rla2V5
KEY_COMMENT=pve-zfsbackup@pve1
CLIENTS=''
OWNER_KEY=pve-zfsbackup:owner
OWNER=pve-55abd5db82f724e1
PROPERTIES='readonly=on mountpoint=none canmount=off volmode=none snapdir=hidden'
PERMISSIONS='create mount receive send destroy hold release userprop readonly mountpoint canmount volmode snapdir'
POLICY='[roots."tank/backups/pve1"]
account = "pve-zfsbackup"
keep-hourly = 24
keep-daily = 7
keep-weekly = 4
keep-monthly = 12'
# shellcheck shell=sh disable=SC2154
# The part of a target's script that is the same for all; target_script.py puts the values before it.
# Everything is in functions, and the last line calls them: a script that was cut on its way does nothing.
umask 022
LC_ALL=C
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
CONFIG=/etc/pve-zfsbackup-receiver.toml
STATE=/var/lib/pve-zfsbackup-receiver
HOMES=/home
DID=
NEWLINE="
"

# One line of the report: state, object, detail, and the commands that made it so.
say() {
    printf '%s\t%s\t' "$1" "$2"
    printf '%s' "${3-}" | tr -c '[:print:]' ' '
    printf '\t%s\n' "$DID"
    DID=
}

# Do it; when nothing is to be changed, only remember it.
act() {
    shown=
    for each in "$@"; do
        case $each in *[!A-Za-z0-9@%+=:,./_-]*) each="'$each'" ;; esac
        shown="${shown:+$shown }$each"
    done
    DID="${DID:+$DID; }$shown"
    [ "$APPLY" = yes ] || return 0
    said=$("$@" 2>&1) && return 0
    say failed "$THING" "$said"
    exit 1
}

# A text ($3) into a file ($2), whole or not at all, with a mode ($1); $4 says what that is.
put() {
    DID="${DID:+$DID; }$4"
    [ "$APPLY" = yes ] || return 0
    fresh=$(mktemp "$2.XXXXXX") && printf '%s\n' "$3" > "$fresh" && chmod "$1" "$fresh" &&
        sync "$fresh" && mv -f "$fresh" "$2" && sync "$(dirname "$2")" && return 0
    say failed "$THING" "$2 cannot be written"
    exit 1
}

# Whether $1 is at least version $2, both with three numbers.
at_least() {
    awk -v a="$1" -v b="$2" 'BEGIN {
        split(a, x, "."); split(b, y, ".")
        for (i = 1; i <= 3; i++) if (x[i] + 0 != y[i] + 0) exit x[i] + 0 < y[i] + 0
    }'
}

# Whether a file or directory is root's, and nobody else may write it.
roots_own() { [ -n "$(find "$1" -prune -user 0 ! -type l ! -perm -020 ! -perm -002 2> /dev/null)" ]; }

listed() { case " $2 " in *" $1 "*) return 0 ;; *) return 1 ;; esac }

openzfs() {
    THING=OpenZFS
    if ! command -v zfs > /dev/null; then
        say failed "$THING" "there is no zfs command: install zfsutils-linux, or what it is called here"
        exit 1
    fi
    THING="pool ${ROOT%%/*}"
    # On a suspended pool every zfs command hangs.
    if [ "$(cat "/proc/spl/kstat/zfs/${ROOT%%/*}/state" 2> /dev/null)" = SUSPENDED ]; then
        say failed "$THING" "suspended: look at zpool status, and at its disks"
        exit 1
    fi
    if ! zpool list -H -o name -- "${ROOT%%/*}" > /dev/null 2>&1; then
        say failed "$THING" "not imported, or there is no such pool"
        exit 1
    fi
    THING=OpenZFS
    VERSION=
    for word in $(zfs version); do
        word=$(printf '%s\n' "${word#zfs-}" | sed -e 's/^kmod-//' -e 's/[^0-9.].*//')
        if [ -z "$VERSION" ] || at_least "$VERSION" "$word"; then VERSION=$word; fi
    done
    if ! at_least "$VERSION" 2.1.0; then
        say failed "$THING" "${VERSION:-unknown} is too old: 2.1 is needed"
    else
        say right "$THING" "$VERSION"
    fi
}

receiver() {
    [ "$MODE" = append-only ] || return 0
    THING=pve-zfsbackup-receiver
    RECEIVER=$(command -v pve-zfsbackup-receiver)
    if [ -z "$RECEIVER" ]; then
        say failed "$THING" "not installed: install the package of that name here, then repeat this"
    elif ! version=$("$RECEIVER" --version 2>&1); then
        say failed "$THING" "does not run: $version"
    else
        say right "$THING" "$RECEIVER $version"
    fi
    THING="directory $STATE/spool"
    if [ -d "$STATE/spool" ]; then
        say right "$THING"
    else
        [ -d "$STATE" ] || act install -d -m 711 "$STATE"
        act install -d -m 1733 "$STATE/spool"
        say created "$THING" "requests of the accounts wait there for maintain"
    fi
}

account() {
    THING="user $ACCOUNT"
    entry=$(getent passwd "$ACCOUNT")
    if [ -z "$entry" ]; then
        HOUSE=$HOMES/$ACCOUNT
        if [ -e "$HOUSE" ] && ! roots_own "$HOUSE"; then
            say failed "$THING" "there is none, but $HOUSE is there and not root's alone: move it away"
            HOUSE=
            return 0
        fi
        # No password, and not locked either: without PAM sshd lets nobody in whose password is "!".
        act useradd --system --home-dir "$HOUSE" --no-create-home --shell /bin/sh --password '*' "$ACCOUNT"
        act install -d -m 755 "$HOUSE"
        say created "$THING" "home $HOUSE is root's: the account cannot change its own keys"
        return 0
    fi
    HOUSE=$(printf '%s\n' "$entry" | cut -d : -f 6)
    shell=$(printf '%s\n' "$entry" | cut -d : -f 7)
    password=$(getent shadow "$ACCOUNT" | cut -d : -f 2)
    if [ "$(printf '%s\n' "$entry" | cut -d : -f 3)" = 0 ]; then
        say failed "$THING" "is root: no account of its own could be held to anything"
        return 0
    fi
    case $shell in
    */nologin | */false)
        if roots_own "$HOUSE"; then
            act usermod --shell /bin/sh "$ACCOUNT"
            say changed "$THING" "its shell was $shell, and sshd runs commands by the shell"
        else
            say failed "$THING" "its shell is $shell, and sshd runs commands by the shell: usermod -s /bin/sh $ACCOUNT"
        fi
        return 0
        ;;
    esac
    case $password in
    '' | '*'* | '!'* | x) say right "$THING" "home $HOUSE" ;;
    *) say warning "$THING" "has a password: usermod -p '*' $ACCOUNT takes it away" ;;
    esac
}

# Where sshd looks for the account's keys.
keys_file() {
    pattern=$(sshd -T -C "user=$ACCOUNT,host=localhost,addr=127.0.0.1" 2> /dev/null |
        awk '$1 == "authorizedkeysfile" { print $2; exit }')
    case $pattern in
    '' | none) pattern=%h/.ssh/authorized_keys ;;
    /* | %h/*) ;;
    *) pattern=%h/$pattern ;;
    esac
    printf '%s\n' "$pattern" | sed -e "s|%h|$HOUSE|g" -e "s|%u|$ACCOUNT|g" -e 's|%%|%|g'
}

# Every directory from the file up to the home, or to /etc, must be root's: who can write one can change the keys.
keys_are_safe() {
    place=$1
    [ ! -e "$place" ] || roots_own "$place" || { UNSAFE=$place; return 1; }
    while [ "$place" != / ] && [ "$place" != "$HOUSE" ]; do
        place=$(dirname "$place")
        [ ! -e "$place" ] && [ ! -h "$place" ] || roots_own "$place" || { UNSAFE=$place; return 1; }
    done
}

key() {
    [ -n "${HOUSE-}" ] || return 0
    KEYS=$(keys_file)
    THING="key $KEY_COMMENT"
    options=restrict
    if [ "$MODE" = append-only ]; then
        options="$options,command=\"${RECEIVER:-/usr/bin/pve-zfsbackup-receiver} --root $ROOT\""
    fi
    [ -z "$CLIENTS" ] || options="$options,from=\"$CLIENTS\""
    line="$options $KEY_KIND $KEY_BLOB $KEY_COMMENT"
    found=
    [ ! -e "$KEYS" ] || found=$(grep -F -e "$KEY_BLOB" -- "$KEYS" | grep -v '^[[:space:]]*#')
    safe=yes
    keys_are_safe "$KEYS" || safe=no
    if [ "$safe" = no ] && [ "$MODE" = append-only ]; then
        say failed "$THING" "$UNSAFE can be written by others than root, and so can the keys: chown root: $UNSAFE; chmod go-w $UNSAFE"
        return 0
    fi
    if [ "$found" = "$line" ]; then
        say right "$THING" "in $KEYS"
        return 0
    fi
    if [ "$safe" = no ]; then
        say failed "$THING" "$UNSAFE is not root's alone, and nothing is written there; the line for $KEYS is: $line"
        return 0
    fi
    if [ "$(printf '%s\n' "$found" | wc -l)" -gt 1 ]; then
        say failed "$THING" "more than once in $KEYS, and sshd takes the first: leave one"
        return 0
    fi
    case $found in
    '') ;;
    *" --root $ROOT\""*" $KEY_BLOB pve-zfsbackup@"* | "restrict $KEY_KIND $KEY_BLOB pve-zfsbackup@"* | \
        "restrict,from="*" $KEY_KIND $KEY_BLOB pve-zfsbackup@"*) ;;
    *" --root "*)
        say failed "$THING" "it opens another root already, and sshd takes the first line of a key: use another account (--host USER@HOST). It is: $found"
        return 0
        ;;
    *)
        say failed "$THING" "a line of $KEYS that is not ours has it; remove it by hand: $found"
        return 0
        ;;
    esac
    [ -d "$(dirname "$KEYS")" ] || act install -d -m 755 "$(dirname "$KEYS")"
    others=
    [ ! -e "$KEYS" ] || others=$(grep -v -F -x -e "${found:-$line}" -- "$KEYS")
    put 644 "$KEYS" "${others:+$others$NEWLINE}$line" "add to $KEYS: $line"
    if [ -n "$found" ]; then say changed "$THING" "in $KEYS; it was: $found"; else say created "$THING" "in $KEYS"; fi
}

exists() {
    said=$(zfs list -H -o name -- "$1" 2>&1) && return 0
    case $said in *"does not exist"*) return 1 ;; esac
    say failed "$THING" "$said"
    exit 1
}

create() {
    set -- "$1"
    for property in $PROPERTIES; do set -- "$@" -o "$property"; done
    name=$1
    shift
    [ "$name" != "$ROOT" ] || set -- "$@" -o "$OWNER_KEY=$OWNER"
    act zfs create "$@" -- "$name"
}

root() {
    THING="dataset $ROOT"
    if ! exists "$ROOT"; then
        above=${ROOT%%/*}
        rest=${ROOT#*/}/
        missing=
        while [ -n "$rest" ]; do
            below=$above/${rest%%/*}
            rest=${rest#*/}
            if ! exists "$below"; then
                other=-
                [ -n "$missing" ] || other=$(zfs get -H -o value "$OWNER_KEY" -- "$above")
                if [ "$other" != - ]; then
                    say failed "$THING" "$above belongs to $other: a root lies in no other"
                    return 0
                fi
                missing="${missing:+$missing }$below"
            fi
            above=$below
        done
        for name in $missing; do create "$name"; done
        say created "$THING" "$PROPERTIES, for $OWNER"
        return 0
    fi
    has=$(zfs get -Hp -o property,value,source readonly,mountpoint,canmount,volmode,snapdir,mounted,"$OWNER_KEY" -- "$ROOT" |
        tr '\t' ' ')
    owner=$(printf '%s\n' "$has" | sed -n "s|^$OWNER_KEY ||p")
    wrong=
    for property in $PROPERTIES; do
        printf '%s\n' "$has" | grep -q "^${property%%=*} ${property#*=} " || wrong="${wrong:+$wrong }$property"
    done
    case $owner in
    "- -")
        # Somebody's data must not be unmounted because of a slip of the pen.
        used=$(zfs list -H -r -d 1 -t all -o name -- "$ROOT" | wc -l)
        if [ -n "$wrong" ] && { [ "$used" -gt 1 ] || printf '%s\n' "$has" | grep -q '^mounted yes'; }; then
            say failed "$THING" "is there, in use and not ours: take another, or set $wrong by hand"
            return 0
        fi
        wrong="${wrong:+$wrong }$OWNER_KEY=$OWNER"
        ;;
    *" local")
        owner=${owner% local}
        if [ "$owner" != "$OWNER" ]; then
            say failed "$THING" "belongs to $owner: one root takes one source; take another root, or if that one is gone for good: zfs set $OWNER_KEY=$OWNER $ROOT"
            return 0
        fi
        ;;
    *)
        say failed "$THING" "lies in the root of another source ($owner)"
        return 0
        ;;
    esac
    if [ -z "$wrong" ]; then
        say right "$THING" "of ${owner}"
        return 0
    fi
    # shellcheck disable=SC2086
    act zfs set $wrong "$ROOT"
    say changed "$THING" "set $wrong"
}

# Lines of PLACE REACH PERMISSION: what the account, or everybody, may do on the root, and from where that comes.
allowed() {
    place=$ROOT
    until exists "$place"; do place=${place%/*}; done
    zfs allow "$place" | awk -v user="$ACCOUNT" -v root="$ROOT" '
        /^---- Permissions on / { place = $4 == root ? "here" : $4; next }
        /^[A-Z]/ { reach = $1; next }
        $1 == "user" && $2 == user { who = place; list = $3 }
        $1 == "everyone" { who = $1; list = $2 }
        list != "" { n = split(list, each, ","); for (i = 1; i <= n; i++) print who, reach, each[i]; list = "" }'
}

delegation() {
    THING="permissions of $ACCOUNT"
    wanted=$PERMISSIONS
    note=
    if [ "$MODE" = append-only ]; then
        if at_least "${VERSION:-0}" 2.3.2; then
            receive=receive:append
        else
            receive=receive
            note="; OpenZFS $VERSION has no receive:append: only the receiver keeps it from destroying"
        fi
    fi
    wanted=$(printf '%s\n' "$wanted" | sed "s/RECEIVE/${receive-}/")
    has=$(allowed)
    missing=
    for permission in $wanted; do
        printf '%s\n' "$has" | grep -q -F -x "here Local+Descendent $permission" ||
            missing="${missing:+$missing,}$permission"
    done
    extra=
    elsewhere=
    if [ "$MODE" = append-only ]; then
        while read -r place reach permission; do
            if [ -z "${reach:-}" ] || listed "$permission" "$wanted"; then
                continue
            elif [ "$place" = here ]; then
                case ",$extra," in *",$permission,"*) ;; *) extra="${extra:+$extra,}$permission" ;; esac
            else
                elsewhere="${elsewhere:+$elsewhere, }$permission ($place)"
            fi
        done << LIST
$has
LIST
    fi
    if [ -n "$elsewhere" ]; then
        say failed "$THING" "it could more than add, by $elsewhere: zfs unallow that"
        return 0
    fi
    if [ -z "$missing$extra" ]; then
        say right "$THING" "$(printf '%s\n' "$wanted" | tr ' ' ,)$note"
        return 0
    fi
    [ -z "$missing" ] || act zfs allow -u "$ACCOUNT" "$missing" "$ROOT"
    [ -z "$extra" ] || act zfs unallow -u "$ACCOUNT" "$extra" "$ROOT"
    if [ -n "$has" ]; then
        say changed "$THING" "${missing:+added $missing }${extra:+taken away $extra}$note"
    else
        say created "$THING" "$missing$note"
    fi
}

# Status 0: the file has this root with this account; 1: not the root; 2: with another account; 3: not readable.
policy_has() {
    python3 -I -c 'import sys, tomllib
try:
    found = tomllib.load(open(sys.argv[1], "rb")).get("roots", {}).get(sys.argv[2])
except FileNotFoundError:
    sys.exit(1)
except Exception:
    sys.exit(3)
sys.exit(1 if found is None else 0 if found.get("account", "pve-zfsbackup") == sys.argv[3] else 2)' \
        "$CONFIG" "$ROOT" "$ACCOUNT"
}

policy() {
    [ "$MODE" = append-only ] || return 0
    THING="$CONFIG, $ROOT"
    policy_has
    case $? in
    0) say right "$THING" "maintain holds and prunes by it" ;;
    1)
        others=
        [ ! -e "$CONFIG" ] || others=$(cat "$CONFIG")
        put 644 "$CONFIG" "${others:+$others$NEWLINE$NEWLINE}$POLICY" "add to $CONFIG: $(printf '%s' "$POLICY" | tr '\n' ' ')"
        say created "$THING" "history is kept by it; change it there"
        ;;
    2) say failed "$THING" "its account is not $ACCOUNT, whose requests would not count: correct it there" ;;
    *) say failed "$THING" "cannot be read: correct it first" ;;
    esac
}

steps() {
    openzfs
    receiver
    account
    key
    root
    delegation
    policy
}

host_keys() {
    sshd -T 2> /dev/null | awk '$1 == "hostkey" { print $2 ".pub" }' | while read -r file; do
        [ ! -r "$file" ] || awk '{ printf "hostkey\t%s\t%s\n", $1, $2 }' "$file"
    done
}

failed() { case "$NEWLINE$1" in *"${NEWLINE}failed"*) return 0 ;; *) return 1 ;; esac }

main() {
    if [ "$(id -u)" != 0 ]; then
        say failed "this script" "needs root"
        echo end
        exit 1
    fi
    APPLY=no
    told=$(steps)
    if [ "${1-}" = --dry-run ]; then
        :
    elif failed "$told"; then
        # What was not done is not told as done.
        told=$(printf '%s\n' "$told" | grep -v -e '^created' -e '^changed')
    else
        APPLY=yes
        told=$(steps)
    fi
    printf '%s\n' "$told"
    host_keys
    echo end
    ! failed "$told"
}

main "$@" < /dev/null
