/*
 * A child that shares its parent's table of descriptors (clone with CLONE_FILES).
 * What one of them opens or closes after the restore, the other has opened or closed too.
 */
#include "program.h"
#include <sched.h>

static char stack[65536] __attribute__((aligned(16)));
static volatile int *state;
static pid_t child;

enum { STARTED = 1, GO, OPENED, DONE };

static int live(void *argument)
{
	(void)argument;
	state[0] = STARTED;
	while (state[0] != GO)
		sleep_ms(1);
	state[1] = open(path("file"), O_RDWR | O_CREAT, 0600);
	put(state[1], "opened by the child");
	state[0] = OPENED;
	while (state[0] != DONE)
		sleep_ms(1);
	expect(fcntl(state[1], F_GETFD) < 0, "the child does not see that the parent closed it");
	return 0;
}

void set_up(void)
{
	state = map_anonymous(PAGE, MAP_SHARED);
	child = must(clone(live, stack + sizeof stack, CLONE_FILES | SIGCHLD, NULL));
	expect(eventually(state[0] == STARTED), "the child does not start");
}

void sabotage(void)
{
	must(unshare(CLONE_FILES));
}

void check(void)
{
	char text[64] = "";

	state[0] = GO;
	expect(eventually(state[0] == OPENED), "the child does not open a file");
	expect(pread(state[1], text, sizeof text - 1, 0) > 0 && strcmp(text, "opened by the child") == 0,
	       "the parent reads `%s` there", text);
	close(state[1]);
	state[0] = DONE;
	join(child, "the child");
}
