/*
 * A child stopped by SIGSTOP before it had looked at its memory.
 * It is still stopped after the restore, goes on when it is continued, and its memory is what it was.
 */
#include "program.h"

#define BYTES (1 * MIB)

static pid_t child;
static char *memory;

static void stop(void)
{
	must(raise(SIGSTOP));
	expect_filled(memory, BYTES, 1, "memory of the stopped child");
}

static char state(void)
{
	char file[64], text[256] = "", *end;
	int fd;

	snprintf(file, sizeof file, "/proc/%d/stat", child);
	fd = must(open(file, O_RDONLY | O_CLOEXEC));
	must(read(fd, text, sizeof text - 1));
	must(close(fd));
	end = strrchr(text, ')');
	return end ? end[2] : '?';
}

void set_up(void)
{
	memory = map_anonymous(BYTES, MAP_PRIVATE);
	fill(memory, BYTES, 1);
	child = spawn(stop);
	expect(eventually(state() == 'T'), "the child does not stop");
}

void sabotage(void)
{
	must(kill(child, SIGCONT));
	expect(eventually(state() != 'T'), "the child does not go on");
}

void check(void)
{
	expect_equal(state(), 'T', "state of the child");
	must(kill(child, SIGCONT));
	join(child, "the child");
}
