/*
 * A deep recursion whose frames hold contents, left and entered again all the time, and a MAP_GROWSDOWN area.
 * Frames unwind with the contents they were entered with, and both stacks can grow further than ever before.
 */
#include "program.h"

#define BUSY_DEPTH 100
#define CHECK_DEPTH 600

static char *growing;

static __attribute__((noinline)) void recurse(int depth)
{
	volatile uint64_t frame[512];

	fill((void *)frame, sizeof frame, depth);
	if (depth > 0)
		recurse(depth - 1);
	else if (!is_ready || !told())
		sleep_ms(5);
	expect_filled((void *)frame, sizeof frame, depth, "stack frame");
}

void set_up(void)
{
	/* A gap of a MiB below for it to grow into. */
	char *room = map(2 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	must(munmap(room, 2 * MIB));
	growing = mmap(room + 2 * MIB - 4 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
	if (growing == MAP_FAILED)
		cannot("mmap");
	fill(growing, 4 * PAGE, 7);
	fill(growing - 8 * PAGE, 8 * PAGE, 8);
}

void busy(void)
{
	recurse(BUSY_DEPTH);
}

void sabotage(void)
{
	growing[-100] ^= 1;
}

void check(void)
{
	recurse(CHECK_DEPTH);
	expect_filled(growing, 4 * PAGE, 7, "the area as it was mapped");
	expect_filled(growing - 8 * PAGE, 8 * PAGE, 8, "the area as it had grown");
	fill(growing - 64 * PAGE, 56 * PAGE, 9);
	expect_filled(growing - 64 * PAGE, 56 * PAGE, 9, "the area as it grows now");
}
