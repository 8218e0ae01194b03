"""The configuration: definitions, loading, the example file and the reference made from the definitions."""

from pve_zfsbackup.config.definitions import DEFAULT_KEEP, Api, Config, Job, Target
from pve_zfsbackup.config.example import config_reference, example_config
from pve_zfsbackup.config.files import Secret, find_secret, read_secret
from pve_zfsbackup.config.load import load_config, parse_config

__all__ = [
    "DEFAULT_KEEP",
    "Api",
    "Config",
    "Job",
    "Secret",
    "Target",
    "config_reference",
    "example_config",
    "find_secret",
    "load_config",
    "parse_config",
    "read_secret",
]
