/*
 * A socket pair whose other end is held by a process outside of the tree, which nobody can carry.
 * The pair works before and after whatever is tried.
 */
#include "program.h"
#include <sys/socket.h>

static int pair[2];

/* Answers until the last other end is closed. */
static void answer(void)
{
	char byte;

	must(close(pair[0]));
	while (read(pair[1], &byte, 1) == 1)
		must(write(pair[1], &byte, 1));
}

void set_up(void)
{
	pid_t middle;

	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	middle = must(fork());
	if (middle == 0) {
		/* An orphan: its new parent is outside. */
		must(setsid());
		spawn(answer);
		_exit(0);
	}
	must(waitpid(middle, NULL, 0));
	must(close(pair[1]));
}

void sabotage(void)
{
	must(shutdown(pair[0], SHUT_WR));
	signal(SIGPIPE, SIG_IGN);
}

void check(void)
{
	char byte = 'x';

	expect_equal(write(pair[0], &byte, 1), 1, "bytes sent");
	expect_equal(read(pair[0], &byte, 1), 1, "bytes that came back");
	expect_equal(byte, 'x', "byte that came back");
}
