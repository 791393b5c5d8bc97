/*
 * Threads started right after the restore that all read the same memory at once, while its pages are still arriving.
 * Each of them sees every byte, from whichever end it begins.
 */
#include "program.h"
#include <pthread.h>

#define PAGES 4096ul
#define READERS 6

static char *memory;

static void *read_all(void *argument)
{
	uintptr_t number = (uintptr_t)argument;

	for (size_t i = 0; i < PAGES; i++) {
		size_t page = (i * (number % 2 ? 1 : PAGES - 1) + number * PAGES / READERS) % PAGES;
		if (*(volatile uint64_t *)(memory + page * PAGE) != word(page, 0))
			complain("reader %lu: page %zu", number, page);
	}
	for (size_t page = number; page < PAGES; page += READERS)
		expect_filled(memory + page * PAGE, PAGE, page, "page");
	return NULL;
}

void set_up(void)
{
	memory = map_anonymous(PAGES * PAGE, MAP_PRIVATE);
	for (size_t page = 0; page < PAGES; page++)
		fill(memory + page * PAGE, PAGE, page);
}

void sabotage(void)
{
	memory[77 * PAGE] ^= 1;
}

void check(void)
{
	pthread_t readers[READERS];

	for (uintptr_t i = 0; i < READERS; i++)
		pthread_create(&readers[i], NULL, read_all, (void *)i);
	for (int i = 0; i < READERS; i++)
		pthread_join(readers[i], NULL);
}
