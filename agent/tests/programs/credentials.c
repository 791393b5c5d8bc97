/*
 * Supplementary groups, capabilities and security bits of a process of root that has given some of them up.
 * Each set is what it was, and what was given up cannot be taken back.
 */
#include "program.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>

static struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
static struct __user_cap_data_struct kept[2];

static void drop(int capability)
{
	uint32_t bit = 1u << capability % 32;
	int half = capability / 32;

	must(prctl(PR_CAPBSET_DROP, capability));
	kept[half].permitted &= ~bit;
	kept[half].effective &= ~bit;
	kept[half].inheritable &= ~bit;
}

void set_up(void)
{
	gid_t groups[] = {7, 1007, 100007};

	must(setgroups(COUNT(groups), groups));
	must(syscall(SYS_capget, &header, kept));
	drop(CAP_NET_RAW);
	drop(CAP_SYS_TIME);
	drop(CAP_AUDIT_READ);
	kept[0].effective &= ~(1u << CAP_NET_ADMIN);
	kept[0].inheritable |= 1u << CAP_CHOWN;
	must(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP));
	must(syscall(SYS_capset, &header, kept));
	must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0));
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

void sabotage(void)
{
	kept[0].inheritable ^= 1u << CAP_CHOWN;
	must(setgroups(0, NULL));
}

void check(void)
{
	struct __user_cap_data_struct now[2];
	gid_t groups[8];

	expect_equal(getgroups(COUNT(groups), groups), 3, "supplementary groups");
	expect_equal(groups[2], 100007, "last supplementary group");
	must(syscall(SYS_capget, &header, now));
	for (int half = 0; half < 2; half++) {
		expect_equal(now[half].effective, kept[half].effective, "effective capabilities");
		expect_equal(now[half].permitted, kept[half].permitted, "permitted capabilities");
		expect_equal(now[half].inheritable, kept[half].inheritable, "inheritable capabilities");
	}
	expect_equal(prctl(PR_CAPBSET_READ, CAP_NET_RAW), 0, "CAP_NET_RAW in the bounding set");
	expect_equal(prctl(PR_CAPBSET_READ, CAP_AUDIT_READ), 0, "CAP_AUDIT_READ in the bounding set");
	expect_equal(prctl(PR_CAPBSET_READ, CAP_CHOWN), 1, "CAP_CHOWN in the bounding set");
	expect_equal(prctl(PR_GET_SECUREBITS), SECBIT_NO_SETUID_FIXUP, "security bits");
	expect_equal(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1, "no new privileges");
	expect_equal(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_CHOWN, 0, 0), 1, "ambient CAP_CHOWN");
	now[0].permitted |= 1u << CAP_NET_RAW;
	expect(syscall(SYS_capset, &header, now) < 0, "CAP_NET_RAW can be taken back");
}
