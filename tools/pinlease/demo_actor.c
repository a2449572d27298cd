/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who truncates. The second process is forked before this one has a ring, a context or a thread: it
 * shares nothing with the holder but a socket and knows nothing of pinlease. It opens the file by its
 * name and truncates it by a plain system call. The other kind of actor is a thread of the holder that
 * asks first, by pinl_ftruncate().
 *
 * Both write one struct demo_report to a descriptor that the holder polls; when they die instead, that
 * descriptor reads as ended.
 */
#include "demo.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

struct demo_second {
	pid_t pid;
	int socket;
	unsigned serial;
};

struct order {
	unsigned serial; /* comes back in the report, so that a late one isn't taken for the next case's
			  */
	off_t size;
	char path[256];
};

static void obey(const struct order *order, struct demo_report *report)
{
	int fd = open(order->path, O_RDWR | O_CLOEXEC);

	*report = (struct demo_report){.serial = order->serial, .start_ns = demo_now()};
	if (fd < 0 || ftruncate(fd, order->size))
		report->err = -errno;
	report->end_ns = demo_now();
	if (fd >= 0)
		close(fd);
}

static void second_process(int socket)
{
	struct demo_report report;
	struct order order;

	while (recv(socket, &order, sizeof(order), 0) == sizeof(order)) {
		obey(&order, &report);
		if (send(socket, &report, sizeof(report), MSG_NOSIGNAL) != sizeof(report))
			break;
	}
	_exit(0);
}

int demo_second_start(struct demo_second **out)
{
	struct demo_second *second = malloc(sizeof(*second));
	int sockets[2];

	if (!second || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets)) {
		free(second);
		return -errno;
	}
	second->serial = 0;
	second->socket = sockets[0];
	second->pid = fork();
	if (second->pid == 0) {
		close(sockets[0]);
		second_process(sockets[1]);
	}
	close(sockets[1]);
	if (second->pid < 0) {
		int err = -errno;

		close(sockets[0]);
		free(second);
		return err;
	}
	*out = second;
	return 0;
}

void demo_second_stop(struct demo_second *second)
{
	close(second->socket);
	waitpid(second->pid, NULL, 0);
	free(second);
}

static int order_second(struct demo_stage *s, off_t size)
{
	struct demo_second *second = s->env->second;
	struct order order = {.serial = ++second->serial, .size = size};

	memcpy(order.path, s->file.path, sizeof(order.path));
	s->serial = order.serial;
	s->report_fd = second->socket;
	return send(second->socket, &order, sizeof(order), MSG_NOSIGNAL) == sizeof(order) ? 0 : -errno;
}

/* ------------------------------------------------------------------------- a thread of the holder -- */

struct caller {
	struct pinl_ctx *ctx;
	int fd, report_fd;
};

static void *caller_thread(void *arg)
{
	struct caller *c = arg;
	struct demo_report report = {.start_ns = demo_now()};

	report.err = pinl_ftruncate(c->ctx, c->fd, 0);
	report.end_ns = demo_now();
	if (write(c->report_fd, &report, sizeof(report)) < 0)
		report.err = -errno;
	close(c->report_fd);
	free(c);
	return NULL;
}

static int start_caller(struct demo_stage *s)
{
	struct caller *c = malloc(sizeof(*c));
	int ends[2];

	if (!c || pipe2(ends, O_CLOEXEC)) {
		free(c);
		return -errno;
	}
	*c = (struct caller){s->ctx, s->file.fd, ends[1]};
	errno = pthread_create(&s->caller, NULL, caller_thread, c);
	if (errno) {
		close(ends[0]);
		close(ends[1]);
		free(c);
		return -errno;
	}
	s->report_fd = ends[0];
	return 0;
}

int demo_actor_truncate(struct demo_stage *s)
{
	return s->plan->actor == BY_PROCESS ? order_second(s, 0) : start_caller(s);
}

/* Growing takes nothing from anyone, so no recall is waited for. */
int demo_actor_grow(struct demo_stage *s)
{
	struct demo_report report;
	int err;

	if (s->plan->actor == BY_CALL)
		return pinl_ftruncate(s->ctx, s->file.fd, DEMO_SIZE);
	err = order_second(s, DEMO_SIZE);
	while (!err) {
		if (read(s->report_fd, &report, sizeof(report)) != sizeof(report))
			return -EPIPE;
		if (report.serial == s->serial)
			return report.err;
	}
	return err;
}

void demo_actor_end(struct demo_stage *s)
{
	if (s->plan->actor == BY_PROCESS || s->report_fd < 0)
		return;
	pthread_join(s->caller, NULL);
	close(s->report_fd);
}
