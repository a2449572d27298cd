/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "told_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void say(struct asker *c, union pl_message *m)
{
	m->head.serial = ++c->serial;
	assert_int_equal(pl_message_send(c->sock, m, -1), 0);
}

static void hear(struct asker *c, union pl_message *m)
{
	struct pollfd p = {.fd = c->sock, .events = POLLIN};
	const char *why;
	int fd, err;

	while ((err = pl_message_receive(c->sock, m, &fd, &why)) == -EAGAIN)
		poll(&p, 1, -1);
	assert_int_equal(err, 0);
}

/* The next message of that type. */
static void hear_one(struct asker *c, union pl_message *m, unsigned type)
{
	do
		hear(c, m);
	while (m->head.type != type);
}

static void join(struct asker *c, const struct arbiter *a, unsigned role)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	union pl_message m;

	*c = (struct asker){.sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
	snprintf(addr.sun_path, sizeof addr.sun_path, "%s", a->socket);
	assert_int_equal(connect(c->sock, (void *)&addr, sizeof addr), 0);
	pl_message_init(&m, PL_HELLO);
	m.hello.version = PL_PROTO_VERSION;
	m.hello.role = role;
	say(c, &m);
	hear_one(c, &m, PL_WELCOME);
}

void asker_open(struct asker *c, const struct arbiter *a)
{
	join(c, a, PL_ROLE_COMMAND);
}

void asker_truncates(struct asker *c, const struct arbiter *a)
{
	int file = open(a->file, O_WRONLY | O_CLOEXEC);
	union pl_message m;

	join(c, a, PL_ROLE_SUPERVISOR);
	pl_message_init(&m, PL_CHANGE);
	m.head.serial = ++c->serial;
	m.change.op = PINL_OP_TRUNCATE;
	m.change.pid = m.change.tid = getpid();
	assert_int_equal(pl_message_send(c->sock, &m, file), 0);
	close(file);
}

bool asker_goes_on(struct asker *c)
{
	struct pollfd p = {.fd = c->sock, .events = POLLIN};
	union pl_message m;
	const char *why;
	int fd, err;

	do {
		poll(&p, 1, -1);
		err = pl_message_receive(c->sock, &m, &fd, &why);
	} while (err == -EAGAIN || (!err && m.head.type != PL_REPLY));
	return !err && !m.reply.err;
}

void asker_close(struct asker *c)
{
	close(c->sock);
}

void asker_watch(struct asker *c)
{
	union pl_message m;

	pl_message_init(&m, PL_WATCH);
	say(c, &m);
	hear_one(c, &m, PL_REPLY);
	assert_int_equal(m.reply.err, 0);
}

struct pl_event_msg asker_count(struct asker *c, unsigned what, unsigned counts[64])
{
	union pl_message m;

	do {
		hear_one(c, &m, PL_EVENT);
		counts[m.event.what % 64]++;
	} while (m.event.what != what);
	return m.event;
}

struct pl_event_msg asker_event(struct asker *c, unsigned what)
{
	unsigned counts[64] = {0};

	return asker_count(c, what, counts);
}

struct pl_status_msg asker_status(struct asker *c)
{
	struct pl_status_msg status;
	union pl_message m;

	pl_message_init(&m, PL_ASK_STATUS);
	say(c, &m);
	hear_one(c, &m, PL_STATUS);
	status = m.status;
	hear_one(c, &m, PL_REPLY);
	return status;
}

struct pl_entry_msg asker_entry(struct asker *c)
{
	struct pl_entry_msg entry = {.lease = 0};
	union pl_message m;

	pl_message_init(&m, PL_LIST);
	say(c, &m);
	do {
		hear(c, &m);
		if (m.head.type == PL_ENTRY)
			entry = m.entry;
	} while (m.head.type != PL_REPLY);
	return entry;
}

void asker_recall(struct asker *c, pid_t pid)
{
	union pl_message m;

	pl_message_init(&m, PL_RECALL_LEASES);
	m.recall.pid = pid;
	say(c, &m);
}
