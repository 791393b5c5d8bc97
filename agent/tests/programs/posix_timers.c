/*
 * POSIX timers with a gap in their ids: one far away on each of two clocks, one that ticks, one that is not armed.
 * Ids, remaining times, intervals and signals with their values are what they were; nothing fires early.
 */
#include "program.h"

#define FAR_S 600

static timer_t ticking, monotonic, realtime, idle, spare;
static volatile sig_atomic_t ticks, wrong;
static int64_t started;

static void on_tick(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	if (info->si_value.sival_int == 1234 && info->si_code == SI_TIMER)
		ticks++;
	else
		wrong++;
}

static timer_t create(clockid_t clock, int signal, int value)
{
	struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = signal, .sigev_value.sival_int = value};
	timer_t timer;

	must(timer_create(clock, &event, &timer));
	return timer;
}

static void arm(timer_t timer, long first_ms, long interval_ms)
{
	struct itimerspec time = {{interval_ms / 1000, interval_ms % 1000 * 1000000}, {first_ms / 1000, first_ms % 1000 * 1000000}};

	must(timer_settime(timer, 0, &time, NULL));
}

void set_up(void)
{
	struct sigaction action = {.sa_sigaction = on_tick, .sa_flags = SA_SIGINFO | SA_RESTART};

	must(sigaction(SIGRTMIN + 1, &action, NULL));
	/* Fired, it would end the program. */
	spare = create(CLOCK_MONOTONIC, SIGTERM, 0);
	monotonic = create(CLOCK_MONOTONIC, SIGTERM, 0);
	must(timer_delete(spare));
	realtime = create(CLOCK_REALTIME, SIGTERM, 0);
	idle = create(CLOCK_MONOTONIC, SIGTERM, 0);
	ticking = create(CLOCK_MONOTONIC, SIGRTMIN + 1, 1234);
	arm(monotonic, FAR_S * 1000, 5000);
	arm(realtime, FAR_S * 1000, 0);
	arm(ticking, 10, 10);
	started = now_ms(CLOCK_MONOTONIC);
}

void sabotage(void)
{
	arm(monotonic, 0, 0);
	arm(ticking, 0, 0);
}

static void expect_left(timer_t timer, long interval_s, const char *what)
{
	struct itimerspec left;
	long passed = (now_ms(CLOCK_MONOTONIC) - started) / 1000;

	must(timer_gettime(timer, &left));
	expect(left.it_value.tv_sec <= FAR_S - passed + 5 && left.it_value.tv_sec >= FAR_S - passed - 20,
	       "%s: %ld s left after %ld s", what, left.it_value.tv_sec, passed);
	expect_equal(left.it_interval.tv_sec, interval_s, what);
}

void check(void)
{
	struct itimerspec left;
	int before = ticks;

	expect_left(monotonic, 5, "timer on the monotonic clock");
	expect_left(realtime, 0, "timer on the realtime clock");
	must(timer_gettime(idle, &left));
	expect(left.it_value.tv_sec == 0 && left.it_value.tv_nsec == 0, "the idle timer is armed");
	expect(before <= (now_ms(CLOCK_MONOTONIC) - started) / 10 + 1, "%d ticks are too many", before);
	expect(eventually(ticks >= before + 5), "the ticking timer is silent");
	expect_equal(wrong, 0, "signals with a wrong value");
}
