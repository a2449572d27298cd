/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The moments in between: memory is gone and its reader has not woken up, or its event has been read and
 * it is still there. Who wins is decided by processors and priorities, not by luck.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <time.h>

#include "cache_rig.h"

static void pin_to(pid_t tid, bool last)
{
	cpu_set_t may, one;
	int cpu = -1;

	sched_getaffinity(getpid(), sizeof may, &may);
	for (int i = 0; i < CPU_SETSIZE && (cpu < 0 || last); i++)
		cpu = CPU_ISSET(i, &may) ? i : cpu;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	assert_int_equal(sched_setaffinity(tid, sizeof one, &one), 0);
}

/* It gets what others on its processor leave. */
static void be_slow(pid_t tid)
{
	struct sched_param none = {0};

	assert_int_equal(sched_setscheduler(tid, SCHED_IDLE, &none), 0);
}

static bool is_reader(pid_t tid)
{
	char path[64], name[32] = "";
	FILE *f;

	snprintf(path, sizeof path, "/proc/self/task/%d/comm", tid);
	f = fopen(path, "r");
	if (f && !fgets(name, sizeof name, f))
		name[0] = 0;
	if (f)
		fclose(f);
	return !strcmp(name, "pinl-uffd\n");
}

static pid_t reader_tid(void)
{
	DIR *tasks = opendir("/proc/self/task");
	struct dirent *d;
	pid_t tid = 0;

	while (!is_reader(tid) && (d = readdir(tasks)))
		tid = atoi(d->d_name);
	closedir(tasks);
	return tid;
}

struct helper {
	struct rig rig;
	pthread_t thread;
	bool discards; /* else it unmaps */
	atomic_int tid;
	_Atomic(char *) at; /* to be taken away; NULL: it has been */
	atomic_bool stop;
};

static void *take_away(void *arg)
{
	struct helper *h = arg;

	h->tid = gettid();
	while (!h->stop) {
		if (!h->at) {
			usleep(10);
		} else if (h->discards) {
			madvise(h->at, PAGE, MADV_DONTNEED);
			h->at = NULL;
		} else {
			munmap(atomic_exchange(&h->at, NULL), PAGE);
		}
	}
	return NULL;
}

static void helper_start(struct helper *h, bool discards)
{
	memset(h, 0, sizeof *h);
	h->discards = discards;
	rig_open(&h->rig, unmerged());
	pthread_create(&h->thread, NULL, take_away, h);
	while (!h->tid)
		sched_yield();
}

static void helper_end(struct helper *h)
{
	h->stop = true;
	pthread_join(h->thread, NULL);
	rig_close(&h->rig);
}

static uint32_t key_at(struct helper *h, char *at)
{
	const struct pinl_reg *reg = got(&h->rig, at, 8, 0);
	uint32_t key = reg->key;

	pinl_put(reg);
	return key;
}

enum { HOLES = 300, DISCARDS = 30 };

static void *fill_holes(void *arg)
{
	static int stale;
	struct helper *h = arg;
	char *at = map_fresh();

	pin_to(h->tid, false);
	pin_to(reader_tid(), true);
	be_slow(reader_tid());
	pin_to(gettid(), true);
	for (uint32_t i = 1; i <= HOLES; i++) {
		*(uint32_t *)at = i;
		stale += key_at(h, at) != i;
		h->at = at;
		while (map_at(at, MAP_FIXED_NOREPLACE) != at)
			;
	}
	munmap(at, PAGE);
	return &stale;
}

/*
 * Addresses are free before munmap() returns, and who takes them then looks up before the reader of
 * events has woken up: it shares its processor with who doesn't leave it. What is left of that is the
 * kernel's: some instructions before it says what it has done, where the thread can lose its processor.
 * So a few may be stale; all would be.
 */
static void a_hole_is_known_before_the_reader_wakes_up(void **state)
{
	static struct helper h;
	pthread_t thread;
	int *stale;

	helper_start(&h, false);
	pthread_create(&thread, NULL, fill_holes, &h);
	pthread_join(thread, (void **)&stale);
	helper_end(&h);
	print_message("%d of %d stale\n", *stale, HOLES);
	assert_true(*stale < HOLES / 4);
}

static uint64_t sequence_of(struct helper *h)
{
	struct pinl_counters counters = {.size = sizeof counters};

	assert_ok(pinl_counters(h->rig.ctx, &counters));
	return counters.sequence;
}

static void wait_gone(void *arg)
{
	struct helper *h = arg;

	while (h->at)
		usleep(100);
	usleep(2000); /* it sleeps again, too, most of the time */
}

static void *look_before_it_goes(void *arg)
{
	static int stale;
	struct helper *h = arg;
	uint64_t before, now;

	pin_to(h->tid, true);
	be_slow(h->tid);
	pin_to(gettid(), true);
	for (uint32_t i = 1; i <= DISCARDS; i++) {
		char *at = map_fresh();

		*(uint32_t *)at = i;
		stale += key_at(h, at) != i;
		before = sequence_of(h);
		h->at = at;
		while ((now = sequence_of(h)) == before || now % 2)
			if (i % 2)
				usleep(1);
		h->rig.tagger.pinned =
			i % 4 < 2 ? wait_gone : NULL; /* goes while it is registered, or after */
		key_at(h, at);
		h->rig.tagger.pinned = NULL;
		wait_gone(h);
		stale += key_at(h, at) != 0;
		munmap(at, PAGE);
	}
	return &stale;
}

/*
 * Pages are discarded after their event has been read, by a thread that gets its processor back late.
 * Who registers them in between has pages that go: nobody may find these later.
 */
static void what_is_about_to_go_is_not_kept(void **state)
{
	static struct helper h;
	pthread_t thread;
	int *stale;

	helper_start(&h, true);
	h.rig.tagger.arg = &h;
	pthread_create(&thread, NULL, look_before_it_goes, &h);
	pthread_join(thread, (void **)&stale);
	print_message("%d of %d stale, %lu transient\n", *stale, DISCARDS,
		      (unsigned long)stat_of(&h.rig, "transient"));
	assert_int_equal(*stale, 0);
	assert_true(stat_of(&h.rig, "transient") > 0);
	helper_end(&h);
}

#ifdef __SANITIZE_THREAD__
enum { CHANGES = 2000 };
#else
enum { CHANGES = 20000 };
#endif

#define ENOUGH_S 20 /* a busy machine makes fewer */

struct pair {
	struct rig rig;
	char *at[2];
	atomic_int round, done;
	atomic_bool over;
};

static void change(struct pair *p, int which)
{
	map_at(p->at[which], MAP_FIXED);
	atomic_fetch_add(&p->done, 1);
}

static void *change_too(void *arg)
{
	struct pair *p = arg;

	for (int i = 1; !p->over; i++) {
		while (atomic_load(&p->round) < i && !p->over)
			sched_yield();
		if (!p->over)
			change(p, 1);
	}
	return NULL;
}

static bool found(struct pair *p)
{
	const struct pinl_reg *reg;
	int tries = 0;

	for (int i = 0; i < 2; i++) {
		while (pinl_get(p->rig.dev, p->at[i], 8, 0, &reg)) /* -EAGAIN: a busy machine */
			if (++tries == 40)
				return false;
		pinl_put(reg);
	}
	return true;
}

/*
 * The kernel shows an event, and a moment later wakes those who poll. The reader may have read it by
 * then, as it was up for another one, and what says "there are events" is set with none to come.
 */
static void no_lookup_waits_for_what_is_over(void **state)
{
	static struct pair p;
	time_t began = time(NULL);
	pthread_t other;
	bool waits = false;

	rig_open(&p.rig, unmerged());
	p.at[0] = map_fresh();
	p.at[1] = map_fresh();
	pthread_create(&other, NULL, change_too, &p);
	for (int i = 1; i <= CHANGES && !waits && time(NULL) - began < ENOUGH_S; i++) {
		waits = !found(&p);
		atomic_store(&p.round, i);
		change(&p, 0);
		while (atomic_load(&p.done) < 2 * i)
			sched_yield();
	}
	p.over = true;
	pthread_join(other, NULL);
	assert_false(waits);
	munmap(p.at[0], PAGE);
	munmap(p.at[1], PAGE);
	rig_close(&p.rig);
}

enum { FOUND = 10 };

static void *discard_on(void *arg)
{
	struct helper *h = arg;

	h->tid = gettid();
	while (!h->stop)
		madvise(h->at, PAGE, MADV_DONTNEED);
	return NULL;
}

/*
 * Who discards in a watched mapping runs as soon as its event is read, in place of the reader, which
 * shares its processor with it: when that goes on, there is the next event. So there is always one, and
 * the sequence stays as it is: a lookup that finds something meanwhile hasn't waited for a quiet moment.
 */
static void *look_meanwhile(void *arg)
{
	static struct helper h;
	char *mine, *others = pages_new(2);
	const struct pinl_reg *reg;
	time_t began = time(NULL);
	int found = 0, err;

	memset(&h, 0, sizeof h);
	rig_open(&h.rig, unmerged());
	mine = map_fresh();
	pinl_put(got(&h.rig, mine, 8, 0));
	pinl_put(got(&h.rig, others, 8, 0)); /* watches the other page, too */
	h.at = others + PAGE;
	pthread_create(&h.thread, NULL, discard_on, &h);
	while (!h.tid)
		sched_yield();
	pin_to(h.tid, true);
	pin_to(reader_tid(), true);
	be_slow(reader_tid());
	pin_to(gettid(), false);
	while (found < FOUND && time(NULL) - began < ENOUGH_S) {
		uint64_t before = sequence_of(&h);

		if (before % 2 == 0)
			continue;
		err = pinl_get(h.rig.dev, mine, 8, 0, &reg);
		if (err)
			assert_int_equal(err, -EAGAIN); /* a busy machine */
		else
			pinl_put(reg);
		found += !err && sequence_of(&h) == before;
	}
	h.stop = true;
	pthread_join(h.thread, NULL);
	munmap(mine, PAGE);
	rig_close(&h.rig);
	return (void *)(intptr_t)found;
}

static void who_discards_elsewhere_stops_no_lookup(void **state)
{
	pthread_t thread; /* its processor is its own */
	void *found;

	pthread_create(&thread, NULL, look_meanwhile, NULL);
	pthread_join(thread, &found);
	assert_int_equal((intptr_t)found, FOUND);
}

/* --------------------------------------------------------------------------- a real device -- */

/* The soft device pins and transfers: what it reads is what is there. */
static void the_device_reads_what_is_there(void **state)
{
	struct pinl_opts o = {.size = sizeof o, .summary_fd = -1};
	const struct pinl_reg *reg;
	struct pinl_device *dev;
	struct pinl_ctx *ctx;
	char *at = map_fresh();
	uint32_t got;

	assert_ok(pinl_open(&o, &ctx));
	assert_ok(pinl_device_open(ctx, "soft", NULL, &dev));
	for (uint32_t i = 1; i < 1500; i++) {
		*(uint32_t *)(at + 8) = i;
		reg = got_of(dev, at + 8, 4, PINL_WRITE);
		assert_ok(pinl_soft_dma(dev, pinl_reg_addr(reg, at + 8), &got, sizeof got, 0));
		assert_int_equal(got, i);
		got = ~i;
		assert_ok(pinl_soft_dma(dev, pinl_reg_addr(reg, at + 8), &got, sizeof got, 1));
		assert_int_equal(*(uint32_t *)(at + 8), ~i);
		pinl_put(reg);
		if (i % 3 == 0)
			assert_int_equal(madvise(at, PAGE, MADV_DONTNEED), 0);
		else if (i % 3 == 1)
			assert_ptr_equal(map_at(at, MAP_FIXED), at);
	}
	pinl_close(ctx);
	munmap(at, PAGE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_hole_is_known_before_the_reader_wakes_up),
		cmocka_unit_test(what_is_about_to_go_is_not_kept),
		cmocka_unit_test(no_lookup_waits_for_what_is_over),
		cmocka_unit_test(who_discards_elsewhere_stops_no_lookup),
		cmocka_unit_test(the_device_reads_what_is_there),
	};

	return cmocka_run_group_tests_name("cache_moments", tests, NULL, NULL);
}
