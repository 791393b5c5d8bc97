/*
 * A process of another user than root, without capabilities. (CRIU needs CAP_SYS_RESOURCE to dump it.)
 * User, groups and the loss of capabilities are what they were.
 */
#include "program.h"
#include <grp.h>
#include <sys/prctl.h>

void set_up(void)
{
	must(chmod(directory, 0777));
	must(setgroups(0, NULL));
	must(setresgid(65534, 65534, 65534));
	must(setresuid(65534, 65534, 65533));
	/* Otherwise its files in /proc belong to root. */
	must(prctl(PR_SET_DUMPABLE, 1));
}

void sabotage(void)
{
	must(setresuid(-1, -1, 65534));
}

void check(void)
{
	uid_t real, effective, saved;

	must(getresuid(&real, &effective, &saved));
	expect(real == 65534 && effective == 65534 && saved == 65533, "users %u, %u, %u", real, effective, saved);
	expect_equal(getegid(), 65534, "group");
	expect_equal(getgroups(0, NULL), 0, "supplementary groups");
	expect(setuid(0) < 0, "it can become root again");
}
