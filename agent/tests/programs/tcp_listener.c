/*
 * TCP sockets that listen, IPv4 and IPv6, and one that is only bound.
 * Addresses and options are what they were, and new clients are accepted.
 */
#include "program.h"
#include <netinet/in.h>
#include <sys/socket.h>

static int listener4, listener6, only_bound;
static struct sockaddr_in address4, bound4;
static struct sockaddr_in6 address6;

void set_up(void)
{
	socklen_t length = sizeof address4;
	int one = 1;

	address4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	listener4 = must(socket(AF_INET, SOCK_STREAM, 0));
	must(setsockopt(listener4, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one));
	must(bind(listener4, (struct sockaddr *)&address4, sizeof address4));
	must(listen(listener4, 3));
	must(getsockname(listener4, (struct sockaddr *)&address4, &length));
	address6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
	listener6 = socket(AF_INET6, SOCK_STREAM, 0);
	if (listener6 >= 0 && bind(listener6, (struct sockaddr *)&address6, sizeof address6)) {
		/* A machine without IPv6 on loopback. */
		must(close(listener6));
		listener6 = -1;
	}
	if (listener6 >= 0) {
		length = sizeof address6;
		must(listen(listener6, 3));
		must(getsockname(listener6, (struct sockaddr *)&address6, &length));
	}
	only_bound = must(socket(AF_INET, SOCK_STREAM, 0));
	bound4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	must(bind(only_bound, (struct sockaddr *)&bound4, sizeof bound4));
	length = sizeof bound4;
	must(getsockname(only_bound, (struct sockaddr *)&bound4, &length));
}

void sabotage(void)
{
	int zero = 0;

	must(shutdown(listener4, SHUT_RDWR));
	must(setsockopt(listener4, SOL_SOCKET, SO_REUSEADDR, &zero, sizeof zero));
}

static void expect_new_client(int listener, const void *address, socklen_t length, int family)
{
	int client = must(socket(family, SOCK_STREAM, 0)), server;

	if (connect(client, address, length)) {
		complain("connect: %s", strerror(errno));
		return;
	}
	server = must(accept(listener, NULL, NULL));
	put(client, "hello");
	expect_read(server, "hello", "new client");
}

void check(void)
{
	struct sockaddr_in now;
	socklen_t length = sizeof now;
	int reuse = 0;

	must(getsockopt(listener4, SOL_SOCKET, SO_REUSEADDR, &reuse, &(socklen_t){sizeof reuse}));
	expect(reuse, "SO_REUSEADDR is off");
	expect_new_client(listener4, &address4, sizeof address4, AF_INET);
	if (listener6 >= 0)
		expect_new_client(listener6, &address6, sizeof address6, AF_INET6);
	must(getsockname(only_bound, (struct sockaddr *)&now, &length));
	expect_equal(ntohs(now.sin_port), ntohs(bound4.sin_port), "port of the bound socket");
}
