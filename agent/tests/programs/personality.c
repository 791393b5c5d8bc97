/*
 * An execution domain that differs from the default. (CRIU 4.2 dumps it, but does not restore it.)
 * It is what it was.
 */
#include "program.h"
#include <sys/personality.h>

void set_up(void)
{
	must(personality(ADDR_NO_RANDOMIZE));
}

void sabotage(void)
{
	must(personality(0));
}

void check(void)
{
	expect_equal(personality(0xffffffff), ADDR_NO_RANDOMIZE, "personality");
}
