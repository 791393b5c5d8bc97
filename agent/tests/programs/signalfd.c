/*
 * A signal descriptor with signals waiting in it.
 * They are read from it after the restore, with their values, and its mask is what it was.
 */
#include "program.h"
#include <sys/signalfd.h>

static int fd;

void set_up(void)
{
	sigset_t mask;

	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	sigaddset(&mask, SIGRTMIN + 4);
	must(sigprocmask(SIG_BLOCK, &mask, NULL));
	fd = must(signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC));
	must(kill(getpid(), SIGUSR1));
	must(sigqueue(getpid(), SIGRTMIN + 4, (union sigval){.sival_int = 99}));
}

void sabotage(void)
{
	struct signalfd_siginfo info;

	must(read(fd, &info, sizeof info));
}

void check(void)
{
	struct signalfd_siginfo info = {0};

	expect_equal(read(fd, &info, sizeof info), sizeof info, "bytes of the first signal");
	expect_equal(info.ssi_signo, SIGUSR1, "first signal");
	expect_equal(read(fd, &info, sizeof info), sizeof info, "bytes of the second signal");
	expect_equal(info.ssi_signo, SIGRTMIN + 4, "second signal");
	expect_equal(info.ssi_int, 99, "its value");
	expect(read(fd, &info, sizeof info) < 0 && errno == EAGAIN, "there is one signal more");
	expect_equal(fcntl(fd, F_GETFD), FD_CLOEXEC, "descriptor flags");
	must(kill(getpid(), SIGUSR1));
	expect_equal(read(fd, &info, sizeof info), sizeof info, "bytes of a signal sent after the restore");
}
