/*
 * A context for asynchronous I/O with completed requests that nobody has collected.
 * The completions are there, and new requests work.
 */
#include "program.h"
#include <linux/aio_abi.h>

static aio_context_t context;
static int fd;
static char bytes[512];

static int submit(uint64_t data, off_t offset)
{
	struct iocb request = {.aio_data = data, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = fd, .aio_buf = (uintptr_t)bytes,
			       .aio_nbytes = 4, .aio_offset = offset};
	struct iocb *requests[] = {&request};

	return syscall(SYS_io_submit, context, 1, requests);
}

void set_up(void)
{
	fd = must(open(path("file"), O_RDWR | O_CREAT, 0600));
	put(fd, "abcdefgh");
	if (syscall(SYS_io_setup, 16, &context))
		not_here("asynchronous I/O");
	must(submit(1, 0));
	must(submit(2, 4));
}

static void expect_completion(uint64_t data, const char *what)
{
	struct io_event event = {0};
	struct timespec limit = {PATIENCE_MS / 1000, PATIENCE_MS % 1000 * 1000000};

	if (syscall(SYS_io_getevents, context, 1, 1, &event, &limit) != 1) {
		complain("%s: no completion", what);
		return;
	}
	expect_equal(event.data, data, what);
	expect_equal(event.res, 4, what);
}

void sabotage(void)
{
	expect_completion(1, "first completion, taken away");
}

void check(void)
{
	expect_completion(1, "first completion");
	expect_completion(2, "second completion");
	expect(submit(3, 0) == 1, "a new request: %s", strerror(errno));
	expect_completion(3, "completion of a new request");
	expect(memcmp(bytes, "abcd", 4) == 0, "the new request read `%.4s`", bytes);
}
