/*
 * An inotify descriptor that watches a directory and a file in it, with a gap in the watch numbers.
 * Changes after the restore are reported, under the numbers the watches had.
 */
#include "program.h"
#include <sys/inotify.h>

static int fd, of_directory, of_file;

void set_up(void)
{
	int spare;

	must(mkdir(path("watched"), 0700));
	close(must(open(path("watched/file"), O_RDWR | O_CREAT, 0600)));
	fd = must(inotify_init1(IN_NONBLOCK));
	spare = must(inotify_add_watch(fd, directory, IN_DELETE_SELF));
	of_directory = must(inotify_add_watch(fd, path("watched"), IN_CREATE | IN_DELETE));
	must(inotify_rm_watch(fd, spare));
	of_file = must(inotify_add_watch(fd, path("watched/file"), IN_MODIFY));
	/* The removal of a watch is an event too; what is queued at a checkpoint is lost. */
	must(read(fd, (char[4096]){0}, 4096));
}

void sabotage(void)
{
	must(inotify_rm_watch(fd, of_file));
	must(read(fd, (char[4096]){0}, 4096));
}

static void expect_event(int watch, uint32_t mask, const char *what)
{
	char room[4096] __attribute__((aligned(8)));
	struct inotify_event *event = (void *)room;

	if (read(fd, room, sizeof room) < (ssize_t)sizeof *event) {
		complain("%s: no event", what);
		return;
	}
	expect_equal(event->wd, watch, what);
	expect_equal(event->mask & IN_ALL_EVENTS, mask, what);
}

void check(void)
{
	int file = must(open(path("watched/file"), O_WRONLY));

	put(file, "change");
	expect_event(of_file, IN_MODIFY, "change of the file");
	close(must(open(path("watched/new"), O_RDWR | O_CREAT, 0600)));
	expect_event(of_directory, IN_CREATE, "new file in the directory");
	must(unlink(path("watched/new")));
	expect_event(of_directory, IN_DELETE, "file deleted from the directory");
}
