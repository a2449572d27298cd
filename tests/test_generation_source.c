/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the library makes of changes that the kernel counts; here the test is the kernel. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <sched.h>

#include "cache_rig.h"
#include "core/cached.h"
#include "generation_fake.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

#define BIT(op) PINL_OPBIT(PINL_OP_##op)

/* -------------------------------------------------------------------------------- decoding -- */

static void a_change_is_named_by_its_system_call(void **state)
{
	static const struct {
		uint32_t what;
		int nr;
		uint32_t how;
		enum pinl_op op;
		unsigned also;
	} cases[] = {
		{GENERATION_ZAP, SYS_munmap, 0, PINL_OP_UNMAP, 0},
		{GENERATION_ZAP, SYS_brk, 0, PINL_OP_UNMAP, 0},
		{GENERATION_ZAP, SYS_shmdt, 0, PINL_OP_UNMAP, 0},
		{GENERATION_ZAP, SYS_mmap, 0, PINL_OP_OVERMAP, 0},
		{GENERATION_ZAP, SYS_mremap, 0, PINL_OP_UNMAP, BIT(OVERMAP)},
		{GENERATION_MOVE, SYS_mremap, 0, PINL_OP_REMAP, 0},
		{GENERATION_ZAP, SYS_madvise, MADV_DONTNEED, PINL_OP_DONTNEED, 0},
		{GENERATION_ZAP, SYS_madvise, MADV_REMOVE, PINL_OP_REMOVE, 0},
		{GENERATION_ZAP, SYS_process_madvise, MADV_GUARD_INSTALL, PINL_OP_GUARD, 0},
		{GENERATION_FREE, SYS_madvise, MADV_FREE, PINL_OP_FREE, 0},
		{GENERATION_ZAP, SYS_ftruncate, 0, PINL_OP_TRUNCATE, 0},
		{GENERATION_ZAP, SYS_openat, 0, PINL_OP_TRUNCATE, 0},
		{GENERATION_ZAP, SYS_fallocate, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		 PINL_OP_PUNCH, 0},
		{GENERATION_ZAP, SYS_fallocate, FALLOC_FL_ZERO_RANGE, PINL_OP_ZERO, 0},
		{GENERATION_ZAP, SYS_fallocate, FALLOC_FL_COLLAPSE_RANGE, PINL_OP_COLLAPSE, 0},
		{GENERATION_ZAP, SYS_fallocate, FALLOC_FL_INSERT_RANGE, PINL_OP_INSERT, 0},
	};

	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct generation_record r = {
			.what = cases[i].what, .nr = cases[i].nr, .how = cases[i].how};
		enum pinl_op op;
		unsigned also;

		pl_generation_decode(&r, true, &op, &also);
		if (op != cases[i].op || also != cases[i].also)
			fail_msg("case %zu: %s, also %#x", i, pinl_op_name(op), also);
	}
}

/* Whatever memory it is, somebody who has it leased hears. */
static void an_unknown_call_is_told_to_all_memory(void **state)
{
	struct generation_record r = {.what = GENERATION_ZAP, .nr = -1};

	for (int own = 0; own < 2; own++)
		for (int kind = PINL_MEM_SHMEM; kind <= PINL_MEM_DAX; kind++) {
			bool effect = false, shared = kind != PINL_MEM_FILE_PRIVATE;
			unsigned also;
			enum pinl_op op;

			pl_generation_decode(&r, own, &op, &also);
			for (int o = 0; o < PINL_OP_NR; o++)
				if ((PINL_OPBIT(op) | also) & PINL_OPBIT(o))
					effect |= pl_op_effect(o, kind, shared, true) != PL_NO_EFFECT;
			assert_true(effect);
		}
}

/* -------------------------------------------------------------------------------- watching -- */

static char *shared_pages(size_t n)
{
	char *at = mmap(NULL, n * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_true(at != MAP_FAILED);
	memset(at, 'a', n * PAGE);
	return at;
}

static const struct pinl_policy keep = {.size = sizeof keep, .kind = PINL_KEEP};

static struct pinl_lease *leased(struct pinl_device *dev, char *at, size_t len)
{
	struct pinl_addr *addrs = calloc(len / PAGE, sizeof *addrs);
	struct pinl_lease *l;

	assert_ok(pinl_map_range(dev, (uintptr_t)at, (uintptr_t)at + len, PINL_PIN, &keep, addrs, &l));
	free(addrs);
	return l;
}

static void an_area_is_watched_as_long_as_anything_in_it(void **state)
{
	struct pinl_lease *a, *b, *c;
	char *at = shared_pages(4);
	struct fake f;

	fake_open(&f);
	assert_ok(pinl_device_open(f.ctx, "soft", NULL, &f.dev));
	assert_false(fake_watches(&f, at));
	a = leased(f.dev, at, PAGE);
	b = leased(f.dev, at + PAGE, PAGE);
	assert_true(fake_watches(&f, at));
	pinl_unmap_range(a);
	assert_true(fake_watches(&f, at));
	c = leased(f.dev, at, PAGE);
	pinl_unmap_range(b);
	pinl_unmap_range(c);
	assert_false(fake_watches(&f, at));
	fake_close(&f);
	munmap(at, 4 * PAGE);
}

static void a_range_watches_all_the_areas_it_touches(void **state)
{
	const size_t area = 1ul << GENERATION_AREA_SHIFT, len = 3 * area;
	char *at = mmap(NULL, len + area, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *start = (char *)(((uintptr_t)at + area - 1) & ~(area - 1));
	struct pinl_lease *l;
	struct fake f;

	assert_true(at != MAP_FAILED);
	fake_open(&f);
	assert_ok(pinl_device_open(f.ctx, "soft", NULL, &f.dev));
	l = leased(f.dev, start + area - PAGE, area + 2 * PAGE);
	for (int i = 0; i < 3; i++)
		assert_true(fake_watches(&f, start + i * area));
	assert_false(fake_watches(&f, start + 3 * area));
	pinl_unmap_range(l);
	for (int i = 0; i < 3; i++)
		assert_false(fake_watches(&f, start + i * area));
	fake_close(&f);
	munmap(at, len + area);
}

/* ------------------------------------------------------------------------------- the cache -- */

struct cached {
	struct fake f;
	struct tagger g;
	char *at;
	const struct pinl_reg *reg;
};

static void cached_open(struct cached *c)
{
	memset(c, 0, sizeof *c);
	c->at = shared_pages(2);
	fake_open(&c->f);
	c->g.full = -ENOMEM;
	assert_ok(pinl_device_open_ops(c->f.ctx, &tagger_ops, &c->g, &c->f.dev));
}

static void cached_close(struct cached *c)
{
	fake_close(&c->f);
	munmap(c->at, 2 * PAGE);
}

static uint32_t tag_in(struct cached *c)
{
	const struct pinl_reg *reg = got_of(c->f.dev, c->at, 8, 0);
	uint32_t tag = reg->key;

	pinl_put(reg);
	return tag;
}

static struct generation_record record_of(struct cached *c, int nr)
{
	return (struct generation_record){.start = (uintptr_t)c->at,
					  .end = (uintptr_t)c->at + PAGE,
					  .what = GENERATION_ZAP,
					  .nr = nr};
}

/* Of the page beside, which isn't registered. */
static struct generation_record record_beside(struct cached *c, int nr)
{
	struct generation_record r = record_of(c, nr);

	r.start += PAGE;
	r.end += PAGE;
	return r;
}

static void what_was_told_of_is_not_found(void **state)
{
	struct generation_record r;
	struct cached c;

	cached_open(&c);
	r = record_of(&c, SYS_ftruncate);
	for (uint32_t tag = 1; tag < 3000; tag++) { /* more than the ring has room for */
		set_tag(c.at, tag);
		fake_tell(&c.f, &r);
		assert_int_equal(tag_in(&c), tag);
		assert_int_equal(tag_in(&c), tag);
	}
	cached_close(&c);
}

static void other_addresses_stay_registered(void **state)
{
	struct generation_record r;
	struct cached c;

	cached_open(&c);
	r = record_beside(&c, SYS_munmap);
	set_tag(c.at, 1);
	assert_int_equal(tag_in(&c), 1);
	set_tag(c.at, 2);
	fake_tell(&c.f, &r);
	assert_int_equal(tag_in(&c), 1);
	cached_close(&c);
}

/* uffd doesn't see it at all. */
static void a_change_of_protection_makes_a_registration_stale(void **state)
{
	struct generation_record r;
	struct cached c;

	cached_open(&c);
	r = record_of(&c, SYS_mprotect);
	r.what = GENERATION_PROTECT;
	set_tag(c.at, 1);
	assert_int_equal(tag_in(&c), 1);
	set_tag(c.at, 2);
	fake_tell(&c.f, &r);
	assert_int_equal(tag_in(&c), 2);
	cached_close(&c);
}

/* It waits as long as for any change that is under way, and says what to do. */
static void a_lookup_waits_for_a_record_that_is_not_there(void **state)
{
	const struct pinl_reg *reg;
	struct generation_record r;
	struct cached c;
	uint32_t *head;

	cached_open(&c);
	r = record_of(&c, SYS_munmap);
	set_tag(c.at, 1);
	assert_int_equal(tag_in(&c), 1);
	set_tag(c.at, 2);
	fake_count(&c.f);
	assert_int_equal(pinl_get(c.f.dev, c.at, 8, 0, &reg), -EAGAIN);
	head = fake_reserve(&c.f, r);
	assert_int_equal(pinl_get(c.f.dev, c.at, 8, 0, &reg), -EAGAIN);
	fake_submit(head, 0);
	assert_int_equal(tag_in(&c), 2);
	cached_close(&c);
}

static void a_record_given_up_is_left_out(void **state)
{
	struct generation_record r;
	struct cached c;

	cached_open(&c);
	r = record_of(&c, SYS_munmap);
	set_tag(c.at, 1);
	assert_int_equal(tag_in(&c), 1);
	fake_submit(fake_reserve(&c.f, r), DISCARD);
	set_tag(c.at, 2);
	assert_int_equal(tag_in(&c), 1);
	fake_tell(&c.f, &r);
	assert_int_equal(tag_in(&c), 2);
	cached_close(&c);
}

static bool await_degraded(struct pinl_ctx *ctx, int err, struct pinl_event *ev)
{
	for (;;) {
		*ev = (struct pinl_event){.size = sizeof *ev};
		if (pinl_next_event(ctx, ev))
			return false;
		if (ev->type == PINL_EV_DEGRADED && ev->err == err)
			return true;
	}
}

static void after_a_loss_nothing_is_found(void **state)
{
	struct pinl_event ev;
	struct cached c;

	cached_open(&c);
	set_tag(c.at, 1);
	assert_int_equal(tag_in(&c), 1);
	set_tag(c.at, 2);
	fake_lose(&c.f);
	assert_int_equal(tag_in(&c), 2);
	fake_await(&c.f);
	assert_true(await_degraded(c.f.ctx, -EOVERFLOW, &ev));
	assert_string_equal(ev.source, "generation");
	cached_close(&c);
}

/* Who registers pages that are about to go doesn't find them again. */
static void what_is_registered_while_it_goes_is_for_once(void **state)
{
	struct generation_going *e;
	struct cached c;
	uint64_t transient;

	cached_open(&c);
	e = &c.f.counts->going[GENERATION_GOING - 1];
	e->start = (uintptr_t)c.at;
	e->end = (uintptr_t)c.at + PAGE;
	__atomic_store_n(&e->since_ns, pl_clock_ns(), __ATOMIC_RELEASE);
	set_tag(c.at, 1);
	assert_int_equal(tag_in(&c), 1);
	set_tag(c.at, 2);
	assert_int_equal(tag_in(&c), 2);
	assert_ok(pinl_cache_stat(c.f.dev, "transient", &transient));
	assert_int_equal(transient, 2);
	__atomic_store_n(&e->since_ns, 0, __ATOMIC_RELEASE);
	__atomic_store_n(&c.f.counts->crowded_until_ns, UINT64_MAX, __ATOMIC_RELEASE);
	set_tag(c.at, 3);
	assert_int_equal(tag_in(&c), 3);
	__atomic_store_n(&c.f.counts->crowded_until_ns, 0, __ATOMIC_RELEASE);
	set_tag(c.at, 4);
	assert_int_equal(tag_in(&c), 4);
	set_tag(c.at, 5);
	assert_int_equal(tag_in(&c), 4);
	cached_close(&c);
}

/* Between the look and the lease a change is told of, taken, and made: no lease was there to be found.
 */
static void tell_and_await(void *cached)
{
	struct cached *c = cached;
	struct generation_record r = record_of(c, SYS_ftruncate);

	fake_tell(&c->f, &r);
	fake_await(&c->f);
}

static void what_was_told_of_before_the_lease_could_be_found_counts(void **state)
{
	struct cached c;

	cached_open(&c);
	assert_false(pl_generation_going(pl_source_priv(c.f.ctx, &pl_generation_ops), (uintptr_t)c.at,
					 (uintptr_t)c.at + PAGE, true));
	assert_false(pl_generation_going(pl_source_priv(c.f.ctx, &pl_generation_ops), (uintptr_t)c.at,
					 (uintptr_t)c.at + PAGE, false));
	tell_and_await(&c);
	assert_true(pl_generation_going(pl_source_priv(c.f.ctx, &pl_generation_ops), (uintptr_t)c.at,
					(uintptr_t)c.at + PAGE, false));
	assert_false(pl_generation_going(pl_source_priv(c.f.ctx, &pl_generation_ops),
					 (uintptr_t)c.at + PAGE, (uintptr_t)c.at + 2 * PAGE, false));
	assert_false(pl_generation_going(pl_source_priv(c.f.ctx, &pl_generation_ops), (uintptr_t)c.at,
					 (uintptr_t)c.at + PAGE, true));
	cached_close(&c);
}

/* Others change their own memory without end: a lookup waits for what was told when it began only. */
struct flood {
	struct cached *c;
	atomic_bool stop;
};

static void *flood(void *arg)
{
	struct flood *fl = arg;
	struct fake *f = &fl->c->f;
	struct generation_record r = record_beside(fl->c, SYS_munmap);

	fake_count(f); /* one is on its way all the time */
	while (!fl->stop) {
		unsigned long read = __atomic_load_n((unsigned long *)f->ring, __ATOMIC_ACQUIRE);

		if (f->written - read < GENERATION_RING / 2)
			fake_tell(f, &r);
	}
	fake_submit(fake_reserve(f, r), 0);
	return NULL;
}

static void a_lookup_does_not_wait_for_others_that_never_end(void **state)
{
	struct cached c;
	struct flood fl = {.c = &c};
	pthread_t thread;

	cached_open(&c);
	set_tag(c.at, 1);
	assert_int_equal(tag_in(&c), 1);
	assert_int_equal(pthread_create(&thread, NULL, flood, &fl), 0);
	while (!__atomic_load_n(&c.f.counts->told, __ATOMIC_SEQ_CST))
		sched_yield();
	for (int found = 0, in_vain = 0; found < 1000;) {
		const struct pinl_reg *reg;
		int err = pinl_get(c.f.dev, c.at, 8, 0, &reg);

		in_vain = err ? in_vain + 1 : 0;
		found += !err;
		assert_true(in_vain < 20); /* 2 s: never */
		if (!err)
			pinl_put(reg);
	}
	fl.stop = true;
	pthread_join(thread, NULL);
	cached_close(&c);
}

enum { OTHERS = 1000 };

static void *count_others(void *arg)
{
	struct fake *f = arg;

	while (!__atomic_load_n(&f->counts->applied, __ATOMIC_SEQ_CST))
		sched_yield();
	__atomic_add_fetch(&f->counts->told, OTHERS, __ATOMIC_SEQ_CST);
	return NULL;
}

/* A change has no record, and others, told of while that is waited for, have. */
static void what_others_are_told_of_does_not_stand_for_a_loss(void **state)
{
	for (int i = 0; i < 20; i++) {
		struct generation_record r;
		struct cached c;
		pthread_t thread;

		cached_open(&c);
		r = record_beside(&c, SYS_munmap);
		set_tag(c.at, 1);
		assert_int_equal(tag_in(&c), 1);
		set_tag(c.at, 2);
		for (int n = 0; n < OTHERS; n++)
			fake_submit(fake_reserve(&c.f, r), 0);
		fake_lose(&c.f);
		assert_int_equal(pthread_create(&thread, NULL, count_others, &c.f), 0);
		assert_int_equal(tag_in(&c), 2);
		pthread_join(thread, NULL);
		fake_await(&c.f);
		cached_close(&c);
	}
}

/* --------------------------------------------------------------------------------- leases -- */

static unsigned orphans(struct pinl_ctx *ctx)
{
	struct pinl_counters n = {.size = sizeof n};

	assert_ok(pinl_counters(ctx, &n));
	return n.orphans;
}

/* It takes the record, and then the worker looks at the lease. */
static struct pinl_event await_event(struct pinl_ctx *ctx, enum pinl_event_type type)
{
	struct pinl_event ev = {.size = sizeof ev};

	while (pinl_next_event(ctx, &ev) || ev.type != type)
		sched_yield();
	return ev;
}

/* A page that is leased, and the record of a change of it. */
struct held {
	struct fake f;
	char *at;
	struct pinl_lease *l;
	struct generation_record r;
};

static void held_open(struct held *h, uint32_t what, int nr)
{
	h->at = shared_pages(1);
	fake_open(&h->f);
	assert_ok(pinl_device_open(h->f.ctx, "soft", NULL, &h->f.dev));
	h->l = leased(h->f.dev, h->at, PAGE);
	h->r = (struct generation_record){
		.start = (uintptr_t)h->at, .end = (uintptr_t)h->at + PAGE, .what = what, .nr = nr};
}

static void held_close(struct held *h)
{
	pinl_unmap_range(h->l);
	fake_close(&h->f);
	munmap(h->at, PAGE);
}

static void a_lease_hears_what_is_told(void **state)
{
	struct pinl_event ev;
	struct held h;

	held_open(&h, GENERATION_ZAP, SYS_ftruncate);
	h.r.pid = 77;
	h.r.tid = 78;
	fake_tell(&h.f, &h.r);
	fake_await(&h.f);
	ev = await_event(h.f.ctx, PINL_EV_ORPHAN);
	assert_int_equal(ev.op, PINL_OP_TRUNCATE);
	assert_int_equal(ev.actor_pid, 77);
	assert_int_equal(ev.actor_tid, 78);
	assert_string_equal(ev.source, "generation");
	held_close(&h);
}

static void a_lease_does_not_hear_of_a_change_of_protection(void **state)
{
	struct held h;

	held_open(&h, GENERATION_PROTECT, SYS_mprotect);
	fake_tell(&h.f, &h.r);
	fake_await(&h.f);
	assert_int_equal(orphans(h.f.ctx), 0);
	held_close(&h);
}

/* Where another source tells of it too, that one is heard. */
static void what_another_source_tells_of_is_heard_once(void **state)
{
	struct pinl_opts o = {.size = sizeof o, .summary_fd = -1, .sources = PINL_SOURCE_NOTIFY};
	struct generation_record r = {.what = GENERATION_ZAP, .nr = SYS_ftruncate};
	int fd = memfd_create("generation", MFD_CLOEXEC);
	struct pinl_lease *l;
	struct fake f;
	char *at;

	assert_int_equal(ftruncate(fd, PAGE), 0);
	at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(at != MAP_FAILED);
	fake_open_with(&f, &o); /* notify comes first here */
	assert_ok(pinl_device_open(f.ctx, "soft", NULL, &f.dev));
	l = leased(f.dev, at, PAGE);
	r.start = (uintptr_t)at;
	r.end = r.start + PAGE;
	fake_tell(&f, &r);
	fake_await(&f);
	assert_int_equal(orphans(f.ctx), 0);
	r.nr = SYS_munmap;
	fake_tell(&f, &r);
	assert_int_equal(await_event(f.ctx, PINL_EV_ORPHAN).op, PINL_OP_UNMAP);
	pinl_unmap_range(l);
	fake_close(&f);
	munmap(at, PAGE);
	close(fd);
}

/* What pinl_munmap() asks about is no news when the kernel tells of it. */
static void the_librarys_own_changes_are_no_news(void **state)
{
	struct held h;
	int slot;

	held_open(&h, GENERATION_ZAP, SYS_munmap);
	h.r.tid = gettid();
	slot = pl_exempt_enter(h.f.ctx);
	fake_tell(&h.f, &h.r);
	pl_exempt_leave(h.f.ctx, slot); /* waits */
	assert_int_equal(h.f.counts->applied, 1);
	assert_int_equal(orphans(h.f.ctx), 0);
	held_close(&h);
}

/* Of what the same thread did just before, nobody was asked. */
static void what_it_changed_itself_before_a_call_is_no_call(void **state)
{
	struct generation_record r;
	struct cached c;

	cached_open(&c);
	r = record_of(&c, SYS_munmap);
	for (uint32_t tag = 1; tag < 200; tag++) {
		char *other = shared_pages(1);

		set_tag(c.at, tag);
		fake_tell(&c.f, &r);
		assert_ok(pinl_munmap(c.f.ctx, other, PAGE));
		assert_int_equal(tag_in(&c), tag);
	}
	cached_close(&c);
}

/* Or a change of before would be one of the lease that is there by then. */
static void a_lease_is_made_after_what_was_told_before(void **state)
{
	struct generation_record r = {.what = GENERATION_ZAP, .nr = SYS_munmap};
	char *at = shared_pages(1);
	struct pinl_lease *l;
	struct fake f;

	fake_open(&f);
	assert_ok(pinl_device_open(f.ctx, "soft", NULL, &f.dev));
	r.start = (uintptr_t)at;
	r.end = r.start + PAGE;
	for (int i = 0; i < 200; i++) {
		fake_tell(&f, &r);
		l = leased(f.dev, at, PAGE);
		fake_await(&f);
		assert_int_equal(pinl_lease_check(l), 0);
		pinl_unmap_range(l);
	}
	assert_int_equal(orphans(f.ctx), 0);
	fake_close(&f);
	munmap(at, PAGE);
}

/* It would pin what is about to go, and was told of when no lease was there. */
static void no_lease_is_made_of_what_is_going(void **state)
{
	char *at = shared_pages(2);
	struct generation_going *e;
	struct pinl_addr addr;
	struct pinl_lease *l;
	struct fake f;

	fake_open(&f);
	assert_ok(pinl_device_open(f.ctx, "soft", NULL, &f.dev));
	e = &f.counts->going[7];
	e->start = (uintptr_t)at;
	e->end = e->start + PAGE;
	__atomic_store_n(&e->since_ns, pl_clock_ns(), __ATOMIC_RELEASE);
	assert_int_equal(pinl_map_range(f.dev, e->start, e->end, PINL_PIN, &keep, &addr, &l), -EBUSY);
	pinl_unmap_range(leased(f.dev, at + PAGE, PAGE));
	__atomic_store_n(&e->since_ns, 0, __ATOMIC_RELEASE);
	pinl_unmap_range(leased(f.dev, at, PAGE));
	fake_close(&f);
	munmap(at, 2 * PAGE);
}

/* ---------------------------------------------------------------------------------- the end -- */

static void the_end_of_the_counting_is_said(void **state)
{
	char *at = shared_pages(1);
	unsigned ops = 0;
	const struct pinl_reg *reg;
	struct pinl_device *dev;
	struct pinl_lease *l;
	struct pinl_event ev;
	struct cached c;
	char text[1024];

	cached_open(&c);
	assert_ok(pinl_device_open(c.f.ctx, "soft", NULL, &dev));
	l = leased(dev, at, PAGE);
	set_tag(c.at, 1);
	assert_int_equal(tag_in(&c), 1);
	assert_true(pinl_lease_describe(l, text, sizeof text) > 0);
	assert_non_null(strstr(text, "munmap"));
	__atomic_store_n(&c.f.counts->ended, 1, __ATOMIC_RELEASE);
	fake_lose(&c.f);
	for (bool last = false; !last;) {
		ev = await_event(c.f.ctx, PINL_EV_DEGRADED);
		last = ev.err == -ENOTCONN;
		if (ev.err == -EOPNOTSUPP && ev.lease_id)
			ops |= PINL_OPBIT(ev.op);
	}
	assert_true(ops & BIT(UNMAP));
	assert_true(ops & BIT(TRUNCATE));
	assert_int_equal(pinl_get(c.f.dev, c.at, 8, 0, &reg), -EOPNOTSUPP);
	pinl_unmap_range(l);
	cached_close(&c);
	munmap(at, PAGE);
}

static void what_was_told_of_before_the_end_is_heard(void **state)
{
	struct generation_record r = {.what = GENERATION_ZAP, .nr = SYS_ftruncate, .pid = 77, .tid = 78};
	char *at = shared_pages(1);
	struct pinl_lease *l;
	struct fake f;

	fake_open(&f);
	assert_ok(pinl_device_open(f.ctx, "soft", NULL, &f.dev));
	l = leased(f.dev, at, PAGE);
	r.start = (uintptr_t)at;
	r.end = r.start + PAGE;
	fake_tell(&f, &r);
	__atomic_store_n(&f.counts->ended, 1, __ATOMIC_RELEASE);
	assert_int_equal(await_event(f.ctx, PINL_EV_ORPHAN).actor_pid, 77);
	pinl_unmap_range(l);
	fake_close(&f);
	munmap(at, PAGE);
}

static void without_pinleased_the_source_is_missing_and_says_so(void **state)
{
	struct pinl_opts o = {.size = sizeof o, .summary_fd = -1, .sources = PINL_SOURCE_GENERATION};
	struct pinl_ctx *ctx;
	char text[1024];

	setenv("PINLEASE_SOCKET", "/nowhere/pinleased.sock", 1);
	assert_ok(pinl_open(&o, &ctx));
	assert_true(pinl_sources(ctx, text, sizeof text) > 0);
	assert_non_null(strstr(text, "generation: missing: no pinleased at"));
	pinl_close(ctx);
	unsetenv("PINLEASE_SOCKET");
}

static void all_sources_are_without_it(void **state)
{
	struct pinl_opts o = {.size = sizeof o, .summary_fd = -1};
	struct pinl_ctx *ctx;
	char text[2048];

	assert_ok(pinl_open(&o, &ctx));
	assert_true(pinl_sources(ctx, text, sizeof text) > 0);
	assert_null(strstr(text, "generation"));
	pinl_close(ctx);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_change_is_named_by_its_system_call),
		cmocka_unit_test(an_unknown_call_is_told_to_all_memory),
		cmocka_unit_test(an_area_is_watched_as_long_as_anything_in_it),
		cmocka_unit_test(a_range_watches_all_the_areas_it_touches),
		cmocka_unit_test(what_was_told_of_is_not_found),
		cmocka_unit_test(other_addresses_stay_registered),
		cmocka_unit_test(a_change_of_protection_makes_a_registration_stale),
		cmocka_unit_test(a_lookup_waits_for_a_record_that_is_not_there),
		cmocka_unit_test(a_record_given_up_is_left_out),
		cmocka_unit_test(after_a_loss_nothing_is_found),
		cmocka_unit_test(what_is_registered_while_it_goes_is_for_once),
		cmocka_unit_test(what_was_told_of_before_the_lease_could_be_found_counts),
		cmocka_unit_test(a_lookup_does_not_wait_for_others_that_never_end),
		cmocka_unit_test(what_others_are_told_of_does_not_stand_for_a_loss),
		cmocka_unit_test(a_lease_hears_what_is_told),
		cmocka_unit_test(a_lease_does_not_hear_of_a_change_of_protection),
		cmocka_unit_test(what_another_source_tells_of_is_heard_once),
		cmocka_unit_test(the_librarys_own_changes_are_no_news),
		cmocka_unit_test(what_it_changed_itself_before_a_call_is_no_call),
		cmocka_unit_test(a_lease_is_made_after_what_was_told_before),
		cmocka_unit_test(no_lease_is_made_of_what_is_going),
		cmocka_unit_test(the_end_of_the_counting_is_said),
		cmocka_unit_test(what_was_told_of_before_the_end_is_heard),
		cmocka_unit_test(without_pinleased_the_source_is_missing_and_says_so),
		cmocka_unit_test(all_sources_are_without_it),
	};

	alarm(300);
	return cmocka_run_group_tests_name("generation_source", tests, NULL, NULL);
}
