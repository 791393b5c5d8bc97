/*
 * Stream socket pairs with bytes queued both ways, one of them shut down in one direction, one with a closed end.
 * Every byte arrives once, in order; ends, buffer sizes and flags are what they were.
 */
#include "program.h"
#include <sys/socket.h>

static int pair[2], half[2], closed[2];

void set_up(void)
{
	char page[PAGE];
	int bytes = 100000;

	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	must(setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes));
	for (int i = 0; i < 8; i++) {
		fill(page, PAGE, i);
		must(write(pair[0], page, PAGE));
	}
	put(pair[1], "back");
	must(fcntl(pair[1], F_SETFL, O_NONBLOCK));
	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, half));
	put(half[0], "last words");
	must(shutdown(half[0], SHUT_WR));
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, closed));
	must(close(closed[0]));
	signal(SIGPIPE, SIG_IGN);
}

void sabotage(void)
{
	char byte;

	must(read(pair[1], &byte, 1));
}

void check(void)
{
	char page[PAGE];
	int bytes = 0;
	socklen_t length = sizeof bytes;

	for (int i = 0; i < 8; i++) {
		expect_equal(read(pair[1], page, PAGE), PAGE, "bytes queued");
		expect_filled(page, PAGE, i, "queued page");
	}
	expect(read(pair[1], page, 1) < 0 && errno == EAGAIN, "there is more than was sent");
	expect_read(pair[0], "back", "the other direction");
	must(getsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &bytes, &length));
	expect_equal(bytes, 200000, "send buffer");
	expect_read(half[1], "last words", "socket that was shut down");
	expect_equal(read(half[1], page, 1), 0, "end of the socket that was shut down");
	put(half[1], "answer");
	expect_read(half[0], "answer", "the direction that is open");
	expect(write(half[0], "x", 1) < 0 && errno == EPIPE, "the direction that is shut takes bytes");
	expect_equal(fcntl(half[0], F_GETFD), FD_CLOEXEC, "descriptor flags");
	expect_equal(read(closed[1], page, 1), 0, "end of the socket whose peer is closed");
	put(pair[1], "new");
	expect_read(pair[0], "new", "bytes sent after the restore");
}
