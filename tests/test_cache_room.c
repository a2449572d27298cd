/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How much the cache keeps: what becomes one registration, and what goes when there is no room. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <linux/capability.h>
#include <pinlease/source.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "cache_rig.h"

/* --------------------------------------------------------------------------------- merging -- */

static void overlapping_ones_become_one(void **state)
{
	char *at = pages_new(6);
	const struct pinl_reg *reg;
	struct rig r;

	rig_open(&r, unmerged());
	tag_at(&r, at);
	tag_at(&r, at + 4 * PAGE);
	reg = got(&r, at + PAGE / 2, 4 * PAGE, 0);
	assert_int_equal(reg->start, (uintptr_t)at);
	assert_int_equal(reg->end, (uintptr_t)at + 5 * PAGE);
	pinl_put(reg);
	settled(&r);
	assert_int_equal(stat_of(&r, "regions"), 1);
	assert_int_equal(stat_of(&r, "bytes"), 5 * PAGE);
	assert_int_equal(stat_of(&r, "merged"), 2);
	rig_close(&r);
	munmap(at, 6 * PAGE);
}

/* Page by page: not one registration each, nor all of it anew each time. */
static void neighbours_are_merged_in_time(void **state)
{
	enum { N = 256 };
	char *at = pages_new(N);
	struct rig r;

	rig_open(&r, NULL);
	for (int i = 0; i < N; i++)
		tag_at(&r, at + i * PAGE);
	settled(&r);
	assert_true(stat_of(&r, "regions") <= 10);
	assert_int_equal(stat_of(&r, "bytes"), N * PAGE);
	assert_true(r.tagger.mapped <= 10 * N * PAGE);
	rig_close(&r);
	munmap(at, N * PAGE);
}

static unsigned access_at(int page)
{
	return page % 2 ? PINL_WRITE : 0;
}

/* Neighbours of another access stay apart, so there are enough for an index of some nodes. What was
 * between two of them is looked for in the node of what came after it, which may have neither. */
static void what_touches_is_found_wherever_the_index_has_it(void **state)
{
	enum { N = 64 };
	char *at = pages_new(N);
	const struct pinl_reg *reg;
	struct rig r;

	rig_open(&r, NULL);
	for (int gone = 1; gone < N - 1; gone++) {
		for (int i = 0; i < N; i++)
			pinl_put(got(&r, at + i * PAGE, 8, access_at(i)));
		settled(&r);
		assert_int_equal(stat_of(&r, "regions"), N);
		dropped(&r, at + gone * PAGE, 2 * PAGE);
		reg = got(&r, at + gone * PAGE, 8, access_at(gone - 1));
		assert_ptr_equal((char *)reg->start, at + (gone - 1) * PAGE);
		pinl_put(reg);
		dropped(&r, NULL, 0);
	}
	rig_close(&r);
	munmap(at, N * PAGE);
}

static void what_cannot_be_one_stays_apart(void **state)
{
	char *at = pages_new(3);
	const struct pinl_reg *reg;
	struct rig r;

	rig_open(&r, NULL);
	tag_at(&r, at);
	munmap(at + PAGE, PAGE);
	tag_at(&r, at + 2 * PAGE);
	assert_int_equal(mprotect(at, PAGE, PROT_READ), 0);
	pinl_put(got(&r, at + 2 * PAGE, 8, PINL_WRITE));
	reg = got(&r, at, 8, 0);
	assert_int_equal(reg->end, (uintptr_t)at + PAGE);
	pinl_put(reg);
	rig_close(&r);
	munmap(at, PAGE);
	munmap(at + 2 * PAGE, PAGE);
}

/* Into one huge page; somebody may have a page just now, and no huge one may be free. */
static bool collapsed(char *at, size_t huge)
{
	for (int i = 0; i < 50; i++, usleep(100000))
		if (!madvise(at, huge, 25))
			return true;
		else if (errno == EINVAL)
			return false;
	return false;
}

static void huge_pages_are_taken_whole(void **state)
{
	size_t huge = 2 << 20;
	char *map = mmap(NULL, 2 * huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
	     *at;
	const struct pinl_reg *reg;
	struct rig r;

	at = (char *)(((uintptr_t)map + huge - 1) & ~(huge - 1));
	rig_open(&r, NULL);
	if (madvise(at, huge, MADV_HUGEPAGE) || (memset(at, 1, huge), !collapsed(at, huge))) {
		print_message("skip: transparent huge pages on demand (MADV_COLLAPSE)\n");
		rig_close(&r);
		munmap(map, 2 * huge);
		skip();
	}
	reg = got(&r, at + 123456, 8, 0);
	assert_int_equal(reg->start, (uintptr_t)at);
	assert_int_equal(reg->end, (uintptr_t)at + huge);
	pinl_put(reg);
	rig_close(&r);
	munmap(map, 2 * huge);
}

/* ---------------------------------------------------------------------------------- limits -- */

static void limits_are_kept_and_the_used_stay(void **state)
{
	struct pinl_cache_opts opts = {.size = sizeof opts, .max_merge = 1, .max_regions = 100};
	char *at = pages_new(5000);
	struct rig r;

	rig_open(&r, &opts);
	for (int i = 0; i < 20; i++) /* used again and again */
		tag_at(&r, at + i * PAGE);
	for (int i = 20; i < 5000; i++) {
		tag_at(&r, at + i * PAGE);
		assert_true(stat_of(&r, "regions") <= 100);
		tag_at(&r, at + i % 20 * PAGE);
	}
	assert_int_equal(stat_of(&r, "misses"), 5000);
	assert_true(stat_of(&r, "evicted") >= 4900);
	rig_close(&r);
	munmap(at, 5000 * PAGE);
}

/* Nothing is spared for ever. */
static void what_was_used_goes_too(void **state)
{
	struct pinl_cache_opts opts = {.size = sizeof opts, .max_merge = 1, .max_regions = 100};
	char *at = pages_new(500);
	struct rig r;

	rig_open(&r, &opts);
	for (int i = 0; i < 1000; i++) {
		tag_at(&r, at + i / 2 * PAGE);
		assert_true(stat_of(&r, "regions") <= 100);
	}
	rig_close(&r);
	munmap(at, 500 * PAGE);
}

static void bytes_are_a_limit_too(void **state)
{
	struct pinl_cache_opts opts = {.size = sizeof opts, .max_merge = 1, .max_bytes = 64 * PAGE};
	char *at = pages_new(1024);
	struct rig r;

	rig_open(&r, &opts);
	for (int i = 0; i < 1024; i += 4) {
		pinl_put(got(&r, at + i * PAGE, 3 * PAGE, 0));
		assert_true(stat_of(&r, "bytes") <= 64 * PAGE);
	}
	rig_close(&r);
	munmap(at, 1024 * PAGE);
}

static void what_is_in_use_goes_beyond_the_limit(void **state)
{
	struct pinl_cache_opts opts = {.size = sizeof opts, .max_merge = 1, .max_regions = 8};
	const struct pinl_reg *reg[32];
	char *at = pages_new(32);
	struct rig r;

	rig_open(&r, &opts);
	for (int i = 0; i < 32; i++)
		reg[i] = got(&r, at + i * PAGE, 8, 0);
	assert_int_equal(stat_of(&r, "regions"), 32);
	assert_int_equal(stat_of(&r, "over_limit"), 24);
	for (int i = 0; i < 32; i++)
		pinl_put(reg[i]);
	rig_close(&r);
	munmap(at, 32 * PAGE);
}

/* CAP_IPC_LOCK: who has it may pin beyond RLIMIT_MEMLOCK. Who hasn't keeps it so. */
static void cap_lock(bool on)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	assert_int_equal(syscall(SYS_capget, &head, data), 0);
	data[0].effective &= ~(1u << CAP_IPC_LOCK);
	if (on)
		data[0].effective |= data[0].permitted & (1u << CAP_IPC_LOCK);
	assert_int_equal(syscall(SYS_capset, &head, data), 0);
}

/* As with RLIMIT_MEMLOCK: what isn't in use makes room, and only then it is an error. */
static void full_makes_room(int err)
{
	const struct pinl_reg *held[64];
	char *at = pages_new(1024);
	struct rig r;

	rig_open(&r, unmerged());
	r.tagger.room = 64 * PAGE;
	r.tagger.full = err;
	for (int i = 0; i < 1024; i++)
		tag_at(&r, at + i * PAGE);
	assert_true(stat_of(&r, "retried") > 0);
	for (int i = 0; i < 64; i++)
		held[i] = got(&r, at + i * PAGE, 8, 0);
	assert_int_equal(pinl_get(r.dev, at + 64 * PAGE, 8, 0, &held[0]), err);
	assert_non_null(strstr(pinl_error(), "pinl_put()"));
	for (int i = 0; i < 64; i++)
		pinl_put(held[i]);
	tag_at(&r, at + 64 * PAGE);
	rig_close(&r);
	munmap(at, 1024 * PAGE);
}

static void no_memory_makes_room(void **state)
{
	full_makes_room(-ENOMEM);
}

static void no_slot_makes_room(void **state)
{
	full_makes_room(-ENOSPC);
}

/* Eviction helps those only who lack room. */
static void what_no_room_helps_costs_nobody_his(void **state)
{
	enum { N = 100 };
	const struct pinl_reg *reg;
	char *at = pages_new(2 * N), *hole = pages_new(4);
	struct rig r;

	rig_open(&r, unmerged());
	munmap(hole + PAGE, PAGE);
	for (int i = 0; i < N; i++)
		tag_at(&r, at + 2 * i * PAGE);
	assert_int_equal(pinl_get(r.dev, NULL, PAGE, 0, &reg), -ENOMEM);
	assert_int_equal(pinl_get(r.dev, hole, 4 * PAGE, 0, &reg), -ENOMEM);
	assert_int_equal(stat_of(&r, "evicted"), 0);
	for (int i = 0; i < N; i++)
		tag_at(&r, at + 2 * i * PAGE);
	assert_int_equal(stat_of(&r, "hits"), N);
	rig_close(&r);
	munmap(at, 2 * N * PAGE);
	munmap(hole, PAGE);
	munmap(hole + 2 * PAGE, 2 * PAGE);
}

/* More than RLIMIT_MEMLOCK at once. */
static void too_much_costs_nobody_his(void **state)
{
	const size_t much = 64;
	struct rlimit was, limit;
	const struct pinl_reg *reg;
	char *at = pages_new(much + 2);
	struct rig r;

	assert_int_equal(getrlimit(RLIMIT_MEMLOCK, &was), 0);
	rig_open(&r, unmerged());
	tag_at(&r, at);
	limit = (struct rlimit){(much - 1) * PAGE, was.rlim_max};
	if (limit.rlim_cur > was.rlim_max)
		limit.rlim_cur = was.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
	r.tagger.room = limit.rlim_cur;
	cap_lock(false);
	assert_int_equal(pinl_get(r.dev, at + 2 * PAGE, much * PAGE, 0, &reg), -ENOMEM);
	cap_lock(true);
	assert_int_equal(setrlimit(RLIMIT_MEMLOCK, &was), 0);
	assert_int_equal(stat_of(&r, "evicted"), 0);
	rig_close(&r);
	munmap(at, (much + 2) * PAGE);
}

/* What is registered beside what was asked for isn't worth failing. */
static void without_room_for_more_it_is_what_was_asked_for(void **state)
{
	const struct pinl_reg *first, *second;
	char *at = pages_new(8);
	struct rig r;

	rig_open(&r, unmerged());
	r.tagger.room = 8 * PAGE;
	first = got(&r, at, 4 * PAGE, 0);
	second = got(&r, at + 3 * PAGE, 3 * PAGE, 0);
	assert_int_equal(second->start, (uintptr_t)at + 3 * PAGE);
	assert_int_equal(second->end, (uintptr_t)at + 6 * PAGE);
	pinl_put(first);
	pinl_put(second);
	settled(&r);
	rig_close(&r);
	munmap(at, 8 * PAGE);
}

static void drop_gives_back_what_nobody_has(void **state)
{
	char *at = pages_new(3);
	const struct pinl_reg *reg;
	struct rig r;

	rig_open(&r, unmerged());
	tag_at(&r, at);
	reg = got(&r, at + PAGE, 8, 0);
	tag_at(&r, at + 2 * PAGE);
	dropped(&r, at, 2 * PAGE);
	assert_int_equal(r.tagger.unmaps, 1);
	dropped(&r, NULL, 0);
	assert_int_equal(r.tagger.unmaps, 2);
	assert_ptr_equal(got(&r, at + PAGE, 8, 0), reg);
	pinl_put(reg);
	pinl_put(reg);
	rig_close(&r);
	munmap(at, 3 * PAGE);
}

/* ------------------------------------------------------------------------------ their memory -- */

#define MANY 20000ul
#define SOME 10000ul

static size_t resident(void)
{
	FILE *f = fopen("/proc/self/statm", "re");
	size_t all, pages;

	assert_non_null(f);
	assert_int_equal(fscanf(f, "%zu %zu", &all, &pages), 2);
	fclose(f);
	return pages * PAGE;
}

/* Some of what was there may have been swapped out. */
static size_t grown(size_t before)
{
	size_t now = resident();

	return now > before ? now - before : 0;
}

static void assert_small(size_t bytes, size_t most)
{
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* these have their own */
	assert_in_range(bytes, 0, most);
#endif
}

/* None beside another. */
static void fill(struct rig *r, char *at, size_t n)
{
	for (size_t i = 0; i < n; i++)
		tag_at(r, at + 2 * i * PAGE);
}

static void a_registration_takes_little(void **state)
{
	char *at = pages_new(2 * MANY);
	size_t before;
	struct rig r;

	rig_open(&r, unmerged());
	tag_at(&r, at);
	before = resident();
	fill(&r, at, MANY);
	assert_small(grown(before), MANY * 1000);
	rig_close(&r);
	munmap(at, 2 * MANY * PAGE);
}

/* Recalled before, or in the place of one that was, or not: they are the same. And what they took while
 * they were being recalled isn't kept. */
static void many_may_be_recalled_at_once(void **state)
{
	struct pinl_cache_opts opts = {.size = sizeof opts,
				       .max_merge = 1,
				       .policy = {.size = sizeof opts.policy,
						  .kind = PINL_RECALL,
						  .then = PINL_THEN_FAIL,
						  .grace_ms = 60000}};
	struct pinl_lease_info info = {.size = sizeof info};
	const struct pinl_reg *reg;
	size_t before;
	struct rig r;

	rig_open(&r, &opts);
	before = resident();
	for (int round = 1; round <= 3; round++) {
		char *at = pages_new(2 * SOME);

		fill(&r, at, SOME);
		reg = got(&r, at + 2 * PAGE, 8, 0);
		assert_int_equal(pinl_lease_check(reg->lease), 0);
		assert_ok(pinl_lease_info(reg->lease, &info));
		assert_int_equal(info.state, PINL_ACTIVE);
		assert_int_equal(info.memory, PINL_MEM_ANON);
		pinl_put(reg);
		assert_ok(pinl_munmap(r.ctx, at, 2 * SOME * PAGE));
		assert_int_equal(r.tagger.unmaps, round * SOME);
	}
	dropped(&r, NULL, 0); /* who ends the last of them is through */
	assert_small(grown(before), SOME * 1300);
	rig_close(&r);
}

#if !defined(__SANITIZE_ADDRESS__) &&                                                                   \
	!defined(__SANITIZE_THREAD__) /* these need much of it themselves */
static size_t mapped(void)
{
	FILE *f = fopen("/proc/self/statm", "re");
	size_t pages;

	assert_non_null(f);
	assert_int_equal(fscanf(f, "%zu", &pages), 1);
	fclose(f);
	return pages * PAGE;
}

/* What is mapped for many, in case they are recalled, needn't be as much again as there is. */
static void little_room_is_used(void **state)
{
	const size_t before = 16000, more = 2000;
	char *at = pages_new(2 * (before + more));
	struct rlimit was, limit;
	struct rig r;

	rig_open(&r, unmerged());
	fill(&r, at, before);
	assert_int_equal(getrlimit(RLIMIT_AS, &was), 0);
	limit = (struct rlimit){mapped() + (20ul << 20), was.rlim_max};
	assert_int_equal(setrlimit(RLIMIT_AS, &limit), 0);
	fill(&r, at, before + more);
	assert_int_equal(setrlimit(RLIMIT_AS, &was), 0);
	assert_int_equal(stat_of(&r, "retried"), 0);
	assert_int_equal(stat_of(&r, "regions"), before + more);
	rig_close(&r);
	munmap(at, 2 * (before + more) * PAGE);
}
#endif

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
	struct pinl_cache_opts opts = {.size = sizeof opts,
				       .flags = PINL_PIN,
				       .max_merge = 1,
				       .policy = {.size = sizeof opts.policy,
						  .kind = kind,
						  .then = PINL_THEN_SCRATCH,
						  .grace_ms = 1}};
	char *stays = pages_new(2), *at = pages_new(2);
	const struct pinl_reg *kept, *reg;
	struct rig r;

	rig_open(&r, NULL);
	pinl_device_close(r.dev);
	assert_ok(pinl_device_open(r.ctx, "soft", NULL, &r.dev));
	assert_ok(pinl_cache_open(r.dev, &opts));
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

static void open_scratch(struct rig *r)
{
	struct pinl_cache_opts opts = {.size = sizeof opts,
				       .flags = PINL_PIN,
				       .max_merge = 1,
				       .policy = {.size = sizeof opts.policy,
						  .kind = PINL_RECALL,
						  .then = PINL_THEN_SCRATCH,
						  .grace_ms = 1}};

	rig_open(r, NULL);
	pinl_device_close(r->dev);
	assert_ok(pinl_device_open(r->ctx, "soft", NULL, &r->dev));
	assert_ok(pinl_cache_open(r->dev, &opts));
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

	open_scratch(&r);
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

	open_scratch(&r);
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
		cmocka_unit_test(overlapping_ones_become_one),
		cmocka_unit_test(neighbours_are_merged_in_time),
		cmocka_unit_test(what_touches_is_found_wherever_the_index_has_it),
		cmocka_unit_test(what_cannot_be_one_stays_apart),
		cmocka_unit_test(huge_pages_are_taken_whole),
		cmocka_unit_test(limits_are_kept_and_the_used_stay),
		cmocka_unit_test(what_was_used_goes_too),
		cmocka_unit_test(bytes_are_a_limit_too),
		cmocka_unit_test(what_is_in_use_goes_beyond_the_limit),
		cmocka_unit_test(no_memory_makes_room),
		cmocka_unit_test(no_slot_makes_room),
		cmocka_unit_test(what_no_room_helps_costs_nobody_his),
		cmocka_unit_test(too_much_costs_nobody_his),
		cmocka_unit_test(without_room_for_more_it_is_what_was_asked_for),
		cmocka_unit_test(drop_gives_back_what_nobody_has),
		cmocka_unit_test(a_registration_takes_little),
		cmocka_unit_test(many_may_be_recalled_at_once),
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
		cmocka_unit_test(little_room_is_used),
#endif
		cmocka_unit_test(each_counts_its_own_orphans),
		cmocka_unit_test(each_is_taken_anew),
		cmocka_unit_test(who_is_refused_takes_nothing_from_others),
		cmocka_unit_test(what_ends_is_waited_for_and_what_is_used_is_named),
	};

	return cmocka_run_group_tests_name("cache_room", tests, NULL, NULL);
}
