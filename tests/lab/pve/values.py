"""Property strings, sizes and the JSON types of configuration values (pve-facts §a "Types", §b)."""

import functools
import re
from typing import Any

from fakepve import schema as pve_schema

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
DRIVE = re.compile(r"^(ide[0-3]|sata[0-5]|scsi([12]?\d|30)|virtio(1[0-5]|\d)|efidisk0|tpmstate0)$")
TRUE = ("1", "on", "yes", "true")


def props(text: str, default: str = "file") -> dict[str, str]:
    """A property string as a dict; the one bare item is the default key."""
    out = {}
    for item in text.split(","):
        key, sep, value = item.partition("=")
        out[key if sep else default] = value if sep else item
    return out


def size(text: str | None) -> int:
    """Bytes of a size such as 1G or 4096k; 0 when there is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:iB)?", (text or "").upper().replace("IB", ""))
    return int(float(found[1]) * _UNITS[found[2]]) if found else 0


def agent_enabled(value: str | None) -> bool:
    """The `agent` option; unparseable counts as off (pve-facts §b)."""
    return value is not None and props(value, "enabled").get("enabled", "0").lower() in TRUE


@functools.cache
def _types(kind: str) -> dict[str, str]:
    """Types of the options, from the schema's PUT parameters (the returns of GET config lack some)."""
    spec = pve_schema.load().paths[f"/nodes/{{node}}/{kind}/{{vmid}}/config"]
    found: dict[str, str] = {}
    for source in (spec["PUT"]["parameters"], spec["GET"].get("returns") or {}):
        for name, item in (source.get("properties") or {}).items():
            found.setdefault(name, item.get("type", "string"))
    return found


def typed(kind: str, conf: dict[str, str]) -> dict[str, Any]:
    """Values as the API shows them: integer and boolean options are numbers, all others strings."""
    types = _types(kind) | {"snaptime": "integer", "template": "boolean", "lock": "string"}
    out: dict[str, Any] = {}
    for key, value in conf.items():
        sort = types.get(key) or types.get(key.rstrip("0123456789") + "[n]", "string")
        if sort == "integer" and re.fullmatch(r"-?\d+", value):
            out[key] = int(value)
        elif sort == "boolean":
            out[key] = 1 if value.lower() in TRUE else 0
        else:
            out[key] = value
    return out


def boot_disk(conf: dict[str, str]) -> str | None:
    """The drive that gives `maxdisk`: the first of the boot order that is a disk, else the first disk."""
    drives = {k: props(v) for k, v in conf.items() if DRIVE.match(k) and "media=cdrom" not in v}
    order = props(conf.get("boot", ""), "legacy").get("order", "").split(";")
    for key in [*order, *sorted(k for k in drives if not k.startswith(("efi", "tpm")))]:
        if key in drives:
            return key
    return None
