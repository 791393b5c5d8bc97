/*
 * A child that shares its parent's working directory and mode mask (clone with CLONE_FS), which CRIU cannot carry.
 * What one of them changes, the other has too, before and after whatever is tried.
 */
#include "program.h"
#include <sched.h>

static char stack[65536] __attribute__((aligned(16)));
static pid_t child;

static int live(void *argument)
{
	(void)argument;
	while (!told())
		sleep_ms(1);
	if (is_sabotaged)
		return 0;
	must(chdir("/"));
	umask(0123);
	return 0;
}

void set_up(void)
{
	umask(022);
	child = must(clone(live, stack + sizeof stack, CLONE_FS | SIGCHLD, NULL));
}

void sabotage(void)
{
}

void check(void)
{
	char text[512] = "";

	join(child, "the child");
	expect(getcwd(text, sizeof text) && strcmp(text, "/") == 0, "the parent is in %s", text);
	expect_equal(umask(0), 0123, "mode mask of the parent");
}
