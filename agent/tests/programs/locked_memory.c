/*
 * Memory locked by mlock, in the middle of an area that is not.
 * It is locked after the restore, all of it is resident, and the contents are what they were.
 */
#include "program.h"

#define BYTES (256 * 1024ul)

static char *area;

static long locked_kib(void)
{
	char line[128];
	long kib = -1;
	FILE *status = fopen("/proc/self/status", "re");

	while (status && fgets(line, sizeof line, status))
		sscanf(line, "VmLck: %ld", &kib);
	if (status)
		fclose(status);
	return kib;
}

void set_up(void)
{
	area = map_anonymous(4 * BYTES, MAP_PRIVATE);
	fill(area, 4 * BYTES, 1);
	must(mlock(area + BYTES, BYTES));
}

void sabotage(void)
{
	must(munlock(area + BYTES, PAGE));
}

void check(void)
{
	unsigned char resident[BYTES / PAGE];

	must(mincore(area + BYTES, BYTES, resident));
	for (size_t i = 0; i < COUNT(resident); i++)
		if (!(resident[i] & 1)) {
			complain("locked page %zu is not resident", i);
			break;
		}
	expect_equal(locked_kib(), BYTES / 1024, "locked KiB");
	expect_filled(area, 4 * BYTES, 1, "area");
}
