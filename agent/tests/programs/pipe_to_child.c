/*
 * A parent and a child that send numbers round through two pipes without pause.
 * The conversation goes on after the restore where it was: no number is lost, doubled or changed.
 */
#include "program.h"

static int to_child[2], to_parent[2];
static uint64_t rounds;
static pid_t child;

static void add_one(void)
{
	uint64_t number;

	must(close(to_child[1]));
	must(close(to_parent[0]));
	while (must(read(to_child[0], &number, sizeof number)) == sizeof number) {
		number++;
		must(write(to_parent[1], &number, sizeof number));
	}
}

void set_up(void)
{
	must(pipe(to_child));
	must(pipe(to_parent));
	child = spawn(add_one);
	must(close(to_child[0]));
	must(close(to_parent[1]));
}

void busy(void)
{
	uint64_t number = rounds, back;

	must(write(to_child[1], &number, sizeof number));
	must(read(to_parent[0], &back, sizeof back));
	expect_equal(back, ++rounds, "number that came back");
}

void sabotage(void)
{
	uint64_t number = 5;

	must(write(to_child[1], &number, sizeof number));
}

void check(void)
{
	for (int i = 0; i < 100; i++)
		busy();
	must(close(to_child[1]));
	join(child, "the child");
}
