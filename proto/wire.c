/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "proto/wire.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_FDS 4

struct entry {
	uint16_t type;
	size_t size;
	int fds;
	const char *name;
};

static const struct entry table[] = {
#define X(name, number, type, fds) {number, sizeof(type), fds, #name},
	PL_MESSAGES(X)
#undef X
};

#define X(name, number, type, fds) _Static_assert(sizeof(type) % 8 == 0, "no holes at the end");
PL_MESSAGES(X)
#undef X

static const struct entry *find(unsigned type)
{
	for (size_t i = 0; i < sizeof table / sizeof *table; i++)
		if (table[i].type == type)
			return &table[i];
	return NULL;
}

void pl_message_init(union pl_message *m, enum pl_type type)
{
	memset(m, 0, sizeof *m);
	m->head.type = type;
	m->head.size = find(type)->size;
}

const char *pl_message_name(unsigned type)
{
	const struct entry *e = find(type);

	return e ? e->name : "?";
}

static bool ended(const char *s, size_t len)
{
	return memchr(s, 0, len);
}

static bool strings_end(const union pl_message *m)
{
	switch (m->head.type) {
	case PL_HELLO:
		return ended(m->hello.name, sizeof m->hello.name);
	case PL_LEASE:
		return ended(m->lease.device, sizeof m->lease.device);
	case PL_NOTICE:
		return ended(m->notice.source, sizeof m->notice.source);
	case PL_ENTRY:
		return ended(m->entry.device, sizeof m->entry.device) &&
		       ended(m->entry.program, sizeof m->entry.program) &&
		       ended(m->entry.source, sizeof m->entry.source) &&
		       ended(m->entry.path, sizeof m->entry.path);
	case PL_EVENT:
		return ended(m->event.source, sizeof m->event.source) &&
		       ended(m->event.device, sizeof m->event.device) &&
		       ended(m->event.program, sizeof m->event.program) &&
		       ended(m->event.path, sizeof m->event.path);
	case PL_STATUS:
		return ended(m->status.version, sizeof m->status.version);
	case PL_SOURCE:
		return ended(m->source.text, sizeof m->source.text);
	case PL_REPLY:
		return ended(m->reply.text, sizeof m->reply.text);
	default:
		return true;
	}
}

int pl_message_check(const void *buf, size_t len, int n_fds, const char **why)
{
	const union pl_message *m = buf;
	const struct entry *e;

	*why = "shorter than a header";
	if (len < sizeof m->head)
		return -EPROTO;
	*why = "its size is not that of the packet";
	if (m->head.size != len)
		return -EPROTO;
	*why = "there is no such type";
	e = find(m->head.type);
	if (!e)
		return -EPROTO;
	*why = "not the size of its type";
	if (len != e->size)
		return -EPROTO;
	*why = "flags that aren't known";
	if (m->head.flags)
		return -EPROTO;
	*why = "too few or too many descriptors";
	if (n_fds != e->fds)
		return -EPROTO;
	*why = "a string without end";
	return strings_end(m) ? 0 : -EPROTO;
}

int pl_packet_send(int sock, const void *what, size_t size, int fd)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec iov = {(void *)what, size};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	struct cmsghdr *c;
	ssize_t n;

	if (fd >= 0) {
		msg.msg_control = control;
		msg.msg_controllen = sizeof control;
		c = CMSG_FIRSTHDR(&msg);
		*c = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd),
				      .cmsg_level = SOL_SOCKET,
				      .cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(c), &fd, sizeof fd);
	}
	do
		n = sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

int pl_message_send(int sock, const union pl_message *m, int fd)
{
	int err = pl_packet_send(sock, m, m->head.size, fd);

	return err == -ENOBUFS ? -EAGAIN : err;
}

/* Takes the descriptors out; all but the first are closed. Returns how many there were. */
static int take_fds(struct msghdr *msg, int *fd)
{
	int fds[MAX_FDS], n, all = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof *fds;
		memcpy(fds, CMSG_DATA(c), n * sizeof *fds);
		for (int i = 0; i < n; i++)
			if (all++ == 0)
				*fd = fds[i];
			else
				close(fds[i]);
	}
	return all;
}

int pl_message_receive(int sock, union pl_message *m, int *fd, const char **why)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(MAX_FDS * sizeof(int))];
	struct iovec iov = {m, sizeof *m};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control,
			     .msg_controllen = sizeof control};
	int n_fds, err = 0;
	ssize_t n;

	*fd = -1;
	*why = "";
	do
		n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == ECONNRESET ? -EPIPE : -errno;
	n_fds = take_fds(&msg, fd);
	if (!n)
		err = -EPIPE;
	else if (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
		err = -EPROTO, *why = "larger than any message";
	else
		err = pl_message_check(m, n, n_fds, why);
	if (err && *fd >= 0) {
		close(*fd);
		*fd = -1;
	}
	return err;
}
