/*
 * Blocked signals that are pending, for the process and for one thread, and signals that are ignored.
 * The masks and the pending signals are what they were, and unblocked they arrive once.
 */
#include "program.h"

static volatile sig_atomic_t to_process, to_thread, others;

static void on_signal(int signal)
{
	if (signal == SIGUSR1)
		to_process++;
	else if (signal == SIGUSR2)
		to_thread++;
	else
		others++;
}

void set_up(void)
{
	struct sigaction action = {.sa_handler = on_signal};
	sigset_t blocked;

	must(sigaction(SIGUSR1, &action, NULL));
	must(sigaction(SIGUSR2, &action, NULL));
	must(sigaction(SIGURG, &action, NULL));
	signal(SIGTERM, SIG_IGN);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	sigaddset(&blocked, SIGUSR2);
	sigaddset(&blocked, SIGRTMIN + 3);
	must(sigprocmask(SIG_BLOCK, &blocked, NULL));
	must(kill(getpid(), SIGUSR1));
	must(kill(getpid(), SIGUSR1));
	must(syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR2));
}

void sabotage(void)
{
	signal(SIGUSR1, SIG_IGN);
}

void check(void)
{
	struct sigaction now;
	sigset_t pending, mask;

	must(sigpending(&pending));
	expect(sigismember(&pending, SIGUSR1), "SIGUSR1 is not pending");
	expect(sigismember(&pending, SIGUSR2), "SIGUSR2 is not pending");
	expect(!sigismember(&pending, SIGURG), "SIGURG is pending");
	must(sigprocmask(SIG_SETMASK, NULL, &mask));
	expect(sigismember(&mask, SIGRTMIN + 3), "SIGRTMIN+3 is not blocked");
	expect(!sigismember(&mask, SIGURG), "SIGURG is blocked");
	must(sigaction(SIGTERM, NULL, &now));
	expect(now.sa_handler == SIG_IGN, "SIGTERM is not ignored");
	expect_equal(to_process + to_thread + others, 0, "signals that came through the mask");
	must(sigprocmask(SIG_UNBLOCK, &mask, NULL));
	expect(eventually(to_process && to_thread), "the signals do not arrive");
	expect_equal(to_process, 1, "SIGUSR1");
	expect_equal(to_thread, 1, "SIGUSR2");
	expect_equal(others, 0, "SIGURG");
}
