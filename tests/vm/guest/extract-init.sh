#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# The capture kernel's /init: extract /proc/vmcore at two levels to the ext4 file system
# on the disk named "dumps", with an eye on memory, and through a pipe to the disk named
# "flat", then copy it to the disk named "out", say how long it is, and turn the machine
# off.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in $(cat /etc/modules); do
	modprobe "$module" || echo "bench: modprobe $module failed"
done

# The block device of the disk with that name.
disk() {
	for try in 1 2 3 4 5 6 7 8 9 10; do
		for serial in /sys/block/vd*/serial; do
			device=/dev/$(basename "$(dirname "$serial")")
			if [ "$(cat "$serial")" = "$1" ] && [ -b "$device" ]; then
				echo "$device"
				return
			fi
		done
		sleep 0.5
	done
}

memory() { awk "/^$1:/ { print \$2 }" /proc/meminfo; }

# The least and the most of what matters, in KiB, until the file /run/watch is gone.
watch() {
	available=$(memory MemAvailable) unwritten=0 cached=0
	while [ -e /run/watch ]; do
		while read -r name value _; do
			case $name in
			MemAvailable:) [ "$value" -lt "$available" ] && available=$value ;;
			Cached:) [ "$value" -gt "$cached" ] && cached=$value ;;
			Dirty:) dirty=$value ;;
			Writeback:)
				dirty=$((dirty + value))
				[ "$dirty" -gt "$unwritten" ] && unwritten=$dirty
				;;
			esac
		done < /proc/meminfo
		sleep 0.2
	done
	echo "available $available unwritten $unwritten cached $cached" > /run/watched
}

fail() {
	echo "bench: capture failed"
	poweroff -f
}

mount -t ext4 "$(disk dumps)" /mnt || fail
for level in 31 1; do
	before=$(memory MemAvailable)
	: > /run/watch
	watch &
	/python/drgn-tools extract -d $level /proc/vmcore /mnt/$level
	status=$?
	rm /run/watch
	wait
	echo "bench: -d $level status $status cpus $(nproc) before $before $(cat /run/watched)"
done
# As over ssh, or to a raw disk: what a pipe gets is flattened.
set -o pipefail
/python/drgn-tools extract -d 31 /proc/vmcore | dd of="$(disk flat)" bs=64k
echo "bench: pipe status $?"
# The host reads it without its journal.
umount /mnt || fail

size=$(stat -c %s /proc/vmcore)
copy /proc/vmcore "$(disk out)" || fail
echo "bench: vmcore $size bytes"
poweroff -f
