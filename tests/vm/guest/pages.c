// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Pages whose content the host knows; tests/vm/known_pages.py makes the same.
 *
 * pages write CPU FILE FIRST COUNT SEED: write pages number FIRST to FIRST + COUNT - 1
 * of a block device, on one CPU, past the page cache.
 *
 * pages hold SEED COUNT FOLDER: have COUNT pages swapped out, and as many in a child
 * that read a few of them again; see hold(). In FOLDER it tells where they are, and
 * makes the file "ready" at last.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#define PAGE 4096
#define WORDS (PAGE / 8)
#define KINDS 12
/* What a mapping has besides: pages never touched, and pages written once more. */
#define UNTOUCHED 16
#define AGAIN 16
#define SHARED 64

static __attribute__((noreturn)) void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t mix(uint64_t z)
{
	z += 0x9e3779b97f4a7c15;
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

/* One of 256 words of three to eight letters and a space. */
static int word(uint8_t number, char *text)
{
	uint64_t random = mix(number);
	int length = 3 + random % 6;

	for (int i = 0; i < length; i++)
		text[i] = 'a' + (random >> (8 + 5 * i) & 31) % 26;
	text[length] = ' ';
	return length + 1;
}

static void make(uint8_t *page, uint64_t seed, uint64_t index)
{
	uint64_t key = mix(seed << 32 | index), random[WORDS];
	uint64_t *words = (uint64_t *)page;
	char line[64];
	int length, at;

	for (int i = 0; i < WORDS; i++)
		random[i] = mix(key + i);
	memset(page, 0, PAGE);
	switch (index % KINDS) {
	case 0: /* zeroes */
		break;
	case 1: /* one word all over */
		for (int i = 0; i < WORDS; i++)
			words[i] = random[0];
		break;
	case 2: /* random */
		memcpy(page, random, PAGE);
		break;
	case 3: /* lines */
		at = 0;
		for (int n = 0; at < PAGE; n++) {
			length = sprintf(line, "page %08u of %08x, line %04d\n",
					 (unsigned)index, (unsigned)seed, n);
			if (length > PAGE - at)
				length = PAGE - at;
			memcpy(page + at, line, length);
			at += length;
		}
		break;
	case 4: /* zeroes but for eight words */
		for (int i = 0; i < 8; i++)
			words[random[i] % WORDS] = random[i + 8];
		break;
	case 5: /* random, a quarter of zeroes at the end */
		memcpy(page, random, 3000);
		break;
	case 6: /* six random bits in each byte */
		for (int i = 0; i < WORDS; i++)
			words[i] = random[i] & 0x3f3f3f3f3f3f3f3f;
		break;
	case 7: /* a counter */
		for (int i = 0; i < PAGE / 4; i++)
			((uint32_t *)page)[i] = index * (PAGE / 4) + i;
		break;
	case 8: /* words of a language */
		at = 0;
		for (int i = 0; at < PAGE; i++) {
			length = word(random[i % WORDS] >> (i / WORDS), line);
			if (length > PAGE - at)
				length = PAGE - at;
			memcpy(page + at, line, length);
			at += length;
		}
		break;
	case 9: /* zeroes but for the last byte */
		page[PAGE - 1] = 1 + random[0] % 255;
		break;
	case 10: /* random up to somewhere */
		memcpy(page, random, random[0] % PAGE);
		break;
	case 11: /* 32 times almost the same */
		for (int i = 0; i < WORDS; i++)
			words[i] = random[i % 16 ? i % 16 : i];
		break;
	}
}

static int write_pages(char **argv)
{
	int cpu = atoi(argv[0]), file;
	unsigned long first = strtoul(argv[2], NULL, 0);
	unsigned long count = strtoul(argv[3], NULL, 0);
	unsigned long seed = strtoul(argv[4], NULL, 0);
	uint8_t *page;
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (sched_setaffinity(0, sizeof(one), &one))
		die("pages: CPU");
	file = open(argv[1], O_WRONLY | O_DIRECT);
	if (file < 0 || posix_memalign((void **)&page, PAGE, PAGE))
		die(argv[1]);
	for (unsigned long index = first; index < first + count; index++) {
		make(page, seed, index);
		if (pwrite(file, page, PAGE, index * PAGE) != PAGE)
			die("pages: write");
	}
	return 0;
}

static int present(const uint8_t *start, int count)
{
	int map = open("/proc/self/pagemap", O_RDONLY), found = 0;
	uint64_t entry;

	for (int i = 0; i < count; i++) {
		off_t at = ((uintptr_t)start / PAGE + i) * 8;

		if (map < 0 || pread(map, &entry, 8, at) != 8)
			die("pages: pagemap");
		found += entry >> 63;
	}
	close(map);
	return found;
}

static void page_out(uint8_t *start, int count)
{
	/* The first time may only drain the lists. */
	for (int try = 0; try < 3 || present(start, count); try++) {
		if (try == 100) {
			fprintf(stderr, "pages: not swapped out\n");
			exit(1);
		}
		if (madvise(start, (size_t)count * PAGE, MADV_PAGEOUT))
			die("pages: MADV_PAGEOUT");
		usleep(50000);
	}
}

static uint8_t *map(int flags, int count)
{
	uint8_t *start = mmap(NULL, (size_t)count * PAGE, PROT_READ | PROT_WRITE,
			      flags | MAP_ANONYMOUS, -1, 0);

	if (start == MAP_FAILED ||
	    madvise(start, (size_t)count * PAGE, MADV_NOHUGEPAGE))
		die("pages: mmap");
	return start;
}

static void save(const char *folder, const char *kind, const char *name,
		 const void *bytes, size_t size)
{
	char path[256];
	int file;

	snprintf(path, sizeof(path), "%s/%s-%s", folder, kind, name);
	file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	if (file < 0 || write(file, bytes, size) != (ssize_t)size)
		die(path);
	close(file);
}

/* What the kernel says about a mapping of ours. */
static void tell(const char *folder, const char *name, uint8_t *start, int count)
{
	uint8_t resident[count];
	uint64_t entries[count];
	char line[64];
	int map = open("/proc/self/pagemap", O_RDONLY);
	ssize_t size = sizeof(entries);

	if (mincore(start, (size_t)count * PAGE, resident))
		die("pages: mincore");
	if (map < 0 || pread(map, entries, size, (uintptr_t)start / PAGE * 8) != size)
		die("pages: pagemap");
	close(map);
	save(folder, "mincore", name, resident, count);
	save(folder, "pagemap", name, entries, size);
	save(folder, "process", name, line,
	     sprintf(line, "%d %#lx %d\n", getpid(), (unsigned long)start, count));
}

static void turn(int *fds, int say)
{
	char byte = 0;

	if ((say ? write(fds[1], &byte, 1) : read(fds[0], &byte, 1)) != 1)
		die("pages: pipe");
}

/*
 * The parent has COUNT pages, all swapped out before it forks; then it writes the last
 * of them once more, with the next SEED. The child reads every eighth page of the first
 * half: these are in the swap cache, if the kernel has put them there. A second mapping
 * is shared, of SEED + 2.
 */
static __attribute__((noreturn)) void hold(char **argv)
{
	unsigned long seed = strtoul(argv[0], NULL, 0);
	int count = atoi(argv[1]), to_parent[2], to_child[2];
	const char *folder = argv[2];
	uint8_t *start = map(MAP_PRIVATE, count + UNTOUCHED);
	uint8_t *shared = map(MAP_SHARED, SHARED);
	volatile uint8_t *p;

	prctl(PR_SET_NAME, "pages-parent");
	for (int i = 0; i < count; i++)
		make(start + (size_t)i * PAGE, seed, i);
	for (int i = 0; i < SHARED; i++)
		make(shared + (size_t)i * PAGE, seed + 2, i);
	page_out(start, count);
	page_out(shared, SHARED);
	if (pipe(to_parent) || pipe(to_child))
		die("pages: pipe");
	switch (fork()) {
	case -1:
		die("pages: fork");
	case 0:
		prctl(PR_SET_NAME, "pages-child");
		for (int i = 3; i < count / 2; i += 8) {
			p = start + (size_t)i * PAGE;
			(void)*p;
		}
		turn(to_parent, 1);
		turn(to_child, 0);
		tell(folder, "child", start, count + UNTOUCHED);
		turn(to_parent, 1);
		break;
	default:
		turn(to_parent, 0);
		for (int i = count - AGAIN; i < count; i++)
			make(start + (size_t)i * PAGE, seed + 1, i);
		turn(to_child, 1);
		turn(to_parent, 0);
		tell(folder, "parent", start, count + UNTOUCHED);
		tell(folder, "shared", shared, SHARED);
		save(folder, "ready", "all", "", 0);
	}
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	if (argc == 7 && !strcmp(argv[1], "write"))
		return write_pages(argv + 2);
	if (argc == 5 && !strcmp(argv[1], "hold"))
		hold(argv + 2);
	fprintf(stderr, "usage: pages write CPU FILE FIRST COUNT SEED\n"
			"       pages hold SEED COUNT FOLDER\n");
	return 2;
}
