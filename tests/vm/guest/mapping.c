/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Time read() and mmap() on an ELF core: mapping FILE MIB ROUNDS SIZE...
 *
 * Goes over the first MIB of its largest PT_LOAD in windows of each SIZE, and prints
 * a line "what size bytes nanoseconds" for each way to do so:
 *
 *   read    read each window into a buffer
 *   touch   map each window, load a byte of each page
 *   copy    map each window, copy it into the buffer
 *   sparse  map each window that has a wanted page, copy those: one page in ten
 *   single  read these pages, each by itself
 *
 * Bytes are those that came of it. Ways and sizes take turns, so that what slows the
 * machine down slows all of them.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define STRIDE (10 * PAGE)

static int file;
static off_t start;
static size_t length;
static char *buffer;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void get(void *to, size_t size, off_t from)
{
	for (size_t done = 0; done < size;) {
		ssize_t n = pread(file, (char *)to + done, size - done, from + done);

		if (n < 0)
			die("mapping: read");
		if (!n) {
			fprintf(stderr, "mapping: the file ends early\n");
			exit(1);
		}
		done += n;
	}
}

static char *map(size_t at, size_t size)
{
	/* As drgn_tools.vmcore does. */
	char *window = mmap(NULL, size, PROT_READ, MAP_PRIVATE, file, start + at);

	if (window == MAP_FAILED)
		die("mapping: mmap");
	return window;
}

static size_t do_read(size_t at, size_t size)
{
	get(buffer, size, start + at);
	return size;
}

static size_t do_touch(size_t at, size_t size)
{
	char *window = map(at, size);

	for (size_t i = 0; i < size; i += PAGE)
		(void)*(volatile char *)(window + i);
	munmap(window, size);
	return size;
}

static size_t do_copy(size_t at, size_t size)
{
	char *window = map(at, size);

	memcpy(buffer, window, size);
	munmap(window, size);
	return size;
}

static size_t do_sparse(size_t at, size_t size)
{
	size_t end = at + size, page = (at + STRIDE - 1) / STRIDE * STRIDE, taken = 0;
	char *window;

	if (page >= end)
		return 0;
	window = map(at, size);
	for (; page < end; page += STRIDE) {
		/* Always to the same place, as in do_single(): the input is timed. */
		memcpy(buffer, window + (page - at), PAGE);
		taken += PAGE;
	}
	munmap(window, size);
	return taken;
}

static size_t do_single(size_t at, size_t size)
{
	if (at % STRIDE)
		return 0;
	get(buffer, size, start + at);
	return size;
}

static void pass(const char *what, size_t (*window)(size_t, size_t), size_t size)
{
	struct timespec before, after;
	size_t bytes = 0;

	clock_gettime(CLOCK_MONOTONIC, &before);
	for (size_t at = 0; at < length; at += size)
		bytes += window(at, size < length - at ? size : length - at);
	clock_gettime(CLOCK_MONOTONIC, &after);
	printf("%s %zu %zu %lld\n", what, size, bytes,
	       (after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec -
		       before.tv_nsec);
	/* Whoever waits for the lines sees that it is alive. */
	fflush(stdout);
}

static void find_data(size_t limit)
{
	Elf64_Ehdr head;
	Elf64_Phdr segment;
	struct stat st;
	off_t end = 0;

	get(&head, sizeof(head), 0);
	if (memcmp(head.e_ident, ELFMAG, SELFMAG) || head.e_type != ET_CORE) {
		fprintf(stderr, "mapping: not an ELF core\n");
		exit(1);
	}
	for (int i = 0; i < head.e_phnum; i++) {
		get(&segment, sizeof(segment), head.e_phoff + i * sizeof(segment));
		if (segment.p_type == PT_LOAD &&
		    segment.p_filesz > (size_t)(end - start)) {
			start = segment.p_offset;
			end = start + segment.p_filesz;
		}
	}
	if (fstat(file, &st))
		die("mapping: stat");
	if (end > st.st_size)
		end = st.st_size;
	/* Pages of the file are what is mapped; in QEMU's dumps, not pages of memory. */
	start = (start + PAGE - 1) & -PAGE;
	if (start + (off_t)PAGE > end) {
		fprintf(stderr, "mapping: no memory in the file\n");
		exit(1);
	}
	length = (end - start) & -PAGE;
	if (length > limit)
		length = limit;
}

int main(int argc, char **argv)
{
	size_t largest = PAGE;

	if (argc < 5) {
		fprintf(stderr, "usage: mapping FILE MIB ROUNDS SIZE...\n");
		return 2;
	}
	file = open(argv[1], O_RDONLY);
	if (file < 0)
		die(argv[1]);
	find_data(strtoul(argv[2], NULL, 10) << 20);
	for (int i = 4; i < argc; i++)
		if (strtoul(argv[i], NULL, 10) > largest)
			largest = strtoul(argv[i], NULL, 10);
	buffer = mmap(NULL, largest, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (buffer == MAP_FAILED)
		die("mapping: buffer");
	/* Not timed: a file comes into the page cache, and anew. Written to, it lies there
	   in smaller pieces than when it is read, and these cost more to map. */
	posix_fadvise(file, start, length, POSIX_FADV_DONTNEED);
	for (size_t at = 0; at < length; at += PAGE)
		get(buffer, PAGE, start + at);
	for (int round = atoi(argv[3]); round > 0; round--) {
		for (int i = 4; i < argc; i++) {
			size_t size = strtoul(argv[i], NULL, 10);

			pass("read", do_read, size);
			pass("touch", do_touch, size);
			pass("copy", do_copy, size);
			pass("sparse", do_sparse, size);
		}
		pass("single", do_single, PAGE);
	}
	return 0;
}
