/*
 * Robust mutexes in shared memory, one held by a child and one by a thread, both of which end after the restore.
 * The next owner is told that the last one died, which the kernel knows only from its list of held mutexes.
 */
#include "program.h"
#include <pthread.h>

static struct shared {
	pthread_mutex_t of_child, of_thread;
	volatile int held;
} *shared;

static pid_t child;
static pthread_t thread;

static void make(pthread_mutex_t *mutex)
{
	pthread_mutexattr_t attributes;

	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(mutex, &attributes);
}

static void hold(pthread_mutex_t *mutex)
{
	pthread_mutex_lock(mutex);
	__sync_fetch_and_add(&shared->held, 1);
	while (!told())
		sleep_ms(1);
	if (is_sabotaged)
		pthread_mutex_unlock(mutex);
}

static void *hold_in_thread(void *argument)
{
	hold(&shared->of_thread);
	return argument;
}

static void hold_in_child(void)
{
	hold(&shared->of_child);
}

void set_up(void)
{
	shared = map_anonymous(PAGE, MAP_SHARED);
	make(&shared->of_child);
	make(&shared->of_thread);
	child = spawn(hold_in_child);
	pthread_create(&thread, NULL, hold_in_thread, NULL);
	expect(eventually(shared->held == 2), "the mutexes are not held");
}

void sabotage(void)
{
}

void check(void)
{
	join(child, "the child");
	pthread_join(thread, NULL);
	expect_equal(pthread_mutex_trylock(&shared->of_child), EOWNERDEAD, "mutex of the child");
	expect_equal(pthread_mutex_trylock(&shared->of_thread), EOWNERDEAD, "mutex of the thread");
}
