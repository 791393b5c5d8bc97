/*
 * A Unix socket that listens at a path and one in the abstract namespace, a connection with bytes in flight, and a bound
 * datagram socket with a message from a connected one. All of it works on, and new clients are accepted.
 */
#include "program.h"
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

static int listener, abstract, client, server, receiver, sender;
static struct sockaddr_un at_path, in_abstract, of_receiver;

static int bound(int type, struct sockaddr_un *address)
{
	int fd = must(socket(AF_UNIX, type, 0));

	must(bind(fd, (struct sockaddr *)address, sizeof *address));
	return fd;
}

static int connected(int type, struct sockaddr_un *address)
{
	int fd = must(socket(AF_UNIX, type, 0));

	must(connect(fd, (struct sockaddr *)address, sizeof *address));
	return fd;
}

void set_up(void)
{
	at_path = in_abstract = of_receiver = (struct sockaddr_un){.sun_family = AF_UNIX};
	/* Relative to the program's directory, whose name may be longer than an address. */
	must(chdir(directory));
	strcpy(at_path.sun_path, "listener");
	snprintf(in_abstract.sun_path + 1, sizeof in_abstract.sun_path - 1, "kernel-state-%d", getpid());
	strcpy(of_receiver.sun_path, "receiver");
	listener = bound(SOCK_STREAM, &at_path);
	must(listen(listener, 7));
	abstract = bound(SOCK_STREAM, &in_abstract);
	must(listen(abstract, 7));
	client = connected(SOCK_STREAM, &at_path);
	server = must(accept(listener, NULL, NULL));
	put(client, "to the server");
	put(server, "to the client");
	receiver = bound(SOCK_DGRAM, &of_receiver);
	sender = connected(SOCK_DGRAM, &of_receiver);
	put(sender, "to the receiver");
}

void sabotage(void)
{
	char byte;

	must(read(server, &byte, 1));
	must(unlink("listener"));
}

static void expect_new_client(int listener, struct sockaddr_un *address, const char *what)
{
	int fd = must(socket(AF_UNIX, SOCK_STREAM, 0)), accepted;

	if (connect(fd, (struct sockaddr *)address, sizeof *address)) {
		complain("%s: connect: %s", what, strerror(errno));
		return;
	}
	accepted = must(accept(listener, NULL, NULL));
	put(fd, "hello");
	expect_read(accepted, "hello", what);
	must(close(fd));
	must(close(accepted));
}

void check(void)
{
	expect_read(server, "to the server", "bytes for the server");
	expect_read(client, "to the client", "bytes for the client");
	expect_read(receiver, "to the receiver", "datagram");
	put(sender, "again");
	expect_read(receiver, "again", "datagram sent after the restore");
	expect_new_client(listener, &at_path, "new client");
	expect_new_client(abstract, &in_abstract, "new client of the abstract socket");
}
