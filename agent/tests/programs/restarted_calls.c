/*
 * Threads in poll and in a relative sleep, which the kernel resumes through a record that cannot be dumped. (After CRIU
 * both fail with EINTR, as if a handler had run.) Neither returns early or with an error.
 */
#include "program.h"
#include <pthread.h>

#define SLEEP_MS 1000

static int ends[2];
static volatile uint32_t entered;
static pthread_t threads[2];

static void *in_poll(void *argument)
{
	struct pollfd wait = {ends[0], POLLIN, 0};

	__sync_fetch_and_add(&entered, 1);
	expect(poll(&wait, 1, 60000) == 1, "poll: %s", strerror(errno));
	return argument;
}

static void *in_sleep(void *argument)
{
	struct timespec time = {SLEEP_MS / 1000, SLEEP_MS % 1000 * 1000000};

	__sync_fetch_and_add(&entered, 1);
	expect(nanosleep(&time, NULL) == 0, "nanosleep: %s", strerror(errno));
	return argument;
}

static void ignore(int signal)
{
	(void)signal;
}

void set_up(void)
{
	struct sigaction action = {.sa_handler = ignore};

	must(sigaction(SIGUSR1, &action, NULL));
	must(pipe(ends));
	pthread_create(&threads[0], NULL, in_poll, NULL);
	pthread_create(&threads[1], NULL, in_sleep, NULL);
	expect(eventually(entered == 2), "the threads do not start");
	sleep_ms(5);
}

void sabotage(void)
{
	pthread_kill(threads[0], SIGUSR1);
	sleep_ms(10);
}

void check(void)
{
	put(ends[1], "p");
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
}
