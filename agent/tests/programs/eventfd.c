/*
 * An event descriptor that is added to and read all the time, and one that nobody reads.
 * No count is lost or doubled, and the flags are what they were.
 */
#include "program.h"
#include <sys/eventfd.h>

static int counter, unread;
static uint64_t added, taken;

void set_up(void)
{
	counter = must(eventfd(0, EFD_NONBLOCK));
	unread = must(eventfd(5, EFD_CLOEXEC));
}

void busy(void)
{
	uint64_t some = 3, count;

	must(write(counter, &some, sizeof some));
	added += some;
	if (added % 2 && read(counter, &count, sizeof count) == sizeof count)
		taken += count;
}

void sabotage(void)
{
	uint64_t count, some = 2;

	must(write(counter, &some, sizeof some));
	must(read(unread, &count, sizeof count));
	must(write(unread, &some, sizeof some));
}

void check(void)
{
	uint64_t count = 0;

	if (read(counter, &count, sizeof count) == sizeof count)
		taken += count;
	expect_equal(taken, added, "count");
	expect_equal(read(unread, &count, sizeof count), sizeof count, "bytes of the unread descriptor");
	expect_equal(count, 5, "count of the unread descriptor");
	expect_equal(fcntl(counter, F_GETFL) & O_NONBLOCK, O_NONBLOCK, "flags");
	expect_equal(fcntl(unread, F_GETFD), FD_CLOEXEC, "descriptor flags");
}
