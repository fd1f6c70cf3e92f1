#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# Write to every zone of ramoops that the kernel can write to. The environment says how
# much: PMSG and KMSG lines, CALLS of the traced functions on each CPU; BOOT goes into
# the text.
tracing=/sys/kernel/debug/tracing
switch=/sys/kernel/debug/pstore/record_ftrace
i=0
while [ $i -lt "$KMSG" ]; do
	echo "<4>bench: boot $BOOT says line $i to the console" > /dev/kmsg
	i=$((i + 1))
done
i=0
while [ $i -lt "$PMSG" ] && [ -c /dev/pmsg0 ]; do
	echo "boot $BOOT: message $i of the user" > /dev/pmsg0
	i=$((i + 1))
done
[ "$CALLS" -gt 0 ] && [ -e $switch ] || exit 0
# With every function and ECC this takes minutes.
echo vfs_read vfs_write > $tracing/set_ftrace_filter
echo 1 > $switch
mask=1
for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
	taskset $(printf %x $mask) dd if=/dev/zero of=/dev/null bs=1 count="$CALLS" \
		2> /dev/null &
	mask=$((mask * 2))
done
wait
