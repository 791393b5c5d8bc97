/*
 * Working directory, file mode mask and, in a child, a root directory of its own.
 * Relative names lead where they led, new files get the mode the mask leaves, and the child stays where it was confined.
 */
#include "program.h"

static pid_t child;
static volatile int *is_confined;

static void live_below(void)
{
	/* Its own view of the program's directory, because the paths of the parent do not exist below the new root. */
	must(chroot("."));
	must(chdir("/"));
	directory = "/talk";
	*is_confined = 1;
	while (*is_confined == 1)
		sleep_ms(1);
	expect(access("/here", F_OK) == 0, "the root is another one");
	expect(access("/proc/self", F_OK) < 0, "the child is no longer confined");
}

void set_up(void)
{
	is_confined = map_anonymous(PAGE, MAP_SHARED);
	must(mkdir(path("below"), 0700));
	must(mkdir(path("below/talk"), 0700));
	close(must(open(path("below/here"), O_WRONLY | O_CREAT, 0600)));
	must(chdir(path("below")));
	umask(0137);
	child = spawn(live_below);
	expect(eventually(*is_confined), "the child does not start");
}

void sabotage(void)
{
	must(chdir("/"));
	umask(0);
}

void check(void)
{
	char now[512] = "";
	struct stat file;

	must(getcwd(now, sizeof now) ? 0 : -1);
	expect(strcmp(now, path("below")) == 0, "the working directory is %s", now);
	expect(access("here", F_OK) == 0, "a relative name leads nowhere");
	close(must(open(path("new"), O_WRONLY | O_CREAT, 0777)));
	must(stat(path("new"), &file));
	expect_equal(file.st_mode & 0777, 0640, "mode of a new file");
	*is_confined = 2;
	join(child, "the child");
	expect(access(path("below/talk/complaints"), F_OK) < 0, "the confined child complains");
}
