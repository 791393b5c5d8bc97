/*
 * POSIX locks on ranges of a file and flock locks, shared and exclusive, held by the program.
 * A child finds each range locked or free as it was, by the owner it was, and the program can still unlock.
 */
#include "program.h"
#include <sys/file.h>

static int posix, exclusive, shared;

static struct flock range(short type, off_t start, off_t length)
{
	return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
}

static void lock(short type, off_t start, off_t length)
{
	struct flock lock = range(type, start, length);

	must(fcntl(posix, F_SETLK, &lock));
}

void set_up(void)
{
	posix = must(open(path("posix"), O_RDWR | O_CREAT, 0600));
	put(posix, "a file with something to lock in it");
	lock(F_WRLCK, 0, 4);
	lock(F_RDLCK, 8, 4);
	lock(F_WRLCK, 100, 0);
	exclusive = must(open(path("exclusive"), O_RDWR | O_CREAT, 0600));
	must(flock(exclusive, LOCK_EX));
	shared = must(open(path("shared"), O_RDWR | O_CREAT, 0600));
	must(flock(shared, LOCK_SH));
}

void sabotage(void)
{
	lock(F_UNLCK, 8, 4);
	must(flock(exclusive, LOCK_UN));
}

static void expect_lock(int fd, short want, off_t start, off_t length, short type, const char *what)
{
	struct flock found = range(type, start, length);

	must(fcntl(fd, F_GETLK, &found));
	expect_equal(found.l_type, want, what);
	if (want != F_UNLCK)
		expect_equal(found.l_pid, getppid(), what);
}

static void look_as_other(void)
{
	int fd = must(open(path("posix"), O_RDWR)), other;

	expect_lock(fd, F_WRLCK, 0, 4, F_RDLCK, "write lock at the start");
	expect_lock(fd, F_UNLCK, 4, 4, F_WRLCK, "no lock behind it");
	expect_lock(fd, F_RDLCK, 8, 4, F_WRLCK, "read lock");
	expect_lock(fd, F_UNLCK, 8, 4, F_RDLCK, "read lock, against a reader");
	expect_lock(fd, F_WRLCK, 1000000, 1, F_RDLCK, "lock to the end");
	other = must(open(path("exclusive"), O_RDWR));
	expect(flock(other, LOCK_SH | LOCK_NB) < 0, "the exclusive flock is not there");
	other = must(open(path("shared"), O_RDWR));
	expect(flock(other, LOCK_EX | LOCK_NB) < 0, "the shared flock is not there");
	expect(flock(other, LOCK_SH | LOCK_NB) == 0, "the shared flock is exclusive");
}

static void look_after_unlock(void)
{
	int fd = must(open(path("posix"), O_RDWR)), other = must(open(path("exclusive"), O_RDWR));

	expect_lock(fd, F_UNLCK, 0, 4, F_WRLCK, "range after the unlock");
	expect(flock(other, LOCK_EX | LOCK_NB) == 0, "the flock is there after the unlock");
}

void check(void)
{
	join(spawn(look_as_other), "the child that looks at the locks");
	lock(F_UNLCK, 0, 4);
	must(flock(exclusive, LOCK_UN));
	join(spawn(look_after_unlock), "the child that looks after the unlock");
}
