/*
 * Hold memory of one kind: fill KIND MIB SOURCE READY.
 *
 * The content comes from the file SOURCE, with every fourth page random. When it is
 * all there the program creates the file READY and sleeps, under the name fill-KIND.
 * It prints its pid and the address, size and kind of the mapping.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#ifndef MADV_COLD
#define MADV_COLD 20
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE 101
#endif
#define PAGE 4096
#define HUGE (2UL << 20)

static uint64_t state = 88172645463325252ULL;

static uint64_t next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	return state ^= state << 17;
}

static void fill(char *start, size_t size, int source)
{
	off_t length = lseek(source, 0, SEEK_END) & -PAGE;

	for (size_t at = 0; at < size; at += PAGE) {
		uint64_t *words = (uint64_t *)(start + at);
		ssize_t got = 0;

		if (at / PAGE % 4 != 3)
			got = pread(source, words, PAGE, at % length);
		if (got < PAGE)
			for (size_t i = 0; i < PAGE / 8; i++)
				words[i] = next();
	}
}

static void *map(size_t size, int flags)
{
	/* Room to align, so that huge pages are possible from the first byte. */
	char *start = mmap(NULL, size + (flags & MAP_HUGETLB ? 0 : HUGE),
			   PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	if (start == MAP_FAILED) {
		perror("fill: mmap");
		exit(1);
	}
	return (void *)(((uintptr_t)start + HUGE - 1) & ~(HUGE - 1));
}

/* The kernel insists on telling who touches a poisoned page. */
static void survive(int number)
{
	(void)number;
}

int main(int argc, char **argv)
{
	char name[16];
	const char *kind;
	size_t size;
	char *start;
	int source;

	if (argc != 5) {
		fprintf(stderr, "usage: fill KIND MIB SOURCE READY\n");
		return 2;
	}
	kind = argv[1];
	size = strtoul(argv[2], NULL, 10) << 20;
	source = open(argv[3], O_RDONLY);
	if (source < 0) {
		perror(argv[3]);
		return 1;
	}
	for (const char *p = kind; *p; p++)
		state = state * 31 + *p;
	snprintf(name, sizeof(name), "fill-%s", kind);
	prctl(PR_SET_NAME, name);

	if (!strcmp(kind, "hugetlb")) {
		start = map(size, MAP_HUGETLB);
		fill(start, size, source);
	} else if (!strcmp(kind, "zero")) {
		start = map(size, 0);
		madvise(start, size, MADV_NOHUGEPAGE);
		memset(start, 1, size);
		memset(start, 0, size);
	} else if (!strcmp(kind, "mapped")) {
		volatile char touched;

		start = mmap(NULL, size, PROT_READ, MAP_SHARED, source, 0);
		if (start == MAP_FAILED) {
			perror("fill: mmap");
			return 1;
		}
		for (size_t at = 0; at < size; at += PAGE)
			touched = start[at];
		(void)touched;
	} else if (!strcmp(kind, "ksm")) {
		/* Pages that the kernel finds to be the same as others. */
		start = map(size, 0);
		madvise(start, size, MADV_NOHUGEPAGE);
		for (size_t at = 0; at < size; at += PAGE)
			memset(start + at, 1 + at / PAGE % 16, PAGE);
		if (madvise(start, size, MADV_MERGEABLE))
			perror("fill: MADV_MERGEABLE");
	} else {
		start = map(size, 0);
		madvise(start, size,
			strcmp(kind, "thp") ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
		fill(start, size, source);
	}
	if (!strcmp(kind, "swap")) {
		/* The first time may only clean the lists. */
		for (int i = 0; i < 3; i++) {
			if (madvise(start, size, MADV_PAGEOUT))
				perror("fill: MADV_PAGEOUT");
			usleep(100000);
		}
	} else if (!strcmp(kind, "poison")) {
		/* One page gone hard, one soft; the rest stays. */
		signal(SIGBUS, survive);
		if (madvise(start + 2 * PAGE, PAGE, MADV_HWPOISON))
			perror("fill: MADV_HWPOISON");
		if (madvise(start + 5 * PAGE, PAGE, MADV_SOFT_OFFLINE))
			perror("fill: MADV_SOFT_OFFLINE");
	}
	printf("%d %#lx %zu %s\n", getpid(), (unsigned long)start, size, kind);
	fflush(stdout);
	close(open(argv[4], O_WRONLY | O_CREAT, 0644));
	for (;;)
		pause();
}
