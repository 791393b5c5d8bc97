/*
 * An io_uring with a completion that nobody has collected, which CRIU cannot carry.
 * The ring works before and after whatever is tried.
 */
#include "program.h"
#include <linux/io_uring.h>

static int ring;
static struct io_uring_params parameters;
static char *completions, *submissions;
static struct io_uring_sqe *entries;

static uint32_t *at(char *base, uint32_t offset)
{
	return (uint32_t *)(base + offset);
}

static int submit(uint64_t data)
{
	uint32_t tail = *at(submissions, parameters.sq_off.tail), index = tail & *at(submissions, parameters.sq_off.ring_mask);

	memset(&entries[index], 0, sizeof entries[index]);
	entries[index].opcode = IORING_OP_NOP;
	entries[index].user_data = data;
	at(submissions, parameters.sq_off.array)[index] = index;
	__atomic_store_n(at(submissions, parameters.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
	return syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0);
}

static uint64_t take(void)
{
	uint32_t head = *at(completions, parameters.cq_off.head);
	struct io_uring_cqe *events = (void *)(completions + parameters.cq_off.cqes);

	if (head == __atomic_load_n(at(completions, parameters.cq_off.tail), __ATOMIC_ACQUIRE))
		return 0;
	*at(completions, parameters.cq_off.head) = head + 1;
	return events[head & *at(completions, parameters.cq_off.ring_mask)].user_data;
}

void set_up(void)
{
	ring = syscall(SYS_io_uring_setup, 4, &parameters);
	if (ring < 0)
		not_here("io_uring");
	submissions = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	completions = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
	entries = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	if (submissions == MAP_FAILED || completions == MAP_FAILED || entries == MAP_FAILED)
		cannot("mmap");
	must(submit(5));
}

void sabotage(void)
{
	take();
}

void check(void)
{
	expect_equal(take(), 5, "completion from before");
	expect_equal(submit(6), 1, "requests submitted");
	expect_equal(take(), 6, "completion of a new request");
}
