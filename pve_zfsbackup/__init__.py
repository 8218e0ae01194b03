"""pve-zfsbackup: guest-consistent ZFS snapshots, replication and retention for Proxmox VE.

`cli -> app -> {plan, execute, host, report}`; `plan` is pure, `host` does all input and output, and the two
never see each other. ARCHITECTURE.md has the map.
"""

__version__ = "0.1.0"
