/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The contract of a recall: what happens to device, CPU and old pages when the file is truncated, also
 * when it meets the device at work. */
#include "contract_rig.h"
#include "contract_verbs.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>

/* ------------------------------------------------------------------------------------- policies -- */

void impossible_policies_are_refused(void **state)
{
	struct rig *r = *state;

	if (!(r->f->can & REVOCABLE))
		assert_refused(r, recall_policy(PINL_THEN_FAIL, 0));
	if (!(r->f->can & SCRATCHES))
		assert_refused(r, recall_policy(PINL_THEN_SCRATCH, 0));
	if (!(r->f->can & COPIES))
		assert_refused(r, recall_policy(PINL_THEN_COPY, 0));
	if (!(r->f->can & ONDEMAND))
		assert_refused(r, plain_policy(PINL_FOLLOW));
	map(r, plain_policy(PINL_KEEP));
}

void recall_fail(void **state)
{
	struct rig *r = *state;
	struct pinl_event ev;
	char buf[PAGE];

	map(r, recall_policy(PINL_THEN_FAIL, 0));
	witness_start(r);
	assert_ok(dev_write(r, 0, PAGES, 'D'));
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	poison_old_pages(r);
	assert_true(dev_write(r, 0, 1, 'x') < 0);
	assert_true(dev_write(r, PAGES - 1, 1, 'x') < 0);
	assert_true(dev_io(r, 1, 1, buf, 0) < 0);
	assert_old_pages_untouched(r);
	ev = await_event(r, PINL_EV_FORCED);
	assert_int_equal(ev.outcome, PINL_OUT_FAIL);
	assert_int_equal(ev.err, 0);
	await_event(r, PINL_EV_RELEASED);
	assert_int_equal(pinl_lease_check(r->lease), -ESTALE);
}

void recall_scratch(void **state)
{
	struct rig *r = *state;
	struct pinl_event ev;

	map(r, recall_policy(PINL_THEN_SCRATCH, 0));
	witness_start(r);
	assert_ok(dev_write(r, 0, PAGES, 'D'));
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	poison_old_pages(r);
	assert_coherent(r, 0, PAGES);
	assert_old_pages_untouched(r);
	ev = await_event(r, PINL_EV_FORCED);
	assert_int_equal(ev.outcome, PINL_OUT_SCRATCH);
	assert_int_equal(ev.err, 0);
}

void recall_copy(void **state)
{
	struct rig *r = *state;
	struct pinl_event ev;
	char before[SIZE];

	map(r, recall_policy(PINL_THEN_COPY, 0));
	witness_start(r);
	assert_ok(dev_write(r, 0, 2, 'D'));
	memset(r->va + 3 * PAGE, 'S', PAGE);
	memcpy(before, r->va, SIZE);
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	poison_old_pages(r);
	assert_memory_equal(r->va, before, SIZE);
	assert_ok(dev_io(r, 0, PAGES, before, 0));
	assert_memory_equal(r->va, before, SIZE);
	assert_coherent(r, 0, PAGES);
	assert_old_pages_untouched(r);
	ev = await_event(r, PINL_EV_FORCED);
	assert_int_equal(ev.outcome, PINL_OUT_COPY);
	assert_int_equal(ev.err, 0);
}

/* Half of the lease goes: the other half is still the file. */
static void recall_in_part(struct rig *r, enum pinl_then then)
{
	char buf[SIZE];

	map(r, recall_policy(then, 0));
	assert_ok(dev_write(r, 0, PAGES, 'D'));
	assert_ok(pinl_ftruncate(r->ctx, r->fd, SIZE / 2));
	if (then == PINL_THEN_COPY)
		assert_filled("copied half", r->va + SIZE / 2, 'D', SIZE / 2);
	assert_coherent(r, PAGES / 2, PAGES / 2);
	assert_filled("kept half", r->va, 'D', SIZE / 2);
	assert_coherent(r, 0, PAGES / 2);
	assert_ok(dev_write(r, 0, PAGES, 'E'));
	assert_int_equal(pread(r->fd, buf, SIZE, 0), SIZE / 2);
	assert_filled("file", buf, 'E', SIZE / 2);
}

void part_scratch(void **state)
{
	struct rig *r = *state;

	recall_in_part(r, PINL_THEN_SCRATCH);
}

void part_copy(void **state)
{
	struct rig *r = *state;

	recall_in_part(r, PINL_THEN_COPY);
}

static long pinned_by_lease(const struct rig *r)
{
	return SIZE / 1024 * (r->f->counted ? r->f->counted : 1);
}

/* What the device had before is let go by the recall, not by the end of the lease. */
static void recall_unpins(struct rig *r, enum pinl_then then)
{
	await_pinned(0);
	map(r, recall_policy(then, 0));
	assert_ok(pinl_ftruncate(r->ctx, r->fd, SIZE / 2));
	await_pinned(pinned_by_lease(r));
	unmap(r);
	await_pinned(0);
}

/* FAIL gives the memory back: that is what the actor truncated for. */
void fail_unpins(void **state)
{
	struct rig *r = *state;
	char buf[PAGE];

	await_pinned(0);
	map(r, recall_policy(PINL_THEN_FAIL, 0));
	await_pinned(pinned_by_lease(r));
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	await_pinned(0);
	assert_int_equal(pinl_lease_read(r->lease, 0, PAGE, buf),
			 r->f->can & READS ? -ENODATA : -EOPNOTSUPP);
	unmap(r);
}

void scratch_unpins(void **state)
{
	struct rig *r = *state;

	recall_unpins(r, PINL_THEN_SCRATCH);
}

void copy_unpins(void **state)
{
	struct rig *r = *state;

	recall_unpins(r, PINL_THEN_COPY);
}

void keep_leaves_a_readable_orphan(void **state)
{
	struct rig *r = *state;
	char buf[SIZE];

	map(r, plain_policy(PINL_KEEP));
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	await_event(r, PINL_EV_ORPHAN);
	assert_ok(dev_write(r, 0, PAGES, 'O'));
	assert_int_equal(ftruncate(r->fd, SIZE), 0);
	assert_filled("file", r->va, 0, SIZE);
	if (!(r->f->can & READS))
		return;
	assert_ok(pinl_lease_read(r->lease, 0, SIZE, buf));
	assert_filled("orphan", buf, 'O', SIZE);
}

void follow(void **state)
{
	struct rig *r = *state;
	char buf[PAGE];

	map(r, plain_policy(PINL_FOLLOW));
	assert_ok(dev_write(r, 0, PAGES, 'D'));
	assert_ok(pinl_ftruncate(r->ctx, r->fd, PAGE));
	await_event(r, PINL_EV_FOLLOWED);
	assert_int_equal(dev_write(r, 1, 1, 'x'), -EFAULT);
	assert_ok(dev_write(r, 0, 1, 'y'));
	assert_int_equal(ftruncate(r->fd, SIZE), 0);
	assert_ok(dev_write(r, 1, 1, 'z'));
	assert_int_equal(pread(r->fd, buf, PAGE, PAGE), PAGE);
	assert_filled("file", buf, 'z', PAGE);
}

/* ------------------------------------------------------------------------------------ in flight -- */

struct flight {
	struct rig *r;
	pthread_t thread;
	char buf[SIZE];
	int pipe[2];
	int result;
};

static void *fly(void *arg)
{
	struct flight *fl = arg;

	fl->result = pinl_soft_dma(fl->r->dev, fl->r->addrs[0].addr, fl->buf, SIZE, 1);
	return NULL;
}

/* On its way for 100 ms: should the machine be slower than that, the test says less. test_vfio doesn't.
 */
static void edu_take_off(struct flight *fl)
{
	struct edu_part parts[PAGES];
	int n = fl->r->edu.n < (int)PAGES ? fl->r->edu.n : (int)PAGES;

	for (int i = 0; i < n; i++)
		parts[i] = (struct edu_part){fl->r->addrs[i].addr, fl->buf, EDU_CHUNK};
	edu_load(&fl->r->edu, parts, n);
	edu_launch(&fl->r->edu, parts, n);
}

static void take_off(struct flight *fl)
{
	struct rig *r = fl->r;
	struct io_uring_sqe *sqe;

	memset(fl->buf, 'X', SIZE);
	if (is_edu(r)) {
		edu_take_off(fl);
		return;
	}
	if (is_uring(r)) {
		assert_int_equal(pipe2(fl->pipe, O_CLOEXEC), 0);
		sqe = io_uring_get_sqe(&r->ring);
		io_uring_prep_read_fixed(sqe, fl->pipe[0], (void *)(uintptr_t)r->addrs[0].addr, SIZE, 0,
					 r->addrs[0].key);
		sqe->user_data = 2;
		assert_int_equal(io_uring_submit(&r->ring), 1);
		return;
	}
	if (is_verbs(r)) {
		verbs_take_off(r, fl->buf);
	} else {
		assert_ok(pinl_soft_pause(r->dev, 1));
		assert_int_equal(pthread_create(&fl->thread, NULL, fly, fl), 0);
	}
	/* The engine moves the first page and stands. */
	while (*(volatile char *)r->va != 'X')
		usleep(100);
}

/* The rest of the data comes, now that the memory is someone else's. */
static void land(struct flight *fl)
{
	struct rig *r = fl->r;

	if (is_edu(r)) {
		edu_land(&r->edu);
		return;
	}
	if (is_uring(r)) {
		assert_int_equal(write(fl->pipe[1], fl->buf, SIZE), SIZE);
		fl->result = reap(r);
		close(fl->pipe[0]);
		close(fl->pipe[1]);
		return;
	}
	if (is_verbs(r)) {
		fl->result = verbs_land(r);
		return;
	}
	assert_ok(pinl_soft_pause(r->dev, 0));
	pthread_join(fl->thread, NULL);
}

static void recall_in_flight(struct rig *r, enum pinl_then then)
{
	struct flight fl = {.r = r};
	uint64_t since, took;
	int err;

	map(r, recall_policy(then, 0));
	witness_start(r);
	take_off(&fl);
	since = now_ns();
	err = pinl_ftruncate(r->ctx, r->fd, 0);
	took = now_ns() - since;
	poison_old_pages(r);
	land(&fl);
	assert_ok(err);
	if (took > LONG * 1000000ull)
		fail_msg("the change was held %llu ms", (unsigned long long)took / 1000000);
	assert_old_pages_untouched(r);
	assert_int_equal(await_event(r, PINL_EV_FORCED).err, 0);
}

void flight_fail(void **state)
{
	struct rig *r = *state;

	recall_in_flight(r, PINL_THEN_FAIL);
}

void flight_scratch(void **state)
{
	struct rig *r = *state;

	recall_in_flight(r, PINL_THEN_SCRATCH);
	assert_coherent(r, 0, PAGES);
}

void flight_copy(void **state)
{
	struct rig *r = *state;

	recall_in_flight(r, PINL_THEN_COPY);
	assert_coherent(r, 0, PAGES);
}

/* FAIL takes the whole lease: also in the part that is still the file nothing more is written. */
void part_fail_ends_a_flight(void **state)
{
	struct rig *r = *state;
	struct flight fl = {.r = r};
	int err;

	map(r, recall_policy(PINL_THEN_FAIL, 0));
	take_off(&fl);
	err = pinl_ftruncate(r->ctx, r->fd, SIZE / 2);
	land(&fl);
	assert_ok(err);
	assert_true(fl.result < 0);
	assert_filled("kept page", r->va + PAGE, 'F', PAGE);
}

void flight_at_unmap(void **state)
{
	struct rig *r = *state;
	struct flight fl = {.r = r};

	map(r, plain_policy(PINL_KEEP));
	witness_start(r);
	take_off(&fl);
	unmap(r);
	poison_old_pages(r);
	land(&fl);
	assert_old_pages_untouched(r);
}

/* ----------------------------------------------------------------------------------- under load -- */

struct load {
	struct rig *r;
	atomic_int stop, writes;
	int errors;
};

static void *write_on(void *arg)
{
	struct load *load = arg;

	while (!atomic_load(&load->stop)) {
		load->errors += dev_write(load->r, 0, PAGES, 'L') < 0;
		load->writes++;
	}
	return NULL;
}

/* A write that was not begun yet is over. */
static void await_write(const struct load *load)
{
	int now = load->writes;

	while (load->writes < now + 2)
		sched_yield();
}

static int recall_under_load(struct rig *r, enum pinl_then then)
{
	struct load load = {.r = r};
	pthread_t thread;
	int err;

	map(r, recall_policy(then, 0));
	witness_start(r);
	assert_int_equal(pthread_create(&thread, NULL, write_on, &load), 0);
	await_write(&load);
	err = pinl_ftruncate(r->ctx, r->fd, 0);
	poison_old_pages(r);
	await_write(&load);
	atomic_store(&load.stop, 1);
	pthread_join(thread, NULL);
	assert_ok(err);
	assert_old_pages_untouched(r);
	return load.errors;
}

void load_fail(void **state)
{
	assert_int_not_equal(recall_under_load(*state, PINL_THEN_FAIL), 0);
}

/* The device never meets an error, or only while its pages are exchanged. */
void load_scratch(void **state)
{
	struct rig *r = *state;
	int errors = recall_under_load(r, PINL_THEN_SCRATCH);

	assert_true(!errors || !(r->f->can & ATOMIC));
	assert_coherent(r, 0, PAGES);
}

void load_copy(void **state)
{
	recall_under_load(*state, PINL_THEN_COPY);
	assert_coherent(*state, 0, PAGES);
}
