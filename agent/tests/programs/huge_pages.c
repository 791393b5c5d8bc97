/*
 * Memory the kernel was asked to back with huge pages (MADV_HUGEPAGE), and some where it must not (MADV_NOHUGEPAGE).
 * The contents are what they were, holes included.
 */
#include "program.h"

#define HUGE (2 * MIB)

static char *area, *small;

void set_up(void)
{
	char *room = map_anonymous(4 * HUGE, MAP_PRIVATE);

	area = (char *)(((uintptr_t)room + HUGE - 1) & ~(HUGE - 1));
	if (madvise(area, 3 * HUGE, MADV_HUGEPAGE))
		not_here("transparent huge pages");
	fill(area, 2 * HUGE, 1);
	fill(area + 2 * HUGE + 64 * PAGE, PAGE, 2);
	small = map_anonymous(HUGE, MAP_PRIVATE);
	must(madvise(small, HUGE, MADV_NOHUGEPAGE));
	fill(small, HUGE / 2, 3);
}

void sabotage(void)
{
	area[HUGE + 5] ^= 1;
}

void check(void)
{
	expect_filled(area, 2 * HUGE, 1, "huge pages");
	expect_zero(area + 2 * HUGE, 64 * PAGE, "before the written page");
	expect_filled(area + 2 * HUGE + 64 * PAGE, PAGE, 2, "written page");
	expect_zero(area + 2 * HUGE + 65 * PAGE, HUGE - 65 * PAGE, "behind the written page");
	expect_filled(small, HUGE / 2, 3, "small pages");
	expect_zero(small + HUGE / 2, HUGE / 2, "untouched small pages");
}
