/*
 * Memory shared by copy-on-write with a child, and a fork right after the restore, while pages are still arriving.
 * Parent, old child and new children write different pages; each sees its own writes and nobody else's.
 */
#include "program.h"

#define PAGES 2048ul
#define STEP 5

static char *memory;
static pid_t old;
static int newest;

/* Process number `self` writes every fifth page, then finds its own writes there and the image everywhere else. */
static void write_and_look(unsigned self)
{
	for (size_t page = self; page < PAGES; page += STEP)
		fill(memory + page * PAGE, PAGE, 10000 + self);
	for (size_t page = PAGES; page-- > 0;)
		if (page % STEP == self)
			expect_filled(memory + page * PAGE, PAGE, 10000 + self, "own page");
		else
			expect_filled(memory + page * PAGE, PAGE, page, "page of the image");
}

static void live(void)
{
	while (!told())
		sleep_ms(1);
	write_and_look(1);
}

static void look_at_once(void)
{
	write_and_look(newest);
}

void set_up(void)
{
	memory = map_anonymous(PAGES * PAGE, MAP_PRIVATE);
	for (size_t page = 0; page < PAGES; page++)
		fill(memory + page * PAGE, PAGE, page);
	old = spawn(live);
}

void sabotage(void)
{
	memory[PAGES * PAGE / 2] ^= 1;
}

void check(void)
{
	pid_t children[2];

	for (newest = 2; newest < 4; newest++)
		children[newest - 2] = spawn(look_at_once);
	write_and_look(0);
	join(children[0], "the first new child");
	join(children[1], "the second new child");
	join(old, "the old child");
}
