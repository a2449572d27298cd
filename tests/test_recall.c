/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Recalls through the explicit calls, on a memfd and an io_uring ring: every policy against every
 * operation; partial recalls; two leases on one file; forks; callbacks; the script source; gates.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <linux/falloc.h>
#include <pinlease/pinlease.h>
#include <pinlease/source.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define PAGE  4096ul
#define PAGES 8
#define SIZE  (PAGES * PAGE)
#define FLAGS (PINL_WRITE | PINL_PIN | PINL_COOPERATIVE)

struct rig {
	struct pinl_ctx *ctx;
	struct io_uring ring;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	int fd, source, summary;
	char *mem;
	struct stat st;
};

static struct pinl_policy recall(enum pinl_then then, unsigned grace_ms)
{
	return (struct pinl_policy){.size = sizeof(struct pinl_policy),
				    .kind = PINL_RECALL,
				    .then = then,
				    .grace_ms = grace_ms};
}

static struct rig *open_rig(void (*on_event)(const struct pinl_event *, void *))
{
	struct rig *r = calloc(1, sizeof *r);
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring};
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
	assert_int_equal(pinl_open(&opts, &r->ctx), 0);
	assert_int_equal(pinl_device_open(r->ctx, "uring", &arg, &r->dev), 0);
	return r;
}

static void close_rig(struct rig *r)
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

static void lease(struct rig *r, const struct pinl_policy *policy)
{
	if (pinl_map_range(r->dev, (uintptr_t)r->mem, (uintptr_t)r->mem + SIZE, FLAGS, policy, NULL,
			   &r->lease))
		fail_msg("%s", pinl_error());
}

/* SCRATCH of a part leaves the device pages of the file and others in one buffer of a ring. */
static void skip_if_it_failed_as_a_whole(const struct rig *r)
{
	struct pinl_lease_info i = {.size = sizeof i};

	assert_int_equal(pinl_lease_info(r->lease, &i), 0);
	if (i.state != PINL_RELEASED)
		return;
	print_message("skip: a ring's buffer on a file and on other memory needs Linux 6.5\n");
	skip();
}

/* One device write of a page of 'D'. */
static int device_write(struct rig *r, unsigned page)
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

static int count(struct rig *r, enum pinl_event_type type, struct pinl_event *last)
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

static char file_byte(struct rig *r, off_t at)
{
	char c = '?';

	if (pread(r->fd, &c, 1, at) != 1)
		return '?';
	return c;
}

static void keep_reports_the_orphan(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy keep = {.size = sizeof keep, .kind = PINL_KEEP};
	struct pinl_event ev = {.size = sizeof ev};
	char text[4096] = "", back[PAGE];

	lease(r, &keep);
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, 0), 0);
	assert_int_equal(ftruncate(r->fd, SIZE), 0);
	assert_int_equal(device_write(r, 2), PAGE);
	assert_int_equal(r->mem[2 * PAGE], 0); /* the loss */
	assert_int_equal(count(r, PINL_EV_ORPHAN, &ev), 1);
	assert_int_equal(ev.bytes, SIZE);
	assert_int_equal(ev.file_ino, r->st.st_ino);
	assert_int_equal(pinl_lease_check(r->lease), -ESTALE);
	assert_int_equal(pinl_lease_read(r->lease, 2 * PAGE, PAGE, back), 0); /* the rescue */
	assert_int_equal(back[0], 'D');
	pinl_unmap_range(r->lease);
	assert_int_equal(count(r, PINL_EV_ORPHAN_END, &ev), 1);
	assert_int_equal(ev.bytes, PAGE);
	pinl_close(r->ctx);
	r->ctx = NULL;
	assert_true(pread(r->summary, text, sizeof text - 1, 0) > 0);
	assert_non_null(strstr(text, "changed 4096 bytes"));
	assert_non_null(strstr(text, "bytes 0-32768"));
	close_rig(r);
}

/* R6, R7: outcome by outcome, what the device does after, what the CPU sees, what the file has. */
static void forced_fail(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = recall(PINL_THEN_FAIL, 0);
	struct pinl_event ev = {.size = sizeof ev};

	lease(r, &p);
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, 0), 0);
	assert_int_equal(ftruncate(r->fd, SIZE), 0);
	assert_int_equal(device_write(r, 0), -EFAULT);
	assert_int_equal(r->mem[0], 0);
	assert_int_equal(count(r, PINL_EV_RELEASED, &ev), 1);
	assert_int_equal(ev.outcome, PINL_OUT_FAIL);
	assert_int_equal(pinl_quiesced(r->lease), -EALREADY);
	pinl_unmap_range(r->lease);
	close_rig(r);
}

static void forced_scratch(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = recall(PINL_THEN_SCRATCH, 0);

	lease(r, &p);
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, 0), 0);
	assert_int_equal(ftruncate(r->fd, SIZE), 0);
	assert_int_equal(r->mem[0], 0); /* mapped, no meaning */
	assert_int_equal(device_write(r, 3), PAGE);
	assert_int_equal(r->mem[3 * PAGE], 'D'); /* CPU and device agree */
	assert_int_equal(file_byte(r, 3 * PAGE), 0);
	pinl_unmap_range(r->lease);
	close_rig(r);
}

static void forced_copy(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = recall(PINL_THEN_COPY, 0);

	lease(r, &p);
	r->mem[5 * PAGE] = 'b';
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, 0), 0);
	assert_int_equal(ftruncate(r->fd, SIZE), 0);
	assert_int_equal(r->mem[0], 'a');
	assert_int_equal(r->mem[5 * PAGE], 'b');
	assert_int_equal(device_write(r, 3), PAGE);
	assert_int_equal(r->mem[3 * PAGE], 'D');
	assert_int_equal(r->mem[4 * PAGE], 'a');
	assert_int_equal(file_byte(r, 0), 0);
	assert_int_equal(file_byte(r, 3 * PAGE), 0);
	pinl_unmap_range(r->lease);
	assert_int_equal(r->mem[5 * PAGE], 'b'); /* the copy is the program's */
	close_rig(r);
}

static void part_of_a_lease(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = recall(PINL_THEN_COPY, 0);
	struct pinl_lease_info info = {.size = sizeof info};
	struct pinl_event ev = {.size = sizeof ev};

	lease(r, &p);
	assert_int_equal(pinl_fallocate(r->ctx, r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					2 * PAGE, PAGE),
			 0);
	assert_int_equal(device_write(r, 1), PAGE); /* still the file */
	assert_int_equal(file_byte(r, PAGE), 'D');
	assert_int_equal(device_write(r, 2), PAGE); /* the copy */
	assert_int_equal(file_byte(r, 2 * PAGE), 0);
	assert_int_equal(r->mem[2 * PAGE], 'D');
	pinl_lease_info(r->lease, &info);
	assert_int_equal(info.state, PINL_ACTIVE);
	assert_int_equal(info.detached_bytes, PAGE);
	count(r, PINL_EV_RELEASED, &ev);
	/* The same hole again finds nothing to recall; the rest is recalled in its turn. */
	assert_int_equal(pinl_fallocate(r->ctx, r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					2 * PAGE, PAGE),
			 0);
	assert_int_equal(count(r, PINL_EV_NOTICE, &ev), 0);
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, 0), 0);
	assert_int_equal(ftruncate(r->fd, SIZE), 0);
	assert_int_equal(r->mem[PAGE], 'D');
	assert_int_equal(r->mem[2 * PAGE], 'D');
	assert_int_equal(r->mem[7 * PAGE], 'a');
	assert_int_equal(device_write(r, 7), PAGE);
	assert_int_equal(r->mem[7 * PAGE], 'D');
	assert_int_equal(file_byte(r, 7 * PAGE), 0);
	pinl_lease_info(r->lease, &info);
	assert_int_equal(info.state, PINL_RELEASED);
	assert_int_equal(info.detached_bytes, SIZE);
	pinl_unmap_range(r->lease);
	close_rig(r);
}

static void many_parts(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = recall(PINL_THEN_SCRATCH, 0);

	munmap(r->mem, SIZE);
	assert_int_equal(ftruncate(r->fd, 64 * PAGE), 0);
	r->mem = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	assert_int_equal(pinl_map_range(r->dev, (uintptr_t)r->mem, (uintptr_t)r->mem + 64 * PAGE, FLAGS,
					&p, NULL, &r->lease),
			 0);
	for (int i = 0; i < 32; i++) {
		assert_int_equal(pinl_fallocate(r->ctx, r->fd,
						FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * i * PAGE,
						PAGE),
				 0);
		if (!i)
			skip_if_it_failed_as_a_whole(r);
	}
	for (int i = 0; i < 64; i += 2) {
		assert_int_equal(device_write(r, i), PAGE);
		assert_int_equal(file_byte(r, i * PAGE), 0);
		assert_int_equal(r->mem[i * PAGE], 'D');
	}
	pinl_unmap_range(r->lease);
	munmap(r->mem, 64 * PAGE);
	r->mem = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	close_rig(r);
}

static void refuse_refuses_what_it_names(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = {.size = sizeof p,
				.kind = PINL_REFUSE,
				.refuse = PINL_OPBIT(PINL_OP_TRUNCATE) | PINL_OPBIT(PINL_OP_UNMAP)};
	struct pinl_event ev = {.size = sizeof ev};
	int err;

	lease(r, &p);
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, 0), -EBUSY);
	assert_int_equal(pinl_munmap(r->ctx, r->mem + PAGE, PAGE), -EBUSY);
	assert_int_equal(count(r, PINL_EV_REFUSED, &ev), 2);
	assert_int_equal(ev.op, PINL_OP_UNMAP); /* and of what is refused it says no more than that */
	assert_ptr_equal(ev.start, r->mem + PAGE);
	assert_ptr_equal(ev.end, r->mem + 2 * PAGE);
	assert_int_equal(ev.file_start, PAGE);
	assert_int_equal(ev.file_end, 2 * PAGE);
	assert_int_equal(ev.bytes, PAGE);
	assert_int_equal(file_byte(r, 0), 'a');
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, SIZE), 0); /* takes nothing away */
	assert_int_equal(
		pinl_fallocate(r->ctx, r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE), 0);
	assert_int_equal(count(r, PINL_EV_ORPHAN, &ev), 1); /* not named: as under KEEP */
	pinl_unmap_range(r->lease);
	while (err = pinl_ftruncate(r->ctx, r->fd, 0), err == -EBUSY)
		sched_yield(); /* pinleased's gate has yet to hear of its end */
	assert_int_equal(err, 0);
	close_rig(r);
}

static unsigned refuses_all(void *src, const struct pinl_memory *mem, enum pinl_op op)
{
	return PINL_OPS_FILE & PINL_OPBIT(op) ? PINL_CAN_REFUSE : 0;
}

static int watch_nothing(void *src, const struct pinl_memory *mem)
{
	return 0;
}

static void unwatch_nothing(void *src, const struct pinl_memory *mem)
{
}

static int open_nothing(struct pinl_ctx *ctx, const void *arg, void **src)
{
	return 0;
}

static void close_nothing(void *src)
{
}

/* As pinleased's gate does, before it is told of anything. */
static const struct pinl_source_ops refuser = {.size = sizeof refuser,
					       .name = "refuser",
					       .open = open_nothing,
					       .close = close_nothing,
					       .coverage = refuses_all,
					       .watch = watch_nothing,
					       .unwatch = unwatch_nothing};

/* No event denies it, where nothing tells of such a change. */
static void what_is_refused_is_described_so(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_opts opts = {
		.size = sizeof opts, .sources = PINL_SOURCE_UFFD, .summary_fd = r->summary};
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring};
	struct pinl_policy p = {.size = sizeof p,
				.kind = PINL_REFUSE,
				.refuse = PINL_OPBIT(PINL_OP_TRUNCATE) | PINL_OPBIT(PINL_OP_COLLAPSE)};
	struct pinl_event ev = {.size = sizeof ev};
	char text[2048], *refused;
	unsigned unseen = 0;

	pinl_close(r->ctx);
	assert_int_equal(pinl_open(&opts, &r->ctx), 0);
	assert_int_equal(pinl_source_add(r->ctx, &refuser, NULL), 0);
	assert_int_equal(pinl_device_open(r->ctx, "uring", &arg, &r->dev), 0);
	if (pinl_map_range(r->dev, (uintptr_t)r->mem, (uintptr_t)r->mem + SIZE, PINL_WRITE | PINL_PIN,
			   &p, NULL, &r->lease))
		fail_msg("%s", pinl_error());
	pinl_lease_describe(r->lease, text, sizeof text);
	refused = strstr(text, "; refused: truncate, collapse");
	if (!refused)
		fail_msg("not said to be refused: %s", text);
	*refused = 0;
	assert_null(strstr(strstr(text, "raw changes:"), "truncate"));
	assert_null(strstr(strstr(text, "raw changes:"), "collapse"));
	assert_non_null(strstr(strstr(text, "; not seen:"), "punch"));
	while (!pinl_next_event(r->ctx, &ev))
		if (ev.type == PINL_EV_DEGRADED)
			unseen |= PINL_OPBIT(ev.op);
	assert_int_equal(unseen & p.refuse, 0);
	assert_int_not_equal(unseen & PINL_OPBIT(PINL_OP_PUNCH), 0);
	pinl_unmap_range(r->lease);
	close_rig(r);
}

/* The remedy is that for this memory. */
static void what_cant_be_refused_has_a_remedy(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_opts opts = {
		.size = sizeof opts, .sources = PINL_SOURCE_UFFD, .summary_fd = r->summary};
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring};
	struct pinl_policy p = {.size = sizeof p, .kind = PINL_REFUSE, .refuse = PINL_OPS_ALL};
	uintptr_t m = (uintptr_t)r->mem;

	pinl_close(r->ctx);
	assert_int_equal(pinl_open(&opts, &r->ctx), 0);
	assert_int_equal(pinl_device_open(r->ctx, "uring", &arg, &r->dev), 0);
	assert_int_equal(pinl_map_range(r->dev, m, m + SIZE, PINL_PIN, &p, NULL, &r->lease),
			 -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "PINL_OPS_FILE"));
	assert_non_null(strstr(pinl_error(), ": munmap"));
	assert_null(strstr(pinl_error(), "truncate"));
	p.refuse = PINL_OPS_FILE;
	assert_int_equal(pinl_map_range(r->dev, m, m + SIZE, PINL_PIN, &p, NULL, &r->lease),
			 -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "pinleased's gate refuses"));
	assert_non_null(strstr(pinl_error(), "PINL_SEAL"));
	assert_non_null(strstr(pinl_error(), "truncate, punch, zero, collapse, insert"));
	r->lease = NULL;
	close_rig(r);
}

/* A sealed memfd refuses everybody, by the kernel; pinleased's gate does so before it. */
static void seals_refuse_raw_calls(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = {.size = sizeof p,
				.kind = PINL_REFUSE,
				.refuse = PINL_OPBIT(PINL_OP_TRUNCATE) | PINL_OPBIT(PINL_OP_PUNCH)};

	if (pinl_map_range(r->dev, (uintptr_t)r->mem, (uintptr_t)r->mem + SIZE,
			   PINL_WRITE | PINL_PIN | PINL_SEAL, &p, NULL, &r->lease))
		fail_msg("%s", pinl_error());
	assert_int_equal(ftruncate(r->fd, 0), -1);
	assert_true(errno == EPERM || errno == EBUSY);
	assert_int_equal(fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE), -1);
	assert_int_equal(device_write(r, 0), PAGE);
	assert_int_equal(r->mem[0], 'D');
	pinl_unmap_range(r->lease);
	close_rig(r);
}

/* Every operation by its explicit call, forced at once, then the device must be off the old pages. */
static int do_op(struct rig *r, enum pinl_op op)
{
	void *out;

	switch (op) {
	case PINL_OP_TRUNCATE:
		return pinl_ftruncate(r->ctx, r->fd, 0);
	case PINL_OP_PUNCH:
		return pinl_fallocate(r->ctx, r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
				      SIZE);
	case PINL_OP_UNMAP:
		return pinl_munmap(r->ctx, r->mem, SIZE);
	case PINL_OP_OVERMAP:
		out = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		return pinl_mremap(r->ctx, out, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, r->mem, &out);
	case PINL_OP_REMAP:
		return pinl_mremap(r->ctx, r->mem, SIZE, 2 * SIZE, MREMAP_MAYMOVE, NULL, &out)
			       ?: munmap(out, 2 * SIZE);
	case PINL_OP_REMOVE:
		return pinl_madvise(r->ctx, r->mem, SIZE, MADV_REMOVE);
	default:
		return -ENOSYS;
	}
}

static void every_operation(void **state)
{
	static const enum pinl_op ops[] = {PINL_OP_TRUNCATE, PINL_OP_PUNCH, PINL_OP_UNMAP,
					   PINL_OP_OVERMAP,  PINL_OP_REMAP, PINL_OP_REMOVE};

	for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
		for (int then = PINL_THEN_FAIL; then <= PINL_THEN_COPY; then++) {
			struct rig *r = open_rig(NULL);
			struct pinl_policy p = recall(then, 0);
			struct pinl_event ev = {.size = sizeof ev};
			char *witness = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, r->fd, 0);
			int err, res;

			lease(r, &p);
			err = do_op(r, ops[i]);
			if (err)
				fail_msg("%s then %d: %s", pinl_op_name(ops[i]), then, pinl_error());
			if (ops[i] == PINL_OP_TRUNCATE)
				assert_int_equal(ftruncate(r->fd, SIZE), 0);
			res = device_write(r, 1);
			assert_true(res == PAGE || res == -EFAULT);
			if (then == PINL_THEN_FAIL)
				assert_int_equal(res, -EFAULT);
			else if (ops[i] != PINL_OP_REMAP)
				assert_int_equal(res, PAGE);
			assert_int_not_equal(witness[PAGE], 'D'); /* never the file any more */
			assert_true(count(r, PINL_EV_RELEASED, &ev) >= 1);
			pinl_unmap_range(r->lease);
			munmap(witness, SIZE);
			close_rig(r);
		}
}

struct held {
	struct rig *r;
	int err;
	atomic_bool returned;
};

static void *truncate_it(void *arg)
{
	struct held *h = arg;

	h->err = pinl_ftruncate(h->r->ctx, h->r->fd, 0);
	atomic_store(&h->returned, true);
	return NULL;
}

static void wait_for(struct rig *r, enum pinl_event_type type)
{
	struct pinl_event ev = {.size = sizeof ev};

	for (;;)
		if (!pinl_next_event(r->ctx, &ev)) {
			if (ev.type == type)
				return;
		} else {
			usleep(100);
		}
}

static void holder_in_time(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = recall(PINL_THEN_COPY, 10000);
	struct held h = {.r = r};
	struct pinl_event ev = {.size = sizeof ev};
	pthread_t t;

	lease(r, &p);
	pthread_create(&t, NULL, truncate_it, &h);
	wait_for(r, PINL_EV_NOTICE);
	assert_false(atomic_load(&h.returned));
	assert_int_equal(device_write(r, 0), PAGE); /* still ours, still the file */
	assert_int_equal(file_byte(r, 0), 'D');
	assert_int_equal(pinl_quiesced(r->lease), 0);
	pthread_join(t, NULL);
	assert_int_equal(h.err, 0);
	assert_int_equal(count(r, PINL_EV_FORCED, &ev), 0);
	assert_int_equal(device_write(r, 0), -EFAULT);
	pinl_unmap_range(r->lease);
	close_rig(r);
}

static void unmap_answers_a_notice(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = recall(PINL_THEN_FAIL, 10000);
	struct held h = {.r = r};
	pthread_t t;

	lease(r, &p);
	pthread_create(&t, NULL, truncate_it, &h);
	wait_for(r, PINL_EV_NOTICE);
	pinl_unmap_range(r->lease);
	pthread_join(t, NULL);
	assert_int_equal(h.err, 0);
	close_rig(r);
}

static void no_new_lease_during_a_change(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = recall(PINL_THEN_FAIL, 10000);
	struct held h = {.r = r};
	struct pinl_lease *other;
	pthread_t t;
	char *again = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);

	lease(r, &p);
	pthread_create(&t, NULL, truncate_it, &h);
	wait_for(r, PINL_EV_NOTICE);
	assert_int_equal(pinl_map_range(r->dev, (uintptr_t)again, (uintptr_t)again + SIZE, FLAGS, &p,
					NULL, &other),
			 -EBUSY);
	assert_non_null(strstr(pinl_error(), "under way"));
	pinl_unmap_range(r->lease);
	pthread_join(t, NULL);
	munmap(again, SIZE);
	close_rig(r);
}

static void two_leases_on_one_file(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = recall(PINL_THEN_FAIL, 0), q = recall(PINL_THEN_COPY, 0);
	struct pinl_lease *other;
	char *again = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	struct pinl_event ev = {.size = sizeof ev};

	lease(r, &p);
	assert_int_equal(pinl_map_range(r->dev, (uintptr_t)again, (uintptr_t)again + SIZE, FLAGS, &q,
					NULL, &other),
			 0);
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, 0), 0);
	assert_int_equal(count(r, PINL_EV_RELEASED, &ev), 2);
	assert_int_equal(again[0], 'a');
	pinl_unmap_range(other);
	pinl_unmap_range(r->lease);
	munmap(again, SIZE);
	close_rig(r);
}

/* An unread completion of an earlier device on the same ring says nothing about this one's requests. */
static void a_second_device_on_a_ring(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_opts opts = {.size = sizeof opts, .drain_ms = 5000, .summary_fd = -1};
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring};
	struct pinl_policy p = recall(PINL_THEN_FAIL, 0);
	struct io_uring_sqe *sqe;
	struct pinl_event ev = {.size = sizeof ev};
	char c = 0;
	int fds[2];

	for (int i = 0; i < 3; i++) { /* leaves completions nobody reads */
		lease(r, &p);
		pinl_unmap_range(r->lease);
	}
	pinl_close(r->ctx);
	assert_int_equal(pinl_open(&opts, &r->ctx), 0); /* with time enough on a busy machine */
	assert_int_equal(pinl_device_open(r->ctx, "uring", &arg, &r->dev), 0);
	lease(r, &p);
	assert_int_equal(pipe(fds), 0);
	sqe = io_uring_get_sqe(&r->ring);
	io_uring_prep_read_fixed(sqe, fds[0], r->mem, PAGE, 0, pinl_lease_key(r->lease));
	io_uring_submit(&r->ring);
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, 0), 0);
	assert_int_equal(count(r, PINL_EV_FORCED, &ev), 1);
	if (ev.err == -ETIMEDOUT) {
		print_message(
			"skip: a ring that gives its buffers back at once, as Linux 6.1's doesn't\n");
		skip();
	}
	assert_int_equal(ev.err, 0);
	/* Released is released: the request was cancelled, so its data stays in the pipe. */
	assert_int_equal(write(fds[1], "D", 1), 1);
	assert_int_equal(fcntl(fds[0], F_SETFL, O_NONBLOCK), 0);
	assert_int_equal(read(fds[0], &c, 1), 1);
	assert_int_equal(c, 'D');
	close(fds[0]);
	close(fds[1]);
	pinl_unmap_range(r->lease);
	close_rig(r);
}

/* SCRATCH and COPY move the memory of one device; two on one range would fall apart. */
static void two_devices_on_one_range(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy fail = recall(PINL_THEN_FAIL, 0), copy = recall(PINL_THEN_COPY, 0);
	struct pinl_device *soft;
	struct pinl_lease *other;
	uintptr_t start = (uintptr_t)r->mem, end = start + SIZE;

	assert_int_equal(pinl_device_open(r->ctx, "soft", NULL, &soft), 0);
	lease(r, &fail);
	assert_int_equal(pinl_map_range(soft, start, end, FLAGS, &copy, NULL, &other), -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "another device"));
	assert_int_equal(pinl_map_range(soft, start, end, FLAGS, &fail, NULL, &other), 0);
	pinl_unmap_range(other);
	pinl_unmap_range(r->lease);
	close_rig(r);
}

/* What is mapped where a part of the lease was unmapped is never given to the device. */
static void recycled_addresses_stay_private(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = recall(PINL_THEN_SCRATCH, 0);
	char *mine;

	lease(r, &p);
	assert_int_equal(pinl_munmap(r->ctx, r->mem, 2 * PAGE), 0);
	skip_if_it_failed_as_a_whole(r);
	mine = mmap(r->mem, 2 * PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	assert_ptr_equal(mine, r->mem);
	memset(mine, 'P', 2 * PAGE);
	assert_int_equal(device_write(r, 0), PAGE); /* scratch */
	assert_int_equal(mine[0], 'P');
	assert_int_equal(pinl_fallocate(r->ctx, r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					4 * PAGE, PAGE),
			 0);
	device_write(r, 0);
	assert_int_equal(mine[0], 'P');
	pinl_unmap_range(r->lease);
	close_rig(r);
}

static void a_child_inherits_no_lease(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = recall(PINL_THEN_FAIL, 0);
	struct pinl_lease_info info = {.size = sizeof info};
	int status;
	pid_t pid;

	lease(r, &p);
	pid = fork();
	if (!pid) {
		struct pinl_lease *l;
		struct pinl_event ev = {.size = sizeof ev};

		if (pinl_lease_info(r->lease, &info) != -ESTALE ||
		    pinl_next_event(r->ctx, &ev) != -ESTALE ||
		    pinl_ftruncate(r->ctx, r->fd, 0) != -ESTALE || pinl_quiesced(r->lease) != -ESTALE ||
		    pinl_map_range(r->dev, 0, PAGE, FLAGS, &p, NULL, &l) != -ESTALE ||
		    !strstr(pinl_error(), "fork"))
			_exit(1);
		pinl_unmap_range(r->lease);
		pinl_device_close(r->dev);
		pinl_close(r->ctx);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(device_write(r, 0), PAGE); /* the parent's lease is untouched */
	assert_int_equal(r->mem[0], 'D');
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, 0), 0);
	assert_int_equal(device_write(r, 0), -EFAULT);
	pinl_unmap_range(r->lease);
	close_rig(r);
}

static void on_notice_unmap(const struct pinl_event *ev, void *arg)
{
	struct rig *r = arg;

	if (ev->type == PINL_EV_NOTICE) {
		assert_ptr_equal(ev->cookie, r);
		/* I8: change the leased file from inside the callback, too */
		pinl_fallocate(r->ctx, r->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 100 * PAGE,
			       PAGE);
		pinl_unmap_range(r->lease);
	}
}

static void a_callback_may_call_back(void **state)
{
	struct rig *r = open_rig(on_notice_unmap);
	struct pinl_policy p = recall(PINL_THEN_FAIL, 10000);

	lease(r, &p);
	pinl_lease_set_cookie(r->lease, r);
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, 0), 0);
	close_rig(r);
}

static void close_reports_leaks(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = {.size = sizeof p, .kind = PINL_KEEP};
	struct pinl_counters c = {.size = sizeof c};
	struct pinl_event ev = {.size = sizeof ev};

	lease(r, &p);
	pinl_device_close(r->dev);
	assert_int_equal(count(r, PINL_EV_LEAK, &ev), 1);
	pinl_counters(r->ctx, &c);
	assert_int_equal(c.leaks, 1);
	assert_int_equal(c.leases, 0);
	close_rig(r);
}

static void a_script_recalls(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = recall(PINL_THEN_SCRATCH, 0);
	struct pinl_lease_info info = {.size = sizeof info};
	char script[512];

	lease(r, &p);
	snprintf(script, sizeof script,
		 "# recorded\ntruncate file %lu %lu 0x2000 eof\n\npunch file %lu %lu 0 4096 tbh\n",
		 (unsigned long)r->st.st_dev, (unsigned long)r->st.st_ino, (unsigned long)r->st.st_dev,
		 (unsigned long)r->st.st_ino);
	assert_int_equal(pinl_script_run(r->ctx, script), 0);
	skip_if_it_failed_as_a_whole(r);
	pinl_lease_info(r->lease, &info);
	assert_int_equal(info.detached_bytes, SIZE - PAGE);
	assert_int_equal(pinl_script_run(r->ctx, "truncate va 1"), -EINVAL);
	assert_int_equal(pinl_script_run(r->ctx, "explode va 0 4096"), -EINVAL);
	assert_int_equal(pinl_script_run(r->ctx, "munmap va 4096 0"), -EINVAL);
	pinl_unmap_range(r->lease);
	close_rig(r);
}

/* I4: at rest the counts are zero and the kernel's own table for the ring is empty. */
static void pins_balance(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = recall(PINL_THEN_COPY, 0);
	struct pinl_counters c = {.size = sizeof c};
	char path[64], line[256];
	int buffers = 0;
	FILE *f;

	for (int i = 0; i < 20; i++) {
		lease(r, &p);
		if (i % 2) {
			pinl_ftruncate(r->ctx, r->fd, 0);
			assert_int_equal(ftruncate(r->fd, SIZE), 0);
		}
		pinl_unmap_range(r->lease);
	}
	pinl_counters(r->ctx, &c);
	assert_int_equal(c.leases, 0);
	assert_int_equal(c.bytes, 0);
	assert_int_equal(c.mapped, 20);
	assert_int_equal(c.unmapped, 20);
	assert_int_equal(c.sequence % 2, 0);
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", r->ring.ring_fd);
	f = fopen(path, "r");
	while (fgets(line, sizeof line, f))
		buffers += strstr(line, ": 0x") != NULL;
	fclose(f);
	assert_int_equal(buffers, 0);
	close_rig(r);
}

/* I5 without any source that could tell: found when the lease ends, though every page was touched again.
 */
static void an_untold_orphan_is_found_at_the_end(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_opts opts = {
		.size = sizeof opts, .sources = PINL_SOURCE_UFFD, .summary_fd = r->summary};
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring};
	struct pinl_policy keep = {.size = sizeof keep, .kind = PINL_KEEP};
	struct pinl_counters c = {.size = sizeof c};
	char text[1024] = "";

	pinl_close(r->ctx);
	assert_int_equal(pinl_open(&opts, &r->ctx), 0);
	assert_int_equal(pinl_device_open(r->ctx, "uring", &arg, &r->dev), 0);
	lease(r, &keep);
	assert_int_equal(pinl_lease_read(r->lease, 0, 1, text), 0); /* or none could be found */
	r->mem[0] = 'b';					    /* stores are no changes */
	pinl_unmap_range(r->lease);
	pinl_counters(r->ctx, &c);
	assert_int_equal(c.orphans, 0);
	lease(r, &keep);
	assert_int_equal(ftruncate(r->fd, 2 * PAGE) | ftruncate(r->fd, SIZE), 0);
	memset(r->mem, 'x', SIZE);
	assert_int_equal(device_write(r, 3), PAGE);
	pinl_unmap_range(r->lease);
	pinl_counters(r->ctx, &c);
	assert_int_equal(c.orphans, 1);
	assert_int_equal(c.orphan_bytes, SIZE - 2 * PAGE);
	pinl_close(r->ctx);
	r->ctx = NULL;
	assert_true(pread(r->summary, text, sizeof text - 1, 0) > 0);
	assert_non_null(strstr(text, "nobody told of"));
	close_rig(r);
}

/* I2, I7: a holder that asks for more time than the ceiling doesn't get it. */
static void the_ceiling_cuts_the_grace(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_opts opts = {.size = sizeof opts, .ceiling_ms = 30, .summary_fd = -1};
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring};
	struct pinl_policy p = recall(PINL_THEN_FAIL, 3600 * 1000);
	struct pinl_event ev = {.size = sizeof ev};

	pinl_close(r->ctx);
	assert_int_equal(pinl_open(&opts, &r->ctx), 0);
	assert_int_equal(pinl_device_open(r->ctx, "uring", &arg, &r->dev), 0);
	lease(r, &p);
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, 0), 0); /* nobody quiesces */
	assert_int_equal(count(r, PINL_EV_NOTICE, &ev), 1);
	assert_true(ev.deadline_ns - ev.time_ns <= 30000000);
	pinl_unmap_range(r->lease);
	close_rig(r);
}

struct late_report {
	struct rig *r;
	atomic_bool begun;
	struct pinl_change change;
};

static void nobody_waits(struct pinl_change *change, int err)
{
}

/* A source that has taken a report from the kernel and is slow to hand it in: it gives a lease that
 * doesn't wait for it every chance to be made first. */
static void *report_late(void *arg)
{
	struct late_report *late = arg;
	struct pinl_counters c = {.size = sizeof c};

	pinl_applying_begin(late->r->ctx);
	atomic_store(&late->begun, true);
	for (int i = 0; i < 500 && !c.leases; i++) {
		usleep(100);
		pinl_counters(late->r->ctx, &c);
	}
	late->change = (struct pinl_change){.op = PINL_OP_UNMAP,
					    .can = PINL_CAN_TELL,
					    .source = "test",
					    .start = (uintptr_t)late->r->mem,
					    .end = (uintptr_t)late->r->mem + SIZE,
					    .answer = nobody_waits};
	pinl_change_submit(late->r->ctx, &late->change);
	pinl_applying_end(late->r->ctx);
	return NULL;
}

/* I1's other side: the old report of an unmap must not hit a new lease at the recycled address. */
static void old_reports_miss_new_leases(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = recall(PINL_THEN_FAIL, 1000);
	struct late_report late = {.r = r};
	struct pinl_event ev = {.size = sizeof ev};
	pthread_t t;

	pthread_create(&t, NULL, report_late, &late);
	while (!atomic_load(&late.begun))
		;
	lease(r, &p);
	pthread_join(t, NULL);
	assert_int_equal(count(r, PINL_EV_NOTICE, &ev), 0);
	assert_int_equal(settled_check(r->lease), 0);
	pinl_unmap_range(r->lease);
	close_rig(r);
}

/* Ending leases stays quick when the program doesn't empty its completion queue. */
static void a_full_queue_delays_nothing(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = {.size = sizeof p, .kind = PINL_KEEP};
	struct pinl_counters c = {.size = sizeof c};

	for (int i = 0; i < 200; i++) {
		lease(r, &p);
		pinl_unmap_range(r->lease);
	}
	pinl_counters(r->ctx, &c);
	assert_true(c.drains_unconfirmed > 0); /* and it's said */
	close_rig(r);
}

static void describe_says_the_limits(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = recall(PINL_THEN_COPY, 250);
	char text[2048], cut[16];
	int n;

	lease(r, &p);
	n = pinl_lease_describe(r->lease, text, sizeof text);
	assert_int_equal(n, strlen(text));
	assert_non_null(strstr(text, "RECALL (250 ms, then COPY)"));
	assert_non_null(strstr(text, "not seen: guard"));
	assert_int_equal(pinl_lease_describe(r->lease, cut, sizeof cut), n);
	assert_int_equal(strlen(cut), sizeof cut - 1);
	pinl_unmap_range(r->lease);
	close_rig(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(keep_reports_the_orphan),
		cmocka_unit_test(forced_fail),
		cmocka_unit_test(forced_scratch),
		cmocka_unit_test(forced_copy),
		cmocka_unit_test(part_of_a_lease),
		cmocka_unit_test(many_parts),
		cmocka_unit_test(refuse_refuses_what_it_names),
		cmocka_unit_test(what_is_refused_is_described_so),
		cmocka_unit_test(what_cant_be_refused_has_a_remedy),
		cmocka_unit_test(seals_refuse_raw_calls),
		cmocka_unit_test(every_operation),
		cmocka_unit_test(holder_in_time),
		cmocka_unit_test(unmap_answers_a_notice),
		cmocka_unit_test(no_new_lease_during_a_change),
		cmocka_unit_test(two_leases_on_one_file),
		cmocka_unit_test(a_second_device_on_a_ring),
		cmocka_unit_test(two_devices_on_one_range),
		cmocka_unit_test(recycled_addresses_stay_private),
		cmocka_unit_test(a_child_inherits_no_lease),
		cmocka_unit_test(a_callback_may_call_back),
		cmocka_unit_test(close_reports_leaks),
		cmocka_unit_test(a_script_recalls),
		cmocka_unit_test(pins_balance),
		cmocka_unit_test(an_untold_orphan_is_found_at_the_end),
		cmocka_unit_test(the_ceiling_cuts_the_grace),
		cmocka_unit_test(old_reports_miss_new_leases),
		cmocka_unit_test(a_full_queue_delays_nothing),
		cmocka_unit_test(describe_says_the_limits),
	};

	return cmocka_run_group_tests_name("recall", tests, NULL, NULL);
}
