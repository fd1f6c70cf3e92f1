# Traces in many ways, then stops tracing. What is there afterwards:
#
#   the kernel's own   functions, sched, system calls, kprobes, stacks, markers,
#                      trace_printk() of a module
#   wrapped            small, so that events have been overwritten
#   read               some of it has been read through trace_pipe
#   clock              a clock that does not count nanoseconds
#   options            functions with offsets and addresses, thread groups, no flags
#   graph              function_graph, where the kernel can in an instance
#   plain              without what comes before the event
#   large              sub-buffers of several pages, where the kernel can
#   persistent         made at boot, in memory that outlives the kernel

set -e
trace=/sys/kernel/tracing
# Not tracefs' own automount: it takes a while.
[ -e $trace/trace ] || mount -t tracefs tracefs $trace
cd $trace
echo 0 > tracing_on

# Makes one with a buffer of so many KiB (0: as it is) that records these events.
instance() {
    into=instances/$1
    [ -d $into ] || mkdir $into
    echo 0 > $into/tracing_on
    [ $2 = 0 ] || echo $2 > $into/buffer_size_kb
    shift 2
    for event in "$@"; do
        echo 1 > $into/events/$event/enable
    done
}

# The agent and the shell call these all the time.
echo 'vfs_*' > set_ftrace_filter
echo 'do_sys_open*' >> set_ftrace_filter
echo function > current_tracer
echo 'p:probe do_sys_openat2 dfd=%di:s32 name=+0(%si):ustring flags=+0(%dx):x64' > kprobe_events
echo 'r:returned do_sys_openat2 ret=$retval:s64' >> kprobe_events
echo 'p:array vfs_read bytes=+0(%di):x8[4] sym=+0(%di):symbol what=$comm' >> kprobe_events
for event in kprobes sched syscalls; do
    echo 1 > events/$event/enable
done
echo stacktrace > events/sched/sched_process_exit/trigger

wrapped=instances/wrapped
instance wrapped 8 irq timer sched syscalls
instance read 256 sched syscalls signal
instance clock 64 sched irq
echo x86-tsc > instances/clock/trace_clock
instance options 256 irq timer task
(
    cd instances/options
    echo 1 > options/sym-offset
    echo 1 > options/sym-addr
    echo 0 > options/irq-info
    echo 1 > options/record-tgid
    echo 'vfs_*' > set_ftrace_filter
    echo function > current_tracer
)
if mkdir instances/graph && ! echo function_graph > instances/graph/current_tracer; then
    rmdir instances/graph
fi 2> /dev/null
[ ! -d instances/graph ] || echo 'vfs_*' > instances/graph/set_ftrace_filter
instance plain 64 workqueue kmem/kmalloc kmem/kfree kmem/mm_page_alloc
echo 0 > instances/plain/options/context-info
if [ -e buffer_subbuf_size_kb ]; then
    mkdir instances/large
    echo 16 > instances/large/buffer_subbuf_size_kb
    instance large 256 sched irq timer writeback block
fi
if [ -d instances/persistent ]; then
    instance persistent 0 sched irq syscalls
fi

for on in tracing_on instances/*/tracing_on; do echo 1 > $on; done

work() {
    i=0
    while [ $i -lt $1 ]; do
        i=$((i + 1))
        cat /proc/self/status /nowhere > /dev/null 2>&1 || true
        echo "round $i of $1" > trace_marker
        usleep 2000
    done
}
work 6 &
work 6
insmod /trace_printk.ko
wait
printf 'tab\there, 100%% and a "quote"' > trace_marker
printf '\1\0\0\0raw' > trace_marker_raw
# Reads some of it, which is gone then.
timeout 1 head -n 40 instances/read/trace_pipe > /dev/null || true
work 4
taskset 2 sh -c 'echo from the second CPU > /sys/kernel/tracing/trace_marker'
# Until it has been overwritten on each CPU.
while grep -q '^overrun: 0$' $wrapped/per_cpu/cpu0/stats $wrapped/per_cpu/cpu1/stats; do
    for cpu in 1 2; do
        taskset $cpu sh -c 'for i in 1 2 3 4 5; do cat /proc/stat > /dev/null; done'
    done
done
for on in tracing_on instances/*/tracing_on; do echo 0 > $on; done
