/*
 * Memory that is moved, cut, dropped and mapped anew right after the restore, while its pages are still arriving.
 * Contents follow the moves, and what was dropped is zero.
 */
#include "program.h"

#define PART (1 * MIB)

static char *area;

void set_up(void)
{
	area = map_anonymous(8 * PART, MAP_PRIVATE);
	fill(area, 8 * PART, 1);
}

void sabotage(void)
{
	area[PART + 3] ^= 1;
	area[6 * PART + 3] ^= 1;
}

static void expect_part(char *at, size_t part, const char *what)
{
	for (size_t i = 0; i < PART / 8; i++)
		if (((uint64_t *)at)[i] != word(1, part * PART / 8 + i)) {
			complain("%s: byte %zu: %#lx", what, i * 8, ((uint64_t *)at)[i]);
			return;
		}
}

void check(void)
{
	char *away = must(mremap(area + PART, PART, 2 * PART, MREMAP_MAYMOVE));

	must(munmap(area + 2 * PART, PART / 2));
	must(madvise(area + 3 * PART, PART, MADV_DONTNEED));
	if (mmap(area + 4 * PART, PART, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		cannot("mmap");
	must(mprotect(area + 6 * PART, PART / 2, PROT_READ));
	expect_part(away, 1, "moved part");
	expect_zero(away + PART, PART, "what the moved part has grown by");
	expect_part(area, 0, "part before the moved one");
	for (size_t i = PART / 16; i < PART / 8; i++)
		if (((uint64_t *)(area + 2 * PART))[i] != word(1, 2 * PART / 8 + i)) {
			complain("rest of the cut part: byte %zu", i * 8);
			break;
		}
	expect_zero(area + 3 * PART, PART, "dropped part");
	expect_zero(area + 4 * PART, PART, "part mapped anew");
	expect_part(area + 5 * PART, 5, "part behind the new one");
	expect_part(area + 6 * PART, 6, "part with a protected half");
	expect_part(area + 7 * PART, 7, "last part");
}
