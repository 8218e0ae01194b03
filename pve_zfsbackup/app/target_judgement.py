"""What is wrong with a target, and how to mend it, from what it was heard to say. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pve_zfsbackup import __version__
from pve_zfsbackup.app.setup_account import Action
from pve_zfsbackup.app.target_script import permissions
from pve_zfsbackup.config import Target
from pve_zfsbackup.host.health import pool_of, version
from pve_zfsbackup.host.zfs import PARENT
from pve_zfsbackup.model import ONLINE
from pve_zfsbackup.plan.ownership import OWNER

PROTOCOL: Final = 1  # of the receiver
COLUMNS: Final = (*PARENT, "available", OWNER)
# What a stream made with `-L -c` or `-w` may ask of the pool it arrives on, once its source makes use of it.
_FEATURES: Final = ("large_blocks", "large_dnode", "zstd_compress", "encryption", "longname")
_APPEND_SINCE: Final = (2, 3, 2)
_SKEW: Final = 60
_MAINTAINED_HOURS: Final = 25
_FULL: Final = 10  # percent left


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a receiver says of itself; times in seconds since 1970, 0 for never."""

    version: str
    protocol: int
    root: str
    time: int
    maintained: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """OpenZFS of one host (`zfs version`), and what its pools have and use (`zpool get all`)."""

    zfs: tuple[str, ...]
    pools: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """All that a target said to its own account. `hello` is None on a plain account; `root` is None where there is
    no such dataset, otherwise its values by `COLUMNS`."""

    hello: Hello | None
    state: str  # of the pool; empty where it is not told
    root: Mapping[str, str] | None
    allow: tuple[str, ...]
    skew: int  # seconds its clock is ahead
    there: Side
    here: Side


def judge(target: Target, owner: str, heard: Heard) -> tuple[Action, ...]:
    """Every finding; those that are `right` as well."""
    found = [_account(target, heard), _pool(target, heard.state)]
    if heard.root is None:
        found.append(_failed(f"dataset {target.root}", "does not exist", prepare_again(target)))
    else:
        found += [_properties(target, heard.root), _owner(target, owner, heard.root), _space(target, heard)]
        found.append(_delegation(target, heard))
    found += [_version("OpenZFS here", heard.here), _version(f"OpenZFS on {target.name}", heard.there)]
    found += [_features(target, heard), _clock(heard.skew)]
    if heard.hello is not None and target.append_only:
        found.append(_maintenance(heard.hello, target))
    return tuple(found)


def wanted_receive(lines: Sequence[str]) -> str:
    """The narrowest permission to receive that this OpenZFS has (reliability §0.2)."""
    return "receive:append" if version(lines) >= _APPEND_SINCE else "receive"


def granted(lines: Iterable[str], account: str, root: str) -> tuple[frozenset[str], frozenset[str]]:
    """What `zfs allow` grants the account on the root and below it, and all that it grants it anywhere."""
    place, reach = "", ""
    full: set[str] = set()
    every: set[str] = set()
    for line in lines:
        words = line.split()
        if line.startswith("---- Permissions on ") and len(words) > 3:
            place = words[3]
        elif line[:1].isupper():
            reach = words[0]
        elif words[:2] == ["user", account] or words[:1] == ["everyone"]:
            names = set(words[-1].split(","))
            every |= names
            if reach == "Local+Descendent" and (place == root or root.startswith(f"{place}/")):
                full |= names
    return frozenset(full), frozenset(every)


def _account(target: Target, heard: Heard) -> Action:
    name = f"account {target.user}"
    if heard.hello is None:
        if target.append_only:
            return _failed(name, "is a plain one: its key can destroy, and the configuration says append-only",
                           prepare_again(target))  # fmt: skip
        return _right(name, "plain")
    if not target.append_only:
        return _failed(
            name,
            f"is append-only: put `append-only: true` under targets: {target.name}: in the configuration, "
            "or make it a plain one",
            f"{prepare_again(target)} --plain",
        )
    told = heard.hello
    if told.protocol != PROTOCOL:
        return _failed(name, f"its receiver {told.version} speaks protocol {told.protocol}, this node {PROTOCOL}",
                       "install the same version of pve-zfsbackup-receiver there")  # fmt: skip
    if told.root != target.root:
        return _failed(name, f"its key opens {told.root}, not {target.root}", prepare_again(target))
    if told.version != __version__:
        return _warning(name, f"append-only; its receiver is {told.version}, this is {__version__}",
                        "install the same version of pve-zfsbackup-receiver there")  # fmt: skip
    return _right(name, f"append-only, receiver {told.version}")


def _pool(target: Target, state: str) -> Action:
    pool = pool_of(target.root)
    if state in (ONLINE, ""):
        return _right(f"pool {pool}", state or "its state is not told")
    return _warning(f"pool {pool}", state, _there(target, f"zpool status {pool}"))


def _properties(target: Target, root: Mapping[str, str]) -> Action:
    wrong = [(key, value) for key, value in PARENT.items() if root.get(key) != value]
    name = f"dataset {target.root}"
    if not wrong:
        return _right(name, " ".join(f"{key}={value}" for key, value in PARENT.items()))
    told = ", ".join(f"{key} is {root.get(key, '-')}, not {value}" for key, value in wrong)
    mend = " ".join(f"{key}={value}" for key, value in wrong)
    return _failed(name, told, _there(target, f"zfs set {mend} {target.root}"))


def _owner(target: Target, owner: str, root: Mapping[str, str]) -> Action:
    name, has = f"owner of {target.root}", root.get(OWNER, "-")
    if has == "-":
        return _warning(
            name,
            "none is named: another source could take the root, too",
            _there(target, f"zfs set {OWNER}={owner} {target.root}"),
        )
    if has == owner:
        return _right(name, has)
    return _failed(
        name,
        f"it belongs to {has}, and this is {owner}: one root takes one source; take another root, or if the other "
        "is gone for good, make it this one's",
        _there(target, f"zfs set {OWNER}={owner} {target.root}"),
    )


def _space(target: Target, heard: Heard) -> Action:
    name = f"space on {target.root}"
    available = int((heard.root or {}).get("available") or 0)
    size = int(heard.there.pools.get("size", "0")) or available
    told = f"{available / (1 << 30):.1f} GiB available"
    if available * 100 < size * _FULL:
        return _warning(name, f"{told}, less than {_FULL} % of the pool", "destroy what is not needed, or add disks")
    return _right(name, told)


def _delegation(target: Target, heard: Heard) -> Action:
    name = f"permissions of {target.user}"
    receive = wanted_receive(heard.there.zfs)
    wanted = permissions(append_only=target.append_only, receive=receive)
    full, every = granted(heard.allow, target.user, target.root)
    if missing := sorted(wanted - full):
        told = ",".join(missing)
        return _failed(
            name, f"lacks {told} on {target.root}", _there(target, f"zfs allow -u {target.user} {told} {target.root}")
        )
    extra = ",".join(sorted(every - wanted))
    if extra and target.append_only:
        return _failed(
            name,
            f"it could more than add: {extra}",
            _there(target, f"zfs unallow -u {target.user} {extra} {target.root}"),
        )
    if target.append_only and receive == "receive":
        return _right(name, f"{','.join(sorted(wanted))}; this OpenZFS has no receive:append: the receiver alone "
                            "keeps a stream from destroying")  # fmt: skip
    return _right(name, ",".join(sorted(wanted)))


def _version(name: str, side: Side) -> Action:
    found = version(side.zfs)
    text = ".".join(map(str, found))
    if found == (0, 0, 0):
        return _warning(name, f"not understood: {' '.join(side.zfs) or 'nothing'}", "zfs version")
    if found < (2, 2, 8) or (2, 3, 0) <= found < (2, 3, 3):
        return _warning(
            name,
            f"{text} can damage encrypted data that is sent (OpenZFS #12014); 2.2.8 and 2.3.3 do not",
            "update OpenZFS",
        )
    return _right(name, text)


def _features(target: Target, heard: Heard) -> Action:
    name = f"features of pool {target.root.partition('/')[0]}"
    missing = [
        feature
        for feature in _FEATURES
        if heard.here.pools.get(f"feature@{feature}") == "active"
        and heard.there.pools.get(f"feature@{feature}") not in ("enabled", "active")
    ]
    if not missing:
        return _right(name)
    mend = "\n".join(_there(target, f"zpool set feature@{name}=enabled {pool_of(target.root)}") for name in missing)
    return _failed(name, f"lacks {', '.join(missing)}, which this node's pools use", mend)


def _clock(skew: int) -> Action:
    if abs(skew) <= _SKEW:
        return _right("clock")
    told = f"the target's is {abs(skew)} s {'ahead of' if skew > 0 else 'behind'} this node's"
    return _warning("clock", told, "timedatectl set-ntp true")


def _maintenance(hello: Hello, target: Target) -> Action:
    mend = _there(target, "pve-zfsbackup-receiver maintain")  # cron does it, where the package is
    if not hello.maintained:
        return _warning("maintain", "has not run there yet (cron does it every hour): nothing is held or pruned", mend)
    hours = (hello.time - hello.maintained) // 3600
    if hours >= _MAINTAINED_HOURS:
        return _warning("maintain", f"ran there {hours} h ago: nothing was held or pruned since", mend)
    return _right("maintain", f"ran there {max(0, hours)} h ago" if hours > 0 else "ran there within the hour")


def lapsed(hello: Hello | None, since: int) -> str:
    """Why nothing holds what came to an append-only target since then (seconds since 1970); empty while its `maintain`
    can be waited for, and where nobody can tell."""
    if hello is None:
        return ""
    hours = (hello.time - (hello.maintained or since)) // 3600
    if hours < _MAINTAINED_HOURS:
        return ""
    return f"the target's own maintain ran {hours} h ago" if hello.maintained else "no maintain has ever run there"


def _there(target: Target, command: str) -> str:
    """A command for root of the target, as it is given here."""
    port = f"-p {target.port} " if target.port != 22 else ""
    return f"ssh {port}root@{target.host} {command}"


def prepare_again(target: Target) -> str:
    """What puts right whatever `setup target` made."""
    return f"pve-zfsbackup setup target {target.name} --admin root@{target.host}"


def _right(name: str, detail: str = "") -> Action:
    return Action(object=name, state="right", detail=detail)


def _warning(name: str, detail: str, mend: str) -> Action:
    return Action(object=name, state="warning", detail=detail, command=mend)


def _failed(name: str, detail: str, mend: str) -> Action:
    return Action(object=name, state="failed", detail=detail, command=mend)
