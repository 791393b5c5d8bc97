/*
 * Threads that add to a counter under a mutex, each with thread-local memory, and some that wait for a condition.
 * No addition is lost, thread-local contents belong to their threads, and the waiting ones wake up.
 */
#include "program.h"
#include <pthread.h>

#define ADDERS 4
#define WAITERS 3

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static pthread_t adders[ADDERS], waiters[WAITERS];
static pid_t ids[ADDERS];
static uint64_t counter, counts[ADDERS];
static int stop, go, woken;
static __thread uint64_t local[1024];

static void *add(void *argument)
{
	uintptr_t number = (uintptr_t)argument;

	ids[number] = syscall(SYS_gettid);
	fill(local, sizeof local, number);
	for (int done = 0; !done;) {
		pthread_mutex_lock(&mutex);
		counter++;
		done = stop;
		pthread_mutex_unlock(&mutex);
		counts[number]++;
		if (counts[number] % 64 == 0)
			sleep_ms(1);
	}
	expect_filled(local, sizeof local, number, "thread-local memory");
	expect_equal(syscall(SYS_gettid), ids[number], "thread id");
	return NULL;
}

static void *wait_for_go(void *argument)
{
	pthread_mutex_lock(&mutex);
	while (!go)
		pthread_cond_wait(&condition, &mutex);
	woken++;
	pthread_mutex_unlock(&mutex);
	return argument;
}

void set_up(void)
{
	for (uintptr_t i = 0; i < ADDERS; i++)
		pthread_create(&adders[i], NULL, add, (void *)i);
	for (uintptr_t i = 0; i < WAITERS; i++)
		pthread_create(&waiters[i], NULL, wait_for_go, (void *)(i + 100));
}

void sabotage(void)
{
	pthread_mutex_lock(&mutex);
	counter--;
	pthread_mutex_unlock(&mutex);
}

void check(void)
{
	uint64_t sum = 0;
	void *value;

	sleep_ms(20);
	pthread_mutex_lock(&mutex);
	stop = go = 1;
	pthread_cond_broadcast(&condition);
	pthread_mutex_unlock(&mutex);
	for (int i = 0; i < ADDERS; i++) {
		pthread_join(adders[i], NULL);
		sum += counts[i];
	}
	for (uintptr_t i = 0; i < WAITERS; i++) {
		pthread_join(waiters[i], &value);
		expect_equal((uintptr_t)value, i + 100, "value of a waiting thread");
	}
	expect_equal(counter, sum, "counter");
	expect_equal(woken, WAITERS, "threads that woke up");
}
