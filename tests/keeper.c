/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "keeper.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define FIRST	3 /* SD_LISTEN_FDS_START */
#define LONG_MS 120000

static int bound(const char *dir, const char *name, int type, const char *variable)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int sock = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

	snprintf(addr.sun_path, sizeof addr.sun_path, "%s/%s", dir, name);
	assert_int_equal(bind(sock, (void *)&addr, sizeof addr), 0);
	setenv(variable, addr.sun_path, 1);
	return sock;
}

void keeper_open(struct keeper *k, const char *dir)
{
	k->n = 0;
	k->notify = bound(dir, "ready", SOCK_DGRAM, "NOTIFY_SOCKET");
	k->listening = bound(dir, "socket", SOCK_SEQPACKET | SOCK_NONBLOCK, "PINLEASE_SOCKET");
	assert_int_equal(listen(k->listening, 128), 0);
}

void keeper_close(struct keeper *k)
{
	while (k->n)
		close(k->fd[--k->n]);
	close(k->notify);
	close(k->listening);
}

static void forget(struct keeper *k, const char *name)
{
	for (int i = 0; i < k->n; i++)
		if (!strcmp(k->name[i], name)) {
			close(k->fd[i]);
			k->n--;
			memmove(k->fd + i, k->fd + i + 1, (k->n - i) * sizeof *k->fd);
			memmove(k->name + i, k->name + i + 1, (k->n - i) * sizeof *k->name);
			i--;
		}
}

static void hear(struct keeper *k, const char *text, int fd)
{
	const char *at = strstr(text, "FDNAME=");
	char name[32] = "";

	if (at)
		sscanf(at, "FDNAME=%31s", name);
	if (strstr(text, "FDSTOREREMOVE=1"))
		forget(k, name);
	if (strstr(text, "FDSTORE=1") && fd >= 0) {
		assert_true(k->n < KEEPER_FDS);
		strcpy(k->name[k->n], name);
		k->fd[k->n++] = fd;
	} else if (fd >= 0) { /* a barrier: closed when all before has been heard */
		close(fd);
	}
}

static void until_ready(struct keeper *k)
{
	struct pollfd p = {.fd = k->notify, .events = POLLIN};
	char text[512];

	do {
		union {
			struct cmsghdr head;
			char room[CMSG_SPACE(sizeof(int))];
		} control = {0};
		struct iovec iov = {text, sizeof text - 1};
		struct msghdr m = {.msg_iov = &iov,
				   .msg_iovlen = 1,
				   .msg_control = &control,
				   .msg_controllen = sizeof control};
		ssize_t n;
		int fd = -1;

		assert_int_equal(poll(&p, 1, LONG_MS), 1);
		n = recvmsg(k->notify, &m, MSG_CMSG_CLOEXEC);
		assert_true(n > 0);
		text[n] = 0;
		if (m.msg_controllen && CMSG_FIRSTHDR(&m))
			memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
		hear(k, text, fd);
	} while (!strstr(text, "READY=1"));
}

static void pass_on(const struct keeper *k)
{
	char names[KEEPER_FDS * 33 + 32] = "pinleased.socket", number[16];

	for (int i = 0; i < k->n; i++) /* out of the way first */
		assert_true(fcntl(k->fd[i], F_DUPFD, 100 + i) == 100 + i);
	assert_int_equal(dup2(k->listening, 99), 99);
	assert_int_equal(dup2(99, FIRST), FIRST);
	for (int i = 0; i < k->n; i++) {
		assert_int_equal(dup2(100 + i, FIRST + 1 + i), FIRST + 1 + i);
		strcat(strcat(names, ":"), k->name[i]);
	}
	close_range(FIRST + 1 + k->n, ~0u, 0);
	snprintf(number, sizeof number, "%d", getpid());
	setenv("LISTEN_PID", number, 1);
	snprintf(number, sizeof number, "%d", 1 + k->n);
	setenv("LISTEN_FDS", number, 1);
	setenv("LISTEN_FDNAMES", names, 1);
	setenv("FDSTORE", "8", 1);
}

pid_t keeper_launch(struct keeper *k, const char *const *options)
{
	const char *argv[16] = {getenv("PINLEASED")};
	pid_t pid;

	for (int i = 0; options && options[i]; i++)
		argv[1 + i] = options[i];
	assert_non_null(argv[0]);
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pass_on(k);
		execv(argv[0], (char **)argv);
		_exit(127);
	}
	until_ready(k);
	return pid;
}
