/*
 * Descriptors of directories: one to open files below, one opened as a path only (O_PATH), one read half way.
 * Names below them lead where they led, and the rest of the directory is still to be read.
 */
#include "program.h"
#include <dirent.h>

#define FILES 20

static int below, as_path;
static DIR *listing;
static int seen;

static int read_entry(void)
{
	struct dirent *entry;

	errno = 0;
	while ((entry = readdir(listing)))
		if (strncmp(entry->d_name, "file", 4) == 0)
			return 1;
	return 0;
}

void set_up(void)
{
	char name[64];

	must(mkdir(path("below"), 0700));
	for (int i = 0; i < FILES; i++) {
		snprintf(name, sizeof name, "below/file%d", i);
		close(must(open(path(name), O_WRONLY | O_CREAT, 0600)));
	}
	below = must(open(path("below"), O_RDONLY | O_DIRECTORY));
	as_path = must(open(path("below/file3"), O_PATH));
	listing = opendir(path("below"));
	if (!listing)
		cannot("opendir");
	for (; seen < FILES / 2; seen++)
		expect(read_entry(), "the directory is too short");
}

void sabotage(void)
{
	must(unlinkat(below, "file5", 0));
	must(dup2(below, as_path));
	rewinddir(listing);
}

void check(void)
{
	struct stat by_path, by_name;

	while (read_entry())
		seen++;
	expect_equal(seen, FILES, "entries");
	expect(faccessat(below, "file5", F_OK, 0) == 0, "a name below the directory leads nowhere");
	must(fstat(as_path, &by_path));
	must(stat(path("below/file3"), &by_name));
	expect_equal(by_path.st_ino, by_name.st_ino, "inode of the path");
	expect(read(as_path, &by_path, 1) < 0 && errno == EBADF, "the path can be read");
}
