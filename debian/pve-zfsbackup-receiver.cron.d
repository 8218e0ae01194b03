# pve-zfsbackup-receiver: hold, prune and abort on this target by its own policy, every hour.
#
# Says nothing while all is well, so that cron's mail means trouble. Does nothing before a source stands in the
# configuration, or where the package was removed but not purged.
# It does nothing while pve-zfsbackup-receiver.timer is enabled in its place.
SHELL=/bin/sh
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# m h dom mon dow user command
23 * * * * root [ ! -x /usr/bin/pve-zfsbackup-receiver ] || [ -e /etc/systemd/system/timers.target.wants/pve-zfsbackup-receiver.timer ] || [ ! -e /etc/pve-zfsbackup-receiver.toml ] || { sleep "$(shuf -i 0-240 -n 1)"; pve-zfsbackup-receiver maintain; }
