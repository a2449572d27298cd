/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Explicit calls against what the kernel does by itself: the same result, the same pages gone, and of no
 * lease more or less than that asked for.
 */
#include "uffd_rig.h"

#include <linux/falloc.h>

#define MOVE (MREMAP_MAYMOVE | MREMAP_FIXED)

static struct rig r;

static int open_rig(void **state)
{
	struct pinl_opts opts = {.size = sizeof opts, .ceiling_ms = 600000, .summary_fd = -1};

	memset(&r, 0, sizeof r);
	alarm(HANG_S);
	assert_ok(pinl_open(&opts, &r.ctx));
	assert_ok(pinl_device_open(r.ctx, "soft", NULL, &r.dev));
	rig_map_memory(&r, MEMFD);
	return 0;
}

static int close_rig(void **state)
{
	rig_close(&r);
	return 0;
}

static struct pinl_policy policy_of(enum pinl_policy_kind kind)
{
	return (struct pinl_policy){
		.size = sizeof(struct pinl_policy),
		.kind = kind,
		.refuse = kind == PINL_REFUSE ? PINL_OPS_ALL & ~PINL_OPBIT(PINL_OP_GUARD) : 0,
		.grace_ms = 300000};
}

static int lease(char *va, size_t len, struct pinl_policy policy, struct pinl_lease **out)
{
	return pinl_map_range(r.dev, (uintptr_t)va, (uintptr_t)va + len, PINNED | PINL_COOPERATIVE,
			      &policy, NULL, out);
}

/* ------------------------------------------------------------------------------- cancellation -- */

struct caller {
	pthread_t thread;
	enum pinl_op op;
	char *target;
	int ended, err;
};

static int explicit_call(enum pinl_op op, char *target)
{
	void *out;

	switch (op) {
	case PINL_OP_UNMAP:
		return pinl_munmap(r.ctx, r.va, SIZE);
	case PINL_OP_REMAP:
		return pinl_mremap(r.ctx, r.va, SIZE, SIZE, MOVE, target, &out);
	case PINL_OP_REMOVE:
		return pinl_madvise(r.ctx, r.va, SIZE, MADV_REMOVE);
	case PINL_OP_TRUNCATE:
		return pinl_ftruncate(r.ctx, r.fd, 0);
	default:
		return pinl_fallocate(r.ctx, r.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SIZE);
	}
}

static void *call(void *arg)
{
	struct caller *c = arg;

	c->err = explicit_call(c->op, c->target);
	c->ended = 1;
	pthread_testcancel();
	return NULL;
}

/* Who is cancelled while his change is held makes it first, and leaves nothing closed behind him. */
static void a_cancelled_caller_ends_his_call(void **state)
{
	static const enum pinl_op ops[] = {PINL_OP_TRUNCATE, PINL_OP_PUNCH, PINL_OP_REMOVE,
					   PINL_OP_REMAP, PINL_OP_UNMAP};
	void *end;

	for (unsigned i = 0; i < sizeof ops / sizeof *ops; i++) {
		struct caller c = {.op = ops[i]};

		assert_ok(lease(r.va, SIZE, policy_of(PINL_RECALL), &r.lease));
		c.target = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		assert_int_equal(pthread_create(&c.thread, NULL, call, &c), 0);
		await(&r, PINL_EV_NOTICE);
		pthread_cancel(c.thread);
		assert_ok(pinl_quiesced(r.lease));
		pthread_join(c.thread, &end);
		assert_ptr_equal(end, PTHREAD_CANCELED);
		assert_true(c.ended);
		assert_ok(c.err);
		pinl_unmap_range(r.lease);
		munmap(c.target, SIZE);
		assert_int_equal(ftruncate(r.fd, SIZE), 0);
		assert_ptr_equal(
			mmap(r.va, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, r.fd, 0), r.va);
		memset(r.va, 'a', SIZE);
	}
	assert_ok(lease(r.va, SIZE, policy_of(PINL_KEEP), &r.lease));
}

/* ------------------------------------------------------------------------------------- mremap -- */

static int no_notices(void)
{
	struct pinl_counters n = {.size = sizeof n};

	assert_ok(pinl_counters(r.ctx, &n));
	return !n.notices && !n.orphans;
}

/* Whoever refuses, source or target: the other's lease isn't recalled for a move that doesn't come. */
static void a_refused_move_recalls_nothing(void **state)
{
	for (int at_source = 0; at_source < 2; at_source++) {
		char *target =
			mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		struct pinl_policy recall = policy_of(PINL_RECALL), refuse = policy_of(PINL_REFUSE);
		struct pinl_lease *other;
		void *out = target;

		recall.grace_ms = 1;
		assert_ok(lease(r.va, SIZE, at_source ? refuse : recall, &r.lease));
		assert_ok(lease(target, SIZE, at_source ? recall : refuse, &other));
		assert_int_equal(pinl_mremap(r.ctx, r.va, SIZE, SIZE, MOVE, target, &out), -EBUSY);
		assert_ptr_equal(out, target);
		assert_true(no_notices());
		assert_ok(pinl_lease_check(r.lease));
		assert_ok(pinl_lease_check(other));
		assert_int_equal(await(&r, PINL_EV_REFUSED).op,
				 at_source ? PINL_OP_REMAP : PINL_OP_OVERMAP);
		pinl_unmap_range(other);
		pinl_unmap_range(r.lease);
		munmap(target, SIZE);
	}
	assert_ok(lease(r.va, SIZE, policy_of(PINL_KEEP), &r.lease)); /* no gate was left */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_cancelled_caller_ends_his_call, open_rig, close_rig),
		cmocka_unit_test_setup_teardown(a_refused_move_recalls_nothing, open_rig, close_rig),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
