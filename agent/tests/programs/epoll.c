/*
 * An epoll set: a readable and an unreadable pipe, a one-shot event that was used up, and another epoll set in it.
 * What is ready is ready, with the data it was registered with, and events of later writes arrive.
 */
#include "program.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

static int outer, inner, ready[2], quiet[2], used, nested;

static void add(int set, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event event = {.events = events, .data.u64 = data};

	must(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
}

void set_up(void)
{
	struct epoll_event event;

	outer = must(epoll_create1(EPOLL_CLOEXEC));
	inner = must(epoll_create1(0));
	must(pipe(ready));
	must(pipe(quiet));
	used = must(eventfd(1, 0));
	nested = must(eventfd(0, 0));
	add(outer, used, EPOLLIN | EPOLLONESHOT, 3);
	must(epoll_wait(outer, &event, 1, 0));
	add(outer, ready[0], EPOLLIN, 0x1111222233334444);
	add(outer, quiet[0], EPOLLIN | EPOLLET, 2);
	add(outer, inner, EPOLLIN, 4);
	add(inner, nested, EPOLLIN, 5);
	put(ready[1], "x");
}

void sabotage(void)
{
	must(epoll_ctl(outer, EPOLL_CTL_DEL, ready[0], NULL));
}

/* Exactly these are ready; data 0 stands for nothing. */
static void expect_ready(int set, uint64_t first, uint64_t second, const char *what)
{
	struct epoll_event events[8];
	int want = !!first + !!second, got = must(epoll_wait(set, events, COUNT(events), 0));

	expect_equal(got, want, what);
	for (int i = 0; i < got; i++)
		expect(events[i].data.u64 == first || events[i].data.u64 == second, "%s: event with data %#lx", what,
		       (uint64_t)events[i].data.u64);
}

void check(void)
{
	struct epoll_event again = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 6};
	uint64_t one = 1;

	expect_ready(outer, 0x1111222233334444, 0, "before anything is written");
	expect_read(ready[0], "x", "readable pipe");
	expect_ready(outer, 0, 0, "after it was read");
	put(quiet[1], "y");
	expect_ready(outer, 2, 0, "the other pipe");
	expect_ready(outer, 0, 0, "the other pipe, which is edge-triggered");
	must(write(nested, &one, sizeof one));
	expect_ready(inner, 5, 0, "the inner set");
	expect_ready(outer, 4, 0, "the inner set in the outer one");
	must(epoll_ctl(outer, EPOLL_CTL_MOD, used, &again));
	expect_ready(outer, 4, 6, "the one-shot event, armed again");
}
