/*
 * A process whose memory a page server fills: it does what CRIU and a restored task do together. It maps areas, arms them
 * with a userfaultfd, sends that over the server's socket in CRIU's protocol, closes its own copy, and then does to its
 * memory what it is told on standard input, one command a line, several separated by ';'. Each line is answered with
 * "ok", or with what was found wrong.
 *
 * Numbers are pages. The content of page p of the image is known to both sides: see word() and is_zero().
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define WORDS (PAGE / 8)
#define MAX_AREAS 32

static uint64_t seed;
static int uffd = -1, server = -1;
static char complaint[256];
static struct { uint64_t start, pages; } areas[MAX_AREAS];
static int area_count;

static uint64_t word(uint64_t page, uint64_t index)
{
	uint64_t z = seed + (page * WORDS + index + 1) * 0x9e3779b97f4a7c15ul;
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ul;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebul;
	return z ^ (z >> 31);
}

static int is_zero(uint64_t page)
{
	return page / 8 % 4 == 3;
}

static int complain(const char *what, uint64_t page, uint64_t got, uint64_t want)
{
	snprintf(complaint, sizeof complaint, "bad %s: page %#lx holds %#lx, not %#lx", what, page, got, want);
	return 0;
}

static int check_page(uint64_t at, uint64_t image)
{
	volatile uint64_t *words = (uint64_t *)(at * PAGE);
	/* From the middle, so that the first access is not always a page's first word. */
	for (uint64_t i = 0; i < WORDS; i++) {
		uint64_t index = (i + 77) % WORDS;
		uint64_t want = is_zero(image) ? 0 : word(image, index);
		uint64_t got = words[index];
		if (got != want)
			return complain("content", at, got, want);
	}
	return 1;
}

static int check(uint64_t at, uint64_t pages, uint64_t image)
{
	for (uint64_t i = 0; i < pages; i++)
		if (!check_page(at + i, image + i))
			return 0;
	return 1;
}

static int check_zero(uint64_t at, uint64_t pages)
{
	for (uint64_t p = at; p < at + pages; p++)
		for (uint64_t i = 0; i < WORDS; i++)
			if (((volatile uint64_t *)(p * PAGE))[i])
				return complain("zero", p, ((uint64_t *)(p * PAGE))[i], 0);
	return 1;
}

struct reader { uint64_t at, pages, image, step; int ok; };

/* Each thread starts elsewhere and goes round. */
static void *read_around(void *arg)
{
	struct reader *r = arg;
	r->ok = 1;
	for (uint64_t i = 0; i < r->pages && r->ok; i++) {
		uint64_t p = (r->step * r->pages / 8 + i) % r->pages;
		r->ok = check_page(r->at + p, r->image + p);
	}
	return NULL;
}

static int check_threads(int count, uint64_t at, uint64_t pages, uint64_t image)
{
	pthread_t threads[64];
	struct reader readers[64];
	int ok = 1;
	for (int i = 0; i < count; i++) {
		readers[i] = (struct reader){at, pages, image, i % 8, 0};
		pthread_create(&threads[i], NULL, read_around, &readers[i]);
	}
	for (int i = 0; i < count; i++) {
		pthread_join(threads[i], NULL);
		ok &= readers[i].ok;
	}
	return ok;
}

static uint64_t nanoseconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ul + t.tv_nsec;
}

static int compare_times(const void *a, const void *b)
{
	uint64_t x = *(uint64_t *)a, y = *(uint64_t *)b;
	return x < y ? -1 : x > y;
}

/* Touches every step-th page and tells how long that took: median, 99th percentile and maximum, in microseconds. */
static int time_touches(uint64_t at, uint64_t count, uint64_t step)
{
	static uint64_t took[65536];
	for (uint64_t i = 0; i < count; i++) {
		uint64_t before = nanoseconds();
		(void)*(volatile uint64_t *)((at + i * step) * PAGE);
		took[i] = nanoseconds() - before;
	}
	qsort(took, count, sizeof *took, compare_times);
	snprintf(complaint, sizeof complaint, "took %lu %lu %lu", took[count / 2] / 1000, took[count * 99 / 100] / 1000,
		 took[count - 1] / 1000);
	return 0;
}

static void connect_server(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	strncpy(address.sun_path, path, sizeof address.sun_path - 1);
	server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (connect(server, (struct sockaddr *)&address, sizeof address)) {
		perror("connect");
		exit(2);
	}
}

static int send_word(int32_t value)
{
	return send(server, &value, sizeof value, MSG_NOSIGNAL) == sizeof value;
}

static int send_descriptor(int fd)
{
	char byte = 0, control[CMSG_SPACE(sizeof fd)] = {0};
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
				 .msg_controllen = sizeof control};
	struct cmsghdr *c = CMSG_FIRSTHDR(&message);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(c), &fd, sizeof fd);
	return sendmsg(server, &message, MSG_NOSIGNAL) == 1;
}

/* CRIU's features: fork, remap, remove and unmap events. */
static int arm(uint64_t features)
{
	uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_api api = {.api = UFFD_API, .features = features};
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		return 0;
	for (int i = 0; i < area_count; i++) {
		struct uffdio_register r = {.range = {areas[i].start * PAGE, areas[i].pages * PAGE},
					    .mode = UFFDIO_REGISTER_MODE_MISSING};
		if (ioctl(uffd, UFFDIO_REGISTER, &r))
			return 0;
	}
	return 1;
}

static int map(uint64_t at, uint64_t pages)
{
	return mmap((void *)(at * PAGE), pages * PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED;
}

/* Forks, checks in the child what the rest of the line says, and waits for it. */
static int run_line(char *line);

static int fork_and_run(char *rest)
{
	fflush(stdout);
	pid_t child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, 9);
		int ok = run_line(rest ? rest : "");
		if (!ok) {
			printf("%s\n", complaint);
			fflush(stdout);
		}
		_exit(ok ? 0 : 1);
	}
	int status;
	if (child < 0 || waitpid(child, &status, 0) != child)
		return complain("fork", 0, errno, 0);
	return status == 0 ? 1 : complain("child", 0, status, 0);
}

/* Forks until stopped by the command's count; each child reads a few pages and the parent gives some up. */
static int fork_storm(uint64_t rounds, uint64_t at, uint64_t pages, uint64_t image)
{
	for (uint64_t r = 0; r < rounds; r++) {
		pid_t child = fork();
		if (child == 0) {
			prctl(PR_SET_PDEATHSIG, 9);
			for (uint64_t i = 0; i < 16; i++) {
				uint64_t p = (r * 16 + i) * 37 % pages;
				if (!check_page(at + p, image + p))
					_exit(1);
			}
			_exit(0);
		}
		int status;
		if (waitpid(child, &status, 0) != child || status)
			return complain("storm", r, status, 0);
	}
	return 1;
}

/*
 * Forks without waiting, up to 8 at a time; each child does something else to the memory it has just inherited: runs
 * another program, ends at once, unmaps everything, moves it, gives it up, writes to it, or only looks.
 */
static int chaos(uint64_t rounds, uint64_t at, uint64_t pages, uint64_t image)
{
	int running = 0, status, ok = 1;
	for (uint64_t r = 0; r < rounds; r++) {
		pid_t child = fork();
		if (child == 0) {
			uint64_t far = at + 0x100000 + r % 8 * pages * 2, some = r * 13 % (pages - 8);
			prctl(PR_SET_PDEATHSIG, 9);
			switch (r % 7) {
			case 0: execl("/bin/true", "true", NULL); _exit(1);
			case 1: _exit(0);
			case 2: _exit(munmap((void *)(at * PAGE), pages * PAGE) != 0);
			case 3:
				if (mremap((void *)(at * PAGE), pages * PAGE, (pages + 16) * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
					   (void *)(far * PAGE)) == MAP_FAILED)
					_exit(1);
				_exit(!(check(far + some, 8, image + some) && check_zero(far + pages, 16)));
			case 4:
				if (madvise((void *)((at + some) * PAGE), 8 * PAGE, MADV_DONTNEED))
					_exit(1);
				_exit(!check_zero(at + some, 8));
			case 5:
				memset((void *)((at + some) * PAGE), 1, 8 * PAGE);
				_exit(!check(at + (some + 16) % (pages - 8), 1, image + (some + 16) % (pages - 8)));
			default: _exit(!check(at + some, 8, image + some));
			}
		}
		if (child < 0)
			return complain("fork", r, errno, 0);
		if (++running == 8) {
			while (running && wait(&status) > 0) {
				running--;
				if (status)
					ok = complain("chaos", r, status, 0);
			}
			if (!ok)
				return 0;
		}
	}
	while (wait(&status) > 0)
		if (status)
			ok = complain("chaos", rounds, status, 0);
	return ok;
}

/* Gives up each page after looking at it: each REMOVE stops copies for a moment. */
static int drop_each(uint64_t at, uint64_t pages, uint64_t image)
{
	for (uint64_t p = 0; p < pages; p++) {
		if (!check_page(at + p, image + p))
			return 0;
		madvise((void *)((at + p) * PAGE), PAGE, MADV_DONTNEED);
		if (!check_zero(at + p, 1))
			return 0;
	}
	return 1;
}

struct dropper { uint64_t at, pages, image; int ok; };
static void *drop_thread(void *arg)
{
	struct dropper *d = arg;
	d->ok = drop_each(d->at, d->pages, d->image);
	return NULL;
}

static int run_command(char *line)
{
	uint64_t a = 0, b = 0, c = 0, d = 0;
	char name[32] = "";
	sscanf(line, "%31s %li %li %li %li", name, &a, &b, &c, &d);
#define IS(command) (!strcmp(name, command))
	if (IS("")) return 1;
	if (IS("map")) {
		areas[area_count].start = a;
		areas[area_count++].pages = b;
		return map(a, b);
	}
	if (IS("remap-fresh")) return map(a, b);
	if (IS("arm")) return arm(0x4e);
	if (IS("arm-deaf")) return arm(0);
	if (IS("pid")) return send_word(a);
	if (IS("send")) {
		int ok = send_descriptor(uffd);
		close(uffd);
		return ok;
	}
	if (IS("send-stdin")) return send_descriptor(0);
	if (IS("finish")) return send(server, "FTSR", 4, MSG_NOSIGNAL) == 4 && !close(server);
	if (IS("hangup")) return !close(server);
	if (IS("check")) return check(a, b, c);
	if (IS("zero")) return check_zero(a, b);
	if (IS("threads")) return check_threads(a, b, c, d);
	if (IS("time")) return time_touches(a, b, c);
	if (IS("move")) /* from, pages, to, new pages */
		return mremap((void *)(a * PAGE), b * PAGE, d * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
			      (void *)(c * PAGE)) == (void *)(c * PAGE);
	if (IS("grow")) return mremap((void *)(a * PAGE), b * PAGE, c * PAGE, 0) == (void *)(a * PAGE);
	if (IS("dontneed")) return !madvise((void *)(a * PAGE), b * PAGE, MADV_DONTNEED);
	if (IS("wipeonfork")) return !madvise((void *)(a * PAGE), b * PAGE, MADV_WIPEONFORK);
	if (IS("dontfork")) return !madvise((void *)(a * PAGE), b * PAGE, MADV_DONTFORK);
	if (IS("unmap")) return !munmap((void *)(a * PAGE), b * PAGE);
	if (IS("protect")) return !mprotect((void *)(a * PAGE), b * PAGE, c);
	if (IS("fill")) return !!memset((void *)(a * PAGE), c, b * PAGE);
	if (IS("filled")) { /* every byte of b pages from a is c */
		for (uint64_t p = a; p < a + b; p++)
			for (uint64_t i = 0; i < PAGE; i++)
				if (((volatile uint8_t *)(p * PAGE))[i] != (uint8_t)c)
					return complain("filled", p, ((uint8_t *)(p * PAGE))[i], c);
		return 1;
	}
	if (IS("chaos")) return chaos(a, b, c, d);
	if (IS("storm")) return fork_storm(a, b, c, d);
	if (IS("drop-each")) {
		/* pages a .. a+b of image c, by d threads */
		pthread_t threads[16];
		struct dropper droppers[16];
		int ok = 1;
		for (uint64_t i = 0; i < d; i++) {
			droppers[i] = (struct dropper){a + i * (b / d), b / d, c + i * (b / d), 0};
			pthread_create(&threads[i], NULL, drop_thread, &droppers[i]);
		}
		for (uint64_t i = 0; i < d; i++) {
			pthread_join(threads[i], NULL);
			ok &= droppers[i].ok;
		}
		return ok;
	}
	if (IS("join")) {
		int status;
		while (wait(&status) > 0)
			if (status)
				return complain("child", 0, status, 0);
		return 1;
	}
	if (IS("sleep")) return !usleep(a * 1000);
	if (IS("exec")) return execl("/bin/true", "true", NULL);
	return complain("command", 0, 0, 0);
}

static int run_line(char *line)
{
	while (line) {
		char *next = strchr(line, ';');
		if (next)
			*next++ = 0;
		while (*line == ' ')
			line++;
		if (!strncmp(line, "fork", 4))
			return fork_and_run(next);
		/* Like fork, but the parent goes on with its next line. */
		if (!strncmp(line, "spawn", 5)) {
			if (fork() == 0) {
				prctl(PR_SET_PDEATHSIG, 9);
				_exit(run_line(next) ? 0 : 1);
			}
			return 1;
		}
		/* What goes wrong without words goes wrong with its number. */
		*complaint = 0;
		if (!run_command(line)) {
			if (!*complaint)
				snprintf(complaint, sizeof complaint, "failed %s: %s", line, strerror(errno));
			return 0;
		}
		line = next;
	}
	return 1;
}

int main(int argc, char **argv)
{
	static char line[4096];
	if (argc != 3)
		return 2;
	prctl(PR_SET_PDEATHSIG, 9);
	seed = strtoull(argv[2], NULL, 0);
	connect_server(argv[1]);
	while (fgets(line, sizeof line, stdin)) {
		line[strcspn(line, "\n")] = 0;
		printf("%s\n", run_line(line) ? "ok" : complaint);
		fflush(stdout);
	}
	return 0;
}
