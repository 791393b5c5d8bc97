/*
 * Children that have ended and were not waited for: one with an exit code, one killed by a signal, one in a group of its
 * own. Each can be waited for once, under its pid, with the status it ended with.
 */
#include "program.h"

static pid_t exited, killed, grouped;

static int is_dead(pid_t pid)
{
	siginfo_t info = {0};

	return waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid;
}

void set_up(void)
{
	exited = must(fork());
	if (exited == 0)
		_exit(42);
	killed = must(fork());
	if (killed == 0) {
		signal(SIGTERM, SIG_DFL);
		raise(SIGTERM);
	}
	grouped = must(fork());
	if (grouped == 0) {
		must(setpgid(0, 0));
		_exit(7);
	}
	expect(eventually(is_dead(exited) && is_dead(killed) && is_dead(grouped)), "the children do not end");
}

void sabotage(void)
{
	must(waitpid(killed, NULL, 0));
}

static void expect_status(pid_t pid, int want, const char *what)
{
	int status = -1;

	expect_equal(waitpid(pid, &status, WNOHANG), pid, what);
	expect_equal(status, want, what);
}

void check(void)
{
	expect_status(exited, W_EXITCODE(42, 0), "child that exited");
	expect_status(killed, W_EXITCODE(0, SIGTERM), "child that was killed");
	expect_status(grouped, W_EXITCODE(7, 0), "child in a group of its own");
	expect(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD, "there are more children");
}
