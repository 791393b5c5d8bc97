/*
 * A tree of sessions and process groups: children in the root's session, in a group of their own, in a session of their
 * own, and grandchildren in those. Every member is where it was, and a signal to a group reaches exactly that group.
 */
#include "program.h"

enum { PLAIN, GROUP_LEADER, GROUP_MEMBER, SESSION_LEADER, GRANDCHILD, GRANDCHILD_GROUP, MEMBERS };

struct member {
	pid_t pid, group, session, parent;
	volatile int is_ready, signals, is_done;
};

static struct member *members;
static struct member *self;

static void on_signal(int signal)
{
	(void)signal;
	self->signals++;
}

static void live(int which)
{
	self = &members[which];
	self->pid = getpid();
	self->group = getpgid(0);
	self->session = getsid(0);
	self->parent = getppid();
	self->is_ready = 1;
	while (!told())
		sleep_ms(1);
	expect_equal(getpid(), self->pid, "pid");
	expect_equal(getpgid(0), self->group, "group");
	expect_equal(getsid(0), self->session, "session");
	expect_equal(getppid(), self->parent, "parent");
	expect(eventually(members[PLAIN].is_done), "the root does not say that it is done");
}

static void start(int which, pid_t group)
{
	if (must(fork()) == 0) {
		if (group >= 0)
			must(setpgid(0, group));
		live(which);
		_exit(0);
	}
	expect(eventually(members[which].is_ready), "member %d does not start", which);
}

void set_up(void)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

	members = map_anonymous(PAGE, MAP_SHARED);
	must(sigaction(SIGUSR1, &action, NULL));
	start(PLAIN, -1);
	start(GROUP_LEADER, 0);
	start(GROUP_MEMBER, members[GROUP_LEADER].pid);
	if (must(fork()) == 0) {
		must(setsid());
		start(GRANDCHILD, -1);
		start(GRANDCHILD_GROUP, 0);
		live(SESSION_LEADER);
		while (wait(NULL) > 0)
			;
		_exit(0);
	}
	expect(eventually(members[SESSION_LEADER].is_ready), "the session leader does not start");
}

void sabotage(void)
{
	must(setpgid(members[GROUP_MEMBER].pid, getpgid(0)));
}

void check(void)
{
	int status;

	expect(members[GRANDCHILD].session == members[SESSION_LEADER].pid, "the grandchild is in another session");
	must(kill(-members[GROUP_LEADER].pid, SIGUSR1));
	must(kill(-members[SESSION_LEADER].pid, SIGUSR1));
	expect(eventually(members[GROUP_LEADER].signals && members[GROUP_MEMBER].signals && members[SESSION_LEADER].signals &&
			  members[GRANDCHILD].signals), "a signal to a group does not reach it");
	expect_equal(members[PLAIN].signals, 0, "signals for the plain child");
	expect_equal(members[GRANDCHILD_GROUP].signals, 0, "signals for the grandchild in another group");
	/* Set by the root alone: everybody else has looked at itself by the time it can end. */
	members[PLAIN].is_done = 1;
	for (int i = 0; i < 4; i++) {
		expect(eventually(waitpid(-1, &status, WNOHANG) > 0), "a child does not end");
		expect_equal(status, 0, "status of a child");
	}
}
