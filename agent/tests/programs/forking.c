/*
 * A parent that forks short-lived children without pause, each of which writes to memory it shares by copy-on-write.
 * Wherever the checkpoint finds them, every child ends well and none of their writes reaches the parent.
 */
#include "program.h"

#define BYTES (64 * PAGE)

static char *memory;
static uint64_t children;

static void write_own_copy(void)
{
	expect_filled(memory, BYTES, 1, "memory of a child before it writes");
	fill(memory, BYTES, 2 + children);
	expect_filled(memory, BYTES, 2 + children, "memory of a child");
}

void set_up(void)
{
	memory = map_anonymous(BYTES, MAP_PRIVATE);
	fill(memory, BYTES, 1);
}

void busy(void)
{
	join(spawn(write_own_copy), "a child");
	children++;
}

void sabotage(void)
{
	memory[0] ^= 1;
}

void check(void)
{
	for (int i = 0; i < 10; i++)
		busy();
	expect_filled(memory, BYTES, 1, "memory of the parent");
}
