/*
 * Open file description locks, which belong to an opened file and not to a process.
 * Another opened file finds them, also in the same process, and they go away when they are unlocked.
 */
#include "program.h"

static int owner;

static struct flock range(short type, off_t start, off_t length)
{
	return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
}

void set_up(void)
{
	struct flock first = range(F_WRLCK, 0, 4), second = range(F_RDLCK, 10, 10);

	owner = must(open(path("file"), O_RDWR | O_CREAT, 0600));
	must(fcntl(owner, F_OFD_SETLK, &first));
	must(fcntl(owner, F_OFD_SETLK, &second));
}

void sabotage(void)
{
	struct flock all = range(F_UNLCK, 0, 0);

	must(fcntl(owner, F_OFD_SETLK, &all));
}

static int is_free(int fd, short type, off_t start, off_t length)
{
	struct flock found = range(type, start, length);

	must(fcntl(fd, F_OFD_GETLK, &found));
	return found.l_type == F_UNLCK;
}

void check(void)
{
	int other = must(open(path("file"), O_RDWR));
	struct flock all = range(F_UNLCK, 0, 0);

	expect(!is_free(other, F_RDLCK, 0, 4), "the write lock is not there");
	expect(is_free(other, F_WRLCK, 4, 6), "there is a lock where none was");
	expect(!is_free(other, F_WRLCK, 12, 1), "the read lock is not there");
	expect(is_free(other, F_RDLCK, 12, 1), "the read lock excludes readers");
	expect(is_free(owner, F_WRLCK, 0, 4), "the lock is not the opened file's own");
	must(fcntl(owner, F_OFD_SETLK, &all));
	expect(is_free(other, F_WRLCK, 0, 0), "the locks cannot be unlocked");
}
