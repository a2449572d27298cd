/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A command's connection to pinleased: one question, answered at once. */
#include "arbiter.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PATIENCE_MS 10000

static int receive(int sock, union pl_message *m)
{
	struct pollfd p = {.fd = sock, .events = POLLIN};
	const char *why = "";
	int fd, err;

	while ((err = pl_message_receive(sock, m, &fd, &why)) == -EAGAIN)
		if (poll(&p, 1, PATIENCE_MS) == 0)
			return -ETIMEDOUT;
	if (fd >= 0)
		close(fd);
	return err;
}

static int hello(int sock)
{
	union pl_message m;
	int err;

	pl_message_init(&m, PL_HELLO);
	m.hello.version = PL_PROTO_VERSION;
	m.hello.role = PL_ROLE_COMMAND;
	strcpy(m.hello.name, "pinlease");
	err = pl_message_send(sock, &m, -1);
	if (!err)
		err = receive(sock, &m);
	if (!err && m.head.type != PL_WELCOME)
		err = m.head.type == PL_REPLY && m.reply.err ? m.reply.err : -EPROTO;
	return err;
}

static int say(int err, const char *path)
{
	const char *help = "";

	if (err == -ENOENT || err == -ECONNREFUSED)
		help = "; is pinleased running?";
	else if (err == -EPROTO || err == -EPROTONOSUPPORT)
		help = "; install the same release of pinlease and pinleased";
	else if (err == -ETIMEDOUT)
		help = "; is pinleased stopped?";
	if (err)
		fprintf(stderr, "pinlease: can't ask pinleased at %s: %s%s\n", path, strerror(-err),
			help);
	return err;
}

static int ask(int sock, const struct pl_list_msg *filter,
	       int (*each)(const struct pl_entry_msg *entry, void *arg), void *arg)
{
	union pl_message m;
	int err;

	pl_message_init(&m, PL_LIST);
	m.list.pid = filter->pid;
	m.list.file_dev = filter->file_dev;
	m.list.file_ino = filter->file_ino;
	err = pl_message_send(sock, &m, -1);
	while (!err && !(err = receive(sock, &m)) && m.head.type == PL_ENTRY)
		err = each(&m.entry, arg);
	if (!err)
		err = m.head.type == PL_REPLY ? m.reply.err : -EPROTO;
	return err;
}

int arbiter_list(const struct pl_list_msg *filter,
		 int (*each)(const struct pl_entry_msg *entry, void *arg), void *arg)
{
	const char *given = getenv(PL_PROTO_ENV), *path = given && *given ? given : PL_PROTO_PATH;
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int sock, err = 0;

	if (strlen(path) >= sizeof addr.sun_path)
		return say(-ENAMETOOLONG, path);
	strcpy(addr.sun_path, path);
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return say(-errno, path);
	if (connect(sock, (void *)&addr, sizeof addr))
		err = -errno;
	if (!err)
		err = hello(sock);
	if (!err)
		err = ask(sock, filter, each, arg);
	close(sock);
	return say(err, path);
}
