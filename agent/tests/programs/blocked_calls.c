/*
 * Threads inside system calls that have not returned: read, accept, epoll_wait, a futex, a sleep until a moment.
 * None returns early or with an error because of the checkpoint, and each returns when it should.
 */
#include "program.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#define SLEEP_MS 1000

static int for_read[2], for_epoll[2];
static int listener;
static struct sockaddr_un address;
static volatile uint32_t word_waited_for, entered;
static pthread_t threads[5];

static void enter(void)
{
	__sync_fetch_and_add(&entered, 1);
}

static void *in_read(void *argument)
{
	char byte = 0;

	enter();
	expect(read(for_read[0], &byte, 1) == 1 && byte == 'r', "read: %s", strerror(errno));
	return argument;
}

static void *in_accept(void *argument)
{
	enter();
	expect(accept(listener, NULL, NULL) >= 0 && told(), "accept: %s", strerror(errno));
	return argument;
}

static void *in_epoll(void *argument)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 8};
	int set = must(epoll_create1(0)), got;

	must(epoll_ctl(set, EPOLL_CTL_ADD, for_epoll[0], &event));
	enter();
	/* The one call here that the kernel never restarts by itself: signal(7). */
	do
		got = epoll_wait(set, &event, 1, -1);
	while (got < 0 && errno == EINTR);
	expect(got == 1 && event.data.u64 == 8 && told(), "epoll_wait: %d, %s", got, strerror(errno));
	return argument;
}

static void *in_futex(void *argument)
{
	long got;

	enter();
	got = syscall(SYS_futex, &word_waited_for, FUTEX_WAIT, 0, NULL, NULL, 0);
	expect(got == 0 || (errno == EAGAIN && word_waited_for), "futex: %s", strerror(errno));
	expect(word_waited_for, "the futex wait returned early");
	return argument;
}

static void *in_sleep(void *argument)
{
	int64_t end = now_ms(CLOCK_MONOTONIC) + SLEEP_MS;
	struct timespec time = {end / 1000, end % 1000 * 1000000};
	int error;

	enter();
	error = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
	expect(!error, "clock_nanosleep: %s", strerror(error));
	expect(now_ms(CLOCK_MONOTONIC) >= end, "the sleep ended %ld ms early", end - now_ms(CLOCK_MONOTONIC));
	return argument;
}

void set_up(void)
{
	void *(*calls[])(void *) = {in_read, in_accept, in_epoll, in_futex, in_sleep};

	must(pipe(for_read));
	address = (struct sockaddr_un){.sun_family = AF_UNIX, .sun_path = "listener"};
	must(chdir(directory));
	listener = must(socket(AF_UNIX, SOCK_STREAM, 0));
	must(bind(listener, (struct sockaddr *)&address, sizeof address));
	must(listen(listener, 5));
	must(pipe(for_epoll));
	for (size_t i = 0; i < COUNT(calls); i++)
		pthread_create(&threads[i], NULL, calls[i], NULL);
	expect(eventually(entered == COUNT(calls)), "the threads do not start");
	sleep_ms(5);
}

void sabotage(void)
{
	syscall(SYS_futex, &word_waited_for, FUTEX_WAKE, 1, NULL, NULL, 0);
	put(for_read[1], "?");
	sleep_ms(10);
}

void check(void)
{
	put(for_read[1], "r");
	must(connect(must(socket(AF_UNIX, SOCK_STREAM, 0)), (struct sockaddr *)&address, sizeof address));
	put(for_epoll[1], "e");
	word_waited_for = 1;
	syscall(SYS_futex, &word_waited_for, FUTEX_WAKE, 1, NULL, NULL, 0);
	for (size_t i = 0; i < COUNT(threads); i++)
		pthread_join(threads[i], NULL);
}
