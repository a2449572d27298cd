/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Registrations of the cache that have lost a part: what became of one is not the next one's, and who
 * asks for what is still in use is refused, and takes nothing from others.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pinlease/source.h>
#include <stdio.h>

#include "cache_rig.h"

/* A policy of that kind; if it forces, by SCRATCH. */
static void open_soft(struct rig *r, enum pinl_policy_kind kind)
{
	struct pinl_cache_opts opts = {.size = sizeof opts,
				       .flags = PINL_PIN,
				       .max_merge = 1,
				       .policy = {.size = sizeof opts.policy,
						  .kind = kind,
						  .then = PINL_THEN_SCRATCH,
						  .grace_ms = 1}};

	rig_open(r, NULL);
	pinl_device_close(r->dev);
	assert_ok(pinl_device_open(r->ctx, "soft", NULL, &r->dev));
	assert_ok(pinl_cache_open(r->dev, &opts));
}

/* A registration of two pages loses the first. */
static const struct pinl_reg *losing(struct rig *r, char *at, void (*lose)(struct rig *r, char *at))
{
	const struct pinl_reg *reg = got(r, at, 2 * PAGE, PINL_WRITE);

	assert_int_equal(reg->end - reg->start, 2 * PAGE);
	lose(r, at);
	return reg;
}

/* One that was changed is kept, so nothing is given back, and each of many others, one after the other,
 * gets what the one before had for what became of it. */
static void each_begins_anew(enum pinl_policy_kind kind, void (*lose)(struct rig *r, char *at),
			     void (*check)(const struct pinl_reg *reg))
{
	char *stays = pages_new(2), *at = pages_new(2);
	const struct pinl_reg *kept, *reg;
	struct rig r;

	open_soft(&r, kind);
	kept = losing(&r, stays, lose);
	check(kept);
	for (int i = 0; i < 100; i++) {
		reg = losing(&r, at, lose);
		check(reg);
		pinl_put(reg);
		while (stat_of(&r, "regions") > 1) /* that one is `kept` */
			sched_yield();
		assert_ptr_equal(map_at(at, MAP_FIXED), at);
	}
	check(kept);
	pinl_put(kept);
	rig_close(&r);
	munmap(stays, 2 * PAGE);
	munmap(at, 2 * PAGE);
}

static void unmap_first(struct rig *r, char *at)
{
	assert_int_equal(munmap(at, PAGE), 0);
}

static void has_an_orphan(const struct pinl_reg *reg)
{
	struct pinl_lease_info info = {.size = sizeof info};

	while (!info.orphan_bytes) /* the worker says it */
		assert_ok(pinl_lease_info(reg->lease, &info));
	assert_int_equal(info.orphan_bytes, PAGE);
}

static void each_counts_its_own_orphans(void **state)
{
	each_begins_anew(PINL_KEEP, unmap_first, has_an_orphan);
}

static void recall_first(struct rig *r, char *at)
{
	char line[100];

	snprintf(line, sizeof line, "munmap va %p %p", (void *)at, (void *)(at + PAGE));
	assert_ok(pinl_script_run(r->ctx, line));
}

static void is_taken(const struct pinl_reg *reg)
{
	struct pinl_lease_info info = {.size = sizeof info};

	assert_ok(pinl_lease_info(reg->lease, &info));
	assert_int_equal(info.outcome, PINL_OUT_SCRATCH);
	assert_int_equal(info.detached_bytes, PAGE);
	assert_int_equal(info.orphan_bytes, 0);
}

static void each_is_taken_anew(void **state)
{
	each_begins_anew(PINL_RECALL, recall_first, is_taken);
}

/* -EAGAIN: the machine is so busy that a change isn't over for long. */
static int got_or_used(struct rig *r, char *at, size_t len, const struct pinl_reg **reg)
{
	int err;

	do
		err = pinl_get(r->dev, at, len, 0, reg);
	while (err == -EAGAIN);
	return err;
}

/* SCRATCH takes the memory from under all that is registered there. */
static void what_ends_is_waited_for_and_what_is_used_is_named(void **state)
{
	const struct pinl_reg *reg, *again;
	char *at = pages_new(2);
	struct rig r;

	open_soft(&r, PINL_RECALL);
	for (int i = 0; i < 100; i++) {
		reg = losing(&r, at, recall_first);
		assert_int_equal(got_or_used(&r, at, 2 * PAGE, &again), -EBUSY);
		assert_non_null(strstr(pinl_error(), "pinl_put()"));
		pinl_put(reg);
		assert_ok(got_or_used(&r, at, 2 * PAGE, &again));
		pinl_put(again);
	}
	rig_close(&r);
	munmap(at, 2 * PAGE);
}

/* And a refusal that was retried isn't one. */
static void who_is_refused_takes_nothing_from_others(void **state)
{
	const struct pinl_reg *reg, *same, *other;
	char *at = pages_new(4);
	struct rig r;

	open_soft(&r, PINL_RECALL);
	reg = got(&r, at, 2 * PAGE, 0);
	assert_int_equal(got_or_used(&r, at + PAGE, 2 * PAGE, &other), -EBUSY);
	assert_non_null(strstr(pinl_error(), "pinl_put()"));
	assert_int_equal(stat_of(&r, "failed"), 1);
	assert_ok(got_or_used(&r, at, 2 * PAGE, &same));
	assert_ptr_equal(same, reg);
	pinl_put(same);
	pinl_put(reg);
	for (int i = 0; i < 100; i++) {
		reg = losing(&r, at, recall_first);
		pinl_put(reg);
		assert_ok(got_or_used(&r, at, 2 * PAGE, &same));
		pinl_put(same);
	}
	assert_int_equal(stat_of(&r, "failed"), 1);
	rig_close(&r);
	munmap(at, 4 * PAGE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_counts_its_own_orphans),
		cmocka_unit_test(each_is_taken_anew),
		cmocka_unit_test(what_ends_is_waited_for_and_what_is_used_is_named),
		cmocka_unit_test(who_is_refused_takes_nothing_from_others),
	};

	return cmocka_run_group_tests_name("cache_anew", tests, NULL, NULL);
}
