/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The rig of the contract tests; see contract_rig.h. */
#include "contract_rig.h"
#include "contract_verbs.h"
#include "witness.h"

#include <fcntl.h>
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

int is_verbs(const struct rig *r)
{
	return !strcmp(r->f->kind, "verbs");
}

int is_edu(const struct rig *r)
{
	return !strcmp(r->f->kind, "vfio") || !strcmp(r->f->kind, "iommufd");
}

enum edu_space space_of(const struct fixture *f)
{
	return strcmp(f->kind, "iommufd") ? EDU_TYPE1 : EDU_IOMMUFD;
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

/* The device doesn't know what became of a transfer: what it wrote is read again, and what it can't
 * reach reads as zeroes, which no test has in its memory. */
static int edu_pages(struct rig *r, const struct pinl_addr *a, unsigned n, char *buf, int write)
{
	struct edu_part parts[2 * PAGES];
	char again[SIZE];
	char *to = write ? again : buf;

	assert_int_equal(2 * EDU_CHUNK, PAGE);
	for (unsigned i = 0; i < 2 * n; i++)
		parts[i] = (struct edu_part){a[i / 2].addr + i % 2 * EDU_CHUNK, buf + i * EDU_CHUNK,
					     EDU_CHUNK};
	if (write)
		edu_write(&r->edu, parts, 2 * n);
	for (unsigned i = 0; i < 2 * n; i++)
		parts[i].buf = to + i * EDU_CHUNK;
	edu_read(&r->edu, parts, 2 * n);
	if (write)
		return memcmp(buf, again, n * PAGE) ? -EFAULT : 0;
	for (unsigned i = 0; i < n * PAGE; i++)
		if (!buf[i])
			return -EFAULT;
	return 0;
}

static int page(struct rig *r, const struct pinl_addr *a, void *buf, int write)
{
	if (is_uring(r))
		return uring_page(r, a, buf, write);
	if (is_verbs(r))
		return verbs_page(r, a, buf, write);
	return pinl_soft_dma(r->dev, a->addr, buf, PAGE, write);
}

/* The device moves whole pages [first, first + n), each by its own address; stops at the first error. */
int dev_io(struct rig *r, unsigned first, unsigned n, char *buf, int write)
{
	int err = 0;

	if (is_edu(r))
		return edu_pages(r, r->addrs + first, n, buf, write);
	for (unsigned i = 0; i < n && !err; i++, buf += PAGE)
		err = page(r, &r->addrs[first + i], buf, write);
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
	witness_open(&r->witness, r->va, SIZE);
	r->witnessing = 1;
}

static void witness_io(struct rig *r, char *buf, int write)
{
	witness_move(&r->witness, r->va, SIZE, buf, write);
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
	return event_of(r->ctx, type);
}

/* Why a policy was refused has to be said. */
void assert_refused(struct rig *r, struct pinl_policy policy)
{
	assert_int_equal(try_map(r, &policy, PINL_WRITE), -EOPNOTSUPP);
	assert_true(strlen(pinl_error()) > 20);
	assert_null(r->lease);
}

/* What the peers of verbs, or the devices behind an iommufd, have pinned themselves. */
static long others_kb;

long leased_kb(void)
{
	return pinned_kb() - others_kb;
}

void await_pinned(long kb)
{
	for (int i = 0; i < LONG / 2 && leased_kb() != kb; i++)
		usleep(2000);
	assert_int_equal(leased_kb(), kb);
}

/* ---------------------------------------------------------------------------------------- set-up -- */

static int open_edu(struct rig *r)
{
	int devices[EDU_MAX];
	union edu_arg arg = edu_arg(&r->edu, r->f->can & ATOMIC, devices);

	return pinl_device_open(r->ctx, r->f->kind, &arg, &r->dev);
}

void open_device(struct rig *r)
{
	struct pinl_soft_arg soft = {sizeof soft, r->f->device_class + 1};
	struct pinl_uring_arg uring = {.size = sizeof uring, .ring = &r->ring, .slots = 16};

	if (is_edu(r)) {
		assert_ok(open_edu(r));
		return;
	}
	if (is_verbs(r)) {
		verbs_open_device(r);
		return;
	}
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
	/* On a busy machine transfers take a while to end, or to be cancelled. */
	struct pinl_opts opts = {
		.size = sizeof opts, .ceiling_ms = 3 * LONG, .drain_ms = 3000, .summary_fd = -1};
	struct rig *r = calloc(1, sizeof *r);

	r->f = *state;
	others_kb = is_verbs(r)			    ? 2 * SIZE / 1024
		    : space_of(r->f) == EDU_IOMMUFD ? EDU_MAX * PAGE / 1024
						    : 0;
	if (is_edu(r))
		edu_open(&r->edu, space_of(r->f));
	assert_ok(pinl_open(&opts, &r->ctx));
	open_device(r);
	r->fd = memfd_create("leased", MFD_CLOEXEC);
	assert_int_equal(ftruncate(r->fd, SIZE), 0);
	r->va = map_alone(SIZE, MAP_SHARED, r->fd);
	assert_ptr_not_equal(r->va, MAP_FAILED);
	memset(r->va, 'F', SIZE);
	*state = r;
	return 0;
}

void close_device(struct rig *r)
{
	if (r->dev && !strcmp(r->f->kind, "soft"))
		pinl_soft_pause(r->dev, 0);
	if (r->dev)
		pinl_device_close(r->dev);
	r->dev = NULL;
	if (is_verbs(r))
		verbs_close_device(r);
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
	if (is_edu(r))
		edu_close(&r->edu);
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
