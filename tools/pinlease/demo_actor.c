/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who truncates. The second process (second.h) knows nothing of pinlease. It opens the file by its
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
#include <unistd.h>

struct order {
	unsigned serial; /* comes back in the report, so that a late one isn't taken for the next case's
			  */
	off_t size;
	char path[256];
};

static void obey(const void *arg, void *out)
{
	const struct order *order = arg;
	struct demo_report *report = out;
	int fd = open(order->path, O_RDWR | O_CLOEXEC);

	*report = (struct demo_report){.serial = order->serial, .start_ns = tool_now()};
	if (fd < 0 || ftruncate(fd, order->size))
		report->err = -errno;
	report->end_ns = tool_now();
	if (fd >= 0)
		close(fd);
}

const struct second_ops demo_second_ops = {
	.order_size = sizeof(struct order), .report_size = sizeof(struct demo_report), .obey = obey};

static int order_second(struct demo_stage *s, off_t size)
{
	static unsigned serial;
	struct order order = {.serial = ++serial, .size = size};

	memcpy(order.path, s->file.path, sizeof(order.path));
	s->serial = order.serial;
	s->report_fd = second_fd(s->env->second);
	return second_order(s->env->second, &order);
}

/* ------------------------------------------------------------------------- a thread of the holder -- */

struct caller {
	struct pinl_ctx *ctx;
	int fd, report_fd;
};

static void *caller_thread(void *arg)
{
	struct caller *c = arg;
	struct demo_report report = {.start_ns = tool_now()};

	report.err = pinl_ftruncate(c->ctx, c->fd, 0);
	report.end_ns = tool_now();
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
