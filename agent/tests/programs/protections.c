/*
 * One area cut into pieces by mprotect: nothing, read-only, writable, executable, and unmapped holes.
 * Forbidden accesses fault, allowed ones do not, and contents below PROT_NONE are there when it is lifted.
 */
#include "program.h"
#include <setjmp.h>

#define PIECE (32 * PAGE)

static char *area;
static sigjmp_buf fault;

static void on_fault(int signal)
{
	(void)signal;
	siglongjmp(fault, 1);
}

static int can_read(char *at)
{
	if (sigsetjmp(fault, 1))
		return 0;
	(void)*(volatile char *)at;
	return 1;
}

static int can_write(char *at)
{
	if (sigsetjmp(fault, 1))
		return 0;
	*(volatile char *)at = *(volatile char *)at;
	return 1;
}

void set_up(void)
{
	struct sigaction action = {.sa_handler = on_fault};

	must(sigaction(SIGSEGV, &action, NULL));
	area = map_anonymous(6 * PIECE, MAP_PRIVATE);
	fill(area, 6 * PIECE, 1);
	must(mprotect(area + PIECE, PIECE, PROT_NONE));
	must(mprotect(area + 2 * PIECE, PIECE, PROT_READ));
	must(munmap(area + 3 * PIECE, PIECE));
	must(mprotect(area + 4 * PIECE, PIECE, PROT_READ | PROT_EXEC));
}

void sabotage(void)
{
	must(mprotect(area + 2 * PIECE, PIECE, PROT_READ | PROT_WRITE));
	must(mprotect(area + PIECE, PIECE, PROT_READ));
}

void check(void)
{
	expect(can_write(area), "the writable piece cannot be written");
	expect(!can_read(area + PIECE), "PROT_NONE can be read");
	expect(can_read(area + 2 * PIECE + PAGE), "the read-only piece cannot be read");
	expect(!can_write(area + 2 * PIECE), "the read-only piece can be written");
	expect(!can_read(area + 3 * PIECE), "something is mapped in the hole");
	expect(can_read(area + 4 * PIECE), "the executable piece cannot be read");
	expect(!can_write(area + 4 * PIECE), "the executable piece can be written");
	must(mprotect(area + PIECE, PIECE, PROT_READ | PROT_WRITE));
	expect_filled(area, PIECE, 1, "writable piece");
	for (size_t i = PIECE / 8; i < 6 * PIECE / 8; i++) {
		uint64_t *at = (uint64_t *)area + i;
		if ((char *)at >= area + 3 * PIECE && (char *)at < area + 4 * PIECE)
			continue;
		if (*at != word(1, i)) {
			complain("byte %zu: %#lx instead of %#lx", i * 8, *at, word(1, i));
			break;
		}
	}
}
