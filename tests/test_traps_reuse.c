/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Traps of addresses that come to mean other memory: mapped over, freed and taken again, while a lease
 * on them is made, used, recalled or forced. A device never reaches memory that was put at the addresses
 * of its lease later, and a lease never is of other memory than it says.
 */
#include "traps_rig.h"

#include <sys/stat.h>

static struct trap t;
static struct lent l, l2;

static void raw_overmap(struct raw *r)
{
	int flags = r->how < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;

	r->got = mmap(r->at, r->len, PROT_READ | PROT_WRITE, flags | MAP_FIXED, r->how, 0);
	if (r->got == r->at)
		errno = 0;
}

static int memfd(size_t len)
{
	int fd = memfd_create("reuse", MFD_CLOEXEC);

	assert_int_equal(ftruncate(fd, len), 0);
	return fd;
}

/* ------------------------------------------------------------------------ the same addresses -- */

/* Freed and mapped again at the same place: what is there now is nobody's lease, and can be a new one.
 */
static void reused_addresses_are_no_concern_of_the_old_lease(void **state)
{
	struct pinl_event ev;
	char *va;

	for (int i = 0; i < 2 * 3; i++) {
		trap_open(&t, i / 3);
		va = anon(4 * PG);
		lend(&t, &l, va, 4 * PG, PINNED, recall(i % 3, 1));
		assert_int_equal(munmap(va, 4 * PG), 0);
		assert_ptr_equal(anon_at(va, 4 * PG, MAP_FIXED_NOREPLACE), va);
		ev = await(&t, PINL_EV_RELEASED);
		assert_int_equal(ev.err, 0);
		memset(va, 'n', 4 * PG);
		assert_int_equal(put(&t, &l, 1, 'x'), i % 3 == PINL_THEN_FAIL ? -EFAULT : 0);
		assert_page(va + PG, 'n');
		lend(&t, &l2, va, 4 * PG, PINNED, recall(PINL_THEN_FAIL, 1));
		assert_coherent(&t, &l2, 0, 4);
		end(&l);
		assert_coherent(&t, &l2, 0, 4);
		assert_int_equal(madvise_by_other(va, PG, MADV_DONTNEED), 0);
		assert_int_equal(await(&t, PINL_EV_RELEASED).op, PINL_OP_DONTNEED);
		end(&l2);
		munmap(va, 4 * PG);
		trap_close(&t);
	}
}

/* Under KEEP the device has its old pages, and every byte it writes there is counted. */
static void kept_pages_are_not_the_new_ones_at_their_addresses(void **state)
{
	struct raw r = {.fn = raw_overmap, .len = 4 * PG, .how = -1};
	struct pinl_event ev;

	for (int i = 0; i < DEVICES; i++) {
		trap_open(&t, i);
		r.at = anon(4 * PG);
		lend(&t, &l, r.at, 4 * PG, PINNED, keep());
		raw_start(&r);
		raw_join(&r);
		ev = await(&t, PINL_EV_ORPHAN);
		assert_int_equal(ev.start, r.at);
		assert_int_equal(ev.end, r.at + 4 * PG);
		memset(r.at, 'n', 4 * PG);
		assert_ok(put(&t, &l, 1, 'x'));
		assert_page(r.at + PG, 'n');
		end(&l);
		assert_int_equal(await(&t, PINL_EV_ORPHAN_END).bytes, PG);
		munmap(r.at, 4 * PG);
		trap_close(&t);
	}
}

/* --------------------------------------------------------------------- during pinl_map_range -- */

struct overmapper {
	pthread_t thread;
	pthread_barrier_t turn;
	struct raw raw;
	unsigned spin;
	int stop;
};

static void spin(unsigned n)
{
	for (volatile unsigned i = 0; i < n; i++)
		;
}

static void *overmapper(void *arg)
{
	struct overmapper *o = arg;

	for (;;) {
		pthread_barrier_wait(&o->turn);
		if (o->stop)
			return NULL;
		spin(o->spin);
		raw_overmap(&o->raw);
		pthread_barrier_wait(&o->turn);
	}
}

/* A lease that was made while its addresses were mapped anew: refused, recalled, or of the new memory.
 */
static void assert_lease_is_true(int err, int fd, char c)
{
	struct pinl_lease_info info = {.size = sizeof info};
	struct stat st = {0};

	if (err) {
		assert_int_equal(err, -EBUSY);
		return;
	}
	if (!settled_check(l.lease)) {
		if (fd >= 0)
			assert_int_equal(fstat(fd, &st), 0);
		assert_ok(pinl_lease_info(l.lease, &info));
		assert_int_equal(info.file_ino, st.st_ino);
		assert_ok(put(&t, &l, 1, c));
		assert_page(l.va + PG, c);
		/* And it is watched. */
		assert_ptr_equal(anon_at(l.va, 4 * PG, MAP_FIXED), l.va);
		assert_int_equal(settled_check(l.lease), -ESTALE);
	}
	end(&l);
}

#define ROUNDS 600

static void mapping_over_a_lease_that_is_being_made(void **state)
{
	struct overmapper o = {.raw = {.len = 4 * PG}};
	int fds[3] = {memfd(4 * PG), memfd(4 * PG), -1};
	unsigned seed = 1;
	struct pinl_event ev;
	int err;

	trap_open(&t, SOFT);
	o.raw.at = anon(4 * PG);
	pthread_barrier_init(&o.turn, NULL, 2);
	assert_int_equal(pthread_create(&o.thread, NULL, overmapper, &o), 0);
	for (int i = 0; i < ROUNDS; i++) {
		o.raw.how = fds[rand_r(&seed) % 3];
		o.spin = rand_r(&seed) % 60000;
		pthread_barrier_wait(&o.turn);
		spin(rand_r(&seed) % 3000);
		err = try_lend(&t, &l, o.raw.at, 4 * PG, PINNED | PINL_COOPERATIVE,
			       recall(PINL_THEN_FAIL, 1));
		pthread_barrier_wait(&o.turn);
		assert_ptr_equal(o.raw.got, o.raw.at);
		assert_lease_is_true(err, o.raw.how, 'A' + i % 26);
		while (!next_event(&t, &ev, 0))
			;
	}
	o.stop = 1;
	pthread_barrier_wait(&o.turn);
	pthread_join(o.thread, NULL);
	pthread_barrier_destroy(&o.turn);
	munmap(o.raw.at, 4 * PG);
	close(fds[0]);
	close(fds[1]);
	trap_close(&t);
}

/* ---------------------------------------------------------------------------- during a force -- */

static void *long_transfer(void *arg)
{
	static char buf[4 * PG];

	memset(buf, 'z', sizeof buf);
	pinl_soft_dma(t.dev, l.addr[0].addr, buf, sizeof buf, 1);
	return NULL;
}

static enum pinl_state state_of(struct pinl_lease *lease)
{
	struct pinl_lease_info info = {.size = sizeof info};

	assert_ok(pinl_lease_info(lease, &info));
	return info.state;
}

/* A change starts a force, which then waits for a transfer. */
static pthread_t begin_force(struct raw *trigger)
{
	pthread_t dma;

	lend(&t, &l, trigger->at, trigger->len, PINNED | PINL_COOPERATIVE, recall(PINL_THEN_COPY, 1));
	pinl_soft_pause(t.dev, 1);
	assert_int_equal(pthread_create(&dma, NULL, long_transfer, NULL), 0);
	while (*(volatile char *)l.va != 'z') /* the first page is moved, then it stands */
		sched_yield();
	raw_start(trigger);
	while (state_of(l.lease) != PINL_FORCING)
		sched_yield();
	return dma;
}

/* Meanwhile the range is unmapped, and somebody else gets the addresses; or it is mapped over. */
static void put_another_there(struct raw *change, int overmap)
{
	struct pinl_event ev;
	void *got;

	change->fn = overmap ? raw_overmap : raw_unmap;
	raw_start(change);
	do
		ev = await(&t, PINL_EV_DEGRADED);
	while (ev.op != (overmap ? PINL_OP_OVERMAP : PINL_OP_UNMAP));
	got = mmap(change->at, change->len, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	assert_ptr_equal(got, overmap ? MAP_FAILED : change->at);
	memset(change->at, 'n', change->len);
}

static void assert_orphans(unsigned orphans)
{
	struct pinl_counters n = {.size = sizeof n};

	assert_ok(pinl_counters(t.ctx, &n));
	assert_int_equal(n.orphans, orphans);
}

static void memory_put_there_during_a_force_is_left_alone(void **state)
{
	struct raw trigger = {.fn = raw_advise, .len = 4 * PG, .how = MADV_FREE},
		   change = {.len = 4 * PG, .how = -1};
	struct pinl_event ev;
	pthread_t dma;

	for (int overmap = 0; overmap < 2; overmap++) {
		trap_open(&t, SOFT);
		trigger.at = change.at = anon(4 * PG);
		dma = begin_force(&trigger);
		put_another_there(&change, overmap);
		pinl_soft_pause(t.dev, 0);
		pthread_join(dma, NULL);
		ev = await(&t, PINL_EV_FORCED);
		assert_int_equal(ev.outcome, PINL_OUT_FAIL);
		assert_int_equal(ev.err, -EEXIST);
		raw_join(&change);
		pthread_join(trigger.thread, NULL);
		for (int page = 0; page < 4; page++) {
			assert_int_equal(put(&t, &l, page, 'x'), -EFAULT);
			assert_page(change.at + page * PG, 'n');
		}
		end(&l);
		assert_orphans(1); /* what went while the transfer was still on it */
		munmap(change.at, 4 * PG);
		trap_close(&t);
	}
}

/* Nobody gets the addresses: the device has pages of its own, and the hole stays a hole. */
static void a_hole_made_during_a_force_stays_a_hole(void **state)
{
	struct raw trigger = {.fn = raw_advise, .len = 4 * PG, .how = MADV_FREE},
		   unmap = {.fn = raw_unmap, .len = 4 * PG};
	struct pinl_event ev;
	pthread_t dma;

	trap_open(&t, SOFT);
	trigger.at = unmap.at = anon(4 * PG);
	dma = begin_force(&trigger);
	raw_start(&unmap);
	do
		ev = await(&t, PINL_EV_DEGRADED);
	while (ev.op != PINL_OP_UNMAP);
	pinl_soft_pause(t.dev, 0);
	pthread_join(dma, NULL);
	assert_int_equal(await(&t, PINL_EV_FORCED).outcome, PINL_OUT_COPY);
	raw_join(&unmap);
	pthread_join(trigger.thread, NULL);
	assert_int_equal(get(&t, &l, 3), 'z');
	assert_ptr_equal(anon_at(unmap.at, 4 * PG, MAP_FIXED_NOREPLACE), unmap.at);
	memset(unmap.at, 'n', 4 * PG);
	assert_ok(put(&t, &l, 1, 'x'));
	assert_page(unmap.at + PG, 'n');
	end(&l);
	assert_orphans(0);
	munmap(unmap.at, 4 * PG);
	trap_close(&t);
}

static void free_by_call(struct raw *r)
{
	r->got = pinl_madvise(t.ctx, r->at, r->len, MADV_FREE) ? NULL : r->at;
}

/* The same where nobody tells of what is unmapped: another file at the addresses is not taken for the
 * lease's memory. */
static void a_file_put_there_during_a_force_is_left_alone(void **state)
{
	struct raw trigger = {.fn = free_by_call, .len = 4 * PG}, over = {.len = 4 * PG};
	struct pinl_event ev;
	pthread_t dma;

	trap_open_with(&t, SOFT, PINL_SOURCE_NOTIFY);
	trigger.at = over.at = anon(4 * PG);
	dma = begin_force(&trigger);
	over.how = memfd(4 * PG);
	raw_overmap(&over);
	memset(over.at, 'n', 4 * PG);
	pinl_soft_pause(t.dev, 0);
	pthread_join(dma, NULL);
	ev = await(&t, PINL_EV_FORCED);
	assert_int_equal(ev.outcome, PINL_OUT_FAIL);
	assert_int_equal(ev.err, -EEXIST);
	pthread_join(trigger.thread, NULL);
	assert_int_equal(put(&t, &l, 1, 'x'), -EFAULT);
	for (int page = 0; page < 4; page++)
		assert_page(over.at + page * PG, 'n');
	end(&l);
	munmap(over.at, 4 * PG);
	close(over.how);
	trap_close(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reused_addresses_are_no_concern_of_the_old_lease),
		cmocka_unit_test(kept_pages_are_not_the_new_ones_at_their_addresses),
		cmocka_unit_test(mapping_over_a_lease_that_is_being_made),
		cmocka_unit_test(memory_put_there_during_a_force_is_left_alone),
		cmocka_unit_test(a_hole_made_during_a_force_stays_a_hole),
		cmocka_unit_test(a_file_put_there_during_a_force_is_left_alone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
