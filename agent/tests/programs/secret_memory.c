/*
 * Memory that not even the kernel may read (memfd_secret), which CRIU cannot carry.
 * Its contents are what they were, before and after whatever is tried.
 */
#include "program.h"

#define BYTES (16 * PAGE)

static char *secret;

void set_up(void)
{
	int fd = syscall(SYS_memfd_secret, 0);

	if (fd < 0)
		not_here("memfd_secret");
	must(ftruncate(fd, BYTES));
	secret = map(BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	fill(secret, BYTES, 1);
}

void sabotage(void)
{
	secret[5 * PAGE] ^= 1;
}

void check(void)
{
	expect_filled(secret, BYTES, 1, "secret");
}
