"""/access/acl: who has which role on which path (pve-facts §m)."""

import re
from typing import Any

from fakepve.model import PveError

from .api_access import drop, split
from .node import Node, Values, api, parameter_error


@api("GET", "/access/acl")
def acl(node: Node, v: Values, who: str) -> Any:
    """Every ACL entry; without Sys.Audit on /access only those of paths one may change."""
    cfg = node.access.load()
    audit = node.access.allowed(who, "/access", "Sys.Audit")
    kinds = {"u": "user", "t": "token", "g": "group"}
    return [{"path": path, "type": kinds[entry[0]], "ugid": entry[2:], "roleid": name, "propagate": flag}
            for path, entries in sorted(cfg.acl.items())
            if audit or node.access.allowed(who, path, "Permissions.Modify")
            for entry, granted in sorted(entries.items()) for name, flag in sorted(granted.items())]


@api("PUT", "/access/acl")
def acl_update(node: Node, v: Values, who: str) -> None:
    """Grant roles to users, groups and tokens on a path, or with `delete` take them away."""
    if not (v.get("users") or v.get("groups") or v.get("tokens")):
        raise parameter_error(**dict.fromkeys(("users", "tokens", "groups"),
                                              "either 'users', 'groups' or 'tokens' is required."))
    path = "/" + "/".join(part for part in v["path"].split("/") if part)
    if not re.fullmatch(r"/|(/(access|nodes|pool|sdn|storage|vms|mapping)(/[\w.@!-]+)*)", path):
        raise parameter_error(path=f"invalid ACL path '{v['path']}'")
    cfg = node.access.load()
    names = split(v["roles"])
    for name in names:
        if name not in cfg.roles:
            raise PveError(500, f"ACL update failed: role '{name}' does not exist")
    entries = ([f"u:{u}" for u in split(v.get("users"))] + [f"t:{t}" for t in split(v.get("tokens"))]
               + [f"g:{g}" for g in split(v.get("groups"))])
    known = {"u": set(cfg.users), "t": set(cfg.tokens), "g": set(cfg.groups)}
    words = {"u": "user", "t": "token", "g": "group"}
    for entry in entries:
        if entry[2:] not in known[entry[0]]:
            raise PveError(500, f"ACL update failed: {words[entry[0]]} '{entry[2:]}' does not exist")
        if v.get("delete"):
            drop(cfg, path, entry, names)
        else:
            held = cfg.acl.setdefault(path, {}).setdefault(entry, {})
            held.update(dict.fromkeys(names, int(v.get("propagate", 1))))
    node.access.save(cfg)
