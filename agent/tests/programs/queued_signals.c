/*
 * Real-time signals queued with values, several of the same number.
 * They come out in the order they were sent, each with its value and its sender, and there are no others.
 */
#include "program.h"

static sigset_t blocked;

static void queue(int signal, int value)
{
	must(sigqueue(getpid(), signal, (union sigval){.sival_int = value}));
}

void set_up(void)
{
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGRTMIN + 2);
	sigaddset(&blocked, SIGRTMIN + 5);
	must(sigprocmask(SIG_BLOCK, &blocked, NULL));
	for (int i = 0; i < 20; i++)
		queue(SIGRTMIN + (i % 2 ? 2 : 5), 1000 + i);
}

void sabotage(void)
{
	must(sigtimedwait(&blocked, NULL, &(struct timespec){0, 0}));
}

void check(void)
{
	struct timespec at_once = {0, 0};
	siginfo_t info;

	/* The lower number first, then in order. */
	for (int i = 0; i < 20; i++) {
		int value = i < 10 ? 1001 + 2 * i : 1000 + 2 * (i - 10);
		int got = sigtimedwait(&blocked, &info, &at_once);
		expect_equal(got, SIGRTMIN + (i < 10 ? 2 : 5), "signal");
		if (got < 0)
			break;
		expect_equal(info.si_value.sival_int, value, "value");
		expect_equal(info.si_code, SI_QUEUE, "code");
		expect_equal(info.si_pid, getpid(), "sender");
	}
	expect(sigtimedwait(&blocked, &info, &at_once) < 0, "there is one signal more");
}
