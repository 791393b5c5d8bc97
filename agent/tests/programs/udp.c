/*
 * UDP sockets: a bound one and a connected one that talk all the time, and options on both.
 * Addresses, the connection and the options are what they were, and datagrams arrive after the restore.
 */
#include "program.h"
#include <netinet/in.h>
#include <sys/socket.h>

static int receiver, sender;
static struct sockaddr_in address;
static uint64_t sent;

void set_up(void)
{
	socklen_t length = sizeof address;
	int one = 1;

	address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	receiver = must(socket(AF_INET, SOCK_DGRAM, 0));
	must(bind(receiver, (struct sockaddr *)&address, sizeof address));
	must(getsockname(receiver, (struct sockaddr *)&address, &length));
	sender = must(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	must(setsockopt(sender, SOL_SOCKET, SO_BROADCAST, &one, sizeof one));
	must(connect(sender, (struct sockaddr *)&address, sizeof address));
}

/* What is in the queue at the checkpoint is lost, as a network may lose it; a number that arrives is a number sent. */
void busy(void)
{
	uint64_t number;

	must(write(sender, &sent, sizeof sent));
	if (recv(receiver, &number, sizeof number, MSG_DONTWAIT) == sizeof number)
		expect_equal(number, sent, "number received");
	sent++;
}

void sabotage(void)
{
	struct sockaddr nowhere = {.sa_family = AF_UNSPEC};

	must(connect(sender, &nowhere, sizeof nowhere));
}

void check(void)
{
	struct sockaddr_in peer = {0};
	socklen_t length = sizeof peer;
	int broadcast = 0;
	struct timeval limit = {PATIENCE_MS / 1000, PATIENCE_MS % 1000 * 1000};

	must(getsockopt(sender, SOL_SOCKET, SO_BROADCAST, &broadcast, &(socklen_t){sizeof broadcast}));
	expect(broadcast, "SO_BROADCAST is off");
	expect_equal(fcntl(sender, F_GETFD), FD_CLOEXEC, "descriptor flags");
	if (getpeername(sender, (struct sockaddr *)&peer, &length)) {
		complain("the sender is not connected: %s", strerror(errno));
		return;
	}
	expect_equal(ntohs(peer.sin_port), ntohs(address.sin_port), "port the sender is connected to");
	must(setsockopt(receiver, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
	put(sender, "hello");
	expect_read(receiver, "hello", "datagram");
}
