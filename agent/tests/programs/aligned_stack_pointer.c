/*
 * A thread that sleeps with its stack pointer at the very start of a page, which CRIU takes for a sign that no page of
 * the process can come later. The memory is what it was, and the thread goes on.
 */
#include "program.h"
#include <pthread.h>

#define BYTES (4 * MIB)

static char *memory;
static pthread_t thread;
static volatile int sleeping, stop;

static void *sleep_aligned(void *argument)
{
	sleeping = 1;
#ifdef __x86_64__
	/* 200 ms each time, with the time on the aligned stack, until told to stop. */
	__asm__ volatile("mov %%rsp, %%rbx\n"
			 "and $-4096, %%rsp\n"
			 "1: movq $0, -16(%%rsp)\n"
			 "movq $200000000, -8(%%rsp)\n"
			 "mov $35, %%eax\n"
			 "lea -16(%%rsp), %%rdi\n"
			 "xor %%esi, %%esi\n"
			 "syscall\n"
			 "cmpl $0, %0\n"
			 "je 1b\n"
			 "mov %%rbx, %%rsp\n"
			 : : "m"(stop) : "rax", "rbx", "rcx", "rdi", "rsi", "r11", "memory", "cc");
#else
	while (!stop)
		sleep_ms(1);
#endif
	return argument;
}

void set_up(void)
{
	memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fill(memory, BYTES, 1);
	pthread_create(&thread, NULL, sleep_aligned, &thread);
	while (!sleeping)
		sleep_ms(1);
}

void sabotage(void)
{
	memory[BYTES / 2] ^= 1;
}

void check(void)
{
	void *returned = NULL;

	expect_filled(memory, BYTES, 1, "memory");
	stop = 1;
	pthread_join(thread, &returned);
	expect_equal(returned == &thread, 1, "the thread's result");
}
