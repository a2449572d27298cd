/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What systemd is for pinleased: it has the socket, passes it on, and keeps the descriptors that
 * pinleased stores (sd_listen_fds(3), sd_pid_notify_with_fds(3)). A process of its own with one thread,
 * so that starting pinleased again takes no longer because the measuring process is large.
 */
#include "arbiter.h"

#include <errno.h>
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
#include <sys/wait.h>
#include <unistd.h>

#define FIRST	    3 /* SD_LISTEN_FDS_START */
#define KEPT	    8
#define ASIDE	    100
#define PATIENCE_MS 120000

struct keeper {
	const char *dir;
	const char *const *argv;
	int listening, notify, n;
	int fd[KEPT];
	char name[KEPT][32];
	pid_t pid;
};

static int bound(const char *dir, const char *name, int type)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int sock = must(socket(AF_UNIX, type | SOCK_CLOEXEC, 0), "socket");

	if (snprintf(addr.sun_path, sizeof addr.sun_path, "%s/%s", dir, name) >=
	    (int)sizeof addr.sun_path)
		fail("%s: too long for a socket", dir);
	must(bind(sock, (void *)&addr, sizeof addr), addr.sun_path);
	return sock;
}

/* pinleased begins with no table kept, so none is ever taken back. */
static void hear(struct keeper *k, const char *text, int fd)
{
	const char *at = strstr(text, "FDNAME=");

	if (fd < 0)
		return;
	if (!strstr(text, "FDSTORE=1") || !at || k->n == KEPT) {
		close(fd); /* a barrier: closed when all before has been heard */
		return;
	}
	sscanf(at, "FDNAME=%31s", k->name[k->n]);
	k->fd[k->n++] = fd;
}

static void receive(struct keeper *k, char *text, size_t size)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {text, size - 1};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = &control,
			   .msg_controllen = sizeof control};
	ssize_t n = must(recvmsg(k->notify, &m, MSG_CMSG_CLOEXEC), "recvmsg");
	int fd = -1;

	text[n] = 0;
	if (CMSG_FIRSTHDR(&m))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
	hear(k, text, fd);
}

static void until_ready(struct keeper *k)
{
	struct pollfd p = {.fd = k->notify, .events = POLLIN};
	uint64_t until = now_ns() + PATIENCE_MS * 1000000ull;
	char text[512] = "";

	while (!strstr(text, "READY=1")) {
		if (poll(&p, 1, 1000) == 1)
			receive(k, text, sizeof text);
		else if (waitpid(k->pid, NULL, WNOHANG) == k->pid || now_ns() > until)
			fail("pinleased doesn't start");
	}
}

static void pass_on(const struct keeper *k)
{
	char names[KEPT * 33 + 32] = "pinleased.socket", number[16], path[160];
	int log;

	for (int i = 0; i < k->n; i++) /* out of the way first */
		must(fcntl(k->fd[i], F_DUPFD, ASIDE + 1 + i), "dup");
	must(dup2(k->listening, ASIDE), "dup");
	snprintf(path, sizeof path, "%s/log", k->dir);
	log = must(open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600), path);
	dup2(log, STDOUT_FILENO);
	dup2(log, STDERR_FILENO);
	dup2(ASIDE, FIRST);
	for (int i = 0; i < k->n; i++) {
		dup2(ASIDE + 1 + i, FIRST + 1 + i);
		strcat(strcat(names, ":"), k->name[i]);
	}
	close_range(FIRST + 1 + k->n, ~0u, 0);
	snprintf(number, sizeof number, "%d", getpid());
	setenv("LISTEN_PID", number, 1);
	snprintf(number, sizeof number, "%d", 1 + k->n);
	setenv("LISTEN_FDS", number, 1);
	setenv("LISTEN_FDNAMES", names, 1);
	setenv("FDSTORE", "8", 1);
	snprintf(path, sizeof path, "%s/ready", k->dir);
	setenv("NOTIFY_SOCKET", path, 1);
}

static void launch(struct keeper *k)
{
	k->pid = must(fork(), "fork");
	if (!k->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pass_on(k);
		execv(k->argv[0], (char **)k->argv);
		_exit(127);
	}
	until_ready(k);
}

/* Of how many leases its log says that it goes on with them. */
static unsigned resumed(const struct keeper *k)
{
	char path[160], line[512];
	unsigned n = 0;
	FILE *f;

	snprintf(path, sizeof path, "%s/log", k->dir);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "pinleased: goes on with %u leases", &n) == 1)
			break;
	if (f)
		fclose(f);
	return n;
}

static void end(struct keeper *k)
{
	int status = 0;

	if (!k->pid)
		return;
	kill(k->pid, SIGTERM);
	waitpid(k->pid, &status, 0);
	if (status)
		fail("pinleased ended with %#x; its log is in %s", status, k->dir);
}

void keeper_live(const char *dir, const char *const *argv, int from)
{
	struct keeper k = {.dir = dir, .argv = argv};
	char order;

	signal(SIGPIPE, SIG_IGN);
	k.notify = bound(dir, "ready", SOCK_DGRAM);
	k.listening = bound(dir, "socket", SOCK_SEQPACKET | SOCK_NONBLOCK);
	must(listen(k.listening, 128), "listen");
	while (read(from, &order, 1) == 1) {
		struct keeper_reply reply = {.began = now_ns()};

		if (order == 'K') {
			kill(k.pid, SIGKILL);
			waitpid(k.pid, NULL, 0);
		}
		launch(&k);
		reply.ready = now_ns();
		reply.pid = k.pid;
		reply.resumed = resumed(&k);
		if (write(from, &reply, sizeof reply) != sizeof reply)
			break;
	}
	end(&k);
	_exit(0);
}
