/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Keys: what a peer has to be told, and is told by events; what a COPY and memory windows do with them.
 */
#include "verbs_rig.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>

static const struct pinl_verbs_arg both_ways = {
	.size = sizeof(struct pinl_verbs_arg),
	.access = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ,
};

static void reopen(struct vrig *r, struct pinl_verbs_arg arg)
{
	pinl_device_close(r->dev);
	r->dev = NULL;
	arg.pd = r->here.pd;
	assert_ok(pinl_device_open(r->ctx, "verbs", &arg, &r->dev));
}

static void reopen_to_read(struct vrig *r)
{
	struct pinl_verbs_arg arg = both_ways;

	arg.flags = PINL_VERBS_READ;
	reopen(r, arg);
}

/* The file under the addresses, whole, as before. */
static void restore(struct vrig *r)
{
	int flags = MAP_SHARED | MAP_FIXED | MAP_POPULATE;

	assert_int_equal(ftruncate(r->fd, LEN), 0);
	assert_ptr_equal(mmap(r->va, LEN, PROT_READ | PROT_WRITE, flags, r->fd, 0), r->va);
}

/* ------------------------------------------------------------------------------------ events -- */

static void a_lease_tells_its_keys(void **state)
{
	struct vrig *r = *state;
	struct pinl_event ev;
	char line[256];

	SKIP_WITHOUT_DEVICE();
	vrig_map(r, policy(PINL_KEEP, 0, 0), PINL_PIN);
	ev = vrig_event(r, PINL_EV_KEYS);
	assert_int_equal(ev.start, (uintptr_t)r->va);
	assert_int_equal(ev.end, (uintptr_t)r->va + LEN);
	assert_int_equal(ev.addr, r->addrs[0].addr);
	assert_int_equal(ev.key, pinl_lease_key(r->lease));
	assert_int_equal(ev.rkey, pinl_lease_rkey(r->lease));
	assert_int_equal(ev.rkey, r->addrs[0].rkey);
	assert_true(pinl_event_format(&ev, line, sizeof line) > 0);
	assert_non_null(strstr(line, "rkey"));
}

/* Knows of the lease what events say, and nothing else. */
static enum ibv_wc_status told_move(struct vrig *r, const struct pinl_event *keys, char c)
{
	memset(r->far.buf, c, LEN);
	return vrig_move(r, 1, LEN, keys->addr, keys->rkey);
}

/* Truncated under a load, leased again: the peer gets its error, is told, goes on. */
static void a_told_peer_goes_on(void **state)
{
	struct vrig *r = *state;
	struct pinl_event was, is;

	SKIP_WITHOUT_DEVICE();
	vrig_map(r, policy(PINL_RECALL, PINL_THEN_FAIL, 0), PINL_PIN);
	was = vrig_event(r, PINL_EV_KEYS);
	vrig_witness(r);
	vrig_take_off(r, 1);
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	vrig_mark_old(r);
	assert_int_equal(vrig_land(r), IBV_WC_REM_ACCESS_ERR);
	vrig_event(r, PINL_EV_RELEASED);
	restore(r);
	vrig_unmap(r);
	vrig_map(r, policy(PINL_RECALL, PINL_THEN_FAIL, 0), PINL_PIN);
	is = vrig_event(r, PINL_EV_KEYS);
	assert_int_not_equal(is.rkey, was.rkey);
	assert_int_not_equal(is.lease_id, was.lease_id);
	assert_int_equal(told_move(r, &was, 'O'), IBV_WC_REM_ACCESS_ERR);
	assert_int_equal(told_move(r, &is, 'N'), IBV_WC_SUCCESS);
	assert_all("file", r->alias, 'N', LEN);
	vrig_assert_old_untouched(r);
}

/* -------------------------------------------------------------------------------------- COPY -- */

/* What the peer had written when the file went is the program's, and both go on there. */
static void a_copy_has_new_keys(void **state)
{
	struct vrig *r = *state;
	struct pinl_event was, is;

	SKIP_WITHOUT_DEVICE();
	reopen_to_read(r);
	vrig_map(r, policy(PINL_RECALL, PINL_THEN_COPY, 0), PINL_PIN);
	was = vrig_event(r, PINL_EV_KEYS);
	vrig_witness(r);
	vrig_take_off(r, 1);
	vrig_await_moves(r, 1);
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	vrig_mark_old(r);
	assert_int_equal(vrig_land(r), IBV_WC_REM_ACCESS_ERR);
	assert_int_equal(vrig_event(r, PINL_EV_FORCED).outcome, PINL_OUT_COPY);
	is = vrig_event(r, PINL_EV_KEYS);
	assert_int_equal(is.lease_id, was.lease_id);
	assert_int_equal(is.addr, was.addr);
	assert_int_equal(is.rkey, pinl_lease_rkey(r->lease));
	assert_all("copy", r->va, 'W', LEN);
	assert_int_equal(told_move(r, &was, 'O'), IBV_WC_REM_ACCESS_ERR);
	assert_int_equal(told_move(r, &is, 'N'), IBV_WC_SUCCESS);
	assert_all("copy", r->va, 'N', LEN);
	vrig_assert_old_untouched(r);
}

static void a_copy_of_a_part(void **state)
{
	struct vrig *r = *state;
	struct pinl_event is;

	SKIP_WITHOUT_DEVICE();
	reopen_to_read(r);
	memset(r->va, 'F', LEN);
	vrig_map(r, policy(PINL_RECALL, PINL_THEN_COPY, 0), PINL_PIN);
	vrig_event(r, PINL_EV_KEYS);
	assert_ok(pinl_ftruncate(r->ctx, r->fd, LEN / 2));
	vrig_event(r, PINL_EV_RELEASED);
	is = vrig_event(r, PINL_EV_KEYS);
	assert_int_equal(is.start, (uintptr_t)r->va);
	assert_int_equal(is.end, (uintptr_t)r->va + LEN);
	assert_all("copied half", r->va + LEN / 2, 'F', LEN / 2);
	assert_int_equal(told_move(r, &is, 'N'), IBV_WC_SUCCESS);
	assert_all("kept half", r->alias, 'N', LEN / 2);
	assert_all("copied half", r->va + LEN / 2, 'N', LEN / 2);
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	if (vrig_event(r, PINL_EV_FORCED).outcome != PINL_OUT_COPY) {
		print_message("skip: fixed buffers of file and private pages (Linux 6.5)\n");
		skip();
	}
	is = vrig_event(r, PINL_EV_KEYS);
	assert_all("copy", r->va, 'N', LEN);
	assert_int_equal(told_move(r, &is, 'M'), IBV_WC_SUCCESS);
	assert_all("copy", r->va, 'M', LEN);
}

static void what_peers_write_to_an_orphan_is_known(void **state)
{
	struct vrig *r = *state;
	char *orphan;

	SKIP_WITHOUT_DEVICE();
	orphan = malloc(LEN);
	reopen_to_read(r);
	memset(r->va, 'F', LEN);
	vrig_map(r, policy(PINL_KEEP, 0, 0), PINL_PIN);
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	vrig_event(r, PINL_EV_ORPHAN);
	memset(r->far.buf, 'X', LEN);
	assert_int_equal(vrig_move(r, 1, LEN / 2, r->addrs[0].addr, r->addrs[0].rkey), IBV_WC_SUCCESS);
	assert_ok(pinl_lease_read(r->lease, 0, LEN, orphan));
	assert_all("written", orphan, 'X', LEN / 2);
	assert_all("the rest", orphan + LEN / 2, 'F', LEN / 2);
	vrig_unmap(r);
	assert_int_equal(vrig_event(r, PINL_EV_ORPHAN_END).bytes, LEN / 2);
	free(orphan);
}

/* A region can't get other pages under its keys, and SCRATCH says that the device goes on as it is. */
static void scratch_is_refused_all_the_same(void **state)
{
	struct vrig *r = *state;

	SKIP_WITHOUT_DEVICE();
	reopen_to_read(r);
	assert_int_equal(vrig_try(r, policy(PINL_RECALL, PINL_THEN_SCRATCH, 0), PINL_PIN), -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "retargeted"));
}

/* ----------------------------------------------------------------------------------- windows -- */

static const char *no_windows(struct vrig *r)
{
	struct pinl_verbs_arg arg = both_ways;
	struct pinl_device *dev;

	if (peer_missing())
		return peer_missing();
	arg.pd = r->here.pd;
	arg.means = PINL_VERBS_MW;
	if (pinl_device_open(r->ctx, "verbs", &arg, &dev))
		return "memory windows that take access away: a self-test found it";
	pinl_device_close(r->dev);
	r->dev = dev;
	return NULL;
}

#define SKIP_WITHOUT_WINDOWS(r)                                                                         \
	do {                                                                                            \
		const char *why = no_windows(r);                                                        \
		if (why) {                                                                              \
			print_message("skip: %s\n", why);                                               \
			skip();                                                                         \
		}                                                                                       \
	} while (0)

static void bind_window(struct vrig *r, struct pinl_lease *lease)
{
	struct ibv_send_wr *bad, wr = {.send_flags = IBV_SEND_SIGNALED};

	assert_ok(pinl_verbs_bind(lease, &wr));
	assert_int_equal(ibv_post_send(r->here.qp, &wr, &bad), 0);
	assert_int_equal(peer_wait(&r->here), IBV_WC_SUCCESS);
}

static void nobody_comes_in_but_by_the_window(void **state)
{
	struct vrig *r = *state;

	SKIP_WITHOUT_WINDOWS(r);
	vrig_map(r, policy(PINL_KEEP, 0, 0), PINL_PIN);
	memset(r->va, 0, LEN);
	memset(r->far.buf, 'W', LEN);
	assert_int_equal(vrig_move(r, 1, PAGE, r->addrs[0].addr, r->addrs[0].rkey),
			 IBV_WC_REM_ACCESS_ERR);
	assert_int_equal(vrig_move(r, 1, PAGE, r->addrs[0].addr, r->addrs[0].key),
			 IBV_WC_REM_ACCESS_ERR);
	assert_all("memory", r->va, 0, LEN);
	vrig_connect(r);
	bind_window(r, r->lease);
	assert_int_equal(vrig_move(r, 1, LEN, r->addrs[0].addr, r->addrs[0].rkey), IBV_WC_SUCCESS);
	assert_all("file", r->alias, 'W', LEN);
	vrig_unmap(r);
	assert_int_equal(vrig_move(r, 1, PAGE, r->addrs[0].addr, r->addrs[0].rkey),
			 IBV_WC_REM_ACCESS_ERR);
}

static void a_window_goes_in_mid_transfer(struct vrig *r, int write)
{
	vrig_map(r, policy(PINL_RECALL, PINL_THEN_FAIL, 0), PINL_PIN);
	bind_window(r, r->lease);
	vrig_witness(r);
	vrig_take_off(r, write);
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	vrig_mark_old(r);
	assert_int_equal(vrig_land(r), IBV_WC_REM_ACCESS_ERR);
	vrig_assert_old_untouched(r);
	if (!write)
		assert_null(memchr(r->far.buf, 'P', LEN));
	assert_int_equal(vrig_event(r, PINL_EV_FORCED).err, 0);
}

static void a_window_goes_under_a_write(void **state)
{
	SKIP_WITHOUT_WINDOWS(*state);
	a_window_goes_in_mid_transfer(*state, 1);
}

static void a_window_goes_under_a_read(void **state)
{
	SKIP_WITHOUT_WINDOWS(*state);
	a_window_goes_in_mid_transfer(*state, 0);
}

static struct pinl_lease *lease_half(struct vrig *r, size_t at, struct pinl_addr *addrs)
{
	struct pinl_policy p = policy(PINL_RECALL, PINL_THEN_FAIL, 0);
	struct pinl_lease *l;

	assert_ok(pinl_map_range(r->dev, (uintptr_t)r->va + at, (uintptr_t)r->va + at + LEN / 2,
				 PINL_WRITE | PINL_PIN | PINL_COOPERATIVE, &p, addrs, &l));
	bind_window(r, l);
	return l;
}

/* Of two leases that a peer has on one queue pair one is taken back: the other's transfers go on. */
static void one_window_is_taken_alone(void **state)
{
	struct vrig *r = *state;
	struct pinl_addr gone[LEN / 2 / PAGE];
	struct pinl_lease *other;

	SKIP_WITHOUT_WINDOWS(r);
	r->lease = lease_half(r, 0, r->addrs);
	other = lease_half(r, LEN / 2, gone);
	r->load = LEN / 2;
	memset(r->far.buf, 'W', LEN);
	assert_int_equal(vrig_move(r, 1, LEN / 2, gone[0].addr, gone[0].rkey), IBV_WC_SUCCESS);
	vrig_take_off(r, 1);
	assert_ok(pinl_ftruncate(r->ctx, r->fd, LEN / 2));
	assert_int_equal(vrig_event(r, PINL_EV_FORCED).err, 0);
	vrig_await_moves(r, 2);
	assert_int_equal(vrig_land(r), IBV_WC_SUCCESS);
	assert_all("kept half", r->alias, 'W', LEN / 2);
	assert_int_equal(vrig_move(r, 1, LEN / 2, gone[0].addr, gone[0].rkey), IBV_WC_REM_ACCESS_ERR);
	pinl_unmap_range(other);
}

static void without_a_window_there_is_nothing_to_bind(void **state)
{
	struct vrig *r = *state;
	struct pinl_verbs_arg arg = both_ways;
	struct ibv_send_wr wr = {0};
	struct pinl_device *dev;

	SKIP_WITHOUT_DEVICE();
	vrig_map(r, policy(PINL_KEEP, 0, 0), PINL_PIN);
	assert_int_equal(pinl_verbs_bind(r->lease, &wr), -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "no window"));
	arg.pd = r->here.pd;
	arg.means = PINL_VERBS_MW;
	arg.flags = PINL_VERBS_READ;
	assert_int_equal(pinl_device_open(r->ctx, "verbs", &arg, &dev), -EINVAL);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, vrig_up, vrig_down)

int main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
		TEST(a_lease_tells_its_keys),
		TEST(a_told_peer_goes_on),
		TEST(a_copy_has_new_keys),
		TEST(a_copy_of_a_part),
		TEST(what_peers_write_to_an_orphan_is_known),
		TEST(scratch_is_refused_all_the_same),
		TEST(nobody_comes_in_but_by_the_window),
		TEST(a_window_goes_under_a_write),
		TEST(a_window_goes_under_a_read),
		TEST(one_window_is_taken_alone),
		TEST(without_a_window_there_is_nothing_to_bind),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
