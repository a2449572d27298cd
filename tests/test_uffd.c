/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Raw changes of mappings, made by any thread: they recall, are held, are told, and nobody deadlocks. */
#include "uffd_rig.h"

#include <liburing.h>

static int index_of(const struct rig *r, enum pinl_event_type type)
{
	for (int i = 0; i < r->n_evs; i++)
		if (r->evs[i].type == type)
			return i;
	return -1;
}

/* One change of the whole lease by another thread, from the notice to the actor's way on. */
static void recall_once(const struct kind *kind, enum pinl_op op)
{
	struct rig r;
	struct actor a;
	struct pinl_event ev;
	atomic_int quiesced = 0;
	char buf[8];

	rig_open(&r, kind, NULL);
	assert_ok(rig_lease(&r, PINL_RECALL, LONG));
	assert_ok(settled_check(r.lease));
	actor_start(&a, op, r.va, SIZE, &quiesced);
	ev = await(&r, PINL_EV_NOTICE);
	assert_int_equal(ev.op, op);
	assert_string_equal(ev.source, "uffd");
	assert_int_equal(ev.start, r.va);
	assert_int_equal(ev.end, r.va + SIZE);
	assert_int_equal(ev.actor_pid, getpid());
	assert_int_equal(ev.actor_tid, a.tid);
	usleep(10000); /* time to go on, if it could */
	assert_false(a.done);
	quiesced = 1;
	assert_ok(pinl_quiesced(r.lease));
	await(&r, PINL_EV_ANSWERED);
	actor_join(&a);
	assert_true(a.was_allowed);
	assert_true(index_of(&r, PINL_EV_RELEASED) > index_of(&r, PINL_EV_NOTICE));
	assert_true(index_of(&r, PINL_EV_ANSWERED) > index_of(&r, PINL_EV_RELEASED));
	assert_int_equal(settled_check(r.lease), -ESTALE);
	assert_true(pinl_soft_dma(r.dev, r.addrs[0].addr, buf, sizeof buf, 0) < 0);
	rig_close(&r);
}

static void every_change_is_held_until_quiesced(void **state)
{
	for (size_t i = 0; i < NKINDS; i++)
		for (int op = 0; op < PINL_OP_NR; op++)
			if (kinds[i].ops & PINL_OPBIT(op)) {
				print_message("%s, %s\n", kinds[i].name, pinl_op_name(op));
				recall_once(&kinds[i], op);
			}
}

static void keep_reports_an_orphan(void **state)
{
	for (int op = 0; op < PINL_OP_NR; op++) {
		struct rig r;
		struct actor a;
		struct pinl_event ev;

		if (!(ANON->ops & PINL_OPBIT(op)))
			continue;
		rig_open(&r, ANON, NULL);
		assert_ok(rig_lease(&r, PINL_KEEP, 0));
		actor_start(&a, op, r.va, SIZE, NULL);
		actor_join(&a);
		ev = await(&r, PINL_EV_ORPHAN);
		assert_int_equal(ev.start, r.va);
		assert_int_equal(ev.end, r.va + SIZE);
		pinl_unmap_range(r.lease);
		r.lease = NULL;
		await(&r, PINL_EV_ORPHAN_END);
		rig_close(&r);
	}
}

static void fail_leaves_the_device_with_errors(void **state)
{
	struct rig r;
	struct actor a;
	char buf[8];

	rig_open(&r, ANON, NULL);
	assert_ok(rig_lease(&r, PINL_RECALL, 20));
	assert_ok(pinl_soft_dma(r.dev, r.addrs[0].addr, buf, sizeof buf, 0));
	actor_start(&a, PINL_OP_UNMAP, r.va, SIZE, NULL);
	actor_join(&a);
	assert_int_equal(await(&r, PINL_EV_FORCED).outcome, PINL_OUT_FAIL);
	assert_int_equal(settled_check(r.lease), -ESTALE);
	assert_true(pinl_soft_dma(r.dev, r.addrs[0].addr, buf, sizeof buf, 0) < 0);
	rig_close(&r);
}

/* MADV_DONTNEED of a shared mapping finds the same pages again; the next real change is the first event.
 */
static void dontneed_of_a_shared_file_is_no_change(void **state)
{
	enum pinl_policy_kind policies[] = {PINL_RECALL, PINL_KEEP};

	for (int i = 0; i < 2; i++) {
		struct rig r;
		struct actor a;
		struct pinl_event ev;

		rig_open(&r, MEMFD, NULL);
		assert_ok(rig_lease(&r, policies[i], 20));
		actor_start(&a, PINL_OP_DONTNEED, r.va, SIZE, NULL);
		actor_join(&a);
		assert_int_equal(settled_check(r.lease), 0);
		actor_start(&a, PINL_OP_REMOVE, r.va, PAGE, NULL);
		actor_join(&a);
		ev = await(&r, policies[i] == PINL_RECALL ? PINL_EV_NOTICE : PINL_EV_ORPHAN);
		assert_int_equal(ev.op, PINL_OP_REMOVE);
		assert_int_equal(ev.end - ev.start, PAGE);
		for (int j = 0; j < r.n_evs; j++)
			assert_int_equal(r.evs[j].op, PINL_OP_REMOVE);
		rig_close(&r);
	}
}

static void the_holder_may_unmap_his_own_lease(void **state)
{
	struct rig r;

	rig_open(&r, ANON, NULL);
	assert_ok(rig_lease(&r, PINL_RECALL, 50));
	assert_int_equal(munmap(r.va, SIZE), 0);
	await(&r, PINL_EV_FORCED);
	assert_int_equal(settled_check(r.lease), -ESTALE);
	rig_close(&r);
}

/* ------------------------------------------------------------------------ handlers that free -- */

struct handler {
	struct pinl_lease *_Atomic lease;
	char *va;
	atomic_int done;
};

static void free_and_quiesce(const struct pinl_event *ev, void *arg)
{
	struct handler *h = arg;

	if (ev->type != PINL_EV_NOTICE)
		return;
	munmap(h->va, PAGE);
	pinl_quiesced(h->lease);
	h->done = 1;
}

/*
 * The first page is recalled, and its holder's callback unmaps the second before he answers. The grace
 * is longer than the alarm: only a hold that gives way lets this end.
 */
static void handler_frees(const struct pinl_policy *second)
{
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_RECALL, .grace_ms = LONG};
	struct handler h = {0};
	struct pinl_opts opts = {.on_event = free_and_quiesce, .on_event_arg = &h};
	struct pinl_lease *other = NULL;
	struct actor a;
	struct rig r;

	rig_open(&r, ANON, &opts);
	h.va = r.va + PAGE;
	if (second)
		assert_ok(pinl_map_range(r.dev, (uintptr_t)h.va, (uintptr_t)h.va + PAGE, PINNED, second,
					 NULL, &other));
	assert_ok(pinl_map_range(r.dev, (uintptr_t)r.va, (uintptr_t)r.va + PAGE, PINNED, &policy, NULL,
				 &r.lease));
	h.lease = r.lease;
	actor_start(&a, PINL_OP_UNMAP, r.va, PAGE, NULL);
	actor_join(&a);
	while (!h.done)
		sched_yield();
	assert_int_equal(settled_check(r.lease), -ESTALE);
	if (other)
		pinl_unmap_range(other);
	rig_close(&r);
}

static void a_handler_may_free_watched_memory(void **state)
{
	handler_frees(NULL);
}

/* Here its change is not idle, only through. */
static void a_handler_may_free_leased_memory(void **state)
{
	struct pinl_policy keep = {.size = sizeof keep, .kind = PINL_KEEP};

	handler_frees(&keep);
}

/*
 * A second mapping of shared pages takes nothing from anybody, but the kernel tells of it: who makes one
 * waits no longer than who unmaps unleased memory, although another's hold lasts longer than the alarm.
 */
static void a_second_mapping_waits_for_no_stranger(void **state)
{
	struct pinl_policy keep = {.size = sizeof keep, .kind = PINL_KEEP};
	struct pinl_lease *other;
	struct pinl_event ev;
	struct rig r;
	struct actor a;
	char *va, *again;
	int fd;

	rig_open(&r, ANON, NULL);
	assert_ok(rig_lease(&r, PINL_RECALL, LONG));
	fd = make_file("");
	va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ok(
		pinl_map_range(r.dev, (uintptr_t)va, (uintptr_t)va + SIZE, PINNED, &keep, NULL, &other));
	actor_start(&a, PINL_OP_DONTNEED, r.va, SIZE, NULL);
	await(&r, PINL_EV_NOTICE);
	again = mremap(va, 0, SIZE, MREMAP_MAYMOVE);
	assert_ptr_not_equal(again, MAP_FAILED);
	ev = await(&r, PINL_EV_DEGRADED); /* for that the hold was cut short, and it is said */
	assert_int_equal(ev.err, -EINTR);
	actor_join(&a);
	assert_ok(settled_check(other));
	pinl_quiesced(r.lease);
	pinl_unmap_range(other);
	munmap(again, SIZE);
	munmap(va, SIZE);
	close(fd);
	rig_close(&r);
}

/* ---------------------------------------------------------------------------------- many at once -- */

/* Each is let go when its own lease is quiesced, newest first, and none before. */
static void actors_are_held_each_for_his_own(void **state)
{
	enum { N = 4 };
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_RECALL, .grace_ms = LONG};
	struct pinl_lease *lease[N];
	atomic_int quiesced[N] = {0};
	struct actor a[N];
	struct rig r;

	rig_open(&r, ANON, NULL);
	for (int i = 0; i < N; i++)
		assert_ok(pinl_map_range(r.dev, (uintptr_t)r.va + i * PAGE,
					 (uintptr_t)r.va + (i + 1) * PAGE, PINNED, &policy, NULL,
					 &lease[i]));
	for (int i = 0; i < N; i++) {
		actor_start(&a[i], PINL_OP_DONTNEED, r.va + i * PAGE, PAGE, &quiesced[i]);
		await(&r, PINL_EV_NOTICE);
	}
	for (int i = 0; i < N; i++) {
		assert_false(a[i].done);
		quiesced[i] = 1;
		assert_ok(pinl_quiesced(lease[i]));
		actor_join(&a[i]);
		assert_true(a[i].was_allowed);
	}
	for (int i = 0; i < N; i++)
		pinl_unmap_range(lease[i]);
	rig_close(&r);
}

struct churn {
	pthread_t thread;
	char *va;
	atomic_int *stop;
};

static void *churn(void *arg)
{
	struct churn *c = arg;

	while (!*c->stop) {
		memset(c->va, 1, PAGE);
		madvise(c->va, PAGE, MADV_DONTNEED);
	}
	return NULL;
}

/* Threads that free memory nobody leased, in the mapping of a lease that is recalled again and again. */
static void bystanders_go_on(void **state)
{
	enum { N = 3, ROUNDS = 50 };
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_RECALL, .grace_ms = 5};
	struct churn c[N];
	atomic_int stop = 0;
	struct rig r;

	rig_open(&r, ANON, NULL);
	for (int i = 0; i < N; i++) {
		c[i] = (struct churn){.va = r.va + (4 + i) * PAGE, .stop = &stop};
		pthread_create(&c[i].thread, NULL, churn, &c[i]);
	}
	for (int i = 0; i < ROUNDS; i++) {
		int err;

		while ((err = pinl_map_range(r.dev, (uintptr_t)r.va, (uintptr_t)r.va + PAGE, PINNED,
					     &policy, NULL, &r.lease)) == -EBUSY)
			sched_yield();
		assert_ok(err);
		assert_int_equal(madvise(r.va, PAGE, MADV_DONTNEED), 0);
		assert_int_equal(settled_check(r.lease), -ESTALE);
		pinl_unmap_range(r.lease);
	}
	r.lease = NULL;
	stop = 1;
	for (int i = 0; i < N; i++)
		pthread_join(c[i].thread, NULL);
	rig_close(&r);
}

/* ------------------------------------------------------------------------------- actors elsewhere -- */

/* A worker thread of io_uring says nothing of what it does: told, not held, and nobody hangs. */
static void madvise_by_io_uring_is_told(void **state)
{
	struct io_uring ring;
	struct io_uring_cqe *cqe;
	struct io_uring_sqe *sqe;
	struct rig r;

	rig_open(&r, ANON, NULL);
	if (io_uring_queue_init(4, &ring, 0)) {
		rig_close(&r);
		print_message("skip: io_uring\n");
		skip();
	}
	assert_ok(rig_lease(&r, PINL_RECALL, 20));
	sqe = io_uring_get_sqe(&ring);
	io_uring_prep_madvise(sqe, r.va, SIZE, MADV_DONTNEED);
	sqe->flags |= IOSQE_ASYNC;
	assert_int_equal(io_uring_submit(&ring), 1);
	assert_int_equal(await(&r, PINL_EV_NOTICE).op, PINL_OP_DONTNEED);
	assert_int_equal(io_uring_wait_cqe(&ring, &cqe), 0);
	assert_int_equal(cqe->res, 0);
	await(&r, PINL_EV_FORCED);
	assert_int_equal(settled_check(r.lease), -ESTALE);
	io_uring_queue_exit(&ring);
	rig_close(&r);
}

/* The explicit call has asked already: its event is no news, and KEEP has one orphan, not two. */
static void explicit_calls_are_asked_once(void **state)
{
	struct pinl_counters n = {.size = sizeof n};
	struct rig r;

	rig_open(&r, ANON, NULL);
	assert_ok(rig_lease(&r, PINL_KEEP, 0));
	assert_ok(pinl_munmap(r.ctx, r.va, SIZE));
	assert_string_equal(await(&r, PINL_EV_ORPHAN).source, "calls");
	assert_ok(pinl_counters(r.ctx, &n));
	assert_int_equal(n.orphans, 1);
	pinl_unmap_range(r.lease);
	r.lease = NULL;
	await(&r, PINL_EV_ORPHAN_END);
	rig_close(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_change_is_held_until_quiesced),
		cmocka_unit_test(keep_reports_an_orphan),
		cmocka_unit_test(fail_leaves_the_device_with_errors),
		cmocka_unit_test(dontneed_of_a_shared_file_is_no_change),
		cmocka_unit_test(the_holder_may_unmap_his_own_lease),
		cmocka_unit_test(a_handler_may_free_watched_memory),
		cmocka_unit_test(a_handler_may_free_leased_memory),
		cmocka_unit_test(a_second_mapping_waits_for_no_stranger),
		cmocka_unit_test(actors_are_held_each_for_his_own),
		cmocka_unit_test(bystanders_go_on),
		cmocka_unit_test(madvise_by_io_uring_is_told),
		cmocka_unit_test(explicit_calls_are_asked_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
