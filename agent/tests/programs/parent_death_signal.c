/*
 * A grandchild that asked for a signal when its parent ends (PR_SET_PDEATHSIG).
 * The setting is what it was, and the signal comes when the parent ends after the restore.
 */
#include "program.h"
#include <sys/prctl.h>

static volatile sig_atomic_t signals;
static pid_t child;
static volatile int *state;

static void on_signal(int signal)
{
	(void)signal;
	signals++;
}

static void wait_for_death(void)
{
	struct sigaction action = {.sa_handler = on_signal};
	int setting = 0;

	must(sigaction(SIGUSR2, &action, NULL));
	must(prctl(PR_SET_PDEATHSIG, SIGUSR2));
	state[0] = 1;
	while (!told())
		sleep_ms(1);
	must(prctl(PR_GET_PDEATHSIG, &setting));
	expect_equal(setting, SIGUSR2, "signal for the parent's death");
	if (is_sabotaged)
		must(prctl(PR_SET_PDEATHSIG, 0));
	state[1] = 1;
	expect(eventually(signals == 1), "no signal when the parent ends");
	state[2] = 1;
}

static void be_parent(void)
{
	spawn(wait_for_death);
	/* Ends without waiting for its child. */
	while (!state[1])
		sleep_ms(1);
}

void set_up(void)
{
	state = map_anonymous(PAGE, MAP_SHARED);
	must(prctl(PR_SET_CHILD_SUBREAPER, 1));
	child = spawn(be_parent);
	expect(eventually(state[0]), "the grandchild does not start");
}

void sabotage(void)
{
}

void check(void)
{
	join(child, "the parent");
	/* Waits as long as the grandchild does, and a moment more for its complaint. */
	expect(eventually(state[2]), "the grandchild does not get that far");
}
