#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# The /init of a capture kernel that times /proc/vmcore; arguments are in /etc/mapping.
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
# The kernel shall not speak in between.
echo 1 > /proc/sys/kernel/printk
if mapping /proc/vmcore $(cat /etc/mapping); then
	echo "bench: mapping done"
else
	echo "bench: mapping failed"
fi
poweroff -f
