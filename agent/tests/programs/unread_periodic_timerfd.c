/*
 * A periodic timer with a descriptor that has expired and was not read. (The kernel shows no time left for it, and CRIU
 * restores it disarmed.) Its expirations can be read, and it ticks on.
 */
#include "program.h"
#include <sys/timerfd.h>

static int fd;

void set_up(void)
{
	struct itimerspec time = {{0, 20000000}, {0, 1000000}};

	fd = must(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
	must(timerfd_settime(fd, 0, &time, NULL));
	sleep_ms(5);
}

void sabotage(void)
{
	must(timerfd_settime(fd, 0, &(struct itimerspec){0}, NULL));
}

void check(void)
{
	uint64_t count = 0;
	struct pollfd wait = {fd, POLLIN, 0};

	expect(read(fd, &count, sizeof count) == sizeof count && count > 0, "no expirations to read");
	expect(TEMP_FAILURE_RETRY(poll(&wait, 1, 1000)) == 1, "it does not tick any more");
}
