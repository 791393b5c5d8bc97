/*
 * Memory with a descriptor: two memfds, one mapped shared and privately at once, one sealed.
 * Names, sizes, seals, offsets, contents and what belongs to which mapping are what they were.
 */
#include "program.h"

#define PAGES 96ul

static char *shared, *own;
static int fd, sealed;

void set_up(void)
{
	fd = must(memfd_create("open", MFD_ALLOW_SEALING));
	must(ftruncate(fd, PAGES * PAGE));
	shared = map(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	own = map(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
	fill(shared, PAGES * PAGE, 1);
	fill(own + 5 * PAGE, PAGE, 2);
	must(lseek(fd, 777, SEEK_SET));
	sealed = must(memfd_create("sealed", MFD_ALLOW_SEALING | MFD_CLOEXEC));
	put(sealed, "nobody can change this");
	must(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE));
}

void sabotage(void)
{
	own[5 * PAGE] ^= 1;
	shared[0] ^= 1;
	lseek(fd, 0, SEEK_SET);
}

void check(void)
{
	struct stat file;
	char text[64] = "", name[64] = "", link[64];

	expect_filled(shared, PAGES * PAGE, 1, "shared mapping");
	expect_filled(own + 5 * PAGE, PAGE, 2, "written page of the private mapping");
	fill(shared + 7 * PAGE, PAGE, 3);
	expect_filled(own + 7 * PAGE, PAGE, 3, "other page of the private mapping");
	expect_equal(lseek(fd, 0, SEEK_CUR), 777, "offset");
	must(fstat(fd, &file));
	expect_equal(file.st_size, PAGES * PAGE, "size");
	expect_equal(fcntl(sealed, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE, "seals");
	expect(pread(sealed, text, sizeof text, 0) > 0 && strcmp(text, "nobody can change this") == 0, "sealed: `%s`", text);
	expect(write(sealed, "x", 1) < 0 && errno == EPERM, "the sealed file can be written");
	expect_equal(fcntl(sealed, F_GETFD), FD_CLOEXEC, "descriptor flags");
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	must(readlink(link, name, sizeof name - 1));
	expect(strncmp(name, "/memfd:open", 11) == 0, "the name is %s", name);
}
