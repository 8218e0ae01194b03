"""/access: users, tokens and roles, kept in user.cfg and priv/token.cfg (pve-facts §m)."""

import re
import uuid
from typing import Any

from fakepve.model import PveError

from .node import Node, Values, api, parameter_error
from .usercfg import _USER, UserCfg


def split(text: object) -> list[str]:
    """PVE's lists: commas, semicolons or white space."""
    return [item for item in re.split(r"[\s,;]+", str(text or "")) if item]


@api("GET", "/access/permissions")
def permissions(node: Node, v: Values, who: str) -> Any:
    """What the caller (or `userid`, with Sys.Audit on /access) holds."""
    if (other := v.get("userid")) and other != who and other.partition("!")[0] != who:
        node.access.require(who, "/access", "Sys.Audit")
        who = other
    if path := v.get("path"):
        return {path: node.access.held(who, path)}
    return node.access.overview(who)


@api("GET", "/access/roles")
def roles(node: Node, v: Values, who: str) -> Any:
    """Every role; the built-in ones are `special`."""
    cfg = node.access.load()
    return [{"roleid": name, "privs": ",".join(sorted(privs)), "special": int(name in node.access.builtin)}
            for name, privs in sorted(cfg.roles.items())]


@api("GET", "/access/roles/{roleid}")
def role(node: Node, v: Values, who: str) -> Any:
    """One role."""
    return dict.fromkeys(sorted(_role(node.access.load(), v["roleid"])), 1)


def _role(cfg: UserCfg, name: str) -> frozenset[str]:
    if name not in cfg.roles:
        raise PveError(500, f"role '{name}' does not exist")
    return cfg.roles[name]


def _privs(node: Node, text: object) -> frozenset[str]:
    for priv in split(text):
        if priv not in node.access.privileges:
            raise PveError(500, f"invalid privilege '{priv}'")
    return frozenset(split(text))


@api("POST", "/access/roles")
def role_create(node: Node, v: Values, who: str) -> None:
    """Create a role of one's own."""
    cfg = node.access.load()
    if v["roleid"] in cfg.roles:
        raise PveError(500, f"create role failed: role '{v['roleid']}' already exists")
    try:
        cfg.roles[v["roleid"]] = _privs(node, v.get("privs"))
    except PveError as exc:
        raise PveError(500, f"create role failed: {exc.message}") from None
    node.access.save(cfg)


@api("PUT", "/access/roles/{roleid}")
def role_update(node: Node, v: Values, who: str) -> None:
    """Replace, or with `append` extend, a role's privileges."""
    cfg = node.access.load()
    name = v["roleid"]
    if name in node.access.builtin:
        raise PveError(500, f"auto-generated role '{name}' cannot be modified")
    old = _role(cfg, name)
    cfg.roles[name] = _privs(node, v.get("privs")) | (old if v.get("append") else frozenset())
    node.access.save(cfg)


@api("DELETE", "/access/roles/{roleid}")
def role_delete(node: Node, v: Values, who: str) -> None:
    """Delete a role and every ACL entry that grants it."""
    cfg = node.access.load()
    name = v["roleid"]
    if name in node.access.builtin:
        raise PveError(500, f"auto-generated role '{name}' cannot be deleted")
    _role(cfg, name)
    del cfg.roles[name]
    for path in list(cfg.acl):
        for entry in list(cfg.acl[path]):
            drop(cfg, path, entry, [name])
    node.access.save(cfg)


def _user_view(cfg: UserCfg, name: str) -> dict[str, Any]:
    keys = cfg.users[name]
    out: dict[str, Any] = {"enable": int(keys["enable"] or 0), "expire": int(keys["expire"] or 0)}
    out.update((k, keys[k]) for k in ("firstname", "lastname", "email", "comment", "keys") if keys[k])
    return out


def _token_view(cfg: UserCfg, full: str) -> dict[str, Any]:
    keys = cfg.tokens[full]
    out: dict[str, Any] = {"expire": int(keys["expire"] or 0), "privsep": int(keys["privsep"] or 0)}
    return {**out, "comment": keys["comment"]} if keys["comment"] else out


@api("GET", "/access/users")
def users(node: Node, v: Values, who: str) -> Any:
    """Users the caller may see: itself, or all with User.Modify or Sys.Audit on /access/groups."""
    cfg = node.access.load()
    held = node.access.held(who, "/access/groups")
    seen = [u for u in sorted(cfg.users) if u == who or "User.Modify" in held or "Sys.Audit" in held]
    if "enabled" in v:
        seen = [u for u in seen if int(cfg.users[u]["enable"] or 0) == int(v["enabled"])]
    out = []
    for name in seen:
        item = {"userid": name, "realm-type": name.rpartition("@")[2], **_user_view(cfg, name)}
        if v.get("full"):
            item["tokens"] = _tokens_of(cfg, name)
            item["groups"] = ",".join(g for g, members in sorted(cfg.groups.items()) if name in members)
        out.append(item)
    return out


def _tokens_of(cfg: UserCfg, user: str) -> list[dict[str, Any]]:
    return [{"tokenid": t.partition("!")[2], **_token_view(cfg, t)}
            for t in sorted(cfg.tokens) if t.partition("!")[0] == user]


def _user(cfg: UserCfg, name: str) -> str:
    if name not in cfg.users:
        raise PveError(500, f"no such user ('{name}')")
    return name


@api("GET", "/access/users/{userid}")
def user(node: Node, v: Values, who: str) -> Any:
    """One user, with its groups and tokens."""
    cfg = node.access.load()
    name = _user(cfg, v["userid"])
    tokens = {t["tokenid"]: {k: x for k, x in t.items() if k != "tokenid"} for t in _tokens_of(cfg, name)}
    groups = [g for g, members in sorted(cfg.groups.items()) if name in members]
    return {**_user_view(cfg, name), "groups": groups, **({"tokens": tokens} if tokens else {})}


@api("POST", "/access/users")
def user_create(node: Node, v: Values, who: str) -> None:
    """Create a user; passwords are not kept, nothing in the lab logs in with one."""
    cfg = node.access.load()
    name = v["userid"]
    if name in cfg.users:
        raise PveError(500, f"create user failed: user '{name}' already exists")
    if name.rpartition("@")[2] not in ("pam", "pve"):
        raise PveError(500, f"create user failed: domain '{name.rpartition('@')[2]}' does not exist")
    cfg.users[name] = {k: str(v.get(k, "")) for k in _USER} | {
        "enable": str(int(v.get("enable", 1))), "expire": str(v.get("expire", 0))}
    node.access.save(cfg)


@api("PUT", "/access/users/{userid}")
def user_update(node: Node, v: Values, who: str) -> None:
    """Change the given fields of a user."""
    cfg = node.access.load()
    keys = cfg.users[_user(cfg, v["userid"])]
    keys.update((k, str(int(v[k]) if k in ("enable", "expire") else v[k])) for k in _USER if k in v)
    node.access.save(cfg)


@api("DELETE", "/access/users/{userid}")
def user_delete(node: Node, v: Values, who: str) -> None:
    """Delete a user with its tokens and ACL entries."""
    cfg = node.access.load()
    name = v["userid"]
    if cfg.users.pop(name, None) is None:
        raise PveError(500, f"delete user failed: user '{name}' does not exist")
    gone = [t for t in cfg.tokens if t.partition("!")[0] == name]
    for token in gone:
        del cfg.tokens[token]
        node.access.set_secret(token, None)
    _drop_everywhere(cfg, {f"u:{name}", *(f"t:{t}" for t in gone)})
    node.access.save(cfg)


def _drop_everywhere(cfg: UserCfg, entries: set[str]) -> None:
    for path in list(cfg.acl):
        for entry in entries & set(cfg.acl[path]):
            drop(cfg, path, entry, list(cfg.acl[path][entry]))


@api("GET", "/access/users/{userid}/token")
def tokens(node: Node, v: Values, who: str) -> Any:
    """The user's tokens."""
    return _tokens_of(node.access.load(), v["userid"])


def _token(cfg: UserCfg, v: Values) -> str:
    full = f"{_user(cfg, v['userid'])}!{v['tokenid']}"
    if full not in cfg.tokens:
        raise PveError(500, f"no such token '{v['tokenid']}' for user '{v['userid']}'")
    return full


@api("GET", "/access/users/{userid}/token/{tokenid}")
def token(node: Node, v: Values, who: str) -> Any:
    """One token, without its secret."""
    cfg = node.access.load()
    return _token_view(cfg, _token(cfg, v))


@api("POST", "/access/users/{userid}/token/{tokenid}")
def token_create(node: Node, v: Values, who: str) -> Any:
    """Create a token; the only answer that ever shows its secret."""
    cfg = node.access.load()
    full = f"{_user(cfg, v['userid'])}!{v['tokenid']}"
    if full in cfg.tokens:
        raise parameter_error(tokenid="Token already exists.")
    cfg.tokens[full] = {"expire": str(v.get("expire", 0)), "privsep": str(int(v.get("privsep", 1))),
                        "comment": str(v.get("comment", ""))}
    secret = str(uuid.uuid4())
    node.access.save(cfg)
    node.access.set_secret(full, secret)
    info = {"expire": cfg.tokens[full]["expire"], "privsep": cfg.tokens[full]["privsep"]}
    if cfg.tokens[full]["comment"]:
        info["comment"] = cfg.tokens[full]["comment"]
    return {"full-tokenid": full, "info": info, "value": secret}


@api("PUT", "/access/users/{userid}/token/{tokenid}")
def token_update(node: Node, v: Values, who: str) -> Any:
    """Change a token; with `regenerate` it gets a new secret."""
    cfg = node.access.load()
    full = _token(cfg, v)
    entry = cfg.tokens[full]
    entry.update((k, str(int(v[k]) if k != "comment" else v[k])) for k in entry if k in v)
    node.access.save(cfg)
    if v.get("regenerate"):
        node.access.set_secret(full, secret := str(uuid.uuid4()))
        return {**_token_view(cfg, full), "value": secret, "full-tokenid": full}
    return _token_view(cfg, full)


@api("DELETE", "/access/users/{userid}/token/{tokenid}")
def token_delete(node: Node, v: Values, who: str) -> None:
    """Delete a token, its secret and its ACL entries."""
    cfg = node.access.load()
    full = _token(cfg, v)
    del cfg.tokens[full]
    _drop_everywhere(cfg, {f"t:{full}"})
    node.access.save(cfg)
    node.access.set_secret(full, None)


def drop(cfg: UserCfg, path: str, entry: str, names: list[str]) -> None:
    """Take roles from an entry of an ACL; empty entries and paths go."""
    held = cfg.acl.get(path, {}).get(entry, {})
    for name in names:
        held.pop(name, None)
    if not held and path in cfg.acl:
        cfg.acl[path].pop(entry, None)
        if not cfg.acl[path]:
            del cfg.acl[path]
