/*
 * A program that replaces itself by exec right after the restore, while pages of its old memory are still arriving.
 * The new program has the pid, the descriptors, the masks and the pending signals of the old one.
 */
#include "program.h"

#define BYTES (16 * MIB)

static char *memory;

/* The second life of the program, told by the environment what the first one left. */
static void look_again(void)
{
	int end = atoi(getenv("EXEC_PIPE"));
	sigset_t pending;

	expect_equal(getpid(), atoi(getenv("EXEC_PID")), "pid");
	expect_read(end, "left by the old program", "pipe");
	expect(fcntl(end + 1, F_GETFD) < 0, "a descriptor was not closed by exec");
	must(sigpending(&pending));
	expect(sigismember(&pending, SIGUSR1), "SIGUSR1 is not pending");
	report();
	_exit(0);
}

void set_up(void)
{
	char text[32];
	int ends[2];
	sigset_t blocked;

	if (getenv("EXEC_PID"))
		look_again();
	memory = map_anonymous(BYTES, MAP_PRIVATE);
	fill(memory, BYTES, 1);
	must(pipe(ends));
	put(ends[1], "left by the old program");
	must(fcntl(ends[1], F_SETFD, FD_CLOEXEC));
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	must(sigprocmask(SIG_BLOCK, &blocked, NULL));
	must(kill(getpid(), SIGUSR1));
	snprintf(text, sizeof text, "%d", ends[0]);
	must(setenv("EXEC_PIPE", text, 1));
	snprintf(text, sizeof text, "%d", getpid());
	must(setenv("EXEC_PID", text, 1));
}

void sabotage(void)
{
	must(read(atoi(getenv("EXEC_PIPE")), (char[1]){0}, 1));
	memory[0] ^= 1;
}

void check(void)
{
	expect_filled(memory, PAGE, 1, "first page");
	execv("/proc/self/exe", arguments);
	cannot("exec");
}
