/*
 * A TCP connection over loopback with both ends in the tree, bytes in flight both ways, and one that is half closed.
 * Every byte arrives once, in order, the options are what they were, and the connection works on.
 */
#include "program.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#define PAGES 12

static int client, server, half_client, half_server;

static void make_connection(int listener, int *client, int *server)
{
	struct sockaddr_in address;
	socklen_t length = sizeof address;

	must(getsockname(listener, (struct sockaddr *)&address, &length));
	*client = must(socket(AF_INET, SOCK_STREAM, 0));
	must(connect(*client, (struct sockaddr *)&address, sizeof address));
	*server = must(accept(listener, NULL, NULL));
}

void set_up(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int listener = must(socket(AF_INET, SOCK_STREAM, 0)), one = 1, window = 100000;
	char page[PAGE];

	must(setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &window, sizeof window));
	must(bind(listener, (struct sockaddr *)&address, sizeof address));
	must(listen(listener, 5));
	make_connection(listener, &client, &server);
	make_connection(listener, &half_client, &half_server);
	must(close(listener));
	must(setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one));
	must(setsockopt(server, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one));
	for (int i = 0; i < PAGES; i++) {
		fill(page, PAGE, i);
		must(write(client, page, PAGE));
	}
	put(server, "back");
	put(half_client, "last words");
	must(shutdown(half_client, SHUT_WR));
}

void sabotage(void)
{
	char byte;

	must(read(server, &byte, 1));
}

static int option(int fd, int level, int name)
{
	int value = -1;
	socklen_t length = sizeof value;

	must(getsockopt(fd, level, name, &value, &length));
	return value;
}

void check(void)
{
	struct timeval limit = {PATIENCE_MS / 1000, PATIENCE_MS % 1000 * 1000};
	char page[PAGE];

	must(setsockopt(server, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
	must(setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
	for (int i = 0; i < PAGES; i++) {
		expect_equal(recv(server, page, PAGE, MSG_WAITALL), PAGE, "bytes in flight");
		expect_filled(page, PAGE, i, "page in flight");
	}
	expect_read(client, "back", "the other direction");
	expect(option(client, IPPROTO_TCP, TCP_NODELAY), "TCP_NODELAY is off");
	expect(option(server, SOL_SOCKET, SO_KEEPALIVE), "SO_KEEPALIVE is off");
	expect_read(half_server, "last words", "half closed connection");
	expect_equal(read(half_server, page, 1), 0, "end of the half closed connection");
	put(half_server, "answer");
	expect_read(half_client, "answer", "open direction of the half closed connection");
	put(client, "new");
	expect_read(server, "new", "bytes sent after the restore");
}
