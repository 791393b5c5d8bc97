/*
 * Memory that is first touched by the kernel and by another process after the restore, while its pages are arriving:
 * system calls that read and write it, direct I/O, locking, populating, and a child that reads it from outside.
 */
#include "program.h"
#include <sys/uio.h>

#define PART (1 * MIB)

enum { WRITTEN, READ_INTO, DIRECT, LOCKED, POPULATED, SEEN_BY_CHILD, PARTS };

static char *area;
static int file;

static char *part(int which)
{
	return area + which * PART;
}

void set_up(void)
{
	area = map_anonymous(PARTS * PART, MAP_PRIVATE);
	for (int which = 0; which < PARTS; which++)
		fill(part(which), PART, which);
	file = must(open(path("file"), O_RDWR | O_CREAT, 0600));
	must(write(file, part(READ_INTO), PART));
}

void sabotage(void)
{
	part(WRITTEN)[PART / 2] ^= 1;
	part(SEEN_BY_CHILD)[PART / 2] ^= 1;
}

/* Its own copy is armed too; what it reads is the parent's. */
static void read_parent(void)
{
	char *copy = map_anonymous(PART, MAP_PRIVATE);
	struct iovec here = {copy, PART}, there = {part(SEEN_BY_CHILD), PART};

	expect_equal(must(process_vm_readv(getppid(), &here, 1, &there, 1, 0)), PART, "bytes read from the parent");
	expect_filled(copy, PART, SEEN_BY_CHILD, "memory read from outside");
}

void check(void)
{
	int other = must(open(path("other"), O_RDWR | O_CREAT, 0600));
	pid_t child = spawn(read_parent);
	char *copy = map_anonymous(PART, MAP_PRIVATE);

	/* The ends of the part stay, its middle is overwritten by the file's. */
	expect_equal(pread(file, part(READ_INTO) + PART / 4 + 24, PART / 2, PART / 4 + 24), PART / 2, "bytes read into memory");
	expect_filled(part(READ_INTO), PART, READ_INTO, "memory read into");
	expect_equal(write(other, part(WRITTEN), PART), PART, "bytes written from memory");
	expect_equal(pread(other, copy, PART, 0), PART, "bytes read back");
	expect_filled(copy, PART, WRITTEN, "memory written from");
	must(close(other));
	other = open(path("other"), O_RDWR | O_DIRECT);
	if (other >= 0) {
		expect_equal(pwrite(other, part(DIRECT), PART, 0), PART, "bytes written directly");
		expect_equal(pread(other, copy, PART, 0), PART, "bytes read directly");
		expect_filled(copy, PART, DIRECT, "memory written directly");
	}
	must(mlock(part(LOCKED), PART / 2));
	expect_filled(part(LOCKED), PART, LOCKED, "memory locked after the restore");
	must(madvise(part(POPULATED), PART, MADV_POPULATE_WRITE));
	expect_filled(part(POPULATED), PART, POPULATED, "memory populated after the restore");
	join(child, "the child");
}
