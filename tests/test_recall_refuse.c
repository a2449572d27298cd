/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a lease refuses is refused, and said to be; and what a lease says of its limits. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pinlease/source.h>
#include <sched.h>

#include "recall_rig.h"

static void refuse_refuses_what_it_names(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = {.size = sizeof p,
				.kind = PINL_REFUSE,
				.refuse = PINL_OPBIT(PINL_OP_TRUNCATE) | PINL_OPBIT(PINL_OP_UNMAP)};
	struct pinl_event ev = {.size = sizeof ev};
	int err;

	lease(r, &p);
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, 0), -EBUSY);
	assert_int_equal(pinl_munmap(r->ctx, r->mem + PAGE, PAGE), -EBUSY);
	assert_int_equal(count(r, PINL_EV_REFUSED, &ev), 2);
	assert_int_equal(ev.op, PINL_OP_UNMAP); /* and of what is refused it says no more than that */
	assert_ptr_equal(ev.start, r->mem + PAGE);
	assert_ptr_equal(ev.end, r->mem + 2 * PAGE);
	assert_int_equal(ev.file_start, PAGE);
	assert_int_equal(ev.file_end, 2 * PAGE);
	assert_int_equal(ev.bytes, PAGE);
	assert_int_equal(file_byte(r, 0), 'a');
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, SIZE), 0); /* takes nothing away */
	assert_int_equal(
		pinl_fallocate(r->ctx, r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE), 0);
	assert_int_equal(count(r, PINL_EV_ORPHAN, &ev), 1); /* not named: as under KEEP */
	pinl_unmap_range(r->lease);
	while (err = pinl_ftruncate(r->ctx, r->fd, 0), err == -EBUSY)
		sched_yield(); /* pinleased's gate has yet to hear of its end */
	assert_int_equal(err, 0);
	close_rig(r);
}

static unsigned refuses_all(void *src, const struct pinl_memory *mem, enum pinl_op op)
{
	return PINL_OPS_FILE & PINL_OPBIT(op) ? PINL_CAN_REFUSE : 0;
}

static int watch_nothing(void *src, const struct pinl_memory *mem)
{
	return 0;
}

static void unwatch_nothing(void *src, const struct pinl_memory *mem)
{
}

static int open_nothing(struct pinl_ctx *ctx, const void *arg, void **src)
{
	return 0;
}

static void close_nothing(void *src)
{
}

/* As pinleased's gate does, before it is told of anything. */
static const struct pinl_source_ops refuser = {.size = sizeof refuser,
					       .name = "refuser",
					       .open = open_nothing,
					       .close = close_nothing,
					       .coverage = refuses_all,
					       .watch = watch_nothing,
					       .unwatch = unwatch_nothing};

/* No event denies it, where nothing tells of such a change. */
static void what_is_refused_is_described_so(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = {.size = sizeof p,
				.kind = PINL_REFUSE,
				.refuse = PINL_OPBIT(PINL_OP_TRUNCATE) | PINL_OPBIT(PINL_OP_COLLAPSE)};
	struct pinl_event ev = {.size = sizeof ev};
	char text[2048], *refused;
	unsigned unseen = 0;

	reopen_with_uffd_only(r);
	assert_int_equal(pinl_source_add(r->ctx, &refuser, NULL), 0);
	if (pinl_map_range(r->dev, (uintptr_t)r->mem, (uintptr_t)r->mem + SIZE, PINL_WRITE | PINL_PIN,
			   &p, NULL, &r->lease))
		fail_msg("%s", pinl_error());
	pinl_lease_describe(r->lease, text, sizeof text);
	refused = strstr(text, "; refused: truncate, collapse");
	if (!refused)
		fail_msg("not said to be refused: %s", text);
	*refused = 0;
	assert_null(strstr(strstr(text, "raw changes:"), "truncate"));
	assert_null(strstr(strstr(text, "raw changes:"), "collapse"));
	assert_non_null(strstr(strstr(text, "; not seen:"), "punch"));
	while (!pinl_next_event(r->ctx, &ev))
		if (ev.type == PINL_EV_DEGRADED)
			unseen |= PINL_OPBIT(ev.op);
	assert_int_equal(unseen & p.refuse, 0);
	assert_int_not_equal(unseen & PINL_OPBIT(PINL_OP_PUNCH), 0);
	end_rig(r);
}

/* The remedy is that for this memory. */
static void what_cant_be_refused_has_a_remedy(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = {.size = sizeof p, .kind = PINL_REFUSE, .refuse = PINL_OPS_ALL};
	uintptr_t m = (uintptr_t)r->mem;

	reopen_with_uffd_only(r);
	assert_int_equal(pinl_map_range(r->dev, m, m + SIZE, PINL_PIN, &p, NULL, &r->lease),
			 -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "PINL_OPS_FILE"));
	assert_non_null(strstr(pinl_error(), ": munmap"));
	assert_null(strstr(pinl_error(), "truncate"));
	p.refuse = PINL_OPS_FILE;
	assert_int_equal(pinl_map_range(r->dev, m, m + SIZE, PINL_PIN, &p, NULL, &r->lease),
			 -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "pinleased's gate refuses"));
	assert_non_null(strstr(pinl_error(), "PINL_SEAL"));
	assert_non_null(strstr(pinl_error(), "truncate, punch, zero, collapse, insert"));
	r->lease = NULL;
	close_rig(r);
}

/* A sealed memfd refuses everybody, by the kernel; pinleased's gate does so before it. */
static void seals_refuse_raw_calls(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = {.size = sizeof p,
				.kind = PINL_REFUSE,
				.refuse = PINL_OPBIT(PINL_OP_TRUNCATE) | PINL_OPBIT(PINL_OP_PUNCH)};

	if (pinl_map_range(r->dev, (uintptr_t)r->mem, (uintptr_t)r->mem + SIZE,
			   PINL_WRITE | PINL_PIN | PINL_SEAL, &p, NULL, &r->lease))
		fail_msg("%s", pinl_error());
	assert_int_equal(ftruncate(r->fd, 0), -1);
	assert_true(errno == EPERM || errno == EBUSY);
	assert_int_equal(fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE), -1);
	assert_int_equal(device_write(r, 0), PAGE);
	assert_int_equal(r->mem[0], 'D');
	end_rig(r);
}

static void describe_says_the_limits(void **state)
{
	struct rig *r = leased(PINL_THEN_COPY, 250);
	char text[2048], cut[16];
	int n;

	n = pinl_lease_describe(r->lease, text, sizeof text);
	assert_int_equal(n, strlen(text));
	assert_non_null(strstr(text, "RECALL (250 ms, then COPY)"));
	assert_non_null(strstr(text, "not seen: guard"));
	assert_int_equal(pinl_lease_describe(r->lease, cut, sizeof cut), n);
	assert_int_equal(strlen(cut), sizeof cut - 1);
	end_rig(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(refuse_refuses_what_it_names),
		cmocka_unit_test(what_is_refused_is_described_so),
		cmocka_unit_test(what_cant_be_refused_has_a_remedy),
		cmocka_unit_test(seals_refuse_raw_calls),
		cmocka_unit_test(describe_says_the_limits),
	};

	return cmocka_run_group_tests_name("recall_refuse", tests, NULL, NULL);
}
