/*
 * A child that its parent traces, as a debugger does, which CRIU cannot carry.
 * The child is traced and runs on before and after whatever is tried.
 */
#include "program.h"
#include <sys/ptrace.h>

static pid_t child;
static volatile int *is_over;

static void live(void)
{
	while (!*is_over)
		sleep_ms(1);
}

static pid_t tracer(void)
{
	char file[64], text[4096] = "", *line;
	int fd;

	snprintf(file, sizeof file, "/proc/%d/status", child);
	fd = must(open(file, O_RDONLY | O_CLOEXEC));
	must(read(fd, text, sizeof text - 1));
	must(close(fd));
	line = strstr(text, "TracerPid:");
	return line ? atoi(line + 10) : -1;
}

void set_up(void)
{
	is_over = map_anonymous(PAGE, MAP_SHARED);
	child = spawn(live);
	must(ptrace(PTRACE_SEIZE, child, 0, 0));
}

void sabotage(void)
{
	must(ptrace(PTRACE_INTERRUPT, child, 0, 0));
	must(waitpid(child, NULL, __WALL));
	must(ptrace(PTRACE_DETACH, child, 0, 0));
}

void check(void)
{
	expect_equal(tracer(), getpid(), "tracer");
	*is_over = 1;
	join(child, "the child");
}
