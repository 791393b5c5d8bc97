/*
 * Private anonymous memory: dense, sparse, equal and zero pages, and pages that are written all the time.
 * Every byte is what it was, untouched pages are zero, and no write is lost.
 */
#include "program.h"

#define DENSE (6 * MIB)
#define SPARSE_PAGES 700ul
#define EQUAL (1 * MIB)
#define MOVING_PAGES 128ul

static char *dense, *sparse, *equal, *zero, *moving;
static uint64_t generation, next_page;

void set_up(void)
{
	dense = map_anonymous(DENSE, MAP_PRIVATE);
	fill(dense, DENSE, 1);
	sparse = map_anonymous(SPARSE_PAGES * PAGE, MAP_PRIVATE);
	for (size_t page = 0; page < SPARSE_PAGES; page += 7)
		fill(sparse + page * PAGE, PAGE, page);
	equal = map_anonymous(EQUAL, MAP_PRIVATE);
	memset(equal, 0xa5, EQUAL);
	zero = map_anonymous(EQUAL, MAP_PRIVATE);
	memset(zero, 0, EQUAL);
	moving = map_anonymous(MOVING_PAGES * PAGE, MAP_PRIVATE);
}

void busy(void)
{
	fill(moving + next_page * PAGE, PAGE, generation + 1);
	if (++next_page == MOVING_PAGES) {
		next_page = 0;
		generation++;
	}
}

void sabotage(void)
{
	dense[DENSE / 2] ^= 1;
	sparse[PAGE] = 1;
	memset(moving, 0, PAGE);
}

void check(void)
{
	expect_filled(dense, DENSE, 1, "dense");
	for (size_t page = 0; page < SPARSE_PAGES; page++)
		if (page % 7 == 0)
			expect_filled(sparse + page * PAGE, PAGE, page, "sparse");
		else
			expect_zero(sparse + page * PAGE, PAGE, "sparse, untouched");
	for (size_t i = 0; i < EQUAL; i++)
		if (equal[i] != (char)0xa5) {
			complain("equal: byte %zu is %#x", i, equal[i]);
			break;
		}
	expect_zero(zero, EQUAL, "zero");
	for (size_t page = 0; page < MOVING_PAGES; page++)
		if (page < next_page)
			expect_filled(moving + page * PAGE, PAGE, generation + 1, "moving, new");
		else if (generation)
			expect_filled(moving + page * PAGE, PAGE, generation, "moving, old");
		else
			expect_zero(moving + page * PAGE, PAGE, "moving, untouched");
}
