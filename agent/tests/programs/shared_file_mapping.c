/*
 * A shared mapping of a file, written through the mapping, and a second one of its middle, read-only.
 * All three ways to look at the file agree, and a write after the restore reaches the file.
 */
#include "program.h"

#define PAGES 64ul

static char *whole, *middle;
static int fd;

void set_up(void)
{
	fd = must(open(path("file"), O_RDWR | O_CREAT, 0600));
	must(ftruncate(fd, PAGES * PAGE));
	whole = map(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	middle = mmap(NULL, 8 * PAGE, PROT_READ, MAP_SHARED, fd, 16 * PAGE);
	if (middle == MAP_FAILED)
		cannot("mmap");
	fill(whole, PAGES * PAGE, 1);
}

void sabotage(void)
{
	whole[20 * PAGE] ^= 1;
}

void check(void)
{
	char page[PAGE];

	expect_filled(whole, PAGES * PAGE, 1, "whole");
	expect(memcmp(whole + 16 * PAGE, middle, 8 * PAGE) == 0, "the two mappings differ");
	fill(whole + 17 * PAGE, PAGE, 2);
	expect_filled(middle + PAGE, PAGE, 2, "second mapping after a write");
	must(pread(fd, page, PAGE, 17 * PAGE));
	expect_filled(page, PAGE, 2, "file after a write");
}
