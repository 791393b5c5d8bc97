/*
 * Descriptors of /dev/null, /dev/zero, /dev/full and /dev/urandom, and a private mapping of /dev/zero.
 * Each does what it is for.
 */
#include "program.h"

static int null, zero, full, random_bytes;
static char *mapping;

void set_up(void)
{
	null = must(open("/dev/null", O_RDWR));
	zero = must(open("/dev/zero", O_RDWR));
	full = must(open("/dev/full", O_WRONLY));
	random_bytes = must(open("/dev/urandom", O_RDONLY));
	mapping = map(64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, zero);
	fill(mapping, 32 * PAGE, 1);
}

void sabotage(void)
{
	must(dup2(zero, full));
	mapping[5 * PAGE] ^= 1;
}

void check(void)
{
	char bytes[64];

	memset(bytes, 1, sizeof bytes);
	expect_equal(read(null, bytes, sizeof bytes), 0, "bytes of /dev/null");
	expect_equal(read(zero, bytes, sizeof bytes), sizeof bytes, "bytes of /dev/zero");
	expect_zero(bytes, sizeof bytes, "/dev/zero");
	expect(write(full, "x", 1) < 0 && errno == ENOSPC, "/dev/full takes bytes");
	expect_equal(read(random_bytes, bytes, sizeof bytes), sizeof bytes, "bytes of /dev/urandom");
	expect_filled(mapping, 32 * PAGE, 1, "mapping");
	expect_zero(mapping + 32 * PAGE, 32 * PAGE, "untouched part of the mapping");
}
