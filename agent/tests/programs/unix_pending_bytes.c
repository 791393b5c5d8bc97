/*
 * A Unix connection that was made and written to, but not accepted yet. (CRIU refuses bytes in such a connection.)
 * It can be accepted, and its bytes are there, before and after whatever is tried.
 */
#include "program.h"
#include <sys/socket.h>
#include <sys/un.h>

static int listener;

void set_up(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "listener"};
	int client;

	must(chdir(directory));
	listener = must(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));
	must(bind(listener, (struct sockaddr *)&address, sizeof address));
	must(listen(listener, 5));
	client = must(socket(AF_UNIX, SOCK_STREAM, 0));
	must(connect(client, (struct sockaddr *)&address, sizeof address));
	put(client, "early");
}

void sabotage(void)
{
	must(close(must(accept(listener, NULL, NULL))));
}

void check(void)
{
	int server = accept(listener, NULL, NULL);

	if (server < 0)
		complain("accept: %s", strerror(errno));
	else
		expect_read(server, "early", "bytes sent before the accept");
}
