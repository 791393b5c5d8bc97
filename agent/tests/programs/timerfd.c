/*
 * Timers with a descriptor: one far away, one that expired unread, one about to expire, one set to an absolute time.
 * What has expired is read once, the remaining times are what they were, and nothing expires early or never.
 */
#include "program.h"
#include <sys/timerfd.h>

#define FAR_S 600
#define SOON_MS 800

static int far, expired, soon, absolute;
static int64_t started;

static int create(clockid_t clock, int flags, struct itimerspec time)
{
	int fd = must(timerfd_create(clock, TFD_NONBLOCK));

	must(timerfd_settime(fd, flags, &time, NULL));
	return fd;
}

void set_up(void)
{
	struct timespec now;

	far = create(CLOCK_MONOTONIC, 0, (struct itimerspec){{7, 0}, {FAR_S, 0}});
	expired = create(CLOCK_MONOTONIC, 0, (struct itimerspec){{0, 0}, {0, 1000000}});
	soon = create(CLOCK_BOOTTIME, 0, (struct itimerspec){{0, 0}, {0, SOON_MS * 1000000}});
	clock_gettime(CLOCK_REALTIME, &now);
	absolute = create(CLOCK_REALTIME, TFD_TIMER_ABSTIME, (struct itimerspec){{0, 0}, {now.tv_sec + FAR_S, 0}});
	started = now_ms(CLOCK_MONOTONIC);
	sleep_ms(5);
}

void sabotage(void)
{
	uint64_t count;

	must(read(expired, &count, sizeof count));
	must(timerfd_settime(far, 0, &(struct itimerspec){{0, 0}, {1, 0}}, NULL));
}

static void expect_left(int fd, long interval_s, const char *what)
{
	struct itimerspec left;
	long passed = (now_ms(CLOCK_MONOTONIC) - started) / 1000;

	must(timerfd_gettime(fd, &left));
	expect(left.it_value.tv_sec <= FAR_S - passed + 5 && left.it_value.tv_sec >= FAR_S - passed - 20,
	       "%s: %ld s left after %ld s", what, left.it_value.tv_sec, passed);
	expect_equal(left.it_interval.tv_sec, interval_s, what);
}

void check(void)
{
	uint64_t count = 0;

	expect_left(far, 7, "far timer");
	expect_left(absolute, 0, "absolute timer");
	expect_equal(read(expired, &count, sizeof count), sizeof count, "bytes from the expired timer");
	expect_equal(count, 1, "expirations");
	expect(read(expired, &count, sizeof count) < 0 && errno == EAGAIN, "it expired twice");
	expect(eventually(read(soon, &count, sizeof count) == sizeof count), "the timer about to expire does not");
	expect(now_ms(CLOCK_MONOTONIC) - started >= SOON_MS - 20, "it expired %ld ms after the start", now_ms(CLOCK_MONOTONIC) - started);
}
