/*
 * A process of root with groups that are not root's. (CRIU needs CAP_SYS_RESOURCE to dump it.)
 * Real, effective and saved group are what they were.
 */
#include "program.h"

void set_up(void)
{
	must(setresgid(1001, 1002, 1003));
}

void sabotage(void)
{
	must(setresgid(-1, 1001, -1));
}

void check(void)
{
	gid_t real, effective, saved;

	must(getresgid(&real, &effective, &saved));
	expect_equal(real, 1001, "real group");
	expect_equal(effective, 1002, "effective group");
	expect_equal(saved, 1003, "saved group");
}
