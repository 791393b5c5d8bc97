/*
 * Options of Unix and TCP sockets that differ from their defaults: buffers, timeouts, credentials, marks, lingering.
 * Each is what it was.
 */
#include "program.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

static int tcp, pair[2];

static struct { int *fd, level, name, value; const char *what; } options[] = {
	{&tcp, SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR"},
	{&tcp, SOL_SOCKET, SO_REUSEPORT, 1, "SO_REUSEPORT"},
	{&tcp, SOL_SOCKET, SO_KEEPALIVE, 1, "SO_KEEPALIVE"},
	{&tcp, SOL_SOCKET, SO_PRIORITY, 3, "SO_PRIORITY"},
	{&tcp, SOL_SOCKET, SO_MARK, 77, "SO_MARK"},
	{&tcp, IPPROTO_TCP, TCP_KEEPIDLE, 90, "TCP_KEEPIDLE"},
	{&tcp, IPPROTO_TCP, TCP_KEEPINTVL, 9, "TCP_KEEPINTVL"},
	{&tcp, IPPROTO_TCP, TCP_KEEPCNT, 4, "TCP_KEEPCNT"},
	{&pair[0], SOL_SOCKET, SO_PASSCRED, 1, "SO_PASSCRED"},
	{&pair[0], SOL_SOCKET, SO_RCVLOWAT, 5, "SO_RCVLOWAT"},
};

void set_up(void)
{
	struct timeval limit = {3, 0};
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

	tcp = must(socket(AF_INET, SOCK_STREAM, 0));
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	for (size_t i = 0; i < COUNT(options); i++)
		must(setsockopt(*options[i].fd, options[i].level, options[i].name, &options[i].value, sizeof(int)));
	must(setsockopt(pair[1], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
	must(bind(tcp, (struct sockaddr *)&address, sizeof address));
	must(listen(tcp, 1));
}

void sabotage(void)
{
	int zero = 0;

	must(setsockopt(tcp, SOL_SOCKET, SO_KEEPALIVE, &zero, sizeof zero));
}

void check(void)
{
	struct timeval limit = {0};

	for (size_t i = 0; i < COUNT(options); i++) {
		int value = -1;
		must(getsockopt(*options[i].fd, options[i].level, options[i].name, &value, &(socklen_t){sizeof value}));
		expect_equal(value, options[i].value, options[i].what);
	}
	must(getsockopt(pair[1], SOL_SOCKET, SO_RCVTIMEO, &limit, &(socklen_t){sizeof limit}));
	expect_equal(limit.tv_sec, 3, "SO_RCVTIMEO");
}
