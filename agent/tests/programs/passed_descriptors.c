/*
 * Descriptors in flight: a file, a pipe and a socket, sent through a Unix socket and not received yet.
 * They are received after the restore, and lead to the same files, with their offsets.
 */
#include "program.h"
#include <sys/socket.h>

#define PASSED 3

static int channel[2], file, ends[2];

void set_up(void)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(PASSED * sizeof(int))];
	} control = {0};
	struct iovec bytes = {"x", 1};
	struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	int passed[PASSED];

	must(socketpair(AF_UNIX, SOCK_STREAM, 0, channel));
	must(pipe(ends));
	file = must(open(path("file"), O_RDWR | O_CREAT, 0600));
	put(file, "0123456789");
	must(lseek(file, 4, SEEK_SET));
	passed[0] = file;
	passed[1] = ends[0];
	passed[2] = channel[0];
	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(sizeof passed);
	memcpy(CMSG_DATA(&control.header), passed, sizeof passed);
	must(sendmsg(channel[0], &message, 0));
	must(close(ends[0]));
	put(ends[1], "through the pipe");
}

void sabotage(void)
{
	char byte;

	must(read(channel[1], &byte, 1));
}

void check(void)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(PASSED * sizeof(int))];
	} control = {0};
	char byte;
	struct iovec bytes = {&byte, 1};
	struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	int passed[PASSED];

	if (recvmsg(channel[1], &message, MSG_DONTWAIT) != 1 || control.header.cmsg_len != CMSG_LEN(sizeof passed)) {
		complain("the descriptors are not there");
		return;
	}
	memcpy(passed, CMSG_DATA(&control.header), sizeof passed);
	expect_equal(lseek(passed[0], 0, SEEK_CUR), 4, "offset of the passed file");
	must(lseek(passed[0], 7, SEEK_SET));
	expect_equal(lseek(file, 0, SEEK_CUR), 7, "offset of the file it was passed as");
	expect_read(passed[1], "through the pipe", "passed pipe");
	put(passed[2], "through the socket");
	expect_read(channel[1], "through the socket", "passed socket");
}
