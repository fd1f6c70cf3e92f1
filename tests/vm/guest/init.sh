#!/bin/sh
# The guest's /init: file systems, modules, then commands from the host.
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm /dev/pts /tmp /run
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts 2>/dev/null
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
for module in $(cat /etc/modules); do
	modprobe "$module" || echo "bench: modprobe $module failed"
done
echo "bench: $(uname -r) is up"
if grep -qw bench.shell /proc/cmdline; then
	while :; do
		setsid cttyhack sh
		poweroff -f
	done
fi
while :; do
	agent /dev/ttyS1
	echo "bench: the agent died"
	sleep 1
done
