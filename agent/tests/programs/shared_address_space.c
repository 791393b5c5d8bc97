/*
 * A child that shares its parent's memory without being a thread (clone with CLONE_VM), which CRIU cannot carry.
 * Each sees what the other writes, before and after whatever is tried.
 */
#include "program.h"
#include <sched.h>

static char stack[65536] __attribute__((aligned(16)));
static volatile uint64_t asked, answered;
static pid_t child;

static int answer(void *argument)
{
	(void)argument;
	while (asked != UINT64_MAX) {
		answered = asked;
		/* No function of the C library that might use thread-local memory, which is the parent's. */
		syscall(SYS_sched_yield);
	}
	return 0;
}

void set_up(void)
{
	child = must(clone(answer, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL));
	asked = 1;
	expect(eventually(answered == 1), "the child does not start");
}

void sabotage(void)
{
	must(kill(child, SIGSTOP));
}

void check(void)
{
	asked = 2;
	expect(eventually(answered == 2), "the child does not see what the parent writes");
	asked = UINT64_MAX;
	if (is_sabotaged)
		must(kill(child, SIGCONT));
	join(child, "the child");
}
