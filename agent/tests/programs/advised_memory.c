/*
 * Areas with advice: contents dropped (MADV_DONTNEED), wiped in children (MADV_WIPEONFORK), absent in children
 * (MADV_DONTFORK). Contents here and in a child forked right after the restore are as the advice says.
 */
#include "program.h"

#define BYTES (512 * 1024ul)

static char *dropped, *wiped, *absent, *plain;

void set_up(void)
{
	dropped = map_anonymous(BYTES, MAP_PRIVATE);
	wiped = map_anonymous(BYTES, MAP_PRIVATE);
	absent = map_anonymous(BYTES, MAP_PRIVATE);
	plain = map_anonymous(BYTES, MAP_PRIVATE);
	fill(dropped, BYTES, 1);
	fill(wiped, BYTES, 2);
	fill(absent, BYTES, 3);
	fill(plain, BYTES, 4);
	must(madvise(dropped + BYTES / 4, BYTES / 2, MADV_DONTNEED));
	must(madvise(wiped, BYTES, MADV_WIPEONFORK));
	must(madvise(absent, BYTES, MADV_DONTFORK));
}

void sabotage(void)
{
	must(madvise(wiped, BYTES, MADV_KEEPONFORK));
	must(madvise(absent, BYTES, MADV_DOFORK));
}

static void look_as_child(void)
{
	unsigned char resident;

	expect_zero(wiped, BYTES, "wiped, in the child");
	expect_filled(plain, BYTES, 4, "plain, in the child");
	expect(mincore(absent, PAGE, &resident) < 0 && errno == ENOMEM, "the child has the area it must not have");
}

void check(void)
{
	pid_t child = spawn(look_as_child);

	join(child, "the child");
	expect_filled(wiped, BYTES, 2, "wiped in children");
	expect_filled(absent, BYTES, 3, "absent in children");
	expect_filled(plain, BYTES, 4, "plain");
	expect_filled(dropped, BYTES / 4, 1, "kept part");
	expect_zero(dropped + BYTES / 4, BYTES / 2, "dropped part");
}
