/*
 * What the C library registers with the kernel for restartable sequences, and a registration for membarrier.
 * The kernel still writes the processor number there, and accepts barriers without a new registration.
 */
#include "program.h"
#include <linux/membarrier.h>
#include <sched.h>
#include <sys/rseq.h>

static volatile uint32_t *cpu;

void set_up(void)
{
	if (!__rseq_size)
		not_here("rseq in the C library");
	cpu = &((struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset))->cpu_id;
	must(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0));
}

void sabotage(void)
{
	struct rseq *area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);

	must(syscall(SYS_rseq, area, sizeof *area, RSEQ_FLAG_UNREGISTER, RSEQ_SIG));
}

void check(void)
{
	long processors = sysconf(_SC_NPROCESSORS_ONLN);
	cpu_set_t one;

	for (int i = 0; i < processors && i < 4; i++) {
		CPU_ZERO(&one);
		CPU_SET(i, &one);
		/* Some processors may be out of bounds for this program. */
		if (sched_setaffinity(0, sizeof one, &one) == 0)
			expect_equal(*cpu, i, "processor number");
	}
	expect(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0, "membarrier: %s", strerror(errno));
}
