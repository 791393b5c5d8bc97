/*
 * A pseudoterminal inside the tree: its settings and window size, and a child whose controlling terminal it is.
 * Settings and foreground group are what they were, bytes go both ways, and the interrupt key reaches the child.
 */
#include "program.h"
#include <sys/ioctl.h>
#include <termios.h>

static int master;
static pid_t child;
static volatile int *state;
static volatile sig_atomic_t interrupted;
static char name[64];

static void on_interrupt(int signal)
{
	(void)signal;
	interrupted = 1;
}

static void live_on_terminal(void)
{
	struct sigaction action = {.sa_handler = on_interrupt};
	char line[16] = "";
	int terminal;

	must(sigaction(SIGINT, &action, NULL));
	must(setsid());
	terminal = must(open(name, O_RDWR));
	must(ioctl(terminal, TIOCSCTTY, 0));
	must(close(master));
	state[0] = 1;
	while (!told())
		sleep_ms(1);
	expect_equal(tcgetsid(terminal), getpid(), "session of the terminal");
	expect_equal(tcgetpgrp(terminal), getpgid(0), "foreground group");
	expect(eventually(interrupted), "the interrupt key does nothing");
	state[1] = 1;
	expect(read(terminal, line, sizeof line) == 6 && strcmp(line, "hello\n") == 0, "the child reads `%s`", line);
	put(terminal, "answer");
	state[2] = 1;
	while (state[2] == 1)
		sleep_ms(1);
}

void set_up(void)
{
	struct termios settings;
	struct winsize size = {.ws_row = 33, .ws_col = 99};

	state = map_anonymous(PAGE, MAP_SHARED);
	master = posix_openpt(O_RDWR | O_NOCTTY);
	if (master < 0 || grantpt(master) || unlockpt(master) || ptsname_r(master, name, sizeof name) || access(name, F_OK))
		not_here("pseudoterminals");
	must(tcgetattr(master, &settings));
	settings.c_lflag &= ~ECHO;
	settings.c_oflag &= ~OPOST;
	settings.c_cc[VINTR] = 'q';
	must(tcsetattr(master, TCSANOW, &settings));
	must(ioctl(master, TIOCSWINSZ, &size));
	child = spawn(live_on_terminal);
	expect(eventually(state[0]), "the child does not start");
}

void sabotage(void)
{
	struct winsize size = {.ws_row = 25, .ws_col = 80};

	must(ioctl(master, TIOCSWINSZ, &size));
}

void check(void)
{
	struct termios settings;
	struct winsize size = {0};

	must(tcgetattr(master, &settings));
	expect(!(settings.c_lflag & ECHO), "echo is on");
	expect(!(settings.c_oflag & OPOST), "output processing is on");
	expect_equal(settings.c_cc[VINTR], 'q', "interrupt key");
	must(ioctl(master, TIOCGWINSZ, &size));
	expect_equal(size.ws_row, 33, "rows");
	expect_equal(size.ws_col, 99, "columns");
	put(master, "q");
	expect(eventually(state[1]), "the child does not get the interrupt");
	put(master, "hello\n");
	expect(eventually(state[2]), "the child does not answer");
	expect_read(master, "answer", "the child's answer");
	state[2] = 2;
	join(child, "the child");
}
