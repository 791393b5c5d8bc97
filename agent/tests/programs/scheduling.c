/*
 * Scheduling: a nice value and the batch policy here, a real-time policy in one child, idle in another.
 * Policies and priorities are what they were.
 */
#include "program.h"
#include <sched.h>
#include <sys/resource.h>

static pid_t children[2];
static volatile int *started;

static void expect_policy(int policy, int priority)
{
	struct sched_param parameter;

	expect_equal(sched_getscheduler(0), policy, "policy");
	must(sched_getparam(0, &parameter));
	expect_equal(parameter.sched_priority, priority, "priority");
}

static void live(int policy, int priority)
{
	must(sched_setscheduler(0, policy, &(struct sched_param){priority}));
	__sync_fetch_and_add(started, 1);
	while (!told())
		sleep_ms(1);
	expect_policy(policy, priority);
}

static void live_in_real_time(void)
{
	live(SCHED_RR, 7);
}

static void live_idle(void)
{
	live(SCHED_IDLE, 0);
}

void set_up(void)
{
	started = map_anonymous(PAGE, MAP_SHARED);
	children[0] = spawn(live_in_real_time);
	children[1] = spawn(live_idle);
	must(setpriority(PRIO_PROCESS, 0, 5));
	must(sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){0}));
	expect(eventually(*started == 2), "the children do not start");
}

void sabotage(void)
{
	must(setpriority(PRIO_PROCESS, 0, 3));
}

void check(void)
{
	expect_equal(getpriority(PRIO_PROCESS, 0), 5, "nice value");
	expect_policy(SCHED_BATCH, 0);
	join(children[0], "the child in real time");
	join(children[1], "the idle child");
}
