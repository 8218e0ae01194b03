"""What the product relies on in ZFS, as small stories: each step is a command, a pipe or a write.

`openzfs.json` has what real OpenZFS answered to each step (recorded in the lab). The fake must answer the same
(test_fake.py), and the lab shows that real ZFS still does (tests/lab/test_conformance.py).

`{b}` is a fresh dataset of the case, `{token:X}` the resume token of X. A step is
    ("zfs", ...)                     a command; its status, stdout and stderr count
    ("pipe", producer, consumer)     a stream, `("pipe", p, c, KIB)` one that is cut after so many KiB
    ("write", dataset, KIB)          random data into a file of the mounted dataset
    ("fed", argv, text)              a command that reads the text
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pve_zfsbackup.host.destroying import DESTROY
from pve_zfsbackup.host.zfs import BOOKMARKS

Step = tuple[Any, ...]

KEY = "/root/conformance.key"
COLUMNS = "type,name,guid,createtxg,userrefs,clones,origin"
INERT = tuple(word for pair in ("readonly=on", "mountpoint=none", "canmount=off", "volmode=none", "snapdir=hidden")
              for word in ("-o", pair))  # fmt: skip
CRYPT = ("-o", "encryption=aes-256-gcm", "-o", "keyformat=raw", "-o", f"keylocation=file://{KEY}")
POINT = "pve-zfsbackup:point"


def ls(*names: str, columns: str = COLUMNS, depth: str = "-r") -> Step:
    reach = ("-r",) if depth == "-r" else ("-d", depth)
    return ("zfs", "list", "-Hp", *reach, "-t", "all", "-o", columns, "--", *names)


def make(name: str, kib: int = 64) -> tuple[Step, ...]:
    return (("zfs", "create", "--", name), ("write", name, kib))


def snap(*names: str) -> Step:
    return ("zfs", "snapshot", "--", *names)


def full(snapshot: str, target: str, *flags: str, cut: int | None = None) -> Step:
    producer = ("zfs", "send", *(flags or ("-L", "-c")), "--", snapshot)
    return ("pipe", producer, ("zfs", "receive", "-s", "-u", "--", target), *(() if cut is None else (cut,)))


def more(base: str, snapshot: str, target: str, *, cut: int | None = None, flag: str = "-i", raw: bool = False) -> Step:
    producer = ("zfs", "send", *(("-w",) if raw else ("-L", "-c")), flag, base, "--", snapshot)
    return ("pipe", producer, ("zfs", "receive", "-s", "-u", "--", target), *(() if cut is None else (cut,)))


def bookmarks(pool: str, *names: str) -> Step:
    return ("fed", ("zfs", "program", "-j", pool, "-", *names), BOOKMARKS.decode())


def destroys(pool: str, *names: str) -> Step:
    """Names with a `!` go with a guid that is none of theirs."""
    pairs = ((name[:-1], "=1") if name[-1] == "!" else (name, f"={{signed:{name}}}") for name in names)
    words = (word for pair in pairs for word in pair)
    return ("fed", ("zfs", "program", "-j", pool, "-", *words), DESTROY.decode())


S, D = "{b}/src", "{b}/dst"

CASES: Mapping[str, tuple[Step, ...]] = {
    "snapshot": (
        *make(S), ("zfs", "create", "--", "{b}/two"),
        ("zfs", "snapshot", "-o", f"{POINT}=100/x", "-o", "pve-zfsbackup:conf=a b=c", "--", f"{S}@a", "{b}/two@a"),
        ls("{b}", columns=f"type,name,createtxg,{POINT}"),
        snap(f"{S}@a"),
        snap(f"{S}@b", "{b}/missing@b"),
        snap(f"{S}@c", "{b}/two@a"),
        snap("{b}/missing@b"),
        snap("nopool/missing@b"),
        ls(S, columns="name"),
        ("zfs", "get", "-Hp", "-s", "local", "-o", "name,property,value", "all", "--", f"{S}@a", "{b}/two@a"),
    ),
    "zvol": (
        ("zfs", "create", "-s", "-V", "8M", S),
        snap(f"{S}@a"),
        full(f"{S}@a", D),
        ls("{b}", columns="type,name,guid"),
        ("zfs", "get", "-Hp", "-s", "local", "-o", "name,property,value", "all", "--", f"{S}@a"),
    ),
    "inherited-properties": (
        *make(S), snap(f"{S}@a"),
        ("zfs", "set", f"{POINT}=9/of-dataset", "pve-zfsbackup:disks=d", S),
        snap(f"{S}@b"),
        ls(S, columns=f"name,{POINT},pve-zfsbackup:disks"),
        ("zfs", "set", f"{POINT}=9/own", f"{S}@b"),
        ls(S, columns=f"name,{POINT},pve-zfsbackup:disks"),
        ("zfs", "get", "-Hp", "-s", "local", "-o", "name,property,value", "all", "--", f"{S}@a", f"{S}@b"),
        ("zfs", "create", "--", "{b}/src/child"), snap("{b}/src/child@a"),
        ls("{b}/src/child", columns=f"name,{POINT}"),
    ),
    "set-several": (
        *make(S), snap(f"{S}@a"), snap(f"{S}@b"),
        ("zfs", "set", f"{POINT}=1", "pve-zfsbackup:volume=2", f"{S}@a", f"{S}@b"),
        ls(S, columns=f"name,{POINT},pve-zfsbackup:volume"),
        ("zfs", "set", f"{POINT}=3", f"{S}@a", f"{S}@missing"),
        ls(S, columns=f"name,{POINT}"),
        ("zfs", "get", "-Hp", "-s", "local", "-o", "name,property,value", "all", "--", f"{S}@a", f"{S}@missing"),
        ("zfs", "get", "-Hp", "-o", "name,value", "guid", f"{S}@a", f"{S}@missing", f"{S}@b"),
        ("zfs", "get", "-Hp", "-o", "name,value", "guid", f"{S}@missing"),
    ),
    "list": (
        *make(S), snap(f"{S}@a"), ("zfs", "create", "--", "{b}/src/deep"), snap("{b}/src/deep@z"),
        ls("{b}", columns="type,name"),
        ls("{b}", columns="type,name", depth="1"),
        ls("{b}", columns="type,name", depth="2"),
        ls(S, "{b}/missing", columns="name"),
        ls("{b}/missing", "nopool/x", columns="name"),
        ls(S, "{b}/src/deep", columns="name"),
        ("zfs", "list", "-Hp", "-d", "1", "-t", "snapshot", "-o", "name,guid", "--", S, "{b}/src/deep"),
        ("zfs", "list", "-Hp", "-d", "1", "-t", "snapshot", "-o", "name,guid", "--", "{b}/missing"),
    ),
    "listing-columns": (
        *make(S), snap(f"{S}@a"), ("zfs", "bookmark", f"{S}@a", f"{S}#m"), ("zfs", "hold", "t", f"{S}@a"),
        ("zfs", "clone", f"{S}@a", "{b}/clone"), ("zfs", "create", "-s", "-V", "8M", "{b}/vol"), snap("{b}/vol@a"),
        ls("{b}", columns="type,name,guid,createtxg,creation,used,referenced,userrefs,clones,encryption,keystatus,"
           f"origin,receive_resume_token,{POINT}"),
    ),
    "create": (
        ("zfs", "create", *INERT, "--", "{b}/root"),
        ("zfs", "create", *INERT, "--", "{b}/root"),
        ("zfs", "create", *INERT, "--", "{b}/missing/child"),
        ("zfs", "create", *INERT, "--", "nopool/child"),
        ("zfs", "get", "-Hp", "-s", "local", "-o", "name,property,value", "all", "--", "{b}/root"),
    ),
    "replicate": (
        *make(S), snap(f"{S}@a"),
        ("zfs", "send", "-nvP", "-L", "-c", "--", f"{S}@a"),
        full(f"{S}@a", D),
        ls(S, D),
        ("write", S, 64), snap(f"{S}@b"),
        ("zfs", "send", "-nvP", "-L", "-c", "-i", f"{S}@a", "--", f"{S}@b"),
        more(f"{S}@a", f"{S}@b", D),
        ls(S, D, columns="name,guid"),
        more(f"{S}@a", f"{S}@b", D),
        full(f"{S}@b", D),
        full(f"{S}@b", "{b}/missing/dst"),
        full(f"{S}@b", "nopool/dst"),
        more(f"{S}@a", f"{S}@b", "{b}/nowhere"),
    ),
    "replicate-many": (
        *make(S), snap(f"{S}@a"), full(f"{S}@a", D),
        ("write", S, 16), snap(f"{S}@b"), ("write", S, 16), snap(f"{S}@c"),
        ("zfs", "send", "-nvP", "-L", "-c", "-I", f"{S}@a", "--", f"{S}@c"),
        more(f"{S}@a", f"{S}@c", D, flag="-I"),
        ls(D, columns="name,guid"),
    ),
    "no-properties-in-streams": (
        *make(S), ("zfs", "set", f"{POINT}=dataset", S),
        ("zfs", "snapshot", "-o", f"{POINT}=1", "--", f"{S}@a"), full(f"{S}@a", D),
        ls(D, columns=f"name,{POINT}"),
    ),
    "foreign-snapshot": (
        *make(S), snap(f"{S}@a"), full(f"{S}@a", D), ("write", S, 16), snap(f"{S}@b"),
        snap(f"{D}@admin"),
        more(f"{S}@a", f"{S}@b", D),
        ls(D, columns="name"),
        more(f"{S}@a", f"{S}@b", D),
    ),
    "modified": (
        *make(S), snap(f"{S}@a"), full(f"{S}@a", D), ("write", S, 16), snap(f"{S}@b"),
        ("write", D, 16),
        more(f"{S}@a", f"{S}@b", D),
        ls(D, columns="name"),
        snap(f"{D}@admin"),
        more(f"{S}@a", f"{S}@b", D),
        ls(D, columns="name"),
    ),
    "foreign-snapshot-raw": (
        ("zfs", "create", *CRYPT, "--", "{b}/crypt"),
        *make("{b}/crypt/src"), snap("{b}/crypt/src@a"), full("{b}/crypt/src@a", D, "-w"),
        ("write", "{b}/crypt/src", 16), snap("{b}/crypt/src@b"), snap(f"{D}@admin"),
        more("{b}/crypt/src@a", "{b}/crypt/src@b", D, raw=True),
        ls(D, columns="name"),
    ),
    "base-mismatch": (
        *make(S), snap(f"{S}@a"), snap(f"{S}@b"), snap(f"{S}@c"), full(f"{S}@a", D),
        more(f"{S}@b", f"{S}@c", D),
        ("zfs", "send", "-L", "-c", "-i", f"{S}@c", "--", f"{S}@b"),
        ("zfs", "send", "-L", "-c", "-i", f"{S}@missing", "--", f"{S}@b"),
        ("zfs", "send", "-L", "-c", "--", f"{S}@missing"),
        ("zfs", "send", "-nvP", "-L", "-c", "--", f"{S}@missing"),
        ("zfs", "send", "-nvP", "-L", "-c", "--", "{b}/missing@a"),
    ),
    "recreated-snapshot": (
        *make(S), snap(f"{S}@a"), full(f"{S}@a", D), ("zfs", "destroy", f"{S}@a"), ("write", S, 16), snap(f"{S}@a"),
        snap(f"{S}@b"),
        more(f"{S}@a", f"{S}@b", D),
        ls(S, D, columns="name,guid"),
    ),
    "recreated-snapshot-bookmark": (
        *make(S), snap(f"{S}@a"), full(f"{S}@a", D), ("zfs", "bookmark", f"{S}@a", f"{S}#m"),
        ("zfs", "destroy", f"{S}@a"), ("write", S, 16), snap(f"{S}@a"),
        more(f"{S}#m", f"{S}@a", D),
        ls(S, D, columns="name,guid"),
    ),
    "bookmarks-at-once": (
        *make(S), snap(f"{S}@a"), ("zfs", "create", "--", "{b}/two"), snap("{b}/two@a"),
        bookmarks("rpool", f"{S}@a", f"{S}#a:t", "{b}/two@a", "{b}/two#a:t"),
        bookmarks("rpool", f"{S}@missing", f"{S}#x", f"{S}@a", f"{S}#b:t"),
        bookmarks("rpool", f"{S}@a", f"{S}#a:t", "{b}/two@a", "{b}/two#c"),
        bookmarks("rpool", f"{S}@a", "fast/other#x"),
        ls("{b}", columns="type,name,guid"),
    ),
    "destroys-at-once": (
        *make(S), snap(f"{S}@a"), snap(f"{S}@b"), snap(f"{S}@c"), snap(f"{S}@d"), snap(f"{S}@e"),
        ("zfs", "create", "-s", "-V", "8M", "{b}/two"), snap("{b}/two@a"), snap("{b}/two@b"),
        ("zfs", "hold", "t", f"{S}@b"), ("zfs", "clone", f"{S}@c", "{b}/clone"),
        destroys("rpool", f"{S}@a", f"{S}@b", f"{S}@c", f"{S}@d!", f"{S}@missing!", "{b}/nowhere@a!", "{b}/two@a"),
        ls("{b}", columns="type,name"),
        destroys("rpool", f"{S}@e", "{b}/two@b"),
        destroys("rpool", f"{S}@d", "fast/other@x!"),
        ls("{b}", columns="type,name"),
    ),
    "bookmarks": (
        *make(S), snap(f"{S}@a"), full(f"{S}@a", D),
        ("zfs", "bookmark", f"{S}@a", f"{S}#a:t"),
        ("zfs", "bookmark", f"{S}@a", f"{S}#a:t"),
        ("zfs", "bookmark", f"{S}@missing", f"{S}#x"),
        ls(S, columns="type,name,guid,createtxg"),
        ("zfs", "destroy", f"{S}@a"),
        ("write", S, 16), snap(f"{S}@b"),
        ("zfs", "send", "-nvP", "-L", "-c", "-i", f"{S}#a:t", "--", f"{S}@b"),
        more(f"{S}#a:t", f"{S}@b", D),
        ls(S, D, columns="type,name,guid"),
        ("zfs", "destroy", f"{S}#a:t"),
        ("zfs", "destroy", f"{S}#a:t"),
        more(f"{S}#a:t", f"{S}@b", D),
    ),
    "holds": (
        *make(S), snap(f"{S}@a"), snap(f"{S}@b"), snap(f"{S}@c"),
        ("zfs", "hold", "t", f"{S}@a"),
        ("zfs", "hold", "t", f"{S}@a", f"{S}@b"),
        ("zfs", "hold", "u", f"{S}@b"),
        ls(S, columns="name,userrefs"),
        ("zfs", "hold", "t", f"{S}@missing"),
        ("zfs", "hold", "t", f"{S}@c", f"{S}@missing"),
        ls(S, columns="name,userrefs"),
        ("zfs", "destroy", f"{S}@a"),
        ("zfs", "release", "t", f"{S}@a", f"{S}@b", f"{S}@c"),
        ("zfs", "release", "t", f"{S}@c"),
        ("zfs", "release", "t", f"{S}@missing"),
        ("zfs", "release", "u", f"{S}@b", f"{S}@missing"),
        ls(S, columns="name,userrefs"),
        ("zfs", "destroy", f"{S}@a"),
    ),
    "destroy": (
        *make(S), *(snap(f"{S}@{name}") for name in "abcdef"), ("zfs", "hold", "t", f"{S}@b"),
        ("zfs", "destroy", f"{S}@missing"),
        ("zfs", "destroy", f"{S}@missing,gone"),
        ("zfs", "destroy", "{b}/missing@a"),
        ("zfs", "destroy", "-nvp", f"{S}@d,e"),
        ("zfs", "destroy", "-nvp", f"{S}@missing"),
        ("zfs", "destroy", f"{S}@a,b,c"),
        ls(S, columns="name"),
        ("zfs", "destroy", f"{S}@d,missing"),
        ls(S, columns="name"),
        ("zfs", "clone", f"{S}@e", "{b}/clone"),
        ("zfs", "destroy", f"{S}@e"),
        ("zfs", "destroy", f"{S}@e,f"),
        ls("{b}", columns="name,clones,origin"),
    ),
    "interrupted-full": (
        *make(S, 2048), snap(f"{S}@a"),
        full(f"{S}@a", D, cut=1024),
        ls(D, columns="type,name,receive_resume_token"),
        ("zfs", "send", "-nvP", "-t", "{token:" + D + "}"),
        full(f"{S}@a", D),
        ("pipe", ("zfs", "send", "-t", "{token:" + D + "}"), ("zfs", "receive", "-s", "-u", "--", D)),
        ls(S, D, columns="name,guid,receive_resume_token"),
        ("zfs", "receive", "-A", "--", D),
        ("zfs", "receive", "-A", "--", "{b}/missing"),
    ),
    "interrupted-aborted": (
        *make(S, 2048), snap(f"{S}@a"), full(f"{S}@a", D, cut=1024),
        ("zfs", "receive", "-A", "--", D),
        ls(D, columns="name"),
        full(f"{S}@a", D),
        ("write", S, 2048), snap(f"{S}@b"), more(f"{S}@a", f"{S}@b", D, cut=1024),
        ls(D, columns="type,name,receive_resume_token"),
        ("zfs", "receive", "-A", "--", D),
        ls(D, columns="type,name,receive_resume_token"),
    ),
    "interrupted-incremental": (
        *make(S, 64), snap(f"{S}@a"), full(f"{S}@a", D), ("write", S, 2048), snap(f"{S}@b"),
        more(f"{S}@a", f"{S}@b", D, cut=1024),
        ls(D, columns="type,name,receive_resume_token"),
        ("zfs", "send", "-nvP", "-t", "{token:" + D + "}"),
        more(f"{S}@a", f"{S}@b", D),
        ("zfs", "destroy", f"{D}@a"),
        ("pipe", ("zfs", "send", "-t", "{token:" + D + "}"), ("zfs", "receive", "-s", "-u", "--", D), 512),
        ("pipe", ("zfs", "send", "-t", "{token:" + D + "}"), ("zfs", "receive", "-s", "-u", "--", D)),
        ls(S, D, columns="name,guid,receive_resume_token"),
    ),
    "stale-tokens": (
        *make(S, 2048), snap(f"{S}@a"), full(f"{S}@a", D, cut=1024),
        ("zfs", "destroy", f"{S}@a"),
        ("zfs", "send", "-nvP", "-t", "{token:" + D + "}"),
        snap(f"{S}@a"),
        ("zfs", "send", "-nvP", "-t", "{token:" + D + "}"),
        ("zfs", "send", "-nvP", "-t", "1-nonsense"),
        ("pipe", ("zfs", "send", "-t", "{token:" + D + "}"), ("zfs", "receive", "-s", "-u", "--", D)),
    ),
    "stale-base": (
        *make(S, 64), snap(f"{S}@a"), full(f"{S}@a", D), ("write", S, 2048), snap(f"{S}@b"),
        more(f"{S}@a", f"{S}@b", D, cut=1024), ("zfs", "destroy", f"{S}@a"),
        ("zfs", "send", "-nvP", "-t", "{token:" + D + "}"),
    ),
    "cut-before-anything": (
        *make(S, 64), snap(f"{S}@a"), full(f"{S}@a", D, cut=0),
        ls(D, columns="name"),
    ),
    "encrypted": (
        ("zfs", "create", *CRYPT, "--", "{b}/crypt"),
        *make("{b}/crypt/src", 2048), snap("{b}/crypt/src@a"),
        ("zfs", "send", "-nvP", "-w", "--", "{b}/crypt/src@a"),
        full("{b}/crypt/src@a", D, "-w", cut=1024),
        ("zfs", "send", "-nvP", "-t", "{token:" + D + "}"),
        ("pipe", ("zfs", "send", "-t", "{token:" + D + "}"), ("zfs", "receive", "-s", "-u", "--", D)),
        ls("{b}", columns="name,guid,encryption,keystatus"),
        ("write", "{b}/crypt/src", 16), snap("{b}/crypt/src@b"),
        more("{b}/crypt/src@a", "{b}/crypt/src@b", D, raw=True),
        ls(D, columns="name,guid,encryption,keystatus"),
    ),
}
