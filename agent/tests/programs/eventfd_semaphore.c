/*
 * An event descriptor used as a semaphore (EFD_SEMAPHORE). (CRIU 4.2 restores it as a plain counter.)
 * It can be taken as often as its count says, by one each time.
 */
#include "program.h"
#include <sys/eventfd.h>

static int semaphore;

void set_up(void)
{
	semaphore = must(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK));
}

void sabotage(void)
{
	must(read(semaphore, &(uint64_t){0}, sizeof(uint64_t)));
}

void check(void)
{
	uint64_t count = 0;

	for (int i = 0; i < 3; i++)
		expect(read(semaphore, &count, sizeof count) == sizeof count && count == 1, "take %d gives %lu", i, count);
	expect(read(semaphore, &count, sizeof count) < 0 && errno == EAGAIN, "it can be taken once more");
}
