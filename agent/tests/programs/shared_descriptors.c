/*
 * Descriptors of one opened file: duplicates here and in a child, at high numbers too, and an independent second opening.
 * Duplicates share one offset, in both processes, and the second opening has its own.
 */
#include "program.h"

#define HIGH 900

static int file, duplicate, independent;
static pid_t child;
static volatile int *turn;

static void read_in_turn(void)
{
	must(close(duplicate));
	while (*turn == 0)
		sleep_ms(1);
	expect_read(HIGH, "cd", "the child's read");
	*turn = 2;
}

void set_up(void)
{
	turn = map_anonymous(PAGE, MAP_SHARED);
	file = must(open(path("file"), O_RDWR | O_CREAT, 0600));
	put(file, "abcd");
	duplicate = must(dup(file));
	must(dup3(file, HIGH, O_CLOEXEC));
	independent = must(open(path("file"), O_RDONLY));
	must(lseek(file, 0, SEEK_SET));
	child = spawn(read_in_turn);
}

void sabotage(void)
{
	must(dup2(independent, duplicate));
}

void check(void)
{
	char two[3] = "";

	must(read(duplicate, two, 2));
	expect(strcmp(two, "ab") == 0, "the duplicate reads `%s`", two);
	expect_equal(lseek(file, 0, SEEK_CUR), 2, "offset of the first descriptor");
	expect_equal(lseek(independent, 0, SEEK_CUR), 0, "offset of the independent descriptor");
	expect_equal(fcntl(HIGH, F_GETFD), FD_CLOEXEC, "flags of the high descriptor");
	expect_equal(fcntl(duplicate, F_GETFD), 0, "flags of the duplicate");
	*turn = 1;
	join(child, "the child");
	expect_equal(lseek(file, 0, SEEK_CUR), 4, "offset after the child's read");
}
