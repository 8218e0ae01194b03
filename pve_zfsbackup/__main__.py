"""`python3 -m pve_zfsbackup`."""

from pve_zfsbackup.cli import main

main()
