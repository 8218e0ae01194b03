"""Who is told when something fails. Addresses of webhooks are secrets and have files of their own."""
# ruff: noqa: RUF009 - `option` makes a field, as `dataclasses.field` does

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pve_zfsbackup.config import kinds
from pve_zfsbackup.config.option import option


class WebhookType(StrEnum):
    GENERIC = "generic"
    SLACK = "slack"
    MATTERMOST = "mattermost"
    DISCORD = "discord"
    TEAMS = "teams"
    NTFY = "ntfy"
    GOTIFY = "gotify"


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A service that takes messages over https."""

    name: str = ""  # its key under `webhooks`
    type: WebhookType = option("What the service expects.", kinds.choice(WebhookType, {}), default=WebhookType.GENERIC)
    url_file: Path = option(
        "File with the address (https://…), readable by root only: whoever knows it can write there.",
        kinds.SECRET_PATH,
        example="/etc/pve-zfsbackup/ops.url",
    )
    local: bool = option(
        "Whether the address may be one of this host itself (loopback, link-local).", kinds.YES_OR_NO, default=False
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Alerts:
    """Mail and the like."""

    mail: tuple[str, ...] = option(
        "Who gets mail, through this node's sendmail; Proxmox forwards root's to its administrator.",
        kinds.MAIL,
        default=(),
        example="[root]",
    )
    apprise_file: Path | None = option(
        "Configuration of apprise, readable by root only: every service in it is told. Needs the package apprise.",
        kinds.SECRET_PATH,
        default=None,
        example="/etc/pve-zfsbackup/apprise.yaml",
    )
    ping_file: Path | None = option(
        "File with the address of a dead man's switch in the manner of healthchecks.io: it is called at the start "
        "(/start) and the end (/fail) of each `run`, so that silence alarms as well. Readable by root only.",
        kinds.SECRET_PATH,
        default=None,
        example="/etc/pve-zfsbackup/ping.url",
    )
