/*
 * What the programs of this directory share: how a program says that its state is set up, how it is told to look at it
 * again, and how it reports.
 *
 * Each program is set_up(), check() and sabotage(), and busy() if it has something to do while it waits; main() is here.
 * argv[1] is a directory of the program's own. It creates `ready` there and waits; in that time it may be checkpointed,
 * ended and restored at any point. When `check` appears, it compares its state with what it should be and creates
 * `result`: "ok", or a line for everything that is wrong. With argv[2] = "sabotage" it first spoils its own state the way
 * a careless restore would: a check that does not complain then proves nothing.
 *
 * What a program does to wait for others of its tree must end by itself: nobody but the runner's time limit ends a hang.
 */
#ifndef PROGRAM_H
#define PROGRAM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define MIB (1024 * 1024ul)
#define COUNT(array) (sizeof(array) / sizeof *(array))
#define UNUSED __attribute__((unused))
/* Longer than anything here takes on a busy machine; what was sabotaged need not be waited for. */
#define PATIENCE_MS (is_sabotaged ? 300 : 10000)

void set_up(void);
void check(void);
void sabotage(void);
/* Called again and again while the program waits. */
__attribute__((weak)) void busy(void);

static const char *directory;
static char **arguments;
static int is_ready, is_sabotaged;

/* A file of the program's directory. The name holds until the eighth call after this one. */
static UNUSED const char *path(const char *name)
{
	static char paths[8][512];
	static int next;
	char *path = paths[next++ % 8];

	snprintf(path, sizeof paths[0], "%s/%s", directory, name);
	return path;
}

static void write_file(const char *name, int flags, const char *text)
{
	int fd = open(path(name), O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0666);

	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		_exit(100);
	close(fd);
}

/* The file is there with all of its text, or not at all. */
static void announce(const char *name, const char *text)
{
	char temporary[64];

	snprintf(temporary, sizeof temporary, "%s.new", name);
	write_file(temporary, O_TRUNC, text);
	if (rename(path(temporary), path(name)))
		_exit(100);
}

/* Any process of the tree may complain. */
static __attribute__((format(printf, 1, 2))) void complain(const char *format, ...)
{
	char line[512];
	va_list values;

	va_start(values, format);
	vsnprintf(line, sizeof line - 1, format, values);
	va_end(values);
	strcat(line, "\n");
	write_file("complaints", O_APPEND, line);
}

#define expect(condition, ...) do { if (!(condition)) complain(__VA_ARGS__); } while (0)

/* Both are integers, and the text says what they are of. */
#define expect_equal(got, want, what)                                                                                   \
	do {                                                                                                            \
		long long got_ = (long long)(got), want_ = (long long)(want);                                           \
		expect(got_ == want_, "%s: %lld (%#llx) instead of %lld (%#llx)", what, got_, got_, want_, want_);      \
	} while (0)

static void report(void)
{
	char text[4096] = "ok\n";
	int fd = open(path("complaints"), O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		ssize_t length = read(fd, text, sizeof text - 1);
		text[length > 0 ? length : 0] = 0;
		close(fd);
	}
	announce("result", text);
}

static UNUSED _Noreturn void cannot(const char *what)
{
	complain("cannot: %s: %s", what, strerror(errno));
	if (is_ready)
		report();
	_exit(1);
}

/* This machine lacks what the program is about. */
static UNUSED _Noreturn void not_here(const char *why)
{
	char text[256];

	snprintf(text, sizeof text, "not here: %s\n", why);
	announce("ready", text);
	_exit(0);
}

/* The value of a call that must not fail. */
#define must(call)                                                                                                      \
	({                                                                                                              \
		__auto_type value_ = (call);                                                                            \
		if ((long)value_ == -1)                                                                                 \
			cannot(#call);                                                                                  \
		value_;                                                                                                 \
	})

static int told(void)
{
	return access(path("check"), F_OK) == 0;
}

static UNUSED void sleep_ms(long milliseconds)
{
	struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};

	nanosleep(&time, NULL);
}

static UNUSED int64_t now_ms(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec * 1000ll + time.tv_nsec / 1000000;
}

/* Whether the condition comes true in time. It is looked at no more once it has. */
#define eventually(condition)                                                                                           \
	({                                                                                                              \
		int64_t end_ = now_ms(CLOCK_MONOTONIC) + PATIENCE_MS;                                                   \
		int holds_;                                                                                             \
		while (!(holds_ = !!(condition)) && now_ms(CLOCK_MONOTONIC) < end_)                                     \
			sleep_ms(1);                                                                                    \
		holds_;                                                                                                 \
	})

/* A child that runs this and ends. */
static UNUSED pid_t spawn(void (*run)(void))
{
	pid_t child = must(fork());

	if (child == 0) {
		run();
		_exit(0);
	}
	return child;
}

/* Expects that a child ends by itself, without an error. */
static UNUSED void join(pid_t child, const char *what)
{
	int status = -1;

	expect(eventually(waitpid(child, &status, WNOHANG) != 0), "%s does not end", what);
	expect_equal(status, 0, what);
}

static UNUSED uint64_t word(uint64_t seed, uint64_t index)
{
	uint64_t z = (seed << 40) + (index + 1) * 0x9e3779b97f4a7c15ul;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ul;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebul;
	return z ^ (z >> 31);
}

/* Fills memory with a content of its own for each seed. */
static UNUSED void fill(void *memory, size_t bytes, uint64_t seed)
{
	for (size_t i = 0; i < bytes / 8; i++)
		((volatile uint64_t *)memory)[i] = word(seed, i);
}

static UNUSED void expect_filled(void *memory, size_t bytes, uint64_t seed, const char *what)
{
	for (size_t i = 0; i < bytes / 8; i++) {
		uint64_t got = ((volatile uint64_t *)memory)[i];
		if (got != word(seed, i)) {
			complain("%s: byte %zu: %#lx instead of %#lx", what, i * 8, got, word(seed, i));
			return;
		}
	}
}

static UNUSED void expect_zero(void *memory, size_t bytes, const char *what)
{
	for (size_t i = 0; i < bytes / 8; i++)
		if (((volatile uint64_t *)memory)[i]) {
			complain("%s: byte %zu: %#lx instead of 0", what, i * 8, ((uint64_t *)memory)[i]);
			return;
		}
}

static UNUSED void *map(size_t bytes, int protection, int flags, int fd)
{
	void *memory = mmap(NULL, bytes, protection, flags, fd, 0);

	if (memory == MAP_FAILED)
		cannot("mmap");
	return memory;
}

static UNUSED void *map_anonymous(size_t bytes, int sharing)
{
	return map(bytes, PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS, -1);
}

/* Expects that the next read gives exactly this. */
static UNUSED void expect_read(int fd, const char *want, const char *what)
{
	struct pollfd wait = {fd, POLLIN, 0};
	char got[4096] = "";
	ssize_t length;

	if (TEMP_FAILURE_RETRY(poll(&wait, 1, PATIENCE_MS)) != 1) {
		complain("%s: nothing to read", what);
		return;
	}
	length = read(fd, got, sizeof got - 1);
	expect(length == (ssize_t)strlen(want) && memcmp(got, want, length) == 0, "%s: read %zd bytes `%.40s`, not `%.40s`",
	       what, length, got, want);
}

static UNUSED void put(int fd, const char *text)
{
	must(write(fd, text, strlen(text)));
}

int main(int argc, char **argv)
{
	arguments = argv;
	directory = argv[1];
	is_sabotaged = argc > 2 && strcmp(argv[2], "sabotage") == 0;
	set_up();
	is_ready = 1;
	announce("ready", "ready\n");
	while (!told())
		if (busy)
			busy();
		else
			sleep_ms(1);
	if (is_sabotaged)
		sabotage();
	check();
	report();
	return 0;
}

#endif
