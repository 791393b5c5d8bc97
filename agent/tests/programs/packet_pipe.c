/*
 * A pipe in packet mode (O_DIRECT) with two packets in flight.
 * Each packet is read by itself, as it was written.
 */
#include "program.h"

static int ends[2];

void set_up(void)
{
	must(pipe2(ends, O_DIRECT));
	put(ends[1], "first");
	put(ends[1], "second");
}

void sabotage(void)
{
	must(read(ends[0], (char[1]){0}, 1));
}

void check(void)
{
	expect_equal(fcntl(ends[1], F_GETFL) & O_DIRECT, O_DIRECT, "flag");
	expect_read(ends[0], "first", "first packet");
	expect_read(ends[0], "second", "second packet");
}
