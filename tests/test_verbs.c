/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A peer moves data by RDMA, in transfers of four megabytes, while the memory under it is truncated,
 * punched, unmapped, remapped. With plain verbs that is lost without a word; with a lease it ends as the
 * policy says, and from the moment the change goes on no byte lands in pages that are no longer there.
 */
#include "verbs_rig.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>

#define SKIP_WITHOUT_ODP()                                                                              \
	do {                                                                                            \
		SKIP_WITHOUT_DEVICE();                                                                  \
		if (!peer_has_odp()) {                                                                  \
			print_message("skip: the RDMA device has no on-demand regions\n");              \
			skip();                                                                         \
		}                                                                                       \
	} while (0)

/* --------------------------------------------------------------------------------------- changes -- */

static int truncate_it(struct vrig *r)
{
	return pinl_ftruncate(r->ctx, r->fd, 0);
}

static int punch_it(struct vrig *r)
{
	return pinl_fallocate(r->ctx, r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, LEN);
}

static int remove_it(struct vrig *r)
{
	return pinl_madvise(r->ctx, r->va, LEN, MADV_REMOVE);
}

/* The following are made raw, by the program that has the lease: userfaultfd holds them. */
static int unmap_it(struct vrig *r)
{
	return munmap(r->va, LEN);
}

static int map_over_it(struct vrig *r)
{
	void *at =
		mmap(r->va, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	return at == r->va ? 0 : -errno;
}

static int move_it(struct vrig *r)
{
	void *to = mmap(NULL, LEN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	void *at = mremap(r->va, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, to);

	return at == to ? munmap(to, LEN) : -errno;
}

/* The file under the addresses, whole, as before. */
static void restore(struct vrig *r)
{
	int flags = MAP_SHARED | MAP_FIXED | MAP_POPULATE;

	assert_int_equal(ftruncate(r->fd, LEN), 0);
	assert_ptr_equal(mmap(r->va, LEN, PROT_READ | PROT_WRITE, flags, r->fd, 0), r->va);
}

/* ----------------------------------------------------------------------- what verbs alone do -- */

/* The peer is told that its data has arrived, and nobody will ever see it. */
static void lost_silently(struct vrig *r, int (*change)(struct vrig *))
{
	int rights = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE;
	struct ibv_mr *mr = ibv_reg_mr(r->here.pd, r->va, LEN, rights);

	assert_non_null(mr);
	assert_ok(change(r));
	restore(r);
	memset(r->va, 0, LEN);
	memset(r->far.buf, 'L', LEN);
	assert_int_equal(vrig_move(r, 1, LEN, (uintptr_t)r->va, mr->rkey), IBV_WC_SUCCESS);
	assert_all("memory", r->va, 0, LEN);
	assert_all("file", r->alias, 0, LEN);
	ibv_dereg_mr(mr);
}

static void plain_truncate_loses(void **state)
{
	SKIP_WITHOUT_DEVICE();
	lost_silently(*state, truncate_it);
}

static void plain_punch_loses(void **state)
{
	SKIP_WITHOUT_DEVICE();
	lost_silently(*state, punch_it);
}

static void plain_madvise_loses(void **state)
{
	SKIP_WITHOUT_DEVICE();
	lost_silently(*state, remove_it);
}

/* ------------------------------------------------------------------------------------------- FAIL -- */

/* A new lease has a new key: the peer goes on with that, and the old one stays dead. */
static void goes_on(struct vrig *r, unsigned flags)
{
	uint32_t old = r->addrs[0].rkey;

	restore(r);
	vrig_unmap(r);
	vrig_map(r, policy(PINL_RECALL, PINL_THEN_FAIL, 0), flags);
	assert_int_not_equal(r->addrs[0].rkey, old);
	assert_int_equal(pinl_lease_rkey(r->lease), r->addrs[0].rkey);
	memset(r->far.buf, 'O', LEN);
	assert_int_equal(vrig_move(r, 1, LEN, (uintptr_t)r->va, old), IBV_WC_REM_ACCESS_ERR);
	assert_all("file", r->alias, 0, LEN);
	memset(r->far.buf, 'N', LEN);
	assert_int_equal(vrig_move(r, 1, LEN, r->addrs[0].addr, r->addrs[0].rkey), IBV_WC_SUCCESS);
	assert_all("file", r->alias, 'N', LEN);
}

/* Of mappings, by plain system calls; a cooperative lease is given all the same. */
static bool holds(struct vrig *r, int (*change)(struct vrig *))
{
	struct pinl_lease_info info = {.size = sizeof info};
	int op = change == unmap_it	 ? PINL_OP_UNMAP
		 : change == map_over_it ? PINL_OP_OVERMAP
		 : change == move_it	 ? PINL_OP_REMAP
					 : PINL_OP_NR;

	assert_ok(pinl_lease_info(r->lease, &info));
	return op == PINL_OP_NR || (info.coverage[op] & PINL_CAN_HOLD);
}

static void recall_to_fail(struct vrig *r, int (*change)(struct vrig *), int write, unsigned flags)
{
	struct pinl_event ev;

	vrig_map(r, policy(PINL_RECALL, PINL_THEN_FAIL, 0), flags);
	if (!holds(r, change)) {
		print_message("skip: userfaultfd events here (Linux 6.7)\n");
		skip();
	}
	vrig_witness(r);
	vrig_take_off(r, write);
	assert_ok(change(r));
	vrig_mark_old(r);
	assert_int_equal(vrig_land(r), IBV_WC_REM_ACCESS_ERR);
	vrig_assert_old_untouched(r);
	if (!write)
		assert_null(memchr(r->far.buf, 'P', LEN));
	ev = vrig_event(r, PINL_EV_FORCED);
	assert_int_equal(ev.outcome, PINL_OUT_FAIL);
	assert_int_equal(ev.err, 0);
	vrig_event(r, PINL_EV_RELEASED);
	if (change != move_it && change != unmap_it && change != map_over_it)
		goes_on(r, flags);
}

#define FAIL_TESTS(change)                                                                              \
	static void change##_fails_a_write(void **state)                                                \
	{                                                                                               \
		SKIP_WITHOUT_DEVICE();                                                                  \
		recall_to_fail(*state, change, 1, PINL_PIN);                                            \
	}                                                                                               \
	static void change##_fails_a_read(void **state)                                                 \
	{                                                                                               \
		SKIP_WITHOUT_DEVICE();                                                                  \
		recall_to_fail(*state, change, 0, PINL_PIN);                                            \
	}                                                                                               \
	static void change##_fails_on_demand(void **state)                                              \
	{                                                                                               \
		SKIP_WITHOUT_ODP();                                                                     \
		recall_to_fail(*state, change, 1, 0);                                                   \
	}

FAIL_TESTS(truncate_it)
FAIL_TESTS(punch_it)
FAIL_TESTS(remove_it)
FAIL_TESTS(unmap_it)
FAIL_TESTS(map_over_it)
FAIL_TESTS(move_it)

/* --------------------------------------------------------------------- the holder's own answer -- */

struct actor {
	struct vrig *r;
	int err;
};

static void *truncate_thread(void *arg)
{
	struct actor *a = arg;

	a->err = truncate_it(a->r);
	return NULL;
}

/* In the grace the peer goes on, until its host asks it to stop: then it never meets an error. */
static void a_quiesced_peer_meets_no_error(void **state)
{
	struct vrig *r = *state;
	struct actor a = {.r = r};
	pthread_t thread;

	SKIP_WITHOUT_DEVICE();
	vrig_map(r, policy(PINL_RECALL, PINL_THEN_FAIL, 60000), PINL_PIN);
	vrig_witness(r);
	vrig_take_off(r, 1);
	assert_int_equal(pthread_create(&thread, NULL, truncate_thread, &a), 0);
	vrig_event(r, PINL_EV_NOTICE);
	vrig_await_moves(r, 2);
	assert_int_equal(vrig_land(r), IBV_WC_SUCCESS);
	assert_all("file", r->alias, 'W', LEN);
	assert_ok(pinl_quiesced(r->lease));
	pthread_join(thread, NULL);
	assert_int_equal(a.err, 0);
	vrig_mark_old(r);
	assert_int_equal(vrig_move(r, 1, LEN, r->addrs[0].addr, r->addrs[0].rkey),
			 IBV_WC_REM_ACCESS_ERR);
	vrig_assert_old_untouched(r);
	assert_int_equal(vrig_event(r, PINL_EV_QUIESCED).outcome, PINL_OUT_QUIESCED);
	goes_on(r, PINL_PIN);
}

/* --------------------------------------------------------------------------- SCRATCH, FOLLOW, ... -- */

static void scratch(struct vrig *r, int (*change)(struct vrig *))
{
	vrig_map(r, policy(PINL_RECALL, PINL_THEN_SCRATCH, 0), 0);
	vrig_witness(r);
	vrig_take_off(r, 1);
	assert_ok(change(r));
	vrig_mark_old(r);
	vrig_await_moves(r, 2);
	assert_int_equal(vrig_land(r), IBV_WC_SUCCESS);
	vrig_assert_old_untouched(r);
	assert_all("scratch", r->va, 'W', LEN);
	assert_int_equal(vrig_event(r, PINL_EV_FORCED).outcome, PINL_OUT_SCRATCH);
}

static void truncate_gives_scratch(void **state)
{
	SKIP_WITHOUT_ODP();
	scratch(*state, truncate_it);
}

static void punch_gives_scratch(void **state)
{
	SKIP_WITHOUT_ODP();
	scratch(*state, punch_it);
}

/* Nothing can be put where the program has nothing any more: that isn't called SCRATCH. */
static void unmap_is_no_scratch(void **state)
{
	struct vrig *r = *state;

	SKIP_WITHOUT_ODP();
	vrig_map(r, policy(PINL_RECALL, PINL_THEN_SCRATCH, 0), 0);
	vrig_take_off(r, 1);
	assert_ok(unmap_it(r));
	assert_int_equal(vrig_event(r, PINL_EV_FORCED).outcome, PINL_OUT_FAIL);
	assert_int_equal(vrig_land(r), IBV_WC_REM_ACCESS_ERR);
}

/* What can't be promised is refused, with the reason. */
static void pinned_scratch_is_refused(void **state)
{
	struct vrig *r = *state;

	SKIP_WITHOUT_DEVICE();
	for (int then = PINL_THEN_SCRATCH; then <= PINL_THEN_COPY; then++) {
		assert_int_equal(vrig_try(r, policy(PINL_RECALL, then, 0), PINL_PIN), -EOPNOTSUPP);
		assert_non_null(strstr(pinl_error(), "verbs"));
		assert_non_null(strstr(pinl_error(), "PINL_VERBS_READ"));
	}
	assert_int_equal(vrig_try(r, policy(PINL_RECALL, PINL_THEN_COPY, 0), 0), -EOPNOTSUPP);
}

/* To the new pages of a hole, to memory mapped over: without an error. */
static void follow_on(struct vrig *r, int (*change)(struct vrig *))
{
	vrig_map(r, policy(PINL_FOLLOW, 0, 0), 0);
	vrig_witness(r);
	vrig_take_off(r, 1);
	assert_ok(change(r));
	vrig_mark_old(r);
	vrig_await_moves(r, 2);
	assert_int_equal(vrig_land(r), IBV_WC_SUCCESS);
	vrig_assert_old_untouched(r);
	assert_all("new memory", r->va, 'W', LEN);
	vrig_event(r, PINL_EV_FOLLOWED);
}

static void follows_a_punch(void **state)
{
	SKIP_WITHOUT_ODP();
	follow_on(*state, punch_it);
}

static void follows_an_overmap(void **state)
{
	SKIP_WITHOUT_ODP();
	follow_on(*state, map_over_it);
}

/* Where there is nothing any more the peer gets an error, and new pages when they come. */
static void follow_to_nothing(struct vrig *r, int (*change)(struct vrig *))
{
	vrig_map(r, policy(PINL_FOLLOW, 0, 0), 0);
	vrig_witness(r);
	vrig_take_off(r, 1);
	assert_ok(change(r));
	vrig_mark_old(r);
	assert_int_equal(vrig_land(r), IBV_WC_REM_ACCESS_ERR);
	vrig_assert_old_untouched(r);
	restore(r);
	memset(r->far.buf, 'N', LEN);
	assert_int_equal(vrig_move(r, 1, LEN, r->addrs[0].addr, r->addrs[0].rkey), IBV_WC_SUCCESS);
	assert_all("file", r->alias, 'N', LEN);
}

static void follows_a_truncate(void **state)
{
	SKIP_WITHOUT_ODP();
	follow_to_nothing(*state, truncate_it);
}

static void follows_an_unmap(void **state)
{
	SKIP_WITHOUT_ODP();
	follow_to_nothing(*state, unmap_it);
}

static void keep_reports_the_orphan(void **state)
{
	struct vrig *r = *state;
	struct pinl_event ev;

	SKIP_WITHOUT_DEVICE();
	vrig_map(r, policy(PINL_KEEP, 0, 0), PINL_PIN);
	vrig_take_off(r, 1);
	assert_ok(truncate_it(r));
	vrig_await_moves(r, 1);
	assert_int_equal(vrig_land(r), IBV_WC_SUCCESS);
	ev = vrig_event(r, PINL_EV_ORPHAN);
	assert_int_equal(ev.bytes, LEN);
	vrig_unmap(r);
	vrig_event(r, PINL_EV_ORPHAN_END);
}

static void refuse_keeps_the_memory(void **state)
{
	struct vrig *r = *state;

	SKIP_WITHOUT_DEVICE();
	vrig_map(r, policy(PINL_REFUSE, 0, 0), PINL_PIN);
	vrig_take_off(r, 1);
	assert_int_equal(truncate_it(r), -EBUSY);
	assert_int_equal(punch_it(r), -EBUSY);
	assert_int_equal(remove_it(r), -EBUSY);
	vrig_await_moves(r, 2);
	assert_int_equal(vrig_land(r), IBV_WC_SUCCESS);
	assert_all("file", r->alias, 'W', LEN);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, vrig_up, vrig_down)

int main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
		TEST(plain_truncate_loses),	TEST(plain_punch_loses),
		TEST(plain_madvise_loses),	TEST(truncate_it_fails_a_write),
		TEST(truncate_it_fails_a_read), TEST(truncate_it_fails_on_demand),
		TEST(punch_it_fails_a_write),	TEST(punch_it_fails_a_read),
		TEST(punch_it_fails_on_demand), TEST(remove_it_fails_a_write),
		TEST(remove_it_fails_a_read),	TEST(remove_it_fails_on_demand),
		TEST(unmap_it_fails_a_write),	TEST(unmap_it_fails_a_read),
		TEST(unmap_it_fails_on_demand), TEST(map_over_it_fails_a_write),
		TEST(map_over_it_fails_a_read), TEST(map_over_it_fails_on_demand),
		TEST(move_it_fails_a_write),	TEST(move_it_fails_a_read),
		TEST(move_it_fails_on_demand),	TEST(a_quiesced_peer_meets_no_error),
		TEST(truncate_gives_scratch),	TEST(punch_gives_scratch),
		TEST(unmap_is_no_scratch),	TEST(pinned_scratch_is_refused),
		TEST(follows_a_punch),		TEST(follows_an_overmap),
		TEST(follows_a_truncate),	TEST(follows_an_unmap),
		TEST(keep_reports_the_orphan),	TEST(refuse_keeps_the_memory),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
