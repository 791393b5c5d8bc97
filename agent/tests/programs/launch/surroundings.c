/*
 * Writes down whatever a process finds when it starts, as far as whoever starts it decides.
 *
 * argv[1] is a directory of the program's own. Whenever `report` appears there it becomes `reported`, with a line for
 * each fact. When `end` appears, the program ends with exit code 7. Meanwhile it counts on its standard output. It
 * touches no signal, since those are facts too.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const char *directory;
static char **arguments;
extern char **environ;

static const char *path(const char *name)
{
	static char paths[4][512];
	static int next;
	char *path = paths[next++ % 4];

	snprintf(path, sizeof paths[0], "%s/%s", directory, name);
	return path;
}

/* Lines of a file that begin with one of the words; all if there are none. */
static void lines(FILE *to, const char *name, const char *const *words)
{
	char line[4096];
	FILE *from = fopen(name, "r");

	if (!from) {
		fprintf(to, "%s: %s\n", name, strerror(errno));
		return;
	}
	while (fgets(line, sizeof line, from)) {
		int wanted = !words;

		for (const char *const *word = words; word && *word; word++)
			wanted |= !strncmp(line, *word, strlen(*word));
		if (wanted)
			fprintf(to, "%s: %s", strrchr(name, '/') + 1, line);
	}
	fclose(from);
}

static int by_name(const struct dirent **one, const struct dirent **other)
{
	return atoi((*one)->d_name) - atoi((*other)->d_name);
}

static void descriptors(FILE *to)
{
	static const char *const wanted[] = {"pos:", "flags:", NULL};
	struct dirent **entries;
	int count = scandir("/proc/self/fd", &entries, NULL, by_name);

	for (int i = 0; i < count; i++) {
		const char *name = entries[i]->d_name;
		char link[64], target[512], *colon;
		ssize_t length;

		snprintf(link, sizeof link, "/proc/self/fd/%.20s", name);
		length = readlink(link, target, sizeof target - 1);
		/* The list itself was read through a descriptor, and so is written. */
		if (name[0] == '.' || length < 0 || atoi(name) == fileno(to))
			continue;
		target[length] = 0;
		/* Each start has pipes of its own. */
		if ((colon = strstr(target, ":[")))
			*colon = 0;
		fprintf(to, "descriptor %s: %s\n", name, target);
		snprintf(link, sizeof link, "/proc/self/fdinfo/%.20s", name);
		if (strcmp(target, "pipe"))
			lines(to, link, wanted);
	}
}

static void report(void)
{
	static const char *const status[] = {"Umask:", "Uid:", "Gid:", "Groups:", "Cap", "NoNewPrivs:", "Seccomp:",
		"SigPnd:", "ShdPnd:", "SigBlk:", "SigIgn:", "SigCgt:", "Cpus_allowed:", "Mems_allowed:", "Threads:", NULL};
	char text[512] = "";
	struct sched_param priority;
	int number = 0;
	FILE *to = fopen(path("reported.new"), "we");

	for (char **argument = arguments; *argument; argument++)
		fprintf(to, "argument: %s\n", *argument);
	for (char **variable = environ; *variable; variable++)
		fprintf(to, "environment: %s\n", *variable);
	lines(to, "/proc/self/status", status);
	lines(to, "/proc/self/limits", NULL);
	lines(to, "/proc/self/cgroup", NULL);
	lines(to, "/proc/self/oom_score_adj", NULL);
	lines(to, "/proc/self/timerslack_ns", NULL);
	lines(to, "/proc/self/coredump_filter", NULL);
	fprintf(to, "directory: %s\n", getcwd(text, sizeof text));
	gethostname(text, sizeof text);
	fprintf(to, "host: %s\n", text);
	fprintf(to, "nice: %d\n", getpriority(PRIO_PROCESS, 0));
	fprintf(to, "input and output priority: %ld\n", syscall(SYS_ioprio_get, 1, 0));
	sched_getparam(0, &priority);
	fprintf(to, "scheduling: %d %d\n", sched_getscheduler(0), priority.sched_priority);
	fprintf(to, "personality: %x\n", personality(0xffffffff));
	fprintf(to, "secure bits: %d\n", prctl(PR_GET_SECUREBITS));
	fprintf(to, "dumpable: %d\n", prctl(PR_GET_DUMPABLE));
	prctl(PR_GET_PDEATHSIG, &number);
	fprintf(to, "signal at the parent's death: %d\n", number);
	prctl(PR_GET_CHILD_SUBREAPER, &number);
	fprintf(to, "subreaper: %d\n", number);
	fprintf(to, "leads its session and group: %d %d\n", getsid(0) == getpid(), getpgid(0) == getpid());
	fprintf(to, "has a terminal: %d\n", open("/dev/tty", O_RDONLY | O_CLOEXEC) >= 0);
	descriptors(to);
	fclose(to);
	rename(path("reported.new"), path("reported"));
}

int main(int count, char **values)
{
	struct timespec pause = {0, 2000000};

	if (count < 2)
		return 100;
	directory = values[1];
	arguments = values;
	for (unsigned tick = 0;; tick++) {
		if (!access(path("end"), F_OK))
			return 7;
		if (!access(path("report"), F_OK)) {
			unlink(path("report"));
			report();
		}
		if (tick % 10 == 0) {
			dprintf(1, "tick %u\n", tick / 10);
			dprintf(2, "tock %u\n", tick / 10);
		}
		nanosleep(&pause, NULL);
	}
}
