/*
 * Thousands of small areas side by side, an area at a low address, and a few pages spread over 64 GiB of address space.
 * Each written page is what it was, each untouched one is zero, and the protections alternate as they did.
 */
#include "program.h"
#include <sys/random.h>

#define AREAS 3000ul
#define LOW ((char *)0x100000)
#define WIDE (64 * 1024 * MIB)
#define STRIDE (1021 * MIB + 7 * PAGE)

static char *areas, *wide;

void set_up(void)
{
	areas = map_anonymous(2 * AREAS * PAGE, MAP_PRIVATE);
	for (size_t i = 0; i < AREAS; i++) {
		fill(areas + 2 * i * PAGE, PAGE, i);
		must(mprotect(areas + 2 * i * PAGE, PAGE, PROT_READ));
	}
	if (mmap(LOW, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != LOW)
		not_here("an address that low");
	fill(LOW, 4 * PAGE, 7);
	wide = map(WIDE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	for (size_t at = 0; at < WIDE; at += STRIDE)
		fill(wide + at / PAGE * PAGE, PAGE, at);
}

void sabotage(void)
{
	wide[STRIDE] ^= 1;
	wide[STRIDE + PAGE] = 1;
}

void check(void)
{
	for (size_t at = 0; at < WIDE; at += STRIDE) {
		expect_filled(wide + at / PAGE * PAGE, PAGE, at, "written page of the wide area");
		expect_zero(wide + (at / PAGE + 1) * PAGE, PAGE, "untouched page of the wide area");
	}
	expect_filled(LOW, 4 * PAGE, 7, "low area");
	for (size_t i = 0; i < AREAS; i++) {
		expect_filled(areas + 2 * i * PAGE, PAGE, i, "small area");
		expect_zero(areas + (2 * i + 1) * PAGE, PAGE, "untouched area beside it");
	}
	/* The kernel writes through the page tables of this process: where it must not, it says so. */
	expect(getrandom(areas, 8, 0) < 0 && errno == EFAULT, "a read-only area can be written");
	expect_equal(getrandom(areas + PAGE, 8, 0), 8, "bytes written to the area beside it");
}
