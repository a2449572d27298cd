/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Traps on the side of the mapping: each test is one, made raw by another thread and, where it matters,
 * by the explicit call, with pins of the kernel's own under it. Each says what its user notices, and
 * that no byte is lost unsaid. Limits are tests too: they say exactly how far it goes.
 */
#include "traps_rig.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE  103
#endif

static struct trap t;
static struct lent l, l2;

/* --------------------------------------------------------------------------------- guarded pages -- */

/* Nobody is told, and the device goes on in the page; but when it lets go, that is found and said. */
static void a_raw_guard_is_found_when_the_lease_ends(void **state)
{
	struct pinl_event ev;
	char *va, page[PG];

	for_each_device(&t, i)
	{
		va = anon(4 * PG);
		lend(&t, &l, va, 4 * PG, PINNED, recall(PINL_THEN_COPY, 1));
		assert_int_equal(madvise_by_other(va + PG, PG, MADV_GUARD_INSTALL), 0);
		assert_ok(put(&t, &l, 1, 'x'));
		assert_no_event(&t);
		assert_ok(settled_check(l.lease));
		assert_ok(pinl_lease_read(l.lease, PG, PG, page)); /* the way to rescue it */
		assert_page(page, 'x');
		end(&l);
		ev = await(&t, PINL_EV_ORPHAN);
		assert_string_equal(ev.source, "check");
		assert_int_equal(ev.start, va + PG);
		assert_int_equal(ev.end, va + 2 * PG);
		await(&t, PINL_EV_ORPHAN_END);
		munmap(va, 4 * PG);
	}
}

/* Also when the guard is gone again, as long as nobody has touched the page since ... */
static void a_guard_taken_off_again_is_found_when_the_lease_ends(void **state)
{
	char *va;

	for_each_device(&t, i)
	{
		va = anon(4 * PG);
		lend(&t, &l, va, 4 * PG, PINNED, keep());
		assert_int_equal(madvise_by_other(va + PG, PG, MADV_GUARD_INSTALL), 0);
		assert_int_equal(madvise_by_other(va + PG, PG, MADV_GUARD_REMOVE), 0);
		end(&l);
		assert_string_equal(await(&t, PINL_EV_ORPHAN).source, "check");
		munmap(va, 4 * PG);
	}
}

/* ... and after that it isn't: the one change that nothing here can find. Documented as a limit. */
static void a_guard_taken_off_and_touched_is_never_found(void **state)
{
	struct pinl_lease_info info = {.size = sizeof info};
	struct pinl_counters n = {.size = sizeof n};
	char *va, text[1024];

	for_each_device(&t, i)
	{
		va = anon(4 * PG);
		lend(&t, &l, va, 4 * PG, PINNED, recall(PINL_THEN_FAIL, 1));
		assert_ok(pinl_lease_info(l.lease, &info));
		assert_int_equal(info.coverage[PINL_OP_GUARD], 0);
		pinl_lease_describe(l.lease, text, sizeof text);
		assert_non_null(strstr(text,
				       "raw changes: held: dontneed, free; "
				       "held, but seen after they took effect: munmap, overmap, mremap; "
				       "not seen: guard"));
		assert_int_equal(madvise_by_other(va, PG, MADV_GUARD_INSTALL), 0);
		assert_int_equal(madvise_by_other(va, PG, MADV_GUARD_REMOVE), 0);
		va[0] = 't';
		assert_ok(put(&t, &l, 0, 'x'));
		assert_int_equal(va[0], 't');
		end(&l);
		assert_ok(pinl_counters(t.ctx, &n));
		assert_int_equal(n.orphans, 0);
		munmap(va, 4 * PG);
	}
}

static void a_guard_by_pinl_madvise_recalls_first(void **state)
{
	struct pinl_policy refuse = {
		.size = sizeof refuse, .kind = PINL_REFUSE, .refuse = PINL_OPBIT(PINL_OP_GUARD)};
	struct pinl_event ev;
	char *va;

	for_each_device(&t, i)
	{
		va = anon(4 * PG);
		lend(&t, &l, va, 2 * PG, PINNED, recall(PINL_THEN_FAIL, 1));
		lend(&t, &l2, va + 2 * PG, 2 * PG, PINNED | PINL_COOPERATIVE, refuse);
		assert_ok(pinl_madvise(t.ctx, va, PG, MADV_GUARD_INSTALL));
		ev = await(&t, PINL_EV_RELEASED);
		assert_int_equal(ev.op, PINL_OP_GUARD);
		assert_int_equal(ev.err, 0);
		assert_int_equal(put(&t, &l, 0, 'x'), -EFAULT);
		assert_int_equal(pinl_madvise(t.ctx, va + 2 * PG, PG, MADV_GUARD_INSTALL), -EBUSY);
		assert_coherent(&t, &l2, 0, 2);
		end(&l);
		end(&l2);
		munmap(va, 4 * PG);
	}
}

/* ---------------------------------------------------------------------------------------- mremap -- */

static void raw_mremap(struct raw *r)
{
	r->got = mremap(r->at, r->len, r->how & 0x100 ? 2 * r->len : r->len, r->how & 0xff, r->to);
	if (r->got != MAP_FAILED)
		errno = 0;
}

static char *moved(char *va, size_t len, int how, int explicit)
{
	struct raw r = {.fn = raw_mremap, .at = va, .len = len, .how = how};

	if (explicit) {
		assert_ok(pinl_mremap(t.ctx, va, len, how & 0x100 ? 2 * len : len, how & 0xff, NULL,
				      &r.got));
	} else {
		raw_start(&r);
		raw_join(&r);
	}
	return r.got;
}

/*
 * The pages go to another address, and leave empty ones behind that look the same. What the device has
 * written is at the new address; afterwards it reaches neither. COPY can't be: it would have to replace
 * memory that has been put there since, so it says that it ended in FAIL.
 */
static void mremap_dontunmap_takes_the_pages_along(void **state)
{
	struct pinl_event ev;
	char *va, *to;

	for_each_device(&t, i) for (int n = 0; n < 6; n++)
	{
		enum pinl_then then = n / 2;

		va = anon(4 * PG);
		lend(&t, &l, va, 4 * PG, PINNED, recall(then, 1));
		assert_ok(put(&t, &l, 1, 'x'));
		to = moved(va, 4 * PG, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, n & 1);
		ev = await(&t, PINL_EV_RELEASED);
		assert_int_equal(ev.op, PINL_OP_REMAP);
		assert_int_equal(ev.outcome, PINL_OUT_FAIL);
		assert_int_equal(ev.err == 0, then == PINL_THEN_FAIL);
		assert_page(to + PG, 'x');
		assert_page(to, 'a');
		assert_page(va + PG, 0);
		assert_int_equal(put(&t, &l, 1, 'y'), -EFAULT);
		assert_page(to + PG, 'x');
		assert_page(va + PG, 0);
		end(&l);
		munmap(va, 4 * PG);
		munmap(to, 4 * PG);
	}
}

static char *growable(int room)
{
	char *va = with_room(4 * PG);

	if (!room)
		anon_at(va + 4 * PG, PG, MAP_FIXED_NOREPLACE);
	return va;
}

static void mremap_that_grows_in_place_disturbs_nothing(void **state)
{
	char *va;

	for_each_device(&t, i)
	{
		va = growable(1);
		lend(&t, &l, va, 4 * PG, PINNED, recall(PINL_THEN_COPY, 1));
		assert_ptr_equal(moved(va, 4 * PG, 0x100, 0), va);
		assert_coherent(&t, &l, 0, 4);
		assert_no_event(&t);
		assert_int_equal(munmap(va + 4 * PG, 4 * PG), 0); /* what it grew by isn't leased */
		assert_ok(settled_check(l.lease));
		assert_coherent(&t, &l, 0, 4);
		assert_int_equal(munmap(va + 3 * PG, PG), 0);
		assert_int_equal(await(&t, PINL_EV_RELEASED).op, PINL_OP_UNMAP);
		end(&l);
		munmap(va, 4 * PG);
	}
}

static void mremap_that_grows_elsewhere_recalls(void **state)
{
	char *va, *to;

	for_each_device(&t, i) for (int explicit = 0; explicit < 2; explicit ++)
	{
		va = growable(0);
		lend(&t, &l, va, 4 * PG, PINNED, recall(PINL_THEN_FAIL, 1));
		assert_ok(put(&t, &l, 2, 'x'));
		to = moved(va, 4 * PG, MREMAP_MAYMOVE | 0x100, explicit);
		assert_ptr_not_equal(to, va);
		assert_int_equal(await(&t, PINL_EV_RELEASED).op, PINL_OP_REMAP);
		assert_page(to + 2 * PG, 'x');
		assert_int_equal(put(&t, &l, 2, 'y'), -EFAULT);
		end(&l);
		munmap(to, 8 * PG);
		munmap(va + 4 * PG, PG);
	}
}

/* Only the part that is cut off is recalled. */
static void mremap_that_shrinks_recalls_what_it_cuts_off(void **state)
{
	struct pinl_event ev;
	void *got;
	char *va;

	for_each_device(&t, i) for (int explicit = 0; explicit < 2; explicit ++)
	{
		va = anon(4 * PG);
		lend(&t, &l, va, 4 * PG, PINNED, recall(PINL_THEN_COPY, 1));
		if (explicit)
			assert_ok(pinl_mremap(t.ctx, va, 4 * PG, 2 * PG, 0, NULL, &got));
		else
			assert_ptr_equal(mremap(va, 4 * PG, 2 * PG, 0), va);
		ev = await(&t, PINL_EV_RELEASED);
		assert_int_equal(ev.op, PINL_OP_UNMAP);
		assert_int_equal(ev.start, va + 2 * PG);
		assert_int_equal(ev.outcome, PINL_OUT_COPY);
		assert_coherent(&t, &l, 0, 2);
		end(&l);
		munmap(va, 4 * PG);
	}
}

/* --------------------------------------------------------------------------------------- madvise -- */

/*
 * Pinned pages that were freed stay where they are until memory is short: the CPU goes on seeing what
 * the device writes. Afterwards they may go, so they are reported as if they had.
 */
static void freed_pages_are_an_orphan_and_still_there(void **state)
{
	struct pinl_event ev;
	char *va;

	for_each_device(&t, i)
	{
		va = anon(4 * PG);
		lend(&t, &l, va, 4 * PG, PINNED, keep());
		assert_int_equal(madvise_by_other(va + PG, PG, MADV_FREE), 0);
		ev = await(&t, PINL_EV_ORPHAN);
		assert_int_equal(ev.start, va + PG);
		assert_int_equal(ev.end, va + 2 * PG);
		assert_int_equal(madvise_by_other(va, 4 * PG, MADV_PAGEOUT), 0);
		assert_coherent(&t, &l, 0, 4);
		end(&l);
		assert_int_equal(await(&t, PINL_EV_ORPHAN_END).bytes, PG);
		munmap(va, 4 * PG);
	}
}

static void freeing_waits_for_the_recall(void **state)
{
	struct raw r = {.fn = raw_advise, .len = PG, .how = MADV_FREE};
	char *va;

	for_each_device(&t, i)
	{
		va = anon(4 * PG);
		lend(&t, &l, va, 4 * PG, PINNED, recall(PINL_THEN_FAIL, LONG));
		r.at = va + PG;
		raw_start(&r);
		assert_int_equal(await(&t, PINL_EV_NOTICE).op, PINL_OP_FREE);
		assert_ok(put(&t, &l, 1, 'x'));
		assert_page(va + PG, 'x');
		assert_false(r.done);
		assert_ok(pinl_quiesced(l.lease));
		raw_join(&r);
		end(&l);
		munmap(va, 4 * PG);
	}
}

/* What only moves unpinned pages, or changes what the CPU may do, leaves a pin alone. */
static void pageout_cold_and_mprotect_leave_the_device_its_pages(void **state)
{
	char *va;

	for_each_device(&t, i)
	{
		va = anon(4 * PG);
		lend(&t, &l, va, 4 * PG, PINNED, recall(PINL_THEN_COPY, 1));
		assert_int_equal(madvise_by_other(va, 4 * PG, MADV_PAGEOUT), 0);
		assert_int_equal(madvise_by_other(va, 4 * PG, MADV_COLD), 0);
		assert_coherent(&t, &l, 0, 4);
		assert_int_equal(mprotect(va + PG, PG, PROT_NONE), 0);
		assert_int_equal(mprotect(va + 2 * PG, PG, PROT_READ), 0);
		assert_ok(put(&t, &l, 1, 'm'));
		assert_ok(put(&t, &l, 2, 'm'));
		assert_page(va + 2 * PG, 'm');
		assert_int_equal(mprotect(va, 4 * PG, PROT_READ | PROT_WRITE), 0);
		assert_page(va + PG, 'm');
		assert_coherent(&t, &l, 0, 4);
		assert_no_event(&t);
		end(&l);
		assert_no_event(&t);
		munmap(va, 4 * PG);
	}
}

/* ---------------------------------------------------------------------------------------- borders -- */

/* One change over the end of one lease, what lies between, and the start of the next. */
static void one_munmap_takes_its_part_of_two_leases(void **state)
{
	struct pinl_event ev;
	char *va;
	int seen;

	for_each_device(&t, i) for (int explicit = 0; explicit < 2; explicit ++)
	{
		va = anon(12 * PG);
		lend(&t, &l, va, 4 * PG, PINNED, recall(PINL_THEN_COPY, 1));
		lend(&t, &l2, va + 6 * PG, 4 * PG, PINNED, recall(PINL_THEN_COPY, 1));
		if (explicit)
			assert_ok(pinl_munmap(t.ctx, va + 2 * PG, 6 * PG));
		else
			assert_int_equal(munmap(va + 2 * PG, 6 * PG), 0);
		for (seen = 0; seen != 3;) {
			ev = await(&t, PINL_EV_RELEASED);
			assert_int_equal(ev.outcome, PINL_OUT_COPY);
			if (ev.start == (uintptr_t)va + 2 * PG && ev.end == ev.start + 2 * PG)
				seen |= 1;
			if (ev.start == (uintptr_t)va + 6 * PG && ev.end == ev.start + 2 * PG)
				seen |= 2;
		}
		assert_coherent(&t, &l, 0, 2);
		assert_coherent(&t, &l2, 2, 4);
		assert_int_equal(get(&t, &l, 3), 'a'); /* in pages of its own */
		end(&l);
		end(&l2);
		munmap(va, 12 * PG);
	}
}

static void a_change_that_ends_at_a_border_recalls_nothing(void **state)
{
	char *va;

	for_each_device(&t, i)
	{
		va = anon(8 * PG);
		lend(&t, &l, va + 2 * PG, 2 * PG, PINNED, recall(PINL_THEN_FAIL, 1));
		lend(&t, &l2, va + 6 * PG, 2 * PG, PINNED, recall(PINL_THEN_FAIL, 1));
		assert_int_equal(madvise_by_other(va, 2 * PG, MADV_DONTNEED), 0);
		assert_int_equal(munmap(va + 4 * PG, 2 * PG), 0);
		assert_ok(pinl_munmap(t.ctx, va, 2 * PG));
		assert_ok(settled_check(l.lease));
		assert_ok(settled_check(l2.lease));
		assert_no_event(&t);
		assert_coherent(&t, &l, 0, 2);
		assert_coherent(&t, &l2, 0, 2);
		end(&l);
		end(&l2);
		munmap(va, 8 * PG);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_raw_guard_is_found_when_the_lease_ends),
		cmocka_unit_test(a_guard_taken_off_again_is_found_when_the_lease_ends),
		cmocka_unit_test(a_guard_taken_off_and_touched_is_never_found),
		cmocka_unit_test(a_guard_by_pinl_madvise_recalls_first),
		cmocka_unit_test(mremap_dontunmap_takes_the_pages_along),
		cmocka_unit_test(mremap_that_grows_in_place_disturbs_nothing),
		cmocka_unit_test(mremap_that_grows_elsewhere_recalls),
		cmocka_unit_test(mremap_that_shrinks_recalls_what_it_cuts_off),
		cmocka_unit_test(freed_pages_are_an_orphan_and_still_there),
		cmocka_unit_test(freeing_waits_for_the_recall),
		cmocka_unit_test(pageout_cold_and_mprotect_leave_the_device_its_pages),
		cmocka_unit_test(one_munmap_takes_its_part_of_two_leases),
		cmocka_unit_test(a_change_that_ends_at_a_border_recalls_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
