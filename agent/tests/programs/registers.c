/*
 * Vector and floating point registers, their control words, and the GS base, held across as many moments as possible.
 * Every register holds what was put into it.
 */
#include "program.h"
#include <asm/prctl.h>

#define ROUNDS 2000000ul

static uint64_t held[8], gs_memory[4] = {0x6b7367, 1, 2, 3};
static uint32_t mxcsr, is_spoiled;
static uint16_t control_word;

/* Loads registers, lets time pass without touching them, and stores them: nothing else may happen in between. */
static void hold(uint64_t seed)
{
	uint64_t put_in[8], rounds = ROUNDS;

	fill(put_in, sizeof put_in, seed);
	asm volatile("movdqu (%1), %%xmm7\n movdqu 16(%1), %%xmm8\n movdqu 32(%1), %%xmm15\n movdqu 48(%1), %%xmm0\n"
		     "1: dec %0\n jnz 1b\n"
		     "movdqu %%xmm7, (%2)\n movdqu %%xmm8, 16(%2)\n movdqu %%xmm15, 32(%2)\n movdqu %%xmm0, 48(%2)\n"
		     : "+r"(rounds) : "r"(put_in), "r"(held) : "xmm0", "xmm7", "xmm8", "xmm15", "memory");
	if (is_spoiled)
		held[5]++;
	expect_filled(held, sizeof held, seed, "vector registers");
}

static void hold_wide(uint64_t seed)
{
	uint64_t put_in[8], rounds = ROUNDS;

	fill(put_in, sizeof put_in, seed);
	asm volatile("vmovdqu (%1), %%ymm3\n vmovdqu 32(%1), %%ymm12\n"
		     "1: dec %0\n jnz 1b\n"
		     "vmovdqu %%ymm3, (%2)\n vmovdqu %%ymm12, 32(%2)\n vzeroupper\n"
		     : "+r"(rounds) : "r"(put_in), "r"(held) : "xmm3", "xmm12", "memory");
	expect_filled(held, sizeof held, seed, "wide vector registers");
}

void set_up(void)
{
	uint16_t rounding = 0xf7f;
	uint32_t flags;

	asm volatile("fldcw %0" : : "m"(rounding));
	asm volatile("stmxcsr %0" : "=m"(flags));
	flags |= 0x8000 | 0x6000;
	asm volatile("ldmxcsr %0" : : "m"(flags));
	must(syscall(SYS_arch_prctl, ARCH_SET_GS, gs_memory));
}

void busy(void)
{
	static uint64_t seed;

	hold(seed++);
	if (__builtin_cpu_supports("avx"))
		hold_wide(seed++);
}

void sabotage(void)
{
	is_spoiled = 1;
}

void check(void)
{
	uint64_t through_gs;

	busy();
	asm volatile("fnstcw %0" : "=m"(control_word));
	expect_equal(control_word, 0xf7f, "x87 control word");
	asm volatile("stmxcsr %0" : "=m"(mxcsr));
	expect_equal(mxcsr & 0xe000, 0xe000, "MXCSR");
	asm volatile("movq %%gs:0, %0" : "=r"(through_gs));
	expect_equal(through_gs, 0x6b7367, "word at the GS base");
}
