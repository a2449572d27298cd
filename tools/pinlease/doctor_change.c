/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The operations, as plain system calls, and who does them. Operations on a file are done by a second
 * process that opens the file anew, those on addresses by a thread of this one: nobody else can.
 * A thread that is held may not allocate, so it makes its call and writes its report, no more.
 */
#include "doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#ifndef FALLOC_FL_INSERT_RANGE
#include <linux/falloc.h>
#endif

#define ON_FILE(op) (PINL_OPS_FILE & PINL_OPBIT(op))

static int change_file(int fd, enum pinl_op op, off_t size, off_t unit)
{
	int r = -1;

	if (fd < 0)
		return -EBADF;
	errno = EINVAL;
	if (op == PINL_OP_TRUNCATE)
		r = ftruncate(fd, 0);
	else if (op == PINL_OP_PUNCH)
		r = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, size);
	else if (op == PINL_OP_ZERO)
		r = fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, size);
	else if (op == PINL_OP_COLLAPSE)
		r = fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, unit);
	else if (op == PINL_OP_INSERT)
		r = fallocate(fd, FALLOC_FL_INSERT_RANGE, 0, unit);
	return r ? -errno : 0;
}

static int advise(const struct doctor_sample *s, enum pinl_op op)
{
	int advice = op == PINL_OP_DONTNEED ? MADV_DONTNEED
		     : op == PINL_OP_FREE   ? MADV_FREE
		     : op == PINL_OP_REMOVE ? MADV_REMOVE
					    : MADV_GUARD_INSTALL;

	return madvise(s->map, s->size, advice) ? -errno : 0;
}

static int change_mapping(const struct doctor_sample *s, enum pinl_op op)
{
	void *at = s->map;

	if (op == PINL_OP_UNMAP && munmap(s->map, s->size))
		return -errno;
	if (op == PINL_OP_OVERMAP)
		at = mmap(s->map, s->size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	else if (op == PINL_OP_REMAP)
		at = mremap(s->map, s->size, s->size, MREMAP_MAYMOVE | MREMAP_FIXED, s->elsewhere);
	else if (op != PINL_OP_UNMAP)
		return advise(s, op);
	return at == MAP_FAILED ? -errno : 0;
}

int doctor_change(const struct doctor_sample *s, enum pinl_op op)
{
	if (ON_FILE(op))
		return change_file(s->fd, op, (off_t)s->size, (off_t)s->unit);
	return change_mapping(s, op);
}

void doctor_changed(struct doctor_sample *s, enum pinl_op op)
{
	if (op == PINL_OP_UNMAP || op == PINL_OP_REMAP)
		s->map = NULL;
}

/* -------------------------------------------------------------------------------- somebody else -- */

struct order {
	unsigned serial;
	enum pinl_op op;
	off_t size, unit;
	char path[64];
};

static void obey(const void *arg, void *out)
{
	const struct order *o = arg;
	struct doctor_report *report = out;
	int fd = open(o->path, O_RDWR | O_CLOEXEC);

	*report = (struct doctor_report){.serial = o->serial};
	report->err = fd < 0 ? -errno : change_file(fd, o->op, o->size, o->unit);
	report->end_ns = tool_now();
	if (fd >= 0)
		close(fd);
}

const struct second_ops doctor_second_ops = {
	.order_size = sizeof(struct order), .report_size = sizeof(struct doctor_report), .obey = obey};

static void *thread(void *arg)
{
	struct doctor_actor *a = arg;
	struct doctor_report report = {.serial = a->serial};

	report.err = a->result = doctor_change(a->sample, a->op);
	report.end_ns = tool_now();
	if (write(a->pipe[1], &report, sizeof(report)) < 0)
		a->result = -errno;
	return NULL;
}

int doctor_actor_start(struct doctor_actor *a, struct doctor_sample *s, enum pinl_op op)
{
	struct order order = {
		.serial = ++a->serial, .op = op, .size = (off_t)s->size, .unit = (off_t)s->unit};

	a->sample = s;
	a->op = op;
	a->fd = ON_FILE(op) ? second_fd(a->second) : a->pipe[0];
	if (ON_FILE(op)) {
		snprintf(order.path, sizeof(order.path), "/proc/%d/fd/%d", getpid(), s->fd);
		return second_order(a->second, &order);
	}
	a->has_thread = !pthread_create(&a->thread, NULL, thread, a);
	return a->has_thread ? 0 : -EAGAIN;
}

int doctor_actor_wait(struct doctor_actor *a, int timeout_ms, struct doctor_report *report)
{
	uint64_t until = tool_now() + (uint64_t)timeout_ms * 1000000u;
	struct pollfd p = {.fd = a->fd, .events = POLLIN};

	do {
		if (poll(&p, 1, timeout_ms) <= 0)
			continue;
		if (read(a->fd, report, sizeof(*report)) != (ssize_t)sizeof(*report))
			return -EPIPE;
		if (report->serial == a->serial)
			return 0;
	} while (tool_now() < until);
	return -EAGAIN;
}

void doctor_actor_end(struct doctor_actor *a)
{
	if (!a->has_thread)
		return;
	pthread_join(a->thread, NULL);
	a->has_thread = false;
	if (!a->result)
		doctor_changed(a->sample, a->op);
}
