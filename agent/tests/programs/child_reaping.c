/*
 * A parent with a SIGCHLD handler and children that outlive the restore; one of them is a subreaper.
 * Parents are who they were, children that end are announced and waited for, orphans go to the subreaper.
 */
#include "program.h"
#include <sys/prctl.h>

static volatile sig_atomic_t announced;
static pid_t plain, subreaper, self;
static volatile pid_t *orphan;

static void on_child(int signal)
{
	(void)signal;
	announced++;
}

static void end_when_told(void)
{
	while (!told())
		sleep_ms(1);
	expect_equal(getppid(), self, "parent of the child");
	_exit(3);
}

/* Has a grandchild, whose parent ends after the restore. */
static void adopt(void)
{
	int is_set = 0, status = 0;

	must(prctl(PR_SET_CHILD_SUBREAPER, 1));
	if (must(fork()) == 0) {
		if (must(fork()) == 0) {
			*orphan = getpid();
			while (!told() || getppid() != *(orphan + 1))
				sleep_ms(1);
			_exit(9);
		}
		while (!told())
			sleep_ms(1);
		_exit(0);
	}
	*(orphan + 1) = getpid();
	while (!told())
		sleep_ms(1);
	must(prctl(PR_GET_CHILD_SUBREAPER, &is_set));
	expect_equal(is_set, 1, "subreaper");
	expect(eventually(waitpid(*orphan, &status, WNOHANG) == *orphan), "the orphan does not come to the subreaper");
	expect_equal(status, W_EXITCODE(9, 0), "status of the orphan");
	_exit(4);
}

void set_up(void)
{
	struct sigaction action = {.sa_handler = on_child, .sa_flags = SA_RESTART | SA_NOCLDSTOP};

	self = getpid();
	orphan = map_anonymous(PAGE, MAP_SHARED);
	must(sigaction(SIGCHLD, &action, NULL));
	plain = spawn(end_when_told);
	subreaper = spawn(adopt);
	expect(eventually(*orphan), "the grandchild does not start");
}

void sabotage(void)
{
	signal(SIGCHLD, SIG_IGN);
	/* Those that have been told before this process was. */
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

void check(void)
{
	int status = -1;

	expect(eventually(waitpid(plain, &status, WNOHANG) != 0), "the child does not end");
	expect_equal(status, W_EXITCODE(3, 0), "status of the child");
	expect(eventually(waitpid(subreaper, &status, WNOHANG) != 0), "the subreaper does not end");
	expect_equal(status, W_EXITCODE(4, 0), "status of the subreaper");
	expect(announced >= 1, "no SIGCHLD");
}
