/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Leases of which parts have been taken before: what SCRATCH and COPY put there is the program's own,
 * and no later recall touches it or gives the device what the program has put in its place. And several
 * things on one lease at once: changes that are merged, orphans in any number.
 */
#include <fcntl.h>
#include <linux/falloc.h>
#include <semaphore.h>

#include <pinlease/device.h>
#include <pinlease/source.h>

#include "traps_rig.h"
#include "core/ctx.h"

#define N     8
#define FLAGS (PINNED | PINL_COOPERATIVE)

static struct trap t;
static struct lent l;
static int fd;

static char *memfd(size_t pages)
{
	char *va;

	fd = memfd_create("parts", MFD_CLOEXEC);
	assert_int_equal(ftruncate(fd, pages * PG), 0);
	va = map_alone(pages * PG, MAP_SHARED, fd);
	assert_ptr_not_equal(va, MAP_FAILED);
	return memset(va, 'O', pages * PG);
}

static void punch(int page)
{
	assert_ok(pinl_fallocate(t.ctx, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page * PG, PG));
}

static void done(char *va, size_t pages)
{
	end(&l);
	munmap(va, pages * PG);
	close(fd);
}

static void a_part_replaced_before_keeps_what_the_program_stored(void **state)
{
	char *va;

	for_each_device(&t, i) for (int then = PINL_THEN_SCRATCH; then <= PINL_THEN_COPY; then++)
	{
		va = memfd(N);
		lend(&t, &l, va, N * PG, FLAGS, recall(then, 0));
		punch(3);
		memset(va + 3 * PG, 'C', PG);
		assert_ok(pinl_ftruncate(t.ctx, fd, 0));
		assert_page(va + 3 * PG, 'C');
		assert_page(va + 4 * PG, then == PINL_THEN_COPY ? 'O' : 0);
		assert_coherent(&t, &l, 0, N);
		done(va, N);
	}
}

/* The addresses of such a part are anybody's once the program has unmapped it. */
static void the_device_is_not_given_what_came_in_its_place(void **state)
{
	char *va;

	for_each_device(&t, i) for (int then = PINL_THEN_SCRATCH; then <= PINL_THEN_COPY; then++)
	{
		va = memfd(N);
		lend(&t, &l, va, N * PG, FLAGS, recall(then, 0));
		punch(3);
		anon_at(va + 3 * PG, PG, MAP_FIXED);
		memset(va + 3 * PG, 'M', PG);
		assert_ok(pinl_ftruncate(t.ctx, fd, 0));
		put(&t, &l, 3, 'D'); /* goes nowhere, whatever it says */
		assert_page(va + 3 * PG, 'M');
		done(va, N);
	}
}

static void *punch_last(void *arg)
{
	punch(N - 1);
	return NULL;
}

/* One changes the file's end, the other unmaps the beginning: COPY of the end is kept all the same. */
static void an_unmapped_part_doesnt_spoil_the_copy_of_another(void **state)
{
	struct pinl_event ev;
	pthread_t other;
	char *va;

	for_each_device(&t, i)
	{
		va = memfd(N);
		lend(&t, &l, va, N * PG, PINNED, recall(PINL_THEN_COPY, 100));
		assert_int_equal(pthread_create(&other, NULL, punch_last, NULL), 0);
		await(&t, PINL_EV_NOTICE);
		assert_int_equal(munmap(va, PG), 0); /* within the same notice */
		pthread_join(other, NULL);
		ev = await(&t, PINL_EV_FORCED);
		assert_int_equal(ev.outcome, PINL_OUT_COPY);
		assert_int_equal(ev.err, 0);
		assert_page(va + (N - 1) * PG, 'O');
		done(va, N);
	}
}

/* The device keeps a copy that the program itself has thrown away: said, and counted. */
static void a_copy_that_is_discarded_is_an_orphan(void **state)
{
	struct pinl_counters n = {.size = sizeof n};
	char *va;

	for_each_device(&t, i) for (int explicit = 0; explicit < 2; explicit ++)
	{
		va = anon(N * PG);
		fd = -1;
		lend(&t, &l, va, N * PG, PINNED, recall(PINL_THEN_COPY, 0));
		assert_int_equal(explicit ? pinl_madvise(t.ctx, va, PG, MADV_DONTNEED)
					  : madvise_by_other(va, PG, MADV_DONTNEED),
				 0);
		assert_int_equal(await(&t, PINL_EV_ORPHAN).start, va);
		assert_ok(put(&t, &l, 0, 'x'));
		end(&l);
		assert_int_equal(await(&t, PINL_EV_ORPHAN_END).bytes, PG);
		munmap(va, N * PG);
		assert_ok(pinl_counters(t.ctx, &n));
		assert_int_equal(n.orphan_bytes_written, (explicit + 1) * PG);
	}
}

static void orphans_in_any_number_are_counted_apart(void **state)
{
	struct pinl_lease_info info = {.size = sizeof info};
	struct pinl_counters n = {.size = sizeof n};
	char *va;

	for_each_device(&t, i)
	{
		va = memfd(32);
		lend(&t, &l, va, 32 * PG, FLAGS, keep());
		for (int hole = 0; hole < 12; hole++) {
			punch(2 * hole);
			await(&t, PINL_EV_ORPHAN);
		}
		assert_ok(pinl_lease_info(l.lease, &info));
		assert_int_equal(info.orphan_bytes, 12 * PG);
		assert_ok(put(&t, &l, 0, 'x'));
		assert_ok(put(&t, &l, 22, 'x'));
		done(va, 32);
		assert_ok(pinl_counters(t.ctx, &n));
		assert_int_equal(n.orphans, 12);
		assert_int_equal(n.orphan_bytes, 12 * PG);
		assert_int_equal(n.orphan_bytes_written, 2 * PG);
	}
}

/* Seen all at once by a scan: what lies between is no orphan, until the file ends before it. */
static void holes_found_together_are_orphans_apart(void **state)
{
	struct pinl_counters n = {.size = sizeof n};
	struct pinl_event ev;
	char *va;

	for_each_device(&t, i)
	{
		va = memfd(64);
		lend(&t, &l, va, 64 * PG, FLAGS, keep());
		for (int hole = 0; hole < 24; hole++)
			assert_ok(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					    (2 * hole + 1) * PG, PG));
		for (int hole = 0; hole < 24; hole++) {
			ev = await(&t, PINL_EV_ORPHAN);
			assert_int_equal(ev.end - ev.start, PG);
		}
		assert_ok(ftruncate(fd, 40 * PG)); /* takes 24 pages, of which 4 had gone */
		done(va, 64);
		assert_ok(pinl_counters(t.ctx, &n));
		assert_int_equal(n.orphan_bytes, (24 + 24 - 4) * PG);
	}
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OF_SANITIZER 500
#else
#define OF_SANITIZER 0
#endif

static int mappings(void)
{
	FILE *f = fopen("/proc/self/maps", "re");
	int n = 0;

	for (int c; (c = getc(f)) != EOF;)
		n += c == '\n';
	fclose(f);
	return n;
}

static void tell(const char *op, char *va, const char *can)
{
	char script[128];

	snprintf(script, sizeof script, "%s va %#lx %#lx %s", op, (unsigned long)va,
		 (unsigned long)va + PG, can);
	assert_ok(pinl_script_run(t.ctx, script));
}

/* Far more than the worker has seen to when the last is told. A mapping for each would be too many for
 * the program. */
static void thousands_of_orphans_are_apart_and_need_few_mappings(void **state)
{
	enum { MANY = 8000 };
	struct pinl_counters n = {.size = sizeof n};
	struct pinl_policy p = keep();
	struct pinl_lease *lease;
	int before;
	char *va;

	trap_open(&t, SOFT);
	va = memfd(2 * MANY);
	assert_ok(pinl_map_range(t.dev, (uintptr_t)va, (uintptr_t)va + 2 * MANY * PG, FLAGS, &p, NULL,
				 &lease));
	before = mappings();
	for (int i = 0; i < MANY; i++)
		tell("munmap", va + 2 * i * PG, "t");
	while (n.orphan_bytes < MANY * PG) {
		usleep(1000);
		assert_ok(pinl_counters(t.ctx, &n));
	}
	assert_int_equal(n.orphans, MANY);
	assert_int_equal(n.orphan_bytes, MANY * PG);
	assert_in_range(mappings(), 0, before + MANY / 10);
	pinl_unmap_range(lease);
	assert_in_range(mappings(), 0, before + OF_SANITIZER);
	munmap(va, 2 * MANY * PG);
	close(fd);
	trap_close(&t);
}

/* ------------------------------------------------------------------------ a lease being made -- */

/* A device of the test's own, whose map and drain can be stopped. */
static struct {
	int stop, stop_drain;
	sem_t entered, go;
} maker;

static void wait_here(void)
{
	sem_post(&maker.entered);
	sem_wait(&maker.go);
}

static int maker_open(const void *arg, struct pinl_device_info *info, void **dev)
{
	info->device_class = PINL_DEV_REVOCABLE;
	info->caps = PINL_DEVCAP_PIN | PINL_DEVCAP_RETARGET;
	*dev = &maker;
	return 0;
}

static int maker_map(void *dev, struct pinl_mapping *m, struct pinl_addr *addrs)
{
	if (maker.stop)
		wait_here();
	return 0;
}

static int maker_stop(void *dev, struct pinl_mapping *m)
{
	return 0;
}

static int maker_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns)
{
	if (maker.stop_drain)
		wait_here();
	return 0;
}

static int maker_retarget(void *dev, struct pinl_mapping *m)
{
	return 0;
}

static const struct pinl_device_ops maker_ops = {.size = sizeof maker_ops,
						 .name = "maker",
						 .open = maker_open,
						 .map = maker_map,
						 .stop = maker_stop,
						 .drain = maker_drain,
						 .retarget = maker_retarget};

static struct pinl_device *slow;

static void maker_open_ctx(void)
{
	trap_open(&t, SOFT);
	memset(&maker, 0, sizeof maker);
	sem_init(&maker.entered, 0, 0);
	sem_init(&maker.go, 0, 0);
	assert_ok(pinl_device_open_ops(t.ctx, &maker_ops, NULL, &slow));
}

static void *lease_private(void *va)
{
	struct pinl_policy p = recall(PINL_THEN_FAIL, 0);
	struct pinl_lease *lease;

	assert_ok(pinl_map_range(slow, (uintptr_t)va, (uintptr_t)va + N * PG, FLAGS, &p, NULL, &lease));
	return lease;
}

static void *punch_all(void *arg)
{
	pinl_fallocate(t.ctx, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, N * PG);
	return NULL;
}

/* A hole takes nothing from the private mapping that is being leased; but the change waits for that
 * lease as long as it is not known, and must be let go when it is. */
static void a_change_that_waits_for_a_lease_being_made_goes_on(void **state)
{
	pthread_t mapper, actor;
	struct pinl_event ev;
	char *shared, *private;
	void *lease;

	maker_open_ctx();
	shared = memfd(N);
	private = map_alone(N * PG, MAP_PRIVATE, fd);
	lend(&t, &l, shared, N * PG, FLAGS, recall(PINL_THEN_FAIL, 0));
	maker.stop = 1;
	assert_int_equal(pthread_create(&mapper, NULL, lease_private, private), 0);
	sem_wait(&maker.entered);
	assert_int_equal(pthread_create(&actor, NULL, punch_all, NULL), 0);
	await(&t, PINL_EV_RELEASED);
	sem_post(&maker.go);
	pthread_join(mapper, &lease);
	pthread_join(actor, NULL);
	while (!next_event(&t, &ev, 0))
		assert_int_not_equal(ev.type, PINL_EV_DEGRADED); /* not by the ceiling */
	pinl_unmap_range(lease);
	munmap(private, N * PG);
	done(shared, N);
	trap_close(&t);
}

static void *punch_page(void *page)
{
	assert_ok(pinl_fallocate(t.ctx, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				 (uintptr_t)page * PG, PG));
	return NULL;
}

static int held(void)
{
	int n = 0;

	pthread_mutex_lock(&t.ctx->lock);
	for (const struct pinl_change *ch = t.ctx->held; ch; ch = ch->next)
		n++;
	pthread_mutex_unlock(&t.ctx->lock);
	return n;
}

/* They are noticed together when it is over, and not one grace after the other. */
static void changes_that_wait_for_a_force_share_the_next_grace(void **state)
{
	struct pinl_policy p = recall(PINL_THEN_SCRATCH, 50);
	struct pinl_counters n = {.size = sizeof n};
	struct pinl_lease *lease;
	pthread_t actor[3];
	char *va;

	maker_open_ctx();
	va = memfd(N);
	assert_ok(pinl_map_range(slow, (uintptr_t)va, (uintptr_t)va + N * PG, FLAGS, &p, NULL, &lease));
	maker.stop_drain = 1;
	for (uintptr_t i = 0; i < 3; i++) {
		assert_int_equal(pthread_create(&actor[i], NULL, punch_page, (void *)(2 * i)), 0);
		if (!i)
			sem_wait(&maker.entered);
	}
	while (held() < 3)
		usleep(1000);
	maker.stop_drain = 0;
	sem_post(&maker.go);
	for (int i = 0; i < 3; i++)
		assert_int_equal(pthread_join(actor[i], NULL), 0);
	assert_ok(pinl_counters(t.ctx, &n));
	assert_int_equal(n.notices, 2);
	assert_int_equal(n.forced, 2);
	pinl_unmap_range(lease);
	munmap(va, N * PG);
	close(fd);
	trap_close(&t);
}

static void *end_lease(void *lease)
{
	pinl_unmap_range(lease);
	return NULL;
}

/* The device's last transfers may still write to what goes then. */
static void what_goes_while_a_lease_is_being_ended_is_an_orphan(void **state)
{
	struct pinl_policy p = keep();
	struct pinl_lease *lease;
	struct pinl_event ev;
	pthread_t ender;
	char *va;

	maker_open_ctx();
	va = memfd(N);
	assert_ok(pinl_map_range(slow, (uintptr_t)va, (uintptr_t)va + N * PG, FLAGS, &p, NULL, &lease));
	maker.stop_drain = 1;
	assert_int_equal(pthread_create(&ender, NULL, end_lease, lease), 0);
	sem_wait(&maker.entered);
	tell("munmap", va + PG, "t");
	sem_post(&maker.go);
	assert_int_equal(pthread_join(ender, NULL), 0);
	ev = await(&t, PINL_EV_ORPHAN);
	assert_int_equal(ev.start, va + PG);
	assert_int_equal(ev.end, va + 2 * PG);
	await(&t, PINL_EV_ORPHAN_END);
	munmap(va, N * PG);
	close(fd);
	trap_close(&t);
}

static void *quiesce(void *lease)
{
	assert_ok(pinl_quiesced(lease));
	return NULL;
}

/* The same while the worker takes it: then nobody knows what the device wrote there, and that is said.
 */
static void what_goes_while_a_lease_is_being_taken_is_an_orphan(void **state)
{
	struct pinl_policy p = keep();
	struct pinl_lease *lease;
	struct pinl_event ev;
	pthread_t holder;
	char *va;

	maker_open_ctx();
	va = memfd(N);
	assert_ok(pinl_map_range(slow, (uintptr_t)va, (uintptr_t)va + N * PG, FLAGS, &p, NULL, &lease));
	maker.stop_drain = 1;
	assert_int_equal(pthread_create(&holder, NULL, quiesce, lease), 0);
	sem_wait(&maker.entered);
	maker.stop_drain = 0;
	tell("munmap", va + PG, "t");
	sem_post(&maker.go);
	assert_int_equal(pthread_join(holder, NULL), 0);
	ev = await(&t, PINL_EV_ORPHAN);
	assert_int_equal(ev.start, va + PG);
	assert_int_equal(await(&t, PINL_EV_ORPHAN_END).start, va + PG);
	pinl_unmap_range(lease);
	munmap(va, N * PG);
	close(fd);
	trap_close(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_part_replaced_before_keeps_what_the_program_stored),
		cmocka_unit_test(the_device_is_not_given_what_came_in_its_place),
		cmocka_unit_test(an_unmapped_part_doesnt_spoil_the_copy_of_another),
		cmocka_unit_test(a_copy_that_is_discarded_is_an_orphan),
		cmocka_unit_test(orphans_in_any_number_are_counted_apart),
		cmocka_unit_test(holes_found_together_are_orphans_apart),
		cmocka_unit_test(thousands_of_orphans_are_apart_and_need_few_mappings),
		cmocka_unit_test(a_change_that_waits_for_a_lease_being_made_goes_on),
		cmocka_unit_test(changes_that_wait_for_a_force_share_the_next_grace),
		cmocka_unit_test(what_goes_while_a_lease_is_being_ended_is_an_orphan),
		cmocka_unit_test(what_goes_while_a_lease_is_being_taken_is_an_orphan),
	};

	return cmocka_run_group_tests_name("parts", tests, NULL, NULL);
}
