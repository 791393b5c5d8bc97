/*
 * Datagram and seqpacket socket pairs with messages queued.
 * Every message arrives once, in order, and as long as it was sent.
 */
#include "program.h"
#include <sys/socket.h>

static int datagrams[2], packets[2];

void set_up(void)
{
	must(socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams));
	must(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets));
	put(datagrams[0], "one");
	put(datagrams[0], "two, which is longer");
	put(datagrams[1], "back");
	put(packets[0], "alpha");
	put(packets[0], "beta");
}

void sabotage(void)
{
	char byte;

	must(read(datagrams[1], &byte, 1));
	must(read(packets[1], &byte, 1));
}

void check(void)
{
	must(fcntl(datagrams[1], F_SETFL, O_NONBLOCK));
	must(fcntl(packets[1], F_SETFL, O_NONBLOCK));
	expect_read(datagrams[1], "one", "first datagram");
	expect_read(datagrams[1], "two, which is longer", "second datagram");
	expect_read(datagrams[0], "back", "datagram the other way");
	expect_read(packets[1], "alpha", "first packet");
	expect_read(packets[1], "beta", "second packet");
	put(packets[1], "new");
	expect_read(packets[0], "new", "packet sent after the restore");
}
