/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A command's connection to pinleased. */
#include "arbiter.h"

#include <argp.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common.h"
#include "left.h"

static int receive(int sock, union pl_message *m, int patience_ms)
{
	struct pollfd p = {.fd = sock, .events = POLLIN};
	const char *why = "";
	int fd, err;

	while ((err = pl_message_receive(sock, m, &fd, &why)) == -EAGAIN)
		if (poll(&p, 1, patience_ms) == 0)
			return -ETIMEDOUT;
	if (fd >= 0)
		close(fd);
	return err;
}

static int say_hello(int sock, enum pl_role role)
{
	union pl_message m;

	pl_message_init(&m, PL_HELLO);
	m.hello.version = PL_PROTO_VERSION;
	m.hello.role = role;
	strcpy(m.hello.name, "pinlease");
	return pl_message_send(sock, &m, -1);
}

const char *arbiter_path(void)
{
	const char *given = getenv(PL_PROTO_ENV);

	return given && *given ? given : PL_PROTO_PATH;
}

int arbiter_connect(enum pl_role role, int flags)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	const char *path = arbiter_path();
	int sock, err = 0;

	if (strlen(path) >= sizeof addr.sun_path)
		return -ENAMETOOLONG;
	strcpy(addr.sun_path, path);
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | flags, 0);
	if (sock < 0)
		return -errno;
	if (connect(sock, (void *)&addr, sizeof addr))
		err = -errno;
	if (!err)
		err = say_hello(sock, role);
	if (!err || err == -EPIPE) /* refused: why is to be read */
		return sock;
	close(sock);
	return err;
}

static const char *help_for(int err)
{
	switch (err) {
	case -ENOENT:
	case -ECONNREFUSED:
		return "; start pinleased (systemctl enable --now pinleased.socket), or say by "
		       "$" PL_PROTO_ENV " where it listens";
	case -EPROTO:
	case -EPROTONOSUPPORT:
		return "; install the same release of pinlease and pinleased";
	case -ETIMEDOUT:
		return "; it may be stopped: continue it (kill -CONT), or start it anew";
	case -EPIPE:
		return "; pinleased has ended, or has ended the connection: try again";
	case -EACCES:
	case -ENAMETOOLONG:
	case -ENOTDIR:
	case -EPROTOTYPE:
		return "; say by $" PL_PROTO_ENV " where it listens";
	}
	return "";
}

static void say_what_is_left(void)
{
	char text[2048], *rest = text, *line;

	left_gates(text, sizeof text);
	while ((line = strsep(&rest, "\n")))
		if (*line)
			fprintf(stderr, "pinlease: %s\n", line);
}

static int say(struct arbiter *a, int err)
{
	if (!err)
		return 0;
	snprintf(a->why, sizeof a->why, "can't ask pinleased at %s: %s%s", a->path, strerror(-err),
		 help_for(err));
	if (!a->quiet)
		fprintf(stderr, "pinlease: %s\n", a->why);
	if (!a->quiet && (err == -ENOENT || err == -ECONNREFUSED))
		say_what_is_left();
	return err;
}

void arbiter_close(struct arbiter *a)
{
	if (a->sock >= 0)
		close(a->sock);
	a->sock = -1;
}

int arbiter_next(struct arbiter *a, union pl_message *m, int patience_ms)
{
	int err = receive(a->sock, m, patience_ms);

	return err == -ETIMEDOUT ? err : say(a, err);
}

static int of_reply(struct arbiter *a, const struct pl_reply *reply, uint64_t *value)
{
	if (!reply->err) {
		if (value)
			*value = reply->value;
		return 0;
	}
	snprintf(a->why, sizeof a->why, "%s", *reply->text ? reply->text : strerror(-reply->err));
	if (!a->quiet)
		fprintf(stderr, "pinlease: %s\n", a->why);
	return reply->err;
}

/* A refusal may stand behind the end of the connection: then the first look gets only that. */
static int welcome(struct arbiter *a)
{
	union pl_message m;
	int err = receive(a->sock, &m, ARBITER_PATIENCE_MS);

	if (err == -EPIPE)
		err = receive(a->sock, &m, ARBITER_PATIENCE_MS);
	if (!err && m.head.type == PL_REPLY && m.reply.err)
		return of_reply(a, &m.reply, NULL);
	return say(a, !err && m.head.type != PL_WELCOME ? -EPROTO : err);
}

int arbiter_open(struct arbiter *a)
{
	int err;

	a->path = arbiter_path();
	a->sock = arbiter_connect(PL_ROLE_COMMAND, 0);
	err = a->sock < 0 ? say(a, a->sock) : welcome(a);
	if (err)
		arbiter_close(a);
	return err;
}

/* `shown`: a descriptor that goes along, or -1. */
static int ask(struct arbiter *a, const union pl_message *request, int shown,
	       int (*each)(const union pl_message *m, void *arg), void *arg, int patience_ms,
	       uint64_t *value)
{
	union pl_message m;
	int err = pl_message_send(a->sock, request, shown);

	while (!err && !(err = receive(a->sock, &m, patience_ms)) && m.head.type != PL_REPLY)
		if (!each)
			err = -EPROTO;
		else if (each(&m, arg)) /* which has said why */
			return -ECANCELED;
	return err ? say(a, err) : of_reply(a, &m.reply, value);
}

int arbiter_ask(struct arbiter *a, const union pl_message *request,
		int (*each)(const union pl_message *m, void *arg), void *arg, int patience_ms,
		uint64_t *value)
{
	return ask(a, request, -1, each, arg, patience_ms, value);
}

int arbiter_cover(struct arbiter *a, int fd, uint64_t *value)
{
	union pl_message m;

	pl_message_init(&m, PL_COVER);
	return ask(a, &m, fd, NULL, NULL, ARBITER_PATIENCE_MS, value);
}

int arbiter_list(const struct pl_list_msg *filter, int (*each)(const union pl_message *m, void *arg),
		 void *arg)
{
	struct arbiter a = {0};
	union pl_message m;
	int err = arbiter_open(&a);

	if (err)
		return err;
	pl_message_init(&m, PL_LIST);
	m.list.pid = filter->pid;
	m.list.file_dev = filter->file_dev;
	m.list.file_ino = filter->file_ino;
	err = arbiter_ask(&a, &m, each, arg, ARBITER_PATIENCE_MS, NULL);
	arbiter_close(&a);
	return err;
}

int32_t arbiter_pid(const char *arg, struct argp_state *state)
{
	uint64_t pid;

	if (tool_number(arg, INT32_MAX, &pid) || !pid)
		argp_error(state, "\"%s\" is no process", arg);
	return (int32_t)pid;
}

void arbiter_file(const char *path, uint64_t *dev, uint64_t *ino, struct argp_state *state)
{
	struct stat st;

	if (stat(path, &st))
		argp_error(state, "%s: %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode))
		argp_error(state, "%s: not a regular file, and no other can have leases", path);
	*dev = st.st_dev;
	*ino = st.st_ino;
}
