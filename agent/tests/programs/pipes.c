/*
 * Pipes with data in flight: one filled and half emptied all the time, one of a larger size, one whose writer is
 * closed and one whose reader is. No byte is lost or doubled, and sizes, flags and ends are what they were.
 */
#include "program.h"

static int moving[2], large[2], ended[2], broken[2];
static uint64_t written, taken;

void set_up(void)
{
	char page[PAGE];

	must(pipe2(moving, O_NONBLOCK));
	must(pipe(large));
	must(fcntl(large[1], F_SETPIPE_SZ, 256 * 1024));
	for (int i = 0; i < 40; i++) {
		fill(page, PAGE, i);
		must(write(large[1], page, PAGE));
	}
	must(pipe(ended));
	put(ended[1], "last words");
	must(close(ended[1]));
	must(pipe(broken));
	must(close(broken[0]));
	signal(SIGPIPE, SIG_IGN);
}

void busy(void)
{
	uint64_t number;

	for (int i = 0; i < 7; i++)
		if (write(moving[1], &written, sizeof written) == sizeof written)
			written++;
	for (int i = 0; i < 5; i++)
		if (read(moving[0], &number, sizeof number) == sizeof number)
			expect_equal(number, taken++, "number from the pipe");
}

void sabotage(void)
{
	char byte;

	busy();
	must(read(moving[0], &byte, 1));
	must(read(large[0], &byte, 1));
	must(read(ended[0], &byte, 1));
}

void check(void)
{
	char page[PAGE], byte;
	uint64_t number;

	expect_equal(fcntl(moving[0], F_GETFL) & O_NONBLOCK, O_NONBLOCK, "flag of the reading end");
	while (read(moving[0], &number, sizeof number) == sizeof number)
		if (number != taken++) {
			complain("number %lu comes after %lu", number, taken - 1);
			break;
		}
	expect_equal(taken, written, "numbers taken from the pipe");
	expect_equal(fcntl(large[0], F_GETPIPE_SZ), 256 * 1024, "size of the large pipe");
	for (int i = 0; i < 40; i++) {
		expect_equal(read(large[0], page, PAGE), PAGE, "bytes from the large pipe");
		expect_filled(page, PAGE, i, "page from the large pipe");
	}
	expect_read(ended[0], "last words", "pipe without a writer");
	expect_equal(read(ended[0], &byte, 1), 0, "end of the pipe without a writer");
	expect(write(broken[1], "x", 1) < 0 && errno == EPIPE, "a pipe without a reader takes bytes");
}
