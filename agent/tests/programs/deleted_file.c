/*
 * Files without a name: one deleted while open, one that never had a name (O_TMPFILE), one deleted twice over by two
 * descriptors. Contents, offsets and sharing are what they were, and they still have no name.
 */
#include "program.h"

static int deleted, again, unnamed, read_only;

void set_up(void)
{
	deleted = must(open(path("deleted"), O_RDWR | O_CREAT, 0640));
	again = must(open(path("deleted"), O_RDWR | O_APPEND));
	put(deleted, "the contents of a deleted file");
	must(lseek(deleted, 4, SEEK_SET));
	must(unlink(path("deleted")));
	unnamed = open(directory, O_TMPFILE | O_RDWR, 0600);
	if (unnamed >= 0)
		put(unnamed, "never had a name");
	close(must(open(path("read-only"), O_WRONLY | O_CREAT, 0600)));
	read_only = must(open(path("read-only"), O_RDONLY));
	must(unlink(path("read-only")));
}

void sabotage(void)
{
	must(pwrite(deleted, "?", 1, 6));
}

void check(void)
{
	char text[64] = "";
	struct stat file;

	expect_read(deleted, "contents of a deleted file", "deleted file from its offset");
	put(again, ", and more");
	expect_read(deleted, ", and more", "what the other descriptor appended");
	must(fstat(deleted, &file));
	expect_equal(file.st_nlink, 0, "names");
	expect_equal(file.st_mode & 07777, 0640, "mode");
	expect(access(path("deleted"), F_OK) < 0, "the file has its name again");
	if (unnamed >= 0) {
		expect_equal(pread(unnamed, text, sizeof text, 0), 16, "bytes of the unnamed file");
		expect(strcmp(text, "never had a name") == 0, "the unnamed file says `%s`", text);
	}
	expect_equal(fcntl(read_only, F_GETFL) & O_ACCMODE, O_RDONLY, "access to the read-only file");
	expect(write(read_only, "x", 1) < 0, "the read-only file can be written");
}
