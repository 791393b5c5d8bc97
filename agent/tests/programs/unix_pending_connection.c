/*
 * A Unix connection that was made, but not accepted yet.
 * It is accepted after the restore, and works both ways.
 */
#include "program.h"
#include <sys/socket.h>
#include <sys/un.h>

static int listener, client;

void set_up(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "listener"};

	must(chdir(directory));
	listener = must(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));
	must(bind(listener, (struct sockaddr *)&address, sizeof address));
	must(listen(listener, 5));
	client = must(socket(AF_UNIX, SOCK_STREAM, 0));
	must(connect(client, (struct sockaddr *)&address, sizeof address));
}

void sabotage(void)
{
	must(close(must(accept(listener, NULL, NULL))));
}

void check(void)
{
	int server = accept(listener, NULL, NULL);

	if (server < 0) {
		complain("accept: %s", strerror(errno));
		return;
	}
	put(server, "from the server");
	expect_read(client, "from the server", "the client");
	put(client, "from the client");
	expect_read(server, "from the client", "the server");
}
