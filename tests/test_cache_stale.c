/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What has changed is not found in the cache, and what nobody would hear of is not put there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cache_rig.h"
#include "source/sources.h"

/* ------------------------------------------------------------------ while its watch begins -- */

/* Sources before and after userfaultfd: what a third thread can do at these very moments. */
static char *target;
static bool is_done; /* once */

static int opens(struct pinl_ctx *ctx, const void *arg, void **src)
{
	return 0;
}

static void closes(void *src)
{
}

static unsigned covers_before(void *src, const struct pinl_memory *mem, enum pinl_op op)
{
	return op == PINL_OP_GUARD ? PINL_CAN_TELL : 0;
}

static unsigned covers_after(void *src, const struct pinl_memory *mem, enum pinl_op op)
{
	return op == PINL_OP_GUARD ? PINL_CAN_BEFORE : 0;
}

static int unmaps(void *src, const struct pinl_memory *mem)
{
	if (!is_done)
		munmap(target, PAGE);
	return 0;
}

static int maps_anew(void *src, const struct pinl_memory *mem)
{
	if (!is_done)
		assert_ptr_equal(map_at(target, MAP_FIXED_NOREPLACE), target);
	is_done = true;
	return 0;
}

static void ends(void *src, const struct pinl_memory *mem)
{
}

static const struct pinl_source_ops before_uffd = {.size = sizeof before_uffd,
						   .name = "before",
						   .open = opens,
						   .close = closes,
						   .coverage = covers_before,
						   .watch = unmaps,
						   .unwatch = ends};
static const struct pinl_source_ops after_uffd = {.size = sizeof after_uffd,
						  .name = "after",
						  .open = opens,
						  .close = closes,
						  .coverage = covers_after,
						  .watch = maps_anew,
						  .unwatch = ends};

/* It is the same kind of memory, and nobody would hear of its changes. Nor is that the caller's affair.
 */
static void memory_mapped_while_its_watch_begins_is_leased_anew(void **state)
{
	struct pinl_opts o = {.size = sizeof o, .summary_fd = -1, .sources = PINL_SOURCE_NOTIFY};
	const struct pinl_reg *reg;
	struct pinl_device *dev;
	struct tagger g = {0};
	struct pinl_ctx *ctx;
	char *at = pages_new(3);

	rig_needs_uffd();
	target = at + PAGE;
	assert_ok(pinl_open(&o, &ctx));
	assert_ok(pinl_source_add(ctx, &before_uffd, NULL));
	assert_ok(pinl_source_add(ctx, &pl_uffd_ops, NULL));
	assert_ok(pinl_source_add(ctx, &after_uffd, NULL));
	assert_ok(pinl_device_open_ops(ctx, &tagger_ops, &g, &dev));
	pinl_put(got_of(dev, target, 8, 0));
	assert_true(is_done);
	assert_int_equal(munmap(target, PAGE), 0);
	assert_ptr_equal(map_at(target, MAP_FIXED_NOREPLACE), target);
	set_tag(target, 7);
	reg = got_of(dev, target, 8, 0);
	assert_int_equal(reg->key, 7);
	pinl_put(reg);
	pinl_close(ctx);
	munmap(at, 3 * PAGE);
}

/* Nobody hears of changes at all. */
static void memory_that_cannot_be_watched_is_not_cached(void **state)
{
	struct pinl_opts o = {.size = sizeof o, .summary_fd = -1, .sources = PINL_SOURCE_NOTIFY};
	struct pinl_cache_opts cooperative = {.size = sizeof cooperative,
					      .flags = PINL_PIN | PINL_COOPERATIVE};
	const struct pinl_reg *reg;
	struct pinl_device *dev, *other;
	struct tagger g = {0};
	struct pinl_ctx *ctx;
	char *at = pages_new(1);

	assert_ok(pinl_open(&o, &ctx));
	assert_ok(pinl_device_open_ops(ctx, &tagger_ops, &g, &dev));
	assert_int_equal(pinl_get(dev, at, 8, 0, &reg), -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "munmap"));
	assert_non_null(strstr(pinl_error(), "pinl_cache_opts"));
	assert_ok(pinl_device_open_ops(ctx, &tagger_ops, &g, &other));
	assert_ok(pinl_cache_open(other, &cooperative));
	set_tag(at, 5);
	assert_ok(pinl_get(other, at, 8, 0, &reg));
	assert_int_equal(reg->key, 5);
	pinl_put(reg);
	assert_ok(pinl_madvise(ctx, at, PAGE, MADV_DONTNEED));
	assert_ok(pinl_get(other, at, 8, 0, &reg));
	assert_int_equal(reg->key, 0);
	pinl_put(reg);
	pinl_close(ctx);
	munmap(at, PAGE);
}

/* libfabric's monitor, for example. */
static void another_ones_userfaultfd_is_said(void **state)
{
	const struct pinl_reg *reg;
	char *at = pages_new(1);
	struct rig r, s;

	rig_needs_uffd();
	rig_open(&r, NULL);
	rig_open(&s, NULL);
	tag_at(&r, at);
	assert_int_equal(pinl_get(s.dev, at, 8, 0, &reg), -EBUSY);
	assert_non_null(strstr(pinl_error(), "another userfaultfd"));
	assert_non_null(strstr(pinl_error(), "another context of pinlease"));
	rig_close(&s);
	rig_close(&r);
	munmap(at, PAGE);
}

/* --------------------------------------------------------------------------------- changed -- */

static void unmap_raw(struct rig *r, char *at)
{
	assert_int_equal(munmap(at, PAGE), 0);
}

static void unmap_by_call(struct rig *r, char *at)
{
	assert_ok(pinl_munmap(r->ctx, at, PAGE));
}

static void unmap_by_mmap(struct rig *r, char *at)
{
	assert_ptr_equal(mmap(at, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), at);
}

static void unmap_by_mremap(struct rig *r, char *at)
{
	char *to = pages_new(1);

	assert_ptr_equal(mremap(at, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
	munmap(to, PAGE);
}

static void discard(struct rig *r, char *at)
{
	assert_int_equal(madvise(at, PAGE, MADV_DONTNEED), 0);
}

static void discard_by_call(struct rig *r, char *at)
{
	assert_ok(pinl_madvise(r->ctx, at, PAGE, MADV_DONTNEED));
}

static void used_again_is_not_found(void (*go)(struct rig *r, char *at))
{
	char *at = pages_new(3) + PAGE;
	struct rig r;

	rig_open(&r, unmerged());
	for (uint32_t tag = 1; tag < 200; tag++) {
		assert_ptr_equal(mmap(at, PAGE, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
				 at);
		set_tag(at, tag);
		assert_int_equal(tag_at(&r, at), tag);
		assert_int_equal(tag_at(&r, at), tag);
		go(&r, at);
		mmap(at, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		set_tag(at, 1000 + tag);
		assert_int_equal(tag_at(&r, at), 1000 + tag);
	}
	assert_true(stat_of(&r, "invalidated") >= 199);
	settled(&r);
	assert_true(stat_of(&r, "regions") <= 1);
	rig_close(&r);
	munmap(at - PAGE, 3 * PAGE);
}

static void what_was_unmapped_is_not_found(void **state)
{
	used_again_is_not_found(unmap_raw);
}

static void what_was_unmapped_by_call_is_not_found(void **state)
{
	used_again_is_not_found(unmap_by_call);
}

static void what_was_mapped_over_is_not_found(void **state)
{
	used_again_is_not_found(unmap_by_mmap);
}

static void what_was_moved_is_not_found(void **state)
{
	used_again_is_not_found(unmap_by_mremap);
}

/* Without another mapping: the discarded pages alone. */
static void discarded_is_not_found(void (*go)(struct rig *r, char *at))
{
	char *at = pages_new(1);
	struct rig r;

	rig_open(&r, NULL);
	for (uint32_t tag = 1; tag < 200; tag++) {
		set_tag(at, tag);
		assert_int_equal(tag_at(&r, at), tag);
		go(&r, at);
	}
	rig_close(&r);
	munmap(at, PAGE);
}

static void what_was_discarded_is_not_found(void **state)
{
	discarded_is_not_found(discard);
}

static void what_was_discarded_by_call_is_not_found(void **state)
{
	discarded_is_not_found(discard_by_call);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_unmapped_is_not_found),
		cmocka_unit_test(what_was_unmapped_by_call_is_not_found),
		cmocka_unit_test(what_was_mapped_over_is_not_found),
		cmocka_unit_test(what_was_moved_is_not_found),
		cmocka_unit_test(what_was_discarded_is_not_found),
		cmocka_unit_test(what_was_discarded_by_call_is_not_found),
		cmocka_unit_test(memory_mapped_while_its_watch_begins_is_leased_anew),
		cmocka_unit_test(memory_that_cannot_be_watched_is_not_cached),
		cmocka_unit_test(another_ones_userfaultfd_is_said),
	};

	return cmocka_run_group_tests_name("cache_stale", tests, NULL, NULL);
}
