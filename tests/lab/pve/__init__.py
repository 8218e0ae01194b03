"""A Proxmox VE node for the lab: fakepve corrected to recordings of the real code, over real files and real ZFS."""
