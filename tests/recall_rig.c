/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "recall_rig.h"

#include <stdlib.h>

struct pinl_policy recall(enum pinl_then then, unsigned grace_ms)
{
	return (struct pinl_policy){.size = sizeof(struct pinl_policy),
				    .kind = PINL_RECALL,
				    .then = then,
				    .grace_ms = grace_ms};
}

static void open_ctx(struct rig *r, const struct pinl_opts *opts)
{
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring};

	assert_int_equal(pinl_open(opts, &r->ctx), 0);
	assert_int_equal(pinl_device_open(r->ctx, "uring", &arg, &r->dev), 0);
}

struct rig *open_rig(void (*on_event)(const struct pinl_event *, void *))
{
	struct rig *r = calloc(1, sizeof *r);
	struct pinl_opts opts = {.size = sizeof opts, .on_event = on_event, .on_event_arg = r};
	char page[PAGE];

	memset(page, 'D', sizeof page);
	r->summary = opts.summary_fd = memfd_create("summary", 0);
	r->fd = memfd_create("leased", MFD_ALLOW_SEALING);
	r->source = memfd_create("source", 0);
	assert_int_equal(write(r->source, page, PAGE), PAGE);
	assert_int_equal(ftruncate(r->fd, SIZE), 0);
	assert_int_equal(fstat(r->fd, &r->st), 0);
	r->mem = map_alone(SIZE, MAP_SHARED, r->fd);
	assert_ptr_not_equal(r->mem, MAP_FAILED);
	memset(r->mem, 'a', SIZE);
	assert_int_equal(io_uring_queue_init(16, &r->ring, 0), 0);
	open_ctx(r, &opts);
	return r;
}

void reopen(struct rig *r, const struct pinl_opts *opts)
{
	pinl_close(r->ctx);
	open_ctx(r, opts);
}

void reopen_with_uffd_only(struct rig *r)
{
	struct pinl_opts opts = {
		.size = sizeof opts, .sources = PINL_SOURCE_UFFD, .summary_fd = r->summary};

	reopen(r, &opts);
}

void lease(struct rig *r, const struct pinl_policy *policy)
{
	if (pinl_map_range(r->dev, (uintptr_t)r->mem, (uintptr_t)r->mem + SIZE, FLAGS, policy, NULL,
			   &r->lease))
		fail_msg("%s", pinl_error());
}

struct rig *leased(enum pinl_then then, unsigned grace_ms)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = recall(then, grace_ms);

	lease(r, &p);
	return r;
}

void close_rig(struct rig *r)
{
	if (r->ctx)
		pinl_close(r->ctx);
	io_uring_queue_exit(&r->ring);
	munmap(r->mem, SIZE);
	close(r->fd);
	close(r->source);
	close(r->summary);
	free(r);
}

void end_rig(struct rig *r)
{
	pinl_unmap_range(r->lease);
	close_rig(r);
}

void skip_if_it_failed_as_a_whole(const struct rig *r)
{
	struct pinl_lease_info i = {.size = sizeof i};

	assert_int_equal(pinl_lease_info(r->lease, &i), 0);
	if (i.state != PINL_RELEASED)
		return;
	print_message("skip: a ring's buffer on a file and on other memory needs Linux 6.5\n");
	skip();
}

void cut(struct rig *r)
{
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, 0), 0);
	assert_int_equal(ftruncate(r->fd, SIZE), 0);
}

int device_write(struct rig *r, unsigned page)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);
	struct io_uring_cqe *cqe;

	io_uring_prep_read_fixed(sqe, r->source, r->mem + page * PAGE, PAGE, 0,
				 pinl_lease_key(r->lease));
	sqe->user_data = 1;
	io_uring_submit(&r->ring);
	for (;;) {
		uint64_t data;
		int res;

		assert_int_equal(io_uring_wait_cqe(&r->ring, &cqe), 0);
		res = cqe->res;
		data = cqe->user_data;
		io_uring_cqe_seen(&r->ring, cqe);
		if (!pinl_uring_cqe(r->dev, data))
			return res;
	}
}

int count(struct rig *r, enum pinl_event_type type, struct pinl_event *last)
{
	struct pinl_event ev = {.size = sizeof ev};
	int n = 0;

	while (!pinl_next_event(r->ctx, &ev))
		if (ev.type == type) {
			*last = ev;
			n++;
		}
	return n;
}

char file_byte(struct rig *r, off_t at)
{
	char c = '?';

	if (pread(r->fd, &c, 1, at) != 1)
		return '?';
	return c;
}
