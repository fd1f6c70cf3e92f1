#!/bin/sh
# Fill the guest's memory with one of everything; what, comes as VARIABLES in MiB.
# The disk named "seed" is an ext4 file system with the one big file "text".
# Little memory turns huge pages off.
echo always > /sys/kernel/mm/transparent_hugepage/enabled
echo always > /sys/kernel/mm/transparent_hugepage/defrag
echo "$HUGETLB" > /proc/sys/vm/nr_hugepages
# Dirty pages shall stay dirty.
echo 360000 > /proc/sys/vm/dirty_expire_centisecs
echo 0 > /proc/sys/vm/dirty_writeback_centisecs
echo 60 > /proc/sys/vm/dirty_ratio
echo 50 > /proc/sys/vm/dirty_background_ratio

for serial in /sys/block/vd*/serial; do
	[ "$(cat "$serial")" = seed ] && seed=/dev/$(basename "$(dirname "$serial")")
done
mount -t ext4 "$seed" /mnt || exit 1
text=$(($(stat -c %s /mnt/text) >> 20))

# Page cache: of a file, of copies of it (written back), of the block device (which
# has buffer heads, so PG_private).
first=$CACHE
[ "$first" -gt "$text" ] && first=$text
dd if=/mnt/text of=/dev/null bs=1M count="$first" 2>/dev/null
left=$((CACHE - first)) copy=0
while [ "$left" -gt 0 ]; do
	part=$left
	[ "$part" -gt "$text" ] && part=$text
	dd if=/mnt/text of=/mnt/copy$copy bs=1M count="$part" 2>/dev/null
	sync
	left=$((left - part)) copy=$((copy + 1))
done
dd if="$seed" of=/dev/null bs=1M count="$DEVICE" 2>/dev/null

# Dirty page cache, tmpfs, many small files (dentries and inodes are slab).
dd if=/mnt/text of=/mnt/dirty bs=1M count="$DIRTY" 2>/dev/null
dd if=/mnt/text of=/dev/shm/text bs=1M count="$SHMEM" 2>/dev/null
mkdir /dev/shm/many
i=0
while [ $i -lt "$FILES" ]; do
	: > /dev/shm/many/$i
	i=$((i + 1))
done

swap=
modprobe zram 2>/dev/null
if [ -b /dev/zram0 ] && [ "$SWAP" -gt 0 ]; then
	echo $((SWAP * 2))M > /sys/block/zram0/disksize
	mkswap /dev/zram0 > /dev/null && swapon /dev/zram0 && swap="swap=$SWAP"
fi

echo 4096 > /sys/kernel/mm/ksm/pages_to_scan
echo 1 > /sys/kernel/mm/ksm/run
kinds="anon=$ANON thp=$THP zero=$ZERO mapped=$MAPPED ksm=4 poison=1 $swap"
[ "$HUGETLB" -gt 0 ] && kinds="$kinds hugetlb=$((HUGETLB * 2 - 4))"
for kind in $kinds; do
	size=${kind#*=} kind=${kind%=*}
	fill "$kind" "$size" /mnt/text "/run/$kind" >> /run/fill 2>&1 &
	pids="$pids $kind=$!"
done
for pid in $pids; do
	kind=${pid%=*} pid=${pid#*=}
	while [ ! -e "/run/$kind" ]; do
		kill -0 "$pid" || { echo "fill $kind died"; break; }
		sleep 0.1
	done
done >> /run/fill 2>&1
# Until the kernel has merged pages; not every kernel does that.
try=0
while [ -d /sys/kernel/mm/ksm ] && [ $try -lt 100 ]; do
	[ "$(cat /sys/kernel/mm/ksm/pages_sharing)" -gt 900 ] && break
	sleep 0.1
	try=$((try + 1))
done
cat /run/fill
