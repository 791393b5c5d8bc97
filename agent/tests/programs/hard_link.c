/*
 * An open file whose name was deleted while another name of it stays.
 * The descriptor and the other name still lead to one file, and the deleted name is gone.
 */
#include "program.h"

static int fd;

void set_up(void)
{
	fd = must(open(path("first"), O_RDWR | O_CREAT, 0600));
	put(fd, "two names");
	must(link(path("first"), path("second")));
	must(unlink(path("first")));
}

void sabotage(void)
{
	must(unlink(path("second")));
	close(must(open(path("second"), O_RDWR | O_CREAT, 0600)));
}

void check(void)
{
	struct stat by_name, by_fd;

	must(fstat(fd, &by_fd));
	must(stat(path("second"), &by_name));
	expect_equal(by_fd.st_ino, by_name.st_ino, "inode");
	expect_equal(by_fd.st_nlink, 1, "names");
	expect_equal(lseek(fd, 0, SEEK_CUR), 9, "offset");
	expect(access(path("first"), F_OK) < 0, "the file has its first name again");
}
