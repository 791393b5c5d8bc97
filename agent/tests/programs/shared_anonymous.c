/*
 * Shared anonymous memory of a parent and its child, which add to the same counters all the time.
 * The contents are what they were, and each still sees what the other writes.
 */
#include "program.h"
#include <sched.h>

#define BYTES (2 * MIB)

static char *memory;
static volatile uint64_t *asked, *answered;
static pid_t child;

static void answer(void)
{
	while (*asked != UINT64_MAX) {
		*answered = *asked;
		sched_yield();
	}
	expect_filled(memory, BYTES, 3, "shared memory in the child");
	fill(memory, PAGE, 4);
}

void set_up(void)
{
	memory = map_anonymous(BYTES, MAP_SHARED);
	fill(memory, BYTES, 3);
	asked = map_anonymous(PAGE, MAP_SHARED);
	answered = asked + 8;
	child = spawn(answer);
}

void busy(void)
{
	++*asked;
	expect(eventually(*answered == *asked), "the child does not see %lu", *asked);
}

void sabotage(void)
{
	memory[BYTES - 1] ^= 1;
}

void check(void)
{
	expect_filled(memory, BYTES, 3, "shared memory");
	*asked = UINT64_MAX;
	join(child, "the child");
	expect_filled(memory, PAGE, 4, "the page the child wrote");
}
