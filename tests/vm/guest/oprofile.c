/*
 * What oprofile can take samples of, and how the samples stay where they are.
 *
 *	oprofile hold			open the buffer, and keep it open; at SIGUSR1,
 *					read(2) it to /run/read-0, /run/read-1, ...
 *	oprofile work NAME MS		be busy in one way, see works[]
 *	oprofile starve N		be busy in all ways on all CPUs, at a priority
 *					that lets no kernel worker run; when each CPU
 *					has N more samples, stop the sampling, tell
 *					the console, and go on
 *
 * Nothing empties the buffers of a CPU but a worker, and tasks that exit there.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <elf.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

/* Callers of a function are found by frame pointers, from its start on. */
#pragma GCC optimize("no-omit-frame-pointer", "no-optimize-sibling-calls")
#pragma GCC optimize("no-shrink-wrap")

#define ROOT "/dev/oprofile/"

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* --- ways to be busy, each a little at a time */

static volatile unsigned long sink;

__attribute__((noinline)) void busy_in_user(void)
{
	for (unsigned long i = 0; i < 1000000; i++)
		sink += i * i;
	/* Of a function that calls none, the caller is not found. */
	if (sink == 1)
		sched_yield();
}

__attribute__((noinline)) void calls_busy_in_user(void)
{
	busy_in_user();
	sink++;
}

static void in_user(void)
{
	calls_busy_in_user();
	sink++;
}

static void in_kernel(void)
{
	static char *room;
	static int zero = -1;
	const size_t size = 1 << 20;

	if (zero < 0) {
		room = malloc(size);
		memset(room, 1, size);
		zero = open("/dev/zero", O_RDONLY);
	}
	if (read(zero, room, size) != (ssize_t)size)
		die("/dev/zero");
}

static void in_anonymous(void)
{
	/* dec edi; jnz back; ret */
	static const unsigned char code[] = { 0xff, 0xcf, 0x75, 0xfc, 0xc3 };
	static void (*made)(unsigned int);

	if (!made) {
		void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (page == MAP_FAILED)
			die("mmap");
		memcpy(page, code, sizeof(code));
		made = (void (*)(unsigned int))page;
	}
	made(1000000);
}

static void *vdso(const char *wanted)
{
	char *base = (char *)getauxval(AT_SYSINFO_EHDR);
	Elf64_Ehdr *head = (Elf64_Ehdr *)base;
	Elf64_Phdr *segment = (Elf64_Phdr *)(base + head->e_phoff);
	Elf64_Sym *symbols = NULL;
	char *names = NULL;
	unsigned int count = 0;

	for (int i = 0; i < head->e_phnum; i++) {
		if (segment[i].p_type != PT_DYNAMIC)
			continue;
		Elf64_Dyn *entry = (Elf64_Dyn *)(base + segment[i].p_vaddr);

		for (; entry->d_tag != DT_NULL; entry++) {
			if (entry->d_tag == DT_SYMTAB)
				symbols = (Elf64_Sym *)(base + entry->d_un.d_ptr);
			else if (entry->d_tag == DT_STRTAB)
				names = base + entry->d_un.d_ptr;
			else if (entry->d_tag == DT_HASH)
				count = ((unsigned int *)(base + entry->d_un.d_ptr))[1];
		}
	}
	for (unsigned int i = 0; i < count; i++)
		if (!strcmp(names + symbols[i].st_name, wanted))
			return base + symbols[i].st_value;
	die(wanted);
	return NULL;
}

static void in_vdso(void)
{
	static long (*getcpu)(unsigned int *, unsigned int *, void *);
	unsigned int cpu;

	if (!getcpu)
		getcpu = (long (*)(unsigned int *, unsigned int *, void *))
			vdso("__vdso_getcpu");
	for (int i = 0; i < 100000; i++)
		getcpu(&cpu, NULL, NULL);
}

/* zram compresses where it is written to; with lz4hc, in a module. */
static void in_module(void)
{
	static unsigned char *text;
	static int disk = -1;
	const size_t size = 1 << 16;

	if (disk < 0) {
		unsigned int random = 1;

		text = aligned_alloc(4096, size);
		for (size_t i = 0; i < size; i++) {
			random = random * 1103515245 + 12345;
			text[i] = 'a' + (random >> 24 & 7);
		}
		disk = open("/dev/zram0", O_WRONLY | O_DIRECT);
	}
	if (pwrite(disk, text, size, 0) != (ssize_t)size)
		die("/dev/zram0");
}

static const struct {
	const char *name;
	void (*once)(void);
	/* How long it is its turn, in milliseconds. */
	long slice;
} works[] = {
	{ "user", in_user, 160 },
	{ "kernel", in_kernel, 160 },
	{ "anon", in_anonymous, 40 },
	{ "vdso", in_vdso, 40 },
	{ "module", in_module, 40 },
};
#define WORKS (sizeof(works) / sizeof(works[0]))

static void call(const char *name)
{
	char comm[16];

	snprintf(comm, sizeof(comm), "op-%s", name);
	prctl(PR_SET_NAME, comm);
}

static void work(int number, long ms)
{
	long end = now_ms() + ms;

	while (now_ms() < end)
		works[number].once();
}

/* --- the buffer */

static void pass(int signal)
{
}

static long number_in(const char *path)
{
	char text[32] = "";
	int fd = open(path, O_RDONLY);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) < 0)
		die(path);
	close(fd);
	return atol(text);
}

static void hold(void)
{
	size_t size = number_in(ROOT "buffer_size") * sizeof(long);
	char *room = malloc(size), name[64];
	int buffer = open(ROOT "buffer", O_RDONLY), file;
	sigset_t set;

	if (buffer < 0)
		die("buffer");
	signal(SIGUSR1, pass);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	file = open("/run/held", O_WRONLY | O_CREAT, 0600);
	close(file);
	for (int number = 0;; number++) {
		int got;
		ssize_t length;

		sigwait(&set, &got);
		length = read(buffer, room, size);
		if (length < 0)
			die("reading the buffer");
		file = open("/run/reading", O_WRONLY | O_CREAT | O_TRUNC, 0600);
		if (write(file, room, length) != length)
			die("/run/reading");
		close(file);
		snprintf(name, sizeof(name), "/run/read-%d", number);
		rename("/run/reading", name);
	}
}

/* --- starving */

static int console;

static void tell(const char *text)
{
	char line[200];
	int length = snprintf(line, sizeof(line), "<0>oprofile: %s\n", text);

	if (write(console, line, length) != length)
		die("/dev/kmsg");
}

static void tell_stats(const char *folder)
{
	char path[512], line[700];
	struct dirent *entry;
	DIR *dir = opendir(folder);

	if (!dir)
		die(folder);
	while ((entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
		if (entry->d_type == DT_DIR) {
			tell_stats(path);
			continue;
		}
		snprintf(line, sizeof(line), "stat %s %ld",
			 path + strlen(ROOT "stats/"), number_in(path));
		tell(line);
	}
	closedir(dir);
}

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
}

static void begin(const char *name, int cpu)
{
	char line[100];

	call(name);
	pin(cpu);
	snprintf(line, sizeof(line), "task %s %d %d", name, getpid(), cpu);
	tell(line);
}

/* The least that a CPU has been sampled. */
static long received(int cpus)
{
	long least = 0;

	for (int cpu = 0; cpu < cpus; cpu++) {
		char path[64];
		long here;

		snprintf(path, sizeof(path), ROOT "stats/cpu%d/sample_received", cpu);
		here = number_in(path);
		if (!cpu || here < least)
			least = here;
	}
	return least;
}

static void starve(long samples)
{
	int cpus = sysconf(_SC_NPROCESSORS_ONLN);
	struct sched_param most = { .sched_priority = 99 };
	int enable = open(ROOT "enable", O_WRONLY);
	long enough;
	pid_t exiting;

	console = open("/dev/kmsg", O_WRONLY);
	signal(SIGCHLD, SIG_IGN);
	/* Before there is anybody else, or forking takes turns. */
	pin(0);
	if (sched_setscheduler(0, SCHED_FIFO, &most))
		die("sched_setscheduler");
	enough = received(cpus) + samples;
	for (int cpu = cpus - 1; cpu >= 0; cpu--) {
		for (unsigned int i = 0; i < WORKS; i++) {
			if (fork())
				continue;
			begin(works[i].name, cpu);
			for (;;) {
				work(i, works[i].slice);
				sched_yield();
			}
		}
	}
	exiting = fork();
	if (!exiting) {
		/* Leaves samples on the last CPU, and exits on the first. */
		begin("exited", cpus - 1);
		for (int i = 0; i < 3; i++) {
			work(0, 40);
			sched_yield();
		}
		pin(0);
		_exit(0);
	}
	call("director");
	while (received(cpus) < enough || !kill(exiting, 0))
		sched_yield();
	if (write(enable, "0", 1) != 1)
		die("enable");
	tell_stats(ROOT "stats");
	tell("ready");
	for (;;)
		sched_yield();
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "hold"))
		hold();
	if (argc == 4 && !strcmp(argv[1], "work")) {
		for (unsigned int i = 0; i < WORKS; i++) {
			if (strcmp(works[i].name, argv[2]))
				continue;
			call(argv[2]);
			work(i, atol(argv[3]));
			return 0;
		}
	}
	if (argc == 3 && !strcmp(argv[1], "starve"))
		starve(atol(argv[2]));
	return 2;
}
