/*
 * A named pipe with bytes in flight, opened for reading, for writing and for both, and a deleted one.
 * The bytes are there once, in order, and the name still leads to the same pipe.
 */
#include "program.h"

static int reader, writer, both, deleted;

void set_up(void)
{
	must(mkfifo(path("named"), 0600));
	reader = must(open(path("named"), O_RDONLY | O_NONBLOCK));
	writer = must(open(path("named"), O_WRONLY));
	must(mkfifo(path("other"), 0600));
	both = must(open(path("other"), O_RDWR));
	must(mkfifo(path("deleted"), 0600));
	deleted = must(open(path("deleted"), O_RDWR));
	put(writer, "through the name");
	put(both, "to oneself");
	put(deleted, "without a name");
	must(unlink(path("deleted")));
}

void sabotage(void)
{
	char byte;

	must(read(reader, &byte, 1));
}

void check(void)
{
	int again;

	expect_equal(fcntl(reader, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDONLY | O_NONBLOCK, "flags of the reader");
	expect_read(reader, "through the name", "named pipe");
	expect_read(both, "to oneself", "pipe opened for both");
	expect_read(deleted, "without a name", "deleted pipe");
	again = must(open(path("named"), O_WRONLY | O_NONBLOCK));
	put(again, "by its name");
	expect_read(reader, "by its name", "named pipe, opened again");
}
