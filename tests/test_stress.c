/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Mapping churn against lookups, device I/O and recalls, in many short rounds with a fresh context each,
 * until the operations asked for are done. What must hold is in stress.h.
 *
 *	PINLEASE_TEST_SEED=N	the first round's seed; the next rounds have N + 1, ... Default: random
 *	PINLEASE_TEST_OPS=N	how many operations in all
 *
 * The seed decides what every thread does; how they interleave, the machine does. So a failing round's
 * seed replays the same choices, not always the same failure: run it a few times.
 */
#include "stress.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "accounted.h"
#include "proc.h"

#define OWNER_STEPS 300

#if defined(__SANITIZE_THREAD__)
#define OPERATIONS 150000
#elif defined(__SANITIZE_ADDRESS__)
#define OPERATIONS 300000
#else
#define OPERATIONS 1000000
#endif

struct round round_;
atomic_int n_broken;
const char *const kind_names[KINDS] = {
	"anonymous",	     "anonymous on demand", "memfd", "common memfd", "tmpfs file",
	"private disk file", "disk file on demand",
};
static const char *const count_names[N_COUNTS] = {
	"memory made", "mapped",	   "not mapped",  "unmapped",	    "quiesced",
	"raw changes", "explicit changes", "refused",	  "lookups",	    "DMA reads",
	"DMA writes",  "flights",	   "writes seen", "pages poisoned", "forks",
};

void broken(const char *promise, const char *fmt, ...)
{
	va_list ap;

	if (atomic_fetch_add(&n_broken, 1) < 10) {
		printf("# %s broken, seed %lu: ", promise, (unsigned long)round_.seed);
		va_start(ap, fmt);
		vprintf(fmt, ap);
		va_end(ap);
		printf("\n");
		fflush(stdout);
	}
	atomic_store(&round_.stop, true);
}

unsigned roll(struct actor *a, unsigned n)
{
	a->random ^= a->random << 13;
	a->random ^= a->random >> 7;
	a->random ^= a->random << 17;
	return (a->random >> 32) % n;
}

void now_doing(struct actor *a, const char *what, const struct slot *s)
{
	atomic_store_explicit(&a->doing, what, memory_order_relaxed);
	atomic_store_explicit(&a->slot, s ? s->nr : -1, memory_order_relaxed);
	atomic_fetch_add_explicit(&a->beat, 1, memory_order_relaxed);
}

/* -------------------------------------------------------------------------------------- threads -- */

static void *own(void *arg)
{
	struct actor *a = arg;

	atomic_store(&a->tid, gettid());
	for (int i = 0; i < OWNER_STEPS && !atomic_load(&round_.stop); i++)
		owner_step(a);
	if (atomic_fetch_sub(&round_.owners_left, 1) == 1)
		atomic_store(&round_.stop, true);
	now_doing(a, "wait for an end", NULL);
	atomic_store(&a->tid, 0);
	return NULL;
}

static void *move(void *arg)
{
	struct actor *a = arg;

	atomic_store(&a->tid, gettid());
	while (!atomic_load(&round_.stop))
		mover_step(a);
	mover_land(a);
	now_doing(a, "wait for an end", NULL);
	atomic_store(&a->tid, 0);
	return NULL;
}

static void *disturb(void *arg)
{
	struct actor *a = arg;

	while (!atomic_load(&round_.stop))
		chaos_step(a);
	now_doing(a, "wait for an end", NULL);
	return NULL;
}

enum { STRANGER = OWNERS + MOVERS, HOLDER, MAIN, ACTORS };

static struct actor actors[ACTORS];

static void actors_new(uint64_t seed)
{
	static const char *const names[] = {"owner 0", "owner 1",  "owner 2", "mover 0",
					    "mover 1", "stranger", "holder",  "main"};

	memset(actors, 0, sizeof actors);
	for (int i = 0; i < ACTORS; i++) {
		struct actor *a = &actors[i];

		a->name = names[i];
		a->nr = i < OWNERS ? i : i - OWNERS;
		a->random = (seed + 1) * 0x9e3779b97f4a7c15ull + i * 0xbf58476d1ce4e5b9ull;
		for (int warm = 0; warm < 8; warm++)
			roll(a, 2);
		now_doing(a, i == MAIN ? "open the context" : "wait for an event", NULL);
		watch_actor(a);
	}
}

static void threads_run(void)
{
	now_doing(&actors[MAIN], "wait for an end", NULL);
	for (int i = 0; i <= STRANGER; i++)
		assert_int_equal(pthread_create(&actors[i].thread, NULL,
						i < OWNERS     ? own
						: i < STRANGER ? move
							       : disturb,
						&actors[i]),
				 0);
	for (int i = 0; i <= STRANGER; i++)
		pthread_join(actors[i].thread, NULL);
}

/* ---------------------------------------------------------------------------------------- rounds -- */

static void slots_new(void)
{
	pthread_rwlockattr_t attr;

	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	for (int i = 0; i < SLOTS; i++) {
		struct slot *s = &round_.slot[i];

		memset(s, 0, sizeof *s);
		s->nr = i;
		s->fd = -1;
		pthread_rwlock_init(&s->mem_lock, &attr);
		pthread_rwlock_init(&s->lease_lock, &attr);
		pthread_mutex_init(&s->own_file_lock, NULL);
		pthread_mutex_init(&s->flight_lock, NULL);
	}
	pthread_rwlockattr_destroy(&attr);
}

static void round_open(uint64_t seed, int summary)
{
	struct pinl_opts opts = {.size = sizeof opts,
				 .ceiling_ms = 60000,
				 .drain_ms = 4000,
				 .summary_fd = summary,
				 .on_event = on_event,
				 .on_event_arg = &actors[HOLDER]};
	struct pinl_soft_arg revocable = {sizeof revocable, 3 /* PINL_DEV_REVOCABLE + 1 */};

	memset(&round_, 0, sizeof round_);
	round_.seed = seed;
	round_.record = calloc(RECORDS, sizeof *round_.record);
	round_.group_fd = memfd_create("group", MFD_CLOEXEC);
	pthread_mutex_init(&round_.group_lock, NULL);
	atomic_store(&round_.owners_left, OWNERS);
	assert_int_equal(ftruncate(round_.group_fd, GROUP * SIZE), 0);
	slots_new();
	actors_new(seed);
	assert_int_equal(pinl_open(&opts, &round_.ctx), 0);
	pinl_watch_fs(round_.ctx, disk_dir());
	assert_int_equal(pinl_device_open(round_.ctx, "soft", NULL, &round_.dev[SOFT]), 0);
	assert_int_equal(pinl_device_open(round_.ctx, "soft", &revocable, &round_.dev[SOFT_REVOCABLE]),
			 0);
	round_.has_uring = !uring_open(&round_.dev[URING]);
	assert_true(round_.has_uring);
}

/* Events come in order: one that is caused now is the last. */
static void await_events(void)
{
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_KEEP};
	struct pinl_lease_info info = {.size = sizeof info};
	struct timespec pause = {0, 1000000};
	struct pinl_device *dev;
	struct pinl_lease *lease;
	uintptr_t at =
		(uintptr_t)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	now_doing(&actors[MAIN], "see the last event", NULL);
	assert_int_equal(pinl_device_open(round_.ctx, "soft", NULL, &dev), 0);
	assert_int_equal(
		pinl_map_range(dev, at, at + PAGE, PINL_WRITE | PINL_PIN, &policy, NULL, &lease), 0);
	assert_int_equal(pinl_lease_info(lease, &info), 0);
	atomic_store(&round_.marker, info.id);
	assert_int_equal(pinl_munmap(round_.ctx, (void *)at, PAGE), 0);
	pinl_unmap_range(lease);
	while (!atomic_load(&round_.marked))
		nanosleep(&pause, NULL);
	pinl_device_close(dev);
}

#define BIT(type) (1u << (type))

static void broken_lease(unsigned id, const char *what)
{
	const struct record *r = &round_.record[id];

	broken("I5",
	       "lease %u, %s, device %d, policy %d then %d, %s: events %#x, raw changes %#x, explicit "
	       "%#x",
	       id, kind_names[r->kind], r->device, r->policy.kind, r->policy.then, what,
	       atomic_load(&r->told), atomic_load(&r->raw), atomic_load(&r->explicit));
}

/* I5, lease by lease: what happened to it was said, and nothing was said that didn't happen. */
static void check_records(void)
{
	unsigned changed = BIT(PINL_EV_NOTICE) | BIT(PINL_EV_QUIESCED) | BIT(PINL_EV_FORCED) |
			   BIT(PINL_EV_ORPHAN) | BIT(PINL_EV_FOLLOWED);

	for (unsigned id = 0; id < RECORDS; id++) {
		const struct record *r = &round_.record[id];
		unsigned told = atomic_load(&r->told);

		if (!r->mapped || !r->ended)
			continue;
		if (r->must && !(told & changed))
			broken_lease(id, "was changed, and nothing was said");
		if (r->untouched && !atomic_load(&r->recycled) && ((told & changed) || r->stale))
			broken_lease(id, "wasn't changed, and it was said to be");
		if (!(told & BIT(PINL_EV_ORPHAN)) != !(told & BIT(PINL_EV_ORPHAN_END)))
			broken_lease(id, "has orphans without end, or the reverse");
	}
}

static void check_sum(const char *what, uint64_t counted, uint64_t seen)
{
	if (counted != seen)
		broken("I5", "%s: counted %lu, seen %lu", what, (unsigned long)counted,
		       (unsigned long)seen);
}

/* Events, counters and leases agree; nothing is left. */
static void check_counters(uint64_t mapped)
{
	struct pinl_counters c = {.size = sizeof c};

	assert_int_equal(pinl_counters(round_.ctx, &c), 0);
	/* One that can't be pinned counts as made and ended. */
	if (c.leases || c.bytes || c.mapped != c.unmapped || c.mapped < mapped)
		broken("I4", "%lu leases, %lu bytes, %lu mapped (%lu by us), %lu unmapped",
		       (unsigned long)c.leases, (unsigned long)c.bytes, (unsigned long)c.mapped,
		       (unsigned long)mapped, (unsigned long)c.unmapped);
	if (ring_buffers(uring_fd()))
		broken("I4", "the ring still has %d fixed buffers", ring_buffers(uring_fd()));
	if (atomic_load(&round_.dropped)) /* said; what was lost can't be compared */
		return;
	check_records();
	check_sum("notices", c.notices, round_.seen[PINL_EV_NOTICE]);
	check_sum("quiesced", c.quiesced, round_.seen[PINL_EV_QUIESCED]);
	check_sum("forced", c.forced, round_.seen[PINL_EV_FORCED]);
	check_sum("refused", c.refused, round_.seen[PINL_EV_REFUSED]);
	check_sum("answered", c.answered, round_.seen[PINL_EV_ANSWERED]);
	check_sum("followed", c.followed, round_.seen[PINL_EV_FOLLOWED]);
	check_sum("orphans", c.orphans, round_.seen[PINL_EV_ORPHAN]);
	check_sum("ends of orphans", c.orphans, round_.seen[PINL_EV_ORPHAN_END]);
	check_sum("leaks", c.leaks, round_.seen[PINL_EV_LEAK]);
	if (c.drains_unconfirmed)
		broken("I3", "%lu drains were not confirmed", (unsigned long)c.drains_unconfirmed);
}

static void check_summary(int fd, uint64_t orphans)
{
	char text[64] = "";
	unsigned long said = 0;

	if (pread(fd, text, sizeof text - 1, 0) > 0 && sscanf(text, "pinlease: %lu orphan", &said) != 1)
		said = 0;
	check_sum("orphans in the summary", orphans, said);
}

/* Every second round leaves its leases to the end of the device. */
static void slots_end(struct actor *a, bool leave)
{
	uint64_t leaks = 0;

	for (int i = 0; i < SLOTS; i++) {
		struct slot *s = &round_.slot[i];

		if (s->lease && !leave)
			unlease(a, s);
		leaks += s->lease != NULL;
		witness_expect(s, 0);
	}
	if (leave) {
		struct pinl_counters c = {.size = sizeof c};

		for (int i = 0; i < DEVICES; i++) {
			now_doing(a, "close a device", NULL);
			pinl_device_close(round_.dev[i]);
			round_.dev[i] = NULL;
		}
		assert_int_equal(pinl_counters(round_.ctx, &c), 0);
		check_sum("leases left to the device", c.leaks, leaks);
	}
	for (int i = 0; i < SLOTS; i++)
		if (round_.slot[i].made)
			dispose_memory(a, &round_.slot[i]);
}

static void round_close(int summary)
{
	uint64_t orphans;

	now_doing(&actors[MAIN], "close the context", NULL);
	orphans = round_.seen[PINL_EV_ORPHAN];
	pinl_close(round_.ctx);
	if (!atomic_load(&round_.dropped))
		check_summary(summary, orphans);
	uring_close();
	close(round_.group_fd);
	free(round_.record);
	watch_clear();
}

static void run_round(uint64_t seed, const struct balance *before, uint64_t total[N_COUNTS])
{
	int summary = memfd_create("summary", MFD_CLOEXEC);
	uint64_t mapped = 1; /* the marker */

	round_open(seed, summary);
	threads_run();
	slots_end(&actors[MAIN], seed & 1);
	await_events();
	for (int i = 0; i < ACTORS; i++) {
		mapped += actors[i].n[N_MAPPED];
		for (int k = 0; k < N_COUNTS; k++)
			total[k] += actors[i].n[k];
	}
	check_counters(mapped);
	pinned_must_be(before->pinned_kb);
	round_close(summary);
	close(summary);
}

/* -------------------------------------------------------------------------------------- the test -- */

static uint64_t env_number(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

static uint64_t operations(const uint64_t total[N_COUNTS])
{
	uint64_t sum = 0;

	for (int k = 0; k < N_OPERATIONS; k++)
		sum += total[k];
	return sum + total[N_FORKS];
}

static void show(const uint64_t total[N_COUNTS], unsigned rounds)
{
	printf("# %lu operations in %u rounds:", (unsigned long)operations(total), rounds);
	for (int k = 0; k < N_COUNTS; k++)
		printf("%s %lu %s", k ? "," : "", (unsigned long)total[k], count_names[k]);
	printf("\n");
}

static void churn_against_lookups_transfers_and_recalls(void **state)
{
	uint64_t seed, total[N_COUNTS] = {0}, wanted = env_number("PINLEASE_TEST_OPS", OPERATIONS);
	struct balance before;
	unsigned rounds = 0;

	assert_int_equal(getrandom(&seed, sizeof seed, 0), sizeof seed);
	seed = env_number("PINLEASE_TEST_SEED", seed & 0xffffffff);
	printf("# PINLEASE_TEST_SEED=%lu PINLEASE_TEST_OPS=%lu\n", (unsigned long)seed,
	       (unsigned long)wanted);
	fflush(stdout);
	memory_open();
	for (int kind = 0; kind < KINDS; kind++)
		if (!kind_works(kind))
			printf("# without %s: it can't be made here\n", kind_names[kind]);
	chaos_open();
	watch_start();
	while (operations(total) < wanted && !atomic_load(&n_broken)) {
		before = balance_now();
		run_round(seed + rounds++, &before, total);
		balance_must_be(&before);
	}
	show(total, rounds);
	memory_close();
	assert_int_equal(atomic_load(&n_broken), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(churn_against_lookups_transfers_and_recalls)};

	account_pins();
	return cmocka_run_group_tests_name("stress", tests, NULL, NULL);
}
