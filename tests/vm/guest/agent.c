/*
 * Run commands that the host sends over a serial port.
 *
 * Host to guest: "C n\n" and n bytes append to the command, "I n\n" and n bytes to
 * its standard input, each answered by "A\n" before the next is sent (a serial port
 * has no flow control); "R\n" runs it. Guest to host: "O n\n" and n bytes of
 * standard output, "E n\n" and n bytes of standard error, "X status\n" at the end.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

struct text {
	char *bytes;
	size_t length;
};

static int port;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void put(const void *bytes, size_t length)
{
	const char *p = bytes;

	while (length) {
		ssize_t n = write(port, p, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			die("agent: write");
		p += n;
		length -= n;
	}
}

static void get(void *bytes, size_t length)
{
	char *p = bytes;

	while (length) {
		ssize_t n = read(port, p, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			die("agent: read");
		p += n;
		length -= n;
	}
}

static void frame(char kind, const char *bytes, size_t length)
{
	char head[32];

	put(head, sprintf(head, "%c %zu\n", kind, length));
	put(bytes, length);
}

static void append(struct text *text, size_t length)
{
	text->bytes = realloc(text->bytes, text->length + length + 1);
	if (!text->bytes)
		die("agent: realloc");
	get(text->bytes + text->length, length);
	text->length += length;
	text->bytes[text->length] = 0;
}

static int execute(struct text *command, struct text *input)
{
	int in[2], out[2], err[2], status;
	size_t sent = 0;
	pid_t child;

	if (pipe(in) || pipe(out) || pipe(err))
		die("agent: pipe");
	child = fork();
	if (child < 0)
		die("agent: fork");
	if (!child) {
		dup2(in[0], 0);
		dup2(out[1], 1);
		dup2(err[1], 2);
		close(in[0]), close(in[1]);
		close(out[0]), close(out[1]);
		close(err[0]), close(err[1]);
		close(port);
		signal(SIGPIPE, SIG_DFL);
		setsid();
		execl("/bin/sh", "sh", "-c", command->bytes ? command->bytes : "",
		      (char *)NULL);
		_exit(127);
	}
	close(in[0]), close(out[1]), close(err[1]);
	fcntl(in[1], F_SETFL, O_NONBLOCK);

	struct pollfd fds[3] = {
		{ out[0], POLLIN, 0 }, { err[0], POLLIN, 0 }, { in[1], POLLOUT, 0 },
	};
	/*
	 * A command may leave something in the background that keeps the pipes open:
	 * once it is dead, take what is there and go.
	 */
	int dead = 0;

	while (fds[0].fd >= 0 || fds[1].fd >= 0) {
		static char buffer[4096];
		int n;

		if (fds[2].fd >= 0 && sent == input->length) {
			close(in[1]);
			fds[2].fd = -1;
		}
		n = poll(fds, 3, dead ? 0 : 20);
		if (n < 0 && errno != EINTR)
			die("agent: poll");
		if (n <= 0) {
			if (dead)
				break;
			if (waitpid(child, &status, WNOHANG) == child)
				dead = 1;
			continue;
		}
		for (int i = 0; i < 2; i++) {
			if (fds[i].fd < 0 || !fds[i].revents)
				continue;
			ssize_t got = read(fds[i].fd, buffer, sizeof(buffer));

			if (got > 0)
				frame(i ? 'E' : 'O', buffer, got);
			else
				fds[i].fd = -1;
		}
		if (fds[2].fd >= 0 && fds[2].revents) {
			ssize_t put = write(in[1], input->bytes + sent,
					    input->length - sent);

			if (put > 0)
				sent += put;
			else if (put < 0 && errno != EAGAIN)
				sent = input->length;
		}
	}
	if (fds[2].fd >= 0)
		close(in[1]);
	close(out[0]), close(err[0]);
	if (!dead)
		waitpid(child, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv)
{
	struct text command = { 0 }, input = { 0 };
	struct termios raw;

	port = open(argc > 1 ? argv[1] : "/dev/ttyS1", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (port < 0)
		die("agent: open");
	tcgetattr(port, &raw);
	cfmakeraw(&raw);
	cfsetspeed(&raw, B115200);
	raw.c_cflag |= CLOCAL;
	tcsetattr(port, TCSANOW, &raw);
	signal(SIGPIPE, SIG_IGN);
	put("agent ready\n", 12);
	for (;;) {
		char line[32], kind;
		size_t length = 0, n = 0;

		do
			get(&line[n], 1);
		while (line[n++] != '\n' && n < sizeof(line) - 1);
		line[n] = 0;
		if (sscanf(line, "%c %zu", &kind, &length) < 1)
			continue;
		if (kind == 'C' || kind == 'I') {
			append(kind == 'C' ? &command : &input, length);
			put("A\n", 2);
		} else if (kind == 'R') {
			int status = execute(&command, &input);
			char tail[32];

			put(tail, sprintf(tail, "X %d\n", status));
			free(command.bytes);
			free(input.bytes);
			memset(&command, 0, sizeof(command));
			memset(&input, 0, sizeof(input));
			/* Whatever was left behind by earlier commands. */
			while (waitpid(-1, NULL, WNOHANG) > 0)
				;
		}
	}
}
