/*
 * The program break and malloc's arena on it: a list of small blocks that are freed and allocated all the time.
 * The break is where it was, the list is whole, and both can grow further.
 */
#include "program.h"
#include <malloc.h>

#define BLOCKS 4096

struct block {
	struct block *next;
	uint64_t number;
	char text[40];
};

static struct block *first;
static uint64_t last_number;
static int blocks;

static void append(void)
{
	struct block *block = malloc(sizeof *block);

	block->number = ++last_number;
	snprintf(block->text, sizeof block->text, "block %lu", block->number);
	block->next = first;
	first = block;
	blocks++;
}

void set_up(void)
{
	must(mallopt(M_MMAP_THRESHOLD, 1 << 30));
	while (blocks < BLOCKS)
		append();
}

/* Frees the second newest block, so that holes appear everywhere in time. */
void busy(void)
{
	struct block *second = first->next;

	first->next = second->next;
	free(second);
	blocks--;
	append();
}

void sabotage(void)
{
	first->next->text[7] = '?';
}

void check(void)
{
	char text[40], *end = sbrk(0), *large;
	int found = 0;

	for (struct block *block = first; block; block = block->next, found++) {
		snprintf(text, sizeof text, "block %lu", block->number);
		if (strcmp(text, block->text)) {
			complain("block %lu says `%s`", block->number, block->text);
			break;
		}
	}
	expect_equal(found, blocks, "blocks in the list");
	large = malloc(4 * MIB);
	fill(large, 4 * MIB, 1);
	expect_filled(large, 4 * MIB, 1, "a large block");
	expect((char *)sbrk(0) > end, "the break does not move");
}
