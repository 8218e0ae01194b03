"""The configuration: definitions and loading. `example` makes the example file and the reference of the definitions."""

from pve_zfsbackup.config.alerts import Alerts, Webhook, WebhookType
from pve_zfsbackup.config.boxes import Box
from pve_zfsbackup.config.definitions import Api, Config, Job
from pve_zfsbackup.config.files import Secret, checked_secrets, find_secret, read_secret
from pve_zfsbackup.config.load import load_config, parse_config
from pve_zfsbackup.config.option import DEFAULT_KEEP
from pve_zfsbackup.config.targets import Target

__all__ = [
    "DEFAULT_KEEP",
    "Alerts",
    "Api",
    "Box",
    "Config",
    "Job",
    "Secret",
    "Target",
    "Webhook",
    "WebhookType",
    "checked_secrets",
    "find_secret",
    "load_config",
    "parse_config",
    "read_secret",
]
