"""user.cfg and priv/token.cfg: users, tokens, roles, pools and ACLs, and what they allow (pve-facts §m)."""

import hmac
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fakepve.model import PveError

from .etc import Etc
from .roles import builtin

ROOT = "root@pam"
DEFAULT_PATHS = ("/", "/access", "/access/groups", "/nodes", "/pool", "/sdn", "/storage", "/vms")


@dataclass
class UserCfg:
    """The parsed file. `acl` is path -> "u:NAME", "t:TOKEN" or "g:GROUP" -> role -> propagate."""

    users: dict[str, dict[str, str]] = field(default_factory=dict)
    tokens: dict[str, dict[str, str]] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    pools: dict[str, dict[str, Any]] = field(default_factory=dict)
    roles: dict[str, frozenset[str]] = field(default_factory=dict)
    acl: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)


_USER = ("enable", "expire", "firstname", "lastname", "email", "comment", "keys")


def _items(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def parse(text: str) -> UserCfg:
    """Read user.cfg; lines that are none are passed over, as PVE does."""
    cfg = UserCfg()
    for line in text.splitlines():
        kind, _, rest = line.partition(":")
        part = rest.split(":") + [""] * 8
        if kind == "user":
            cfg.users[part[0]] = dict(zip(_USER, part[1:8], strict=True))
        elif kind == "token":
            cfg.tokens[part[0]] = dict(zip(("expire", "privsep", "comment"), part[1:4], strict=True))
        elif kind == "group":
            cfg.groups[part[0]] = _items(part[1])
        elif kind == "pool":
            cfg.pools[part[0]] = {"comment": part[1], "vms": [int(v) for v in _items(part[2])],
                                  "storage": _items(part[3])}
        elif kind == "role":
            cfg.roles[part[0]] = frozenset(_items(part[1]))
        elif kind == "acl":
            _parse_acl(cfg, part)
    cfg.users.setdefault(ROOT, dict.fromkeys(_USER, "") | {"enable": "1", "expire": "0"})
    return cfg


def _parse_acl(cfg: UserCfg, part: list[str]) -> None:
    for who in _items(part[2]):
        key = "g:" + who[1:] if who.startswith("@") else ("t:" if "!" in who else "u:") + who
        for role in _items(part[3]):
            cfg.acl.setdefault(part[1], {}).setdefault(key, {})[role] = int(part[0] or 0)


def dump(cfg: UserCfg) -> str:
    """The file's text, in the order PVE writes it."""
    lines = []
    for name, keys in sorted(cfg.users.items()):
        lines.append(f"user:{name}:" + ":".join(keys[k] for k in _USER) + ":")
        lines += [f"token:{token}:{t['expire']}:{t['privsep']}:{t['comment']}:"
                  for token, t in sorted(cfg.tokens.items()) if token.partition("!")[0] == name]
    lines.append("")
    lines += [f"group:{name}:{','.join(members)}::" for name, members in sorted(cfg.groups.items())] + [""]
    lines += [f"pool:{n}:{p['comment']}:{','.join(map(str, sorted(p['vms'])))}:{','.join(sorted(p['storage']))}:"
              for n, p in sorted(cfg.pools.items())] + [""]
    lines += [f"role:{name}:{','.join(sorted(privs))}:" for name, privs in sorted(cfg.roles.items())] + [""]
    for path, entries in sorted(cfg.acl.items()):
        for who, roles in sorted(entries.items()):
            name = "@" + who[2:] if who.startswith("g:") else who[2:]
            lines += [f"acl:{propagate}:{path}:{name}:{role}:" for role, propagate in sorted(roles.items())]
    return "\n".join(lines) + "\n"


class Access:
    """Who may do what on this node, from the files, read anew at every question."""

    def __init__(self, etc: Etc, major: int) -> None:
        self.etc = etc
        self.major = major
        self.builtin = builtin(major)
        self._lock = threading.RLock()

    @property
    def privileges(self) -> frozenset[str]:
        """Every privilege this release knows."""
        return self.builtin["Administrator"]

    def load(self) -> UserCfg:
        """The current user.cfg, with the built-in roles in place."""
        cfg = parse(self.etc.text("user.cfg"))
        cfg.roles = {**cfg.roles, **self.builtin}
        return cfg

    def save(self, cfg: UserCfg) -> None:
        """Write user.cfg, leaving out the built-in roles."""
        own = {name: privs for name, privs in cfg.roles.items() if name not in self.builtin}
        with self._lock:
            cfg.roles = own
            self.etc.replace(self.etc.root / "user.cfg", dump(cfg), 0o640)

    def secrets(self) -> dict[str, str]:
        """priv/token.cfg: token to secret."""
        lines = self.etc.text("priv/token.cfg").splitlines()
        return dict(line.split(" ", 1) for line in lines if " " in line)

    def set_secret(self, token: str, secret: str | None) -> None:
        """Store a token's secret, or remove it."""
        found = {**self.secrets(), token: secret}
        text = "".join(f"{k} {v}\n" for k, v in sorted(found.items()) if v is not None)
        self.etc.replace(self.etc.root / "priv" / "token.cfg", text, 0o600)

    def check_token(self, token: str, secret: str) -> str:
        """The token's full name; PveError 401 as pve-manager 9.1.5 and later says it."""
        cfg = self.load()
        known = self.secrets().get(token)
        owner = cfg.users.get(token.partition("!")[0])
        good = known is not None and hmac.compare_digest(known.encode(), secret.encode())
        entry = cfg.tokens.get(token)
        if not good or entry is None or owner is None or owner["enable"] != "1" or _expired(entry) or _expired(owner):
            raise PveError(401, "Authentication failed!")
        return token

    def held(self, who: str, path: str, cfg: UserCfg | None = None) -> dict[str, int]:
        """Privilege to propagate flag of a user or token on a path."""
        cfg = cfg or self.load()
        if who == ROOT:
            return dict.fromkeys(self.privileges, 1)
        owner = who.partition("!")[0]
        if owner == who:
            return self._of_user(cfg, who, path)
        user = dict.fromkeys(self.privileges, 1) if owner == ROOT else self._of_user(cfg, owner, path)
        if cfg.tokens.get(who, {}).get("privsep") != "1":
            return user
        own = self._with_pool(cfg, path, lambda p: self._roles(cfg, p, [f"t:{who}"]))
        return {priv: flag for priv, flag in own.items() if priv in user}

    def _of_user(self, cfg: UserCfg, user: str, path: str) -> dict[str, int]:
        groups = [f"g:{name}" for name, members in cfg.groups.items() if user in members]
        return self._with_pool(cfg, path, lambda p: self._roles(cfg, p, [f"u:{user}"])
                               or self._roles(cfg, p, groups))

    def _with_pool(self, cfg: UserCfg, path: str, roles: Any) -> dict[str, int]:
        found: dict[str, int] = dict(roles(path))
        for pool in _pools_of(cfg, path):
            found = {**roles(f"/pool/{pool}"), **found}
        return self._expand(cfg, found)

    @staticmethod
    def _roles(cfg: UserCfg, path: str, keys: Iterable[str]) -> dict[str, int]:
        """Roles at a path: the deepest entry for these names wins over those above it."""
        keys = list(keys)
        found: dict[str, int] = {}
        parts = [p for p in path.split("/") if p]
        for depth in range(len(parts) + 1):
            here = "/" + "/".join(parts[:depth])
            entries = cfg.acl.get(here, {})
            roles = {role: flag for key in keys for role, flag in entries.get(key, {}).items()
                     if flag or depth == len(parts)}
            if roles:
                found = {} if "NoAccess" in roles else roles
        return found

    @staticmethod
    def _expand(cfg: UserCfg, roles: dict[str, int]) -> dict[str, int]:
        out: dict[str, int] = {}
        for role, flag in roles.items():
            for priv in cfg.roles.get(role, ()):
                out[priv] = max(flag, out.get(priv, 0))
        return out

    def allowed(self, who: str, path: str, priv: str) -> bool:
        """True when the user or token holds the privilege on the path."""
        return priv in self.held(who, path)

    def require(self, who: str, path: str, *privs: str) -> None:
        """PveError 403 in PVE's words unless one of the privileges is held."""
        held = self.held(who, path)
        if not any(priv in held for priv in privs):
            raise PveError(403, f"Permission check failed ({path}, {'|'.join(privs)})")

    def overview(self, who: str) -> dict[str, dict[str, int]]:
        """GET /access/permissions: the default paths and those ACLs name, where anything is held."""
        cfg = self.load()
        paths = sorted({*DEFAULT_PATHS, *cfg.acl})
        return {path: held for path in paths if (held := self.held(who, path, cfg))}


def _expired(entry: dict[str, str]) -> bool:
    return 0 < int(entry["expire"] or 0) < time.time()


def _pools_of(cfg: UserCfg, path: str) -> list[str]:
    parts = path.split("/")
    if len(parts) == 3 and parts[1] == "vms" and parts[2].isdigit():
        return [name for name, pool in cfg.pools.items() if int(parts[2]) in pool["vms"]]
    if len(parts) == 3 and parts[1] == "storage":
        return [name for name, pool in cfg.pools.items() if parts[2] in pool["storage"]]
    return []
