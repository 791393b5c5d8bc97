/*
 * A netlink socket with a port of its own.
 * The port is what it was, and the kernel answers requests after the restore.
 */
#include "program.h"
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

static int fd;
static struct sockaddr_nl address;

void set_up(void)
{
	address = (struct sockaddr_nl){.nl_family = AF_NETLINK, .nl_pid = 0x40000000 | getpid()};
	fd = must(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
	must(bind(fd, (struct sockaddr *)&address, sizeof address));
}

void sabotage(void)
{
	int other = must(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));

	must(dup2(other, fd));
}

void check(void)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg interface;
	} request = {{sizeof request, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0}, {0}};
	struct sockaddr_nl now = {0};
	socklen_t length = sizeof now;
	char answer[8192];

	must(getsockname(fd, (struct sockaddr *)&now, &length));
	expect_equal(now.nl_pid, address.nl_pid, "port");
	must(send(fd, &request, sizeof request, 0));
	expect(recv(fd, answer, sizeof answer, 0) > (ssize_t)sizeof(struct nlmsghdr), "no answer");
	expect_equal(((struct nlmsghdr *)answer)->nlmsg_type, RTM_NEWLINK, "kind of the answer");
}
