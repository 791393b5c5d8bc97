/*
 * The clocks as a program sees them, read all the time.
 * The monotonic and boot clocks never go back and have not jumped, in the vDSO and in system calls alike.
 */
#include "program.h"

#define JUMP_MS 60000

static struct { clockid_t clock; const char *name; int64_t last; } clocks[] = {
	{CLOCK_MONOTONIC, "monotonic", 0},
	{CLOCK_BOOTTIME, "boot time", 0},
	{CLOCK_MONOTONIC_COARSE, "coarse monotonic", 0},
	{CLOCK_PROCESS_CPUTIME_ID, "CPU time", 0},
};
static int64_t offset;

static int64_t from_kernel_ms(clockid_t clock)
{
	struct timespec time = {0};

	must(syscall(SYS_clock_gettime, clock, &time));
	return time.tv_sec * 1000ll + time.tv_nsec / 1000000;
}

void set_up(void)
{
	for (size_t i = 0; i < COUNT(clocks); i++)
		clocks[i].last = now_ms(clocks[i].clock);
}

void busy(void)
{
	for (size_t i = 0; i < COUNT(clocks); i++) {
		int64_t now = now_ms(clocks[i].clock) + offset;
		/* CPU time begins anew with the process that the kernel sees. */
		if (clocks[i].clock != CLOCK_PROCESS_CPUTIME_ID)
			expect(now >= clocks[i].last && now < clocks[i].last + JUMP_MS, "%s: %ld ms after %ld ms", clocks[i].name, now,
			       clocks[i].last);
		clocks[i].last = now;
	}
}

void sabotage(void)
{
	/* Far more than a busy machine lets pass between two looks. */
	offset = -JUMP_MS / 2;
}

void check(void)
{
	busy();
	for (size_t i = 0; i < 2; i++) {
		int64_t here = now_ms(clocks[i].clock), there = from_kernel_ms(clocks[i].clock);
		expect(there >= here && there < here + 2000, "%s: %ld ms in the vDSO, %ld ms in the kernel", clocks[i].name, here, there);
	}
}
