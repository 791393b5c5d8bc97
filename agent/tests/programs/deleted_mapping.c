/*
 * Shared and private mappings of a file that was deleted and closed.
 * The contents are what they were, and the two mappings are still of the same file.
 */
#include "program.h"

#define BYTES (128 * 1024ul)

static char *shared, *own;

void set_up(void)
{
	int fd = must(open(path("deleted"), O_RDWR | O_CREAT, 0600));

	must(ftruncate(fd, BYTES));
	shared = map(BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	own = map(BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
	fill(shared, BYTES, 1);
	fill(own + PAGE, PAGE, 2);
	must(unlink(path("deleted")));
	must(close(fd));
}

void sabotage(void)
{
	shared[PAGE] ^= 1;
	own[PAGE] ^= 1;
}

void check(void)
{
	expect_filled(shared, BYTES, 1, "shared mapping");
	expect_filled(own, PAGE, 1, "page of the file in the private mapping");
	expect_filled(own + PAGE, PAGE, 2, "written page of the private mapping");
	fill(shared, PAGE, 3);
	expect_filled(own, PAGE, 3, "page written after the restore");
	expect(access(path("deleted"), F_OK) < 0, "the file has its name again");
}
