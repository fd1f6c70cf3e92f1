#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# Say, as a tar archive, what the kernel says about its zram devices and about swap;
# what is in /run/facts already goes with it.
facts=/run/facts
for device in /sys/block/zram*; do
	name=${device##*/}
	mkdir -p $facts/$name
	for file in mm_stat io_stat bd_stat debug_stat comp_algorithm recomp_algorithm \
		disksize initstate max_comp_streams backing_dev; do
		[ -e $device/$file ] && cat $device/$file > $facts/$name/$file
	done
	state=/sys/kernel/debug/zram/$name/block_state
	[ -e $state ] && cat $state > $facts/$name/block_state
done
for file in swaps meminfo vmstat; do
	cat /proc/$file > $facts/$file
done
for file in /sys/kernel/debug/zswap/* /sys/module/zswap/parameters/*; do
	[ -e $file ] && cat $file > $facts/zswap-${file##*/}
done
tar c -C $facts . | gzip -1
