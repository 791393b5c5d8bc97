/*
 * Resource limits that differ from their defaults, in a parent and differently in a child.
 * Soft and hard limits are what they were, and the limit of open files is enforced.
 */
#include "program.h"
#include <sys/resource.h>

static const struct { int resource; rlim_t soft, hard; const char *what; } limits[] = {
	{RLIMIT_NOFILE, 123, 456, "open files"},
	{RLIMIT_CORE, 0, 4096, "core size"},
	{RLIMIT_STACK, 3 * MIB, 6 * MIB, "stack"},
	{RLIMIT_SIGPENDING, 33, 44, "pending signals"},
	{RLIMIT_CPU, 1000, 2000, "CPU time"},
	{RLIMIT_NICE, 0, 0, "nice"},
};
static pid_t child;
static volatile int *is_lower;

static rlim_t least(rlim_t wanted, int resource)
{
	struct rlimit now;

	must(getrlimit(resource, &now));
	return wanted < now.rlim_max ? wanted : now.rlim_max;
}

static void expect_limits(rlim_t divisor)
{
	struct rlimit now;

	for (size_t i = 0; i < COUNT(limits); i++) {
		must(getrlimit(limits[i].resource, &now));
		expect_equal(now.rlim_cur, limits[i].soft / divisor, limits[i].what);
		expect_equal(now.rlim_max, limits[i].hard, limits[i].what);
	}
}

static void live_with_less(void)
{
	for (size_t i = 0; i < COUNT(limits); i++)
		must(setrlimit(limits[i].resource, &(struct rlimit){limits[i].soft / 3, limits[i].hard}));
	*is_lower = 1;
	while (!told())
		sleep_ms(1);
	expect_limits(3);
}

void set_up(void)
{
	is_lower = map_anonymous(PAGE, MAP_SHARED);
	for (size_t i = 0; i < COUNT(limits); i++) {
		if (least(limits[i].hard, limits[i].resource) < limits[i].hard)
			not_here("hard limits high enough");
		must(setrlimit(limits[i].resource, &(struct rlimit){limits[i].soft, limits[i].hard}));
	}
	child = spawn(live_with_less);
	expect(eventually(*is_lower), "the child does not start");
}

void sabotage(void)
{
	must(setrlimit(RLIMIT_NOFILE, &(struct rlimit){200, 456}));
}

void check(void)
{
	int last = -1, fd, error;

	expect_limits(1);
	while ((fd = dup(0)) >= 0)
		last = fd;
	error = errno;
	/* A complaint needs a descriptor. */
	for (fd = 3; fd <= last; fd++)
		close(fd);
	expect_equal(last, 122, "last descriptor");
	expect_equal(error, EMFILE, "reason why there is no more");
	join(child, "the child");
}
