/*
 * A Unix connection through a path, whose both ends carry the path as their name. (CRIU 4.2 leaves the accepted end
 * without one.) The client sees the path as its peer's name, the server as its own.
 */
#include "program.h"
#include <sys/socket.h>
#include <sys/un.h>

static int client, server;

void set_up(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "listener"};
	int listener = must(socket(AF_UNIX, SOCK_STREAM, 0));

	must(chdir(directory));
	must(bind(listener, (struct sockaddr *)&address, sizeof address));
	must(listen(listener, 5));
	client = must(socket(AF_UNIX, SOCK_STREAM, 0));
	must(connect(client, (struct sockaddr *)&address, sizeof address));
	server = must(accept(listener, NULL, NULL));
}

void sabotage(void)
{
	int pair[2];

	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	must(dup2(pair[0], client));
}

static void expect_name(int (*ask)(int, struct sockaddr *, socklen_t *), int fd, const char *what)
{
	struct sockaddr_un name = {0};
	socklen_t length = sizeof name;

	must(ask(fd, (struct sockaddr *)&name, &length));
	expect(strcmp(name.sun_path, "listener") == 0, "%s is `%s`", what, name.sun_path);
}

void check(void)
{
	expect_name(getpeername, client, "the client's peer");
	expect_name(getsockname, server, "the server");
}
