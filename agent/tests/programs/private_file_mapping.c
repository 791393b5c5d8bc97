/*
 * A private mapping of a file, some pages of which were written, some set to zero, and some left to the file.
 * Written pages keep what was written, the others show the file, and the file itself is untouched.
 */
#include "program.h"

#define PAGES 192ul

static char *mapping;
static int fd;

void set_up(void)
{
	char page[PAGE];

	fd = must(open(path("file"), O_RDWR | O_CREAT, 0600));
	for (size_t i = 0; i < PAGES; i++) {
		fill(page, PAGE, i);
		must(write(fd, page, PAGE));
	}
	mapping = map(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
	for (size_t i = 0; i < PAGES; i += 3)
		fill(mapping + i * PAGE, PAGE, 1000 + i);
	for (size_t i = 1; i < PAGES; i += 12)
		memset(mapping + i * PAGE, 0, PAGE);
}

void sabotage(void)
{
	madvise(mapping, PAGE, MADV_DONTNEED);
	fill(mapping + PAGE, PAGE, 1);
}

void check(void)
{
	char page[PAGE];

	for (size_t i = 0; i < PAGES; i++) {
		if (i % 3 == 0)
			expect_filled(mapping + i * PAGE, PAGE, 1000 + i, "written page");
		else if (i % 12 == 1)
			expect_zero(mapping + i * PAGE, PAGE, "page of zeros");
		else
			expect_filled(mapping + i * PAGE, PAGE, i, "page of the file");
		must(pread(fd, page, PAGE, i * PAGE));
		expect_filled(page, PAGE, i, "file");
	}
	/* Still a mapping of the file: what was not written follows it. */
	fill(page, PAGE, 5000);
	must(pwrite(fd, page, PAGE, 2 * PAGE));
	expect_filled(mapping + 2 * PAGE, PAGE, 5000, "page of the changed file");
}
