/*
 * Copy a file through mmap: copy FROM TO.
 *
 * Reading /proc/vmcore maps and unmaps every page in the kernel, which is slow;
 * through mmap it takes a few windows.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define WINDOW (8UL << 20)

int main(int argc, char **argv)
{
	struct stat st;
	int from, to;

	if (argc != 3)
		return 2;
	from = open(argv[1], O_RDONLY);
	to = open(argv[2], O_WRONLY);
	if (from < 0 || to < 0 || fstat(from, &st)) {
		perror("copy");
		return 1;
	}
	for (off_t at = 0; at < st.st_size; at += WINDOW) {
		size_t size = st.st_size - at;
		char *window;

		if (size > WINDOW)
			size = WINDOW;
		window = mmap(NULL, size, PROT_READ, MAP_PRIVATE, from, at);
		if (window == MAP_FAILED) {
			perror("copy: mmap");
			return 1;
		}
		for (size_t done = 0; done < size;) {
			ssize_t n = write(to, window + done, size - done);

			if (n <= 0) {
				perror("copy: write");
				return 1;
			}
			done += n;
		}
		munmap(window, size);
	}
	if (fsync(to)) {
		perror("copy: fsync");
		return 1;
	}
	return 0;
}
