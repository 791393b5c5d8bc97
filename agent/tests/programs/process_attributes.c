/*
 * Attributes set by prctl and through /proc: dumpability, out-of-memory score, transparent huge pages.
 * Each is what it was, and a child of other settings has its own.
 */
#include "program.h"
#include <sys/prctl.h>

static pid_t child;
static volatile int *is_set;
static long score;

static long read_score(void)
{
	char text[32] = "";
	int fd = must(open("/proc/self/oom_score_adj", O_RDONLY | O_CLOEXEC));

	must(read(fd, text, sizeof text - 1));
	must(close(fd));
	return atol(text);
}

static void write_score(long value)
{
	char text[32];
	int fd = must(open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));

	snprintf(text, sizeof text, "%ld", value);
	put(fd, text);
	must(close(fd));
}

static void live(void)
{
	write_score(score + 100);
	must(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	*is_set = 1;
	while (!told())
		sleep_ms(1);
	expect_equal(read_score(), score + 100, "the child's score");
	expect_equal(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1, "huge pages are disabled in the child");
}

void set_up(void)
{
	is_set = map_anonymous(PAGE, MAP_SHARED);
	score = read_score() + 50;
	if (score > 800)
		not_here("a low out-of-memory score");
	write_score(score);
	child = spawn(live);
	expect(eventually(*is_set), "the child does not start");
	must(prctl(PR_SET_DUMPABLE, 0));
}

void sabotage(void)
{
	must(prctl(PR_SET_DUMPABLE, 1));
}

void check(void)
{
	expect_equal(prctl(PR_GET_DUMPABLE), 0, "dumpable");
	expect_equal(read_score(), score, "score");
	expect_equal(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 0, "huge pages are disabled");
	join(child, "the child");
}
