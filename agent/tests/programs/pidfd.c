/*
 * A process descriptor of a child.
 * It still means that child: a signal through it arrives, and it becomes readable when the child ends.
 */
#include "program.h"

static pid_t child;
static int fd;
static volatile int *is_ready_too;

static void wait_for_signal(void)
{
	sigset_t mask;

	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	must(sigprocmask(SIG_BLOCK, &mask, NULL));
	*is_ready_too = 1;
	expect_equal(TEMP_FAILURE_RETRY(sigwaitinfo(&mask, NULL)), SIGUSR1, "signal in the child");
}

void set_up(void)
{
	is_ready_too = map_anonymous(PAGE, MAP_SHARED);
	child = spawn(wait_for_signal);
	fd = must(syscall(SYS_pidfd_open, child, 0));
	expect(eventually(*is_ready_too), "the child does not start");
}

void sabotage(void)
{
	int own = must(syscall(SYS_pidfd_open, getpid(), 0));

	signal(SIGUSR1, SIG_IGN);
	must(dup2(own, fd));
}

void check(void)
{
	struct pollfd wait = {fd, POLLIN, 0};

	expect_equal(poll(&wait, 1, 0), 0, "ready before the child ends");
	expect(syscall(SYS_pidfd_send_signal, fd, SIGUSR1, NULL, 0) == 0, "signal through the descriptor: %s", strerror(errno));
	expect_equal(TEMP_FAILURE_RETRY(poll(&wait, 1, PATIENCE_MS)), 1, "ready when the child ends");
	if (is_sabotaged)
		must(kill(child, SIGKILL));
	join(child, "the child");
}
