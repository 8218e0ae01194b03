# pve-zfsbackup: snapshots, replication and what is due for a box every hour, retention once a day, proofs once a week:
# pools (a scrub where one is due), every point on the targets, and drills of the guests that wait longest.
#
# Says nothing while all is well, so that cron's mail means trouble. Does nothing on a host that has no
# configuration yet (`pve-zfsbackup setup` writes one) or where the package was removed but not purged. Where it ran
# once (there is a journal), a configuration that is gone is trouble: /etc/pve may not be mounted.
# A line does nothing while the timer in its place is enabled (systemctl enable --now pve-zfsbackup.timer
# pve-zfsbackup-prune.timer pve-zfsbackup-verify.timer). The sleep keeps many nodes from reaching one target in the same
# second.
SHELL=/bin/sh
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# m h dom mon dow user command
7  * * * * root [ ! -x /usr/bin/pve-zfsbackup ] || [ -e /etc/systemd/system/timers.target.wants/pve-zfsbackup.timer ] || { [ ! -e /etc/pve-zfsbackup/config.yaml ] && [ ! -e /etc/pve/pve-zfsbackup.yaml ] && [ ! -e /var/log/pve-zfsbackup/journal.jsonl ]; } || { sleep "$(shuf -i 0-240 -n 1)"; pve-zfsbackup run --stage snapshot --stage replicate --stage archive; }
37 3 * * * root [ ! -x /usr/bin/pve-zfsbackup ] || [ -e /etc/systemd/system/timers.target.wants/pve-zfsbackup-prune.timer ] || { [ ! -e /etc/pve-zfsbackup/config.yaml ] && [ ! -e /etc/pve/pve-zfsbackup.yaml ] && [ ! -e /var/log/pve-zfsbackup/journal.jsonl ]; } || { sleep "$(shuf -i 0-240 -n 1)"; pve-zfsbackup run --stage prune; }
17 4 * * 0 root [ ! -x /usr/bin/pve-zfsbackup ] || [ -e /etc/systemd/system/timers.target.wants/pve-zfsbackup-verify.timer ] || { [ ! -e /etc/pve-zfsbackup/config.yaml ] && [ ! -e /etc/pve/pve-zfsbackup.yaml ] && [ ! -e /var/log/pve-zfsbackup/journal.jsonl ]; } || { sleep "$(shuf -i 0-240 -n 1)"; pve-zfsbackup verify pools; pve-zfsbackup verify points; pve-zfsbackup verify drill; }

# For Prometheus (docs/monitoring.md), where it is wanted:
# */10 * * * * root [ ! -x /usr/bin/pve-zfsbackup ] || pve-zfsbackup metrics --output /var/lib/prometheus/node-exporter/pve-zfsbackup.prom
