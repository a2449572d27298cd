/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The rig of the contract tests; see contract_rig.h. */
#include "contract_rig.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include <pinlease/device.h>

uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

void assert_filled(const char *what, const char *buf, char c, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (buf[i] != c)
			fail_msg("%s: byte %zu is %#x, not %#x", what, i, buf[i] & 255, c & 255);
}

int is_uring(const struct rig *r)
{
	return !strcmp(r->f->kind, "uring");
}

/* ------------------------------------------------------------------------------------- transfers -- */

int reap(struct rig *r)
{
	struct io_uring_cqe *cqe;
	uint64_t tag;
	int res;

	do {
		assert_int_equal(io_uring_wait_cqe(&r->ring, &cqe), 0);
		tag = cqe->user_data;
		res = cqe->res;
		io_uring_cqe_seen(&r->ring, cqe);
	} while (pinl_uring_cqe(r->dev, tag));
	return res;
}

static int uring_page(struct rig *r, const struct pinl_addr *a, void *buf, int write)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);
	void *at = (void *)(uintptr_t)a->addr;
	int res;

	if (write) {
		assert_int_equal(pwrite(r->bounce, buf, PAGE, 0), PAGE);
		io_uring_prep_read_fixed(sqe, r->bounce, at, PAGE, 0, a->key);
	} else {
		io_uring_prep_write_fixed(sqe, r->bounce, at, PAGE, 0, a->key);
	}
	sqe->user_data = 1;
	assert_int_equal(io_uring_submit(&r->ring), 1);
	res = reap(r);
	if (res < 0)
		return res;
	assert_int_equal(res, PAGE);
	if (!write)
		assert_int_equal(pread(r->bounce, buf, PAGE, 0), PAGE);
	return 0;
}

/* The device moves whole pages [first, first + n), each by its own address; stops at the first error. */
int dev_io(struct rig *r, unsigned first, unsigned n, char *buf, int write)
{
	int err = 0;

	for (unsigned i = 0; i < n && !err; i++, buf += PAGE)
		err = is_uring(r) ? uring_page(r, &r->addrs[first + i], buf, write)
				  : pinl_soft_dma(r->dev, r->addrs[first + i].addr, buf, PAGE, write);
	return err;
}

int dev_write(struct rig *r, unsigned first, unsigned n, char c)
{
	char buf[SIZE];

	memset(buf, c, sizeof buf);
	return dev_io(r, first, n, buf, 1);
}

/* -------------------------------------------------------------------------------------- witness -- */

void witness_start(struct rig *r)
{
	struct iovec iov = {r->va, SIZE};

	assert_int_equal(io_uring_queue_init(4, &r->witness, 0), 0);
	assert_int_equal(io_uring_register_buffers(&r->witness, &iov, 1), 0);
	r->witnessing = 1;
}

static void witness_io(struct rig *r, char *buf, int write)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&r->witness);
	struct io_uring_cqe *cqe;
	int fd = memfd_create("witness", MFD_CLOEXEC);

	assert_int_equal(ftruncate(fd, SIZE), 0);
	if (write) {
		assert_int_equal(pwrite(fd, buf, SIZE, 0), SIZE);
		io_uring_prep_read_fixed(sqe, fd, r->va, SIZE, 0, 0);
	} else {
		io_uring_prep_write_fixed(sqe, fd, r->va, SIZE, 0, 0);
	}
	assert_int_equal(io_uring_submit(&r->witness), 1);
	assert_int_equal(io_uring_wait_cqe(&r->witness, &cqe), 0);
	assert_int_equal(cqe->res, SIZE);
	io_uring_cqe_seen(&r->witness, cqe);
	if (!write)
		assert_int_equal(pread(fd, buf, SIZE, 0), SIZE);
	close(fd);
}

/* From here on a write to the old pages is seen. */
void poison_old_pages(struct rig *r)
{
	char buf[SIZE];

	memset(buf, 'P', sizeof buf);
	witness_io(r, buf, 1);
}

void assert_old_pages_untouched(struct rig *r)
{
	char buf[SIZE];

	witness_io(r, buf, 0);
	assert_filled("old pages", buf, 'P', SIZE);
}

/* ---------------------------------------------------------------------------- leases and events -- */

int try_map(struct rig *r, const struct pinl_policy *policy, unsigned flags)
{
	uintptr_t start = (uintptr_t)r->va;

	return pinl_map_range(r->dev, start, start + SIZE, flags | r->f->flags | PINL_COOPERATIVE,
			      policy, r->addrs, &r->lease);
}

struct pinl_policy recall_policy(enum pinl_then then, unsigned grace_ms)
{
	return (struct pinl_policy){.size = sizeof(struct pinl_policy),
				    .kind = PINL_RECALL,
				    .then = then,
				    .grace_ms = grace_ms};
}

struct pinl_policy plain_policy(enum pinl_policy_kind kind)
{
	return (struct pinl_policy){.size = sizeof(struct pinl_policy), .kind = kind};
}

void map(struct rig *r, struct pinl_policy policy)
{
	assert_ok(try_map(r, &policy, PINL_WRITE));
	assert_non_null(r->lease);
}

void unmap(struct rig *r)
{
	pinl_unmap_range(r->lease);
	r->lease = NULL;
}

struct pinl_event await_event(struct rig *r, enum pinl_event_type type)
{
	struct pollfd p = {.fd = pinl_fd(r->ctx), .events = POLLIN};
	struct pinl_event ev;

	for (;;) {
		ev.size = sizeof ev;
		if (!pinl_next_event(r->ctx, &ev)) {
			if (ev.type == type)
				return ev;
			continue;
		}
		if (poll(&p, 1, LONG) == 0)
			fail_msg("no event of type %d came", type);
	}
}

/* Why a policy was refused has to be said. */
void assert_refused(struct rig *r, struct pinl_policy policy)
{
	assert_int_equal(try_map(r, &policy, PINL_WRITE), -EOPNOTSUPP);
	assert_true(strlen(pinl_error()) > 20);
	assert_null(r->lease);
}

void await_pinned(long kb)
{
	for (int i = 0; i < LONG / 2 && pinned_kb() != kb; i++)
		usleep(2000);
	assert_int_equal(pinned_kb(), kb);
}

/* ---------------------------------------------------------------------------------------- set-up -- */

void open_device(struct rig *r)
{
	struct pinl_soft_arg soft = {sizeof soft, r->f->device_class + 1};
	struct pinl_uring_arg uring = {.size = sizeof uring, .ring = &r->ring, .slots = 16};

	if (is_uring(r)) {
		assert_int_equal(io_uring_queue_init(16, &r->ring, 0), 0);
		r->bounce = memfd_create("bounce", MFD_CLOEXEC);
		assert_int_equal(ftruncate(r->bounce, PAGE), 0);
	}
	assert_ok(pinl_device_open(r->ctx, r->f->kind, is_uring(r) ? (void *)&uring : (void *)&soft,
				   &r->dev));
}

int rig_up(void **state)
{
	struct pinl_opts opts = {.size = sizeof opts, .drain_ms = 400, .summary_fd = -1};
	struct rig *r = calloc(1, sizeof *r);

	r->f = *state;
	assert_ok(pinl_open(&opts, &r->ctx));
	open_device(r);
	r->fd = memfd_create("leased", MFD_CLOEXEC);
	assert_int_equal(ftruncate(r->fd, SIZE), 0);
	r->va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	assert_ptr_not_equal(r->va, MAP_FAILED);
	memset(r->va, 'F', SIZE);
	*state = r;
	return 0;
}

void close_device(struct rig *r)
{
	if (r->dev && !is_uring(r))
		pinl_soft_pause(r->dev, 0);
	if (r->dev)
		pinl_device_close(r->dev);
	r->dev = NULL;
	if (!is_uring(r))
		return;
	io_uring_queue_exit(&r->ring);
	close(r->bounce);
}

int rig_down(void **state)
{
	struct rig *r = *state;

	pinl_unmap_range(r->lease);
	close_device(r);
	pinl_close(r->ctx);
	if (r->witnessing)
		io_uring_queue_exit(&r->witness);
	munmap(r->va, SIZE);
	close(r->fd);
	free(r);
	return 0;
}

void assert_coherent(struct rig *r, unsigned first, unsigned n)
{
	char buf[SIZE];

	assert_ok(dev_write(r, first, n, 'D'));
	assert_filled("memory after a device write", r->va + first * PAGE, 'D', n * PAGE);
	memset(r->va + first * PAGE, 'C', n * PAGE);
	assert_ok(dev_io(r, first, n, buf, 0));
	assert_filled("device read after a store", buf, 'C', n * PAGE);
}
