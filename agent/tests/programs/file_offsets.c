/*
 * Opened files with offsets, access modes, status flags and owners of their own, one of them written all the time.
 * Each is as it was; a file that is appended to holds everything that was written, once.
 */
#include "program.h"

static int reading, writing, appending, direct = -1, owned[2];
static uint64_t lines;

void set_up(void)
{
	int fd = must(open(path("data"), O_RDWR | O_CREAT, 0600));

	put(fd, "0123456789abcdef");
	must(close(fd));
	reading = must(open(path("data"), O_RDONLY | O_NONBLOCK));
	must(lseek(reading, 10, SEEK_SET));
	writing = must(open(path("data"), O_WRONLY | O_CLOEXEC | O_NOATIME));
	must(lseek(writing, 100, SEEK_SET));
	appending = must(open(path("log"), O_WRONLY | O_CREAT | O_APPEND, 0600));
	direct = open(path("data"), O_RDONLY | O_DIRECT);
	must(pipe(owned));
	must(fcntl(owned[0], F_SETOWN, getpid()));
	must(fcntl(owned[0], F_SETSIG, SIGRTMIN + 7));
}

void busy(void)
{
	must(write(appending, &lines, sizeof lines));
	lines++;
	sleep_ms(1);
}

void sabotage(void)
{
	must(lseek(reading, 0, SEEK_SET));
	must(write(appending, &lines, sizeof lines));
}

void check(void)
{
	struct stat log;

	expect_read(reading, "abcdef", "data from the offset");
	expect_equal(fcntl(reading, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDONLY | O_NONBLOCK, "flags of the reader");
	expect_equal(lseek(writing, 0, SEEK_CUR), 100, "offset behind the end");
	expect_equal(fcntl(writing, F_GETFL) & (O_ACCMODE | O_NOATIME), O_WRONLY | O_NOATIME, "flags of the writer");
	expect_equal(fcntl(writing, F_GETFD), FD_CLOEXEC, "descriptor flags of the writer");
	expect_equal(fcntl(reading, F_GETFD), 0, "descriptor flags of the reader");
	must(fstat(appending, &log));
	expect_equal(log.st_size, lines * sizeof lines, "bytes of the log");
	expect_equal(fcntl(appending, F_GETFL) & O_APPEND, O_APPEND, "flags of the log");
	if (direct >= 0)
		expect_equal(fcntl(direct, F_GETFL) & O_DIRECT, O_DIRECT, "flags of the direct reader");
	expect_equal(fcntl(owned[0], F_GETOWN), getpid(), "owner");
	expect_equal(fcntl(owned[0], F_GETSIG), SIGRTMIN + 7, "signal for the owner");
}
