/*
 * What a process is known by: its name, its arguments (one overwritten), its environment, its program, its ids.
 * Each is what it was, as the process sees it and as /proc shows it.
 */
#include "program.h"
#include <sys/prctl.h>

static char program[512];
static pid_t self, parent_group, session;

static ssize_t read_proc(const char *file, char *text, size_t room)
{
	int fd = must(open(file, O_RDONLY | O_CLOEXEC));
	ssize_t length = must(read(fd, text, room - 1));

	text[length] = 0;
	must(close(fd));
	return length;
}

void set_up(void)
{
	must(prctl(PR_SET_NAME, "state-renamed"));
	/* The first argument; the directory behind it is how others find this process. */
	arguments[0][0] = '#';
	must(setenv("KERNEL_STATE", "kept", 1));
	must(readlink("/proc/self/exe", program, sizeof program - 1));
	self = getpid();
	parent_group = getpgid(0);
	session = getsid(0);
}

void sabotage(void)
{
	must(prctl(PR_SET_NAME, "state-spoiled"));
	arguments[0][0] = '/';
}

void check(void)
{
	char text[4096], now[512] = "";

	must(prctl(PR_GET_NAME, now));
	expect(strcmp(now, "state-renamed") == 0, "the name is `%s`", now);
	read_proc("/proc/self/comm", text, sizeof text);
	expect(strcmp(text, "state-renamed\n") == 0, "/proc says the name is `%s`", text);
	read_proc("/proc/self/cmdline", text, sizeof text);
	expect(text[0] == '#', "/proc says the program was started as `%s`", text);
	expect(strcmp(text + strlen(text) + 1, directory) == 0, "/proc says the argument is `%s`", text + strlen(text) + 1);
	expect(read_proc("/proc/self/environ", text, sizeof text) > 0, "/proc shows no environment");
	expect(strncmp(text, "STARTED_WITH=this", 17) == 0, "/proc says the environment is `%.20s`", text);
	expect(getenv("KERNEL_STATE") && strcmp(getenv("KERNEL_STATE"), "kept") == 0, "the environment is another one");
	must(readlink("/proc/self/exe", memset(now, 0, sizeof now), sizeof now - 1));
	expect(strcmp(now, program) == 0, "the program is %s", now);
	expect_equal(getpid(), self, "pid");
	expect_equal(getpgid(0), parent_group, "group");
	expect_equal(getsid(0), session, "session");
}
