# Make oprofile ready: $BUFFER entries of each CPU's buffer, $DEPTH of backtraces.
set -e
echo on > /proc/sys/kernel/printk_devkmsg
echo -1 > /proc/sys/kernel/sched_rt_runtime_us
echo 1 > /proc/sys/kernel/unknown_nmi_panic
modprobe oprofile timer=1
modprobe lz4hc
modprobe zram
echo lz4hc > /sys/block/zram0/comp_algorithm
echo 8M > /sys/block/zram0/disksize
mkdir -p /dev/oprofile
mount -t oprofilefs nodev /dev/oprofile
cd /dev/oprofile
[ "$(cat cpu_type)" = timer ]
echo "$BUFFER" > cpu_buffer_size
echo "$DEPTH" > backtrace_depth
oprofile hold >/dev/null 2>&1 &
until [ -e /run/held ]; do sleep 0.1; done
echo 1 > enable
# Ordinary work, which workers take from the CPUs' buffers as it happens.
for name in user kernel anon vdso module; do
	oprofile work $name 800 &
	last=$!
	[ $name = kernel ] || [ $name = vdso ] || wait $last
done
wait $last
