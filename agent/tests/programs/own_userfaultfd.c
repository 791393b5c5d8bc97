/*
 * A userfaultfd that the program uses itself, with a page that is missing, which CRIU cannot carry.
 * The page is missing until the program provides it, before and after whatever is tried.
 */
#include "program.h"
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/ioctl.h>

static int fd;
static char *area;

void set_up(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register range = {.mode = UFFDIO_REGISTER_MODE_MISSING};

	fd = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (fd < 0)
		not_here("userfaultfd");
	must(ioctl(fd, UFFDIO_API, &api));
	area = map_anonymous(16 * PAGE, MAP_PRIVATE);
	range.range = (struct uffdio_range){(uintptr_t)area, 16 * PAGE};
	must(ioctl(fd, UFFDIO_REGISTER, &range));
}

void sabotage(void)
{
	struct uffdio_zeropage zero = {.range = {(uintptr_t)area + PAGE, PAGE}};

	must(ioctl(fd, UFFDIO_ZEROPAGE, &zero));
}

static void *touch(void *argument)
{
	expect_filled(area + PAGE, PAGE, 1, "the page that was missing");
	return argument;
}

void check(void)
{
	char page[PAGE] __attribute__((aligned(4096)));
	struct uffdio_copy copy = {.dst = (uintptr_t)area + PAGE, .src = (uintptr_t)page, .len = PAGE};
	struct uffd_msg message = {0};
	pthread_t thread;

	must(fcntl(fd, F_SETFL, O_NONBLOCK));
	fill(page, PAGE, 1);
	pthread_create(&thread, NULL, touch, NULL);
	expect(eventually(read(fd, &message, sizeof message) == sizeof message), "no fault on the missing page");
	expect_equal(message.event, UFFD_EVENT_PAGEFAULT, "event");
	ioctl(fd, UFFDIO_COPY, &copy);
	pthread_join(thread, NULL);
}
