/*
 * A process whose first thread has ended while another goes on.
 * Its memory is what it was, and it goes on as the same process.
 */
#include "program.h"
#include <pthread.h>

#define BYTES (1 * MIB)

static volatile int *go, *state;
static pid_t child;
static char *memory;

static void *go_on(void *argument)
{
	/* Until the first thread is a zombie, as it will stay. */
	usleep(2000);
	*state = 1;
	while (!*go)
		sleep_ms(1);
	expect_filled(memory, BYTES, 1, "memory of the second thread");
	_exit(6);
	return argument;
}

static void end_first_thread(void)
{
	pthread_t thread;

	pthread_create(&thread, NULL, go_on, NULL);
	pthread_exit(NULL);
}

void set_up(void)
{
	state = map_anonymous(PAGE, MAP_SHARED);
	go = state + 1;
	memory = map_anonymous(BYTES, MAP_PRIVATE);
	fill(memory, BYTES, 1);
	child = spawn(end_first_thread);
	expect(eventually(*state), "the second thread does not start");
}

void sabotage(void)
{
	must(kill(child, SIGKILL));
}

void check(void)
{
	int status = 0;

	*go = 1;
	expect(eventually(waitpid(child, &status, WNOHANG) == child), "the child does not end");
	expect_equal(status, W_EXITCODE(6, 0), "status of the child");
}
