/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The last look (I5): pages of private memory that were let go with no source watching are found when
 * the lease ends, each run of them once, and nothing else is. */
#include <liburing.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <pinlease/pinlease.h>

#include "check.h"

#define PAGE  4096ul
#define PAGES 1536ul /* more than one look at the page table */
#define SIZE  (PAGES * PAGE)

struct rig {
	struct pinl_ctx *ctx;
	struct io_uring ring;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	char *mem;
};

static int setup(void **state)
{
	struct rig *r = calloc(1, sizeof *r);
	struct pinl_opts opts = {.size = sizeof opts, .sources = PINL_SOURCE_NOTIFY, .summary_fd = -1};
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring};
	struct pinl_policy keep = {.size = sizeof keep, .kind = PINL_KEEP};

	*state = r;
	r->mem = with_room(SIZE);
	memset(r->mem, 'a', SIZE);
	assert_int_equal(io_uring_queue_init(8, &r->ring, 0), 0);
	assert_ok(pinl_open(&opts, &r->ctx));
	assert_ok(pinl_device_open(r->ctx, "uring", &arg, &r->dev));
	assert_ok(pinl_map_range(r->dev, (uintptr_t)r->mem, (uintptr_t)r->mem + SIZE,
				 PINL_WRITE | PINL_PIN | PINL_COOPERATIVE, &keep, NULL, &r->lease));
	return 0;
}

static int teardown(void **state)
{
	struct rig *r = *state;

	pinl_close(r->ctx);
	io_uring_queue_exit(&r->ring);
	munmap(r->mem, SIZE);
	free(r);
	return 0;
}

static void assert_orphan(struct rig *r, unsigned long first, unsigned long last)
{
	struct pinl_event ev = {.size = sizeof ev};

	do
		assert_int_equal(pinl_next_event(r->ctx, &ev), 0);
	while (ev.type != PINL_EV_ORPHAN);
	assert_int_equal(ev.start, (uintptr_t)r->mem + first * PAGE);
	assert_int_equal(ev.end, (uintptr_t)r->mem + last * PAGE);
}

static void pages_let_go_unseen_are_found(void **state)
{
	struct rig *r = *state;
	struct pinl_counters c = {.size = sizeof c};

	assert_int_equal(madvise(r->mem, PAGE, MADV_DONTNEED), 0);
	assert_int_equal(madvise(r->mem + 500 * PAGE, 600 * PAGE, MADV_DONTNEED), 0);
	assert_int_equal(munmap(r->mem + 1500 * PAGE, 2 * PAGE), 0);
	assert_int_equal(madvise(r->mem + SIZE - PAGE, PAGE, MADV_DONTNEED), 0);
	pinl_unmap_range(r->lease);
	assert_orphan(r, 0, 1);
	assert_orphan(r, 500, 1100);
	assert_orphan(r, 1500, 1502);
	assert_orphan(r, PAGES - 1, PAGES);
	pinl_counters(r->ctx, &c);
	assert_int_equal(c.orphans, 4);
	assert_int_equal(c.orphan_bytes, 604 * PAGE);
	assert_int_equal(c.orphan_bytes_written, 0);
}

static void pages_that_are_there_are_none(void **state)
{
	struct rig *r = *state;
	struct pinl_counters c = {.size = sizeof c};

	memset(r->mem, 'b', SIZE);
	pinl_unmap_range(r->lease);
	pinl_counters(r->ctx, &c);
	assert_int_equal(c.orphans, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(pages_let_go_unseen_are_found, setup, teardown),
		cmocka_unit_test_setup_teardown(pages_that_are_there_are_none, setup, teardown),
	};

	return cmocka_run_group_tests_name("check", tests, NULL, NULL);
}
