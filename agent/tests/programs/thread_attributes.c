/*
 * Threads that differ in what a thread may have of its own: name, signal mask, alternate stack, scheduling.
 * Each has what it had.
 */
#include "program.h"
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define THREADS 3

static pthread_t threads[THREADS];
static volatile int started;
static char stacks[THREADS][65536];

static void *live(void *argument)
{
	uintptr_t number = (uintptr_t)argument;
	stack_t stack = {.ss_sp = stacks[number], .ss_size = sizeof stacks[number]};
	char name[16], now[16] = "";
	sigset_t mask;

	snprintf(name, sizeof name, "state-%lu", number);
	must(prctl(PR_SET_NAME, name));
	sigemptyset(&mask);
	sigaddset(&mask, SIGRTMIN + number);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	must(sigaltstack(&stack, NULL));
	must(setpriority(PRIO_PROCESS, syscall(SYS_gettid), 3 * number));
	__sync_fetch_and_add(&started, 1);
	while (!told())
		sleep_ms(1);
	if (is_sabotaged && number == 1)
		pthread_sigmask(SIG_UNBLOCK, &mask, NULL);
	must(prctl(PR_GET_NAME, now));
	expect(strcmp(name, now) == 0, "the name is `%s`, not `%s`", now, name);
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	for (int i = 0; i < THREADS; i++)
		expect_equal(sigismember(&mask, SIGRTMIN + i), i == (int)number, "blocked signal");
	must(sigaltstack(NULL, &stack));
	expect(stack.ss_sp == stacks[number], "thread %lu: the alternate stack is elsewhere", number);
	expect_equal(getpriority(PRIO_PROCESS, syscall(SYS_gettid)), 3 * number, "nice value");
	return NULL;
}

void set_up(void)
{
	for (uintptr_t i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, live, (void *)i);
	expect(eventually(started == THREADS), "the threads do not start");
}

void sabotage(void)
{
}

void check(void)
{
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
}
