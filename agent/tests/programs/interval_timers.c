/*
 * The three interval timers of a process: a real one that ticks every 20 ms, and two on CPU time that are far away.
 * It ticks on at its own pace, neither early nor late, and the others have the time left that they had.
 */
#include "program.h"
#include <sys/time.h>

#define TICK_MS 20
/* How much a busy machine may delay what is expected. */
#define SLACK_MS 8000

static volatile sig_atomic_t ticks;
static int64_t started;

static void on_tick(int signal)
{
	(void)signal;
	ticks++;
}

static struct itimerval every(long first_ms, long interval_ms)
{
	return (struct itimerval){{interval_ms / 1000, interval_ms % 1000 * 1000}, {first_ms / 1000, first_ms % 1000 * 1000}};
}

void set_up(void)
{
	struct sigaction action = {.sa_handler = on_tick, .sa_flags = SA_RESTART};
	struct itimerval real = every(TICK_MS, TICK_MS), virtual = every(500000, 7000), profile = every(900000, 0);

	must(sigaction(SIGALRM, &action, NULL));
	must(setitimer(ITIMER_VIRTUAL, &virtual, NULL));
	must(setitimer(ITIMER_PROF, &profile, NULL));
	must(setitimer(ITIMER_REAL, &real, NULL));
	started = now_ms(CLOCK_MONOTONIC);
}

void sabotage(void)
{
	struct itimerval off = every(0, 0);

	must(setitimer(ITIMER_REAL, &off, NULL));
	must(setitimer(ITIMER_PROF, &off, NULL));
}

static void expect_left(int which, long most_s, long interval_s, const char *what)
{
	struct itimerval left;

	must(getitimer(which, &left));
	expect(left.it_value.tv_sec <= most_s && left.it_value.tv_sec > most_s - 10, "%s: %ld s left", what, left.it_value.tv_sec);
	expect_equal(left.it_interval.tv_sec, interval_s, what);
}

void check(void)
{
	int64_t passed = now_ms(CLOCK_MONOTONIC) - started, again = now_ms(CLOCK_MONOTONIC);
	int before = ticks;

	expect(before <= passed / TICK_MS + 1, "%d ticks in %ld ms are too many", before, passed);
	expect(eventually(ticks >= before + 5), "no ticks after the restore");
	again = now_ms(CLOCK_MONOTONIC) - again;
	expect(again >= 4 * TICK_MS && again < SLACK_MS, "five ticks took %ld ms", again);
	expect_left(ITIMER_VIRTUAL, 500, 7, "virtual timer");
	expect_left(ITIMER_PROF, 900, 0, "profiling timer");
}
