/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Lookups while others unmap, move, discard and map anew at the same addresses. Each page says by a tag
 * which of its lives it is in, and the device's key says which one was registered (cache_rig.h). Who
 * looks up knows the life from before the lookup to after it, so any other key is a stale registration.
 *
 * PINLEASE_TEST_LOOKUPS=N: so many lookups in the first test and in proportion in the others, else a
 * few seconds' worth.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>

#include "cache_rig.h"

#ifdef __SANITIZE_THREAD__
#define LOOKUPS 40000
#else
#define LOOKUPS 1000000
#endif

enum { SLOTS = 48, HELD = 8, CHANGES = 600 };

/* life: odd while it is being changed. Only its churner writes. */
struct slot {
	_Alignas(64) _Atomic uint64_t life;
	char *at;
	unsigned last, before; /* what became of it */
};

struct stress {
	struct rig rig;
	struct slot slot[SLOTS];
	atomic_bool stop;
	_Atomic uint64_t done, stale, changes;
	uint64_t lookups;
	void (*change)(struct stress *s, struct slot *slot, unsigned what);
	char first[128];    /* stale one */
	const char *failed; /* of a thread, which may not assert */
	int err;
};

struct worker {
	struct stress *s;
	unsigned number, seed;
	pthread_t thread;
};

static uint32_t tag_of(uint64_t life)
{
	return life / 2 + 1;
}

static void wrong(struct stress *s, const char *what, int err)
{
	s->err = err;
	s->failed = what;
	s->stop = true;
}

/* -------------------------------------------------------------------------------- changing -- */

static void map_again(struct stress *s, struct slot *slot)
{
	if (map_at(slot->at, MAP_FIXED_NOREPLACE) != slot->at)
		wrong(s, "mmap", -errno);
}

static void move_away(struct stress *s, struct slot *slot)
{
	char *to = mremap(slot->at, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, map_fresh());

	if (to == MAP_FAILED)
		wrong(s, "mremap", -errno);
	munmap(to, PAGE);
	map_again(s, slot);
}

static void change_raw(struct stress *s, struct slot *slot, unsigned what)
{
	switch (what) {
	case 0: /* seldom: what is registered just after it isn't kept */
		madvise(slot->at, PAGE, MADV_DONTNEED);
		break;
	case 1:
	case 2:
	case 3:
		move_away(s, slot);
		break;
	case 4:
	case 5:
	case 6:
	case 7:
		if (map_at(slot->at, MAP_FIXED) == MAP_FAILED)
			wrong(s, "mmap over it", -errno);
		break;
	default:
		munmap(slot->at, PAGE);
		map_again(s, slot);
	}
}

static void change_by_call(struct stress *s, struct slot *slot, unsigned what)
{
	bool unmaps = what;
	int err = unmaps ? pinl_munmap(s->rig.ctx, slot->at, PAGE)
			 : pinl_madvise(s->rig.ctx, slot->at, PAGE, MADV_DONTNEED);

	if (err)
		wrong(s, "explicit call", err);
	if (unmaps)
		map_again(s, slot);
}

static void *churn(void *arg)
{
	struct worker *w = arg;
	struct stress *s = w->s;

	while (!s->stop) {
		struct slot *slot = &s->slot[(rand_r(&w->seed) % (SLOTS / 2)) * 2 + w->number];
		uint64_t life = slot->life;

		slot->life = life + 1;
		slot->before = slot->last;
		slot->last = (rand_r(&w->seed) >> 4) % 16;
		s->change(s, slot, slot->last);
		if (s->stop)
			break;
		*(uint32_t *)slot->at = tag_of(life + 2);
		slot->life = life + 2;
		s->changes++;
		if (s->changes % 8 == 0)
			sched_yield();
	}
	return NULL;
}

/* ------------------------------------------------------------------------------ looking up -- */

/* NULL: not in this life, or not now. */
static const struct pinl_reg *look(struct stress *s, struct slot *slot)
{
	uint64_t life = slot->life;
	const struct pinl_reg *reg;
	char *at = slot->at;
	int err;

	if (life & 1)
		return NULL;
	err = pinl_get(s->rig.dev, at, 64, 0, &reg);
	if (slot->life != life) {
		if (!err)
			pinl_put(reg);
		return NULL;
	}
	if (err && err != -EAGAIN)
		wrong(s, "pinl_get", err);
	if (err)
		return NULL;
	if (reg->key != tag_of(life) && s->stale++ == 0)
		snprintf(s->first, sizeof s->first,
			 "slot %ld, life %u, registered in %u, changed by %u after %u, %p",
			 slot - s->slot, tag_of(life), reg->key, slot->last, slot->before, (void *)at);
	return reg;
}

static void *look_up(void *arg)
{
	const struct pinl_reg *held[HELD] = {NULL};
	struct worker *w = arg;
	struct stress *s = w->s;
	uint64_t n = 0;

	for (unsigned i = 0; !s->stop && (s->done < s->lookups || s->changes < CHANGES); i++) {
		struct slot *slot = &s->slot[rand_r(&w->seed) % SLOTS];

		for (int again = 0; again < 40; again++, n++) {
			const struct pinl_reg *reg = look(s, slot);

			if (reg && again == 7) { /* stays, whatever becomes of its memory */
				const struct pinl_reg *old = held[i % HELD];

				held[i % HELD] = reg;
				reg = old;
			}
			if (reg)
				pinl_put(reg);
		}
		s->done += n;
		n = 0;
	}
	for (int i = 0; i < HELD; i++)
		if (held[i])
			pinl_put(held[i]);
	return NULL;
}

/* ------------------------------------------------------------------------------- the tests -- */

static uint64_t wanted(uint64_t otherwise)
{
	const char *n = getenv("PINLEASE_TEST_LOOKUPS");

	return n ? strtoull(n, NULL, 0) * otherwise / LOOKUPS : otherwise;
}

static void start(struct worker *w, struct stress *s, unsigned number, void *(*fn)(void *))
{
	*w = (struct worker){.s = s, .number = number, .seed = 1 + number};
	assert_int_equal(pthread_create(&w->thread, NULL, fn, w), 0);
}

static void stress(void (*change)(struct stress *s, struct slot *slot, unsigned what),
		   const struct pinl_cache_opts *opts, uint64_t lookups)
{
	static struct stress s;
	struct worker w[4];

	memset(&s, 0, sizeof s);
	s.lookups = wanted(lookups);
	s.change = change;
	rig_open(&s.rig, opts);
	s.rig.tagger.tagged = true;
	for (int i = 0; i < SLOTS; i++) {
		s.slot[i].at = map_fresh();
		*(uint32_t *)s.slot[i].at = tag_of(0);
	}
	for (int i = 0; i < 4; i++)
		start(&w[i], &s, i % 2, i < 2 ? look_up : churn);
	for (int i = 0; i < 4; i++) {
		pthread_join(w[i].thread, NULL);
		s.stop |= i == 1;
	}
	if (s.failed)
		fail_msg("%s: %s: %s", s.failed, strerror(-s.err), pinl_error());
	print_message("%lu lookups, %lu hits, %lu changes, %lu invalidated, %lu transient\n",
		      (unsigned long)s.done, (unsigned long)stat_of(&s.rig, "hits"),
		      (unsigned long)s.changes, (unsigned long)stat_of(&s.rig, "invalidated"),
		      (unsigned long)stat_of(&s.rig, "transient"));
	if (s.stale)
		fail_msg("%lu stale, the first: %s", (unsigned long)s.stale, s.first);
	assert_true(stat_of(&s.rig, "hits") > s.lookups / 4);
	assert_true(stat_of(&s.rig, "invalidated") > 20);
	for (int i = 0; i < SLOTS; i++)
		munmap(s.slot[i].at, PAGE);
	rig_close(&s.rig);
}

static void no_lookup_is_stale_under_raw_changes(void **state)
{
	stress(change_raw, unmerged(), LOOKUPS);
}

static void no_lookup_is_stale_under_explicit_calls(void **state)
{
	stress(change_by_call, unmerged(), LOOKUPS);
}

static void no_lookup_is_stale_while_regions_are_evicted(void **state)
{
	struct pinl_cache_opts opts = {.size = sizeof opts, .max_merge = 1, .max_regions = SLOTS / 2};

	stress(change_raw, &opts, LOOKUPS / 10);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_lookup_is_stale_under_raw_changes),
		cmocka_unit_test(no_lookup_is_stale_under_explicit_calls),
		cmocka_unit_test(no_lookup_is_stale_while_regions_are_evicted),
	};

	return cmocka_run_group_tests_name("cache_stress", tests, NULL, NULL);
}
