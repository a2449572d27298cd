/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The decoder of messages under any bytes: what it takes is a message that the table has, and nothing is
 * left open. An input is a byte for the number of descriptors, then the packet.
 * By libFuzzer: `make fuzz`; by the generator of test_wire.c, which needs no clang: `make check`.
 */
#include "fuzz_wire.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/wire.h"

#define MOST_FDS 253

static int pair[2] = {-1, -1}, null = -1, lowest;

/* The figures that must balance: the next descriptor is the one it was before. */
static int next_fd(void)
{
	int fd = dup(null);

	close(fd);
	return fd;
}

static void must(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "fuzz_wire: %s\n", what);
	abort();
}

static void prepare(void)
{
	if (null >= 0)
		return;
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	must(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), "no socket pair");
	lowest = next_fd();
}

static size_t size_of(unsigned type)
{
	switch (type) {
#define X(name, number, type, fds)                                                                      \
	case number:                                                                                    \
		return sizeof(type);
		PL_MESSAGES(X)
#undef X
	}
	return 0;
}

static int fds_of(unsigned type)
{
	switch (type) {
#define X(name, number, type, fds)                                                                      \
	case number:                                                                                    \
		return fds;
		PL_MESSAGES(X)
#undef X
	}
	return -1;
}

/* Said in other words than wire.c's. */
static void must_be_good(const union pl_message *m, size_t len, int n_fds)
{
	must(len && len == size_of(m->head.type) && len == m->head.size, "a size is not checked");
	must(n_fds == fds_of(m->head.type), "the number of descriptors is not checked");
	must(!m->head.flags, "flags are not checked");
	if (m->head.type == PL_HELLO)
		must(strnlen(m->hello.name, sizeof m->hello.name) < sizeof m->hello.name, "name");
	if (m->head.type == PL_LEASE)
		must(strnlen(m->lease.device, sizeof m->lease.device) < sizeof m->lease.device,
		     "device");
	if (m->head.type == PL_REPLY)
		must(strnlen(m->reply.text, sizeof m->reply.text) < sizeof m->reply.text, "text");
	if (m->head.type == PL_NOTICE)
		must(strnlen(m->notice.source, sizeof m->notice.source) < sizeof m->notice.source,
		     "source");
	must(strcmp(pl_message_name(m->head.type), "?") != 0, "a type without a name");
}

/* A heap block of the packet's very size, so that a byte read beyond it is seen. */
static int check(const uint8_t *packet, size_t len, int n_fds)
{
	void *copy = malloc(len ? len : 1);
	const char *why = NULL;
	int err;

	memcpy(copy, packet, len);
	err = pl_message_check(copy, len, n_fds, &why);
	must(err == 0 || err == -EPROTO, "neither a message nor none");
	must(why && (!err || *why), "no reason");
	if (!err)
		must_be_good(copy, len, n_fds);
	free(copy);
	return err;
}

static bool send_packet(const uint8_t *packet, size_t len, int n_fds)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(MOST_FDS * sizeof(int))] = {0};
	struct iovec iov = {(void *)packet, len};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	struct cmsghdr *c = (void *)control;

	if (n_fds) {
		msg.msg_control = control;
		msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		for (int i = 0; i < n_fds; i++)
			memcpy(CMSG_DATA(c) + i * sizeof(int), &null, sizeof(int));
	}
	return sendmsg(pair[0], &msg, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0;
}

static void receive(const uint8_t *packet, size_t len, int n_fds, int expected)
{
	union pl_message m;
	const char *why;
	int fd, err;

	if (!send_packet(packet, len, n_fds))
		return; /* larger than any packet */
	err = pl_message_receive(pair[1], &m, &fd, &why);
	must(err == (len ? expected : -EPIPE), "received, it is another message");
	must(err || (fd >= 0) == (n_fds > 0), "its descriptor is lost");
	must(!err || fd < 0, "no message, but a descriptor");
	if (fd >= 0)
		close(fd);
	must(next_fd() == lowest, "a descriptor is left open");
	must(pl_message_receive(pair[1], &m, &fd, &why) == -EAGAIN && fd < 0, "half of it is left");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	int n_fds;

	prepare();
	if (!len)
		return 0;
	n_fds = data[0] > MOST_FDS ? MOST_FDS : data[0];
	receive(data + 1, len - 1, n_fds, check(data + 1, len - 1, n_fds));
	return 0;
}
