/*
 * An empty datagram queued between two others. (CRIU 4.2 drops it and what is queued behind it.)
 * All three arrive, in order.
 */
#include "program.h"
#include <sys/socket.h>

static int pair[2];

void set_up(void)
{
	must(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	put(pair[0], "one");
	put(pair[0], "");
	put(pair[0], "three");
}

void sabotage(void)
{
	must(read(pair[1], (char[8]){0}, 8));
}

static void expect_datagram(const char *want)
{
	char got[8] = "";
	ssize_t length = recv(pair[1], got, sizeof got, MSG_DONTWAIT);

	expect(length == (ssize_t)strlen(want) && strcmp(got, want) == 0, "%zd bytes `%s`, not `%s`", length, got, want);
}

void check(void)
{
	expect_datagram("one");
	expect_datagram("");
	expect_datagram("three");
}
