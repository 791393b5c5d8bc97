/*
 * A seccomp filter that refuses one system call with an odd error, and a second one in a child on top of it.
 * Both still refuse exactly that.
 */
#include "program.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

static pid_t child;
static volatile int *is_filtered;

static void refuse(int number, int error)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {COUNT(code), code};

	must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

static void expect_refused(long number, int error, const char *what)
{
	errno = 0;
	expect(syscall(number, 0) == -1 && errno == error, "%s: %s", what, strerror(errno));
}

static void live_with_more(void)
{
	refuse(SYS_getuid, ENOTSUP);
	*is_filtered = 1;
	while (!told())
		sleep_ms(1);
	expect_refused(SYS_getsid, EXDEV, "the inherited filter");
	expect_refused(SYS_getuid, ENOTSUP, "the child's own filter");
}

void set_up(void)
{
	is_filtered = map_anonymous(PAGE, MAP_SHARED);
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	refuse(SYS_getsid, EXDEV);
	child = spawn(live_with_more);
	expect(eventually(*is_filtered), "the child does not start");
}

void sabotage(void)
{
	refuse(SYS_getuid, EPERM);
}

void check(void)
{
	expect_refused(SYS_getsid, EXDEV, "the filter");
	expect(syscall(SYS_getuid) >= 0, "the parent has the child's filter");
	expect_equal(prctl(PR_GET_SECCOMP), 2, "mode");
	join(child, "the child");
}
