/*
 * Pages that fault without a mapping of their own (MADV_GUARD_INSTALL, Linux 6.13) in the middle of a filled area.
 * They still fault, their neighbours keep their contents, and a removed guard leaves a zero page.
 */
#include "program.h"
#include <setjmp.h>

#define PAGES 64ul
#define GUARD_INSTALL 102
#define GUARD_REMOVE 103

static char *area;
static sigjmp_buf fault;

static void on_fault(int signal)
{
	(void)signal;
	siglongjmp(fault, 1);
}

static int faults(char *at)
{
	if (sigsetjmp(fault, 1))
		return 1;
	(void)*(volatile char *)at;
	return 0;
}

void set_up(void)
{
	struct sigaction action = {.sa_handler = on_fault};

	must(sigaction(SIGSEGV, &action, NULL));
	area = map_anonymous(PAGES * PAGE, MAP_PRIVATE);
	for (size_t page = 0; page < PAGES; page++)
		fill(area + page * PAGE, PAGE, page);
	if (madvise(area + 10 * PAGE, 2 * PAGE, GUARD_INSTALL))
		not_here("MADV_GUARD_INSTALL");
}

void sabotage(void)
{
	must(madvise(area + 10 * PAGE, 2 * PAGE, GUARD_REMOVE));
}

void check(void)
{
	for (size_t page = 0; page < PAGES; page++)
		if (page == 10 || page == 11)
			expect(faults(area + page * PAGE), "guard page %zu does not fault", page);
		else
			expect_filled(area + page * PAGE, PAGE, page, "page beside a guard");
	must(madvise(area + 10 * PAGE, 2 * PAGE, GUARD_REMOVE));
	expect_zero(area + 10 * PAGE, 2 * PAGE, "page below a removed guard");
}
