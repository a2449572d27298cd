/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What every backend promises: one table of tests, run against each fixture through the public API.
 * A test that needs what a fixture hasn't is not run on it; that the lack is reported and not ignored
 * is tested by impossible_policies_are_refused, lease_can_be_read and dirty_pages.
 */
#include "accounted.h"
#include "contract_rig.h"
#include "contract_verbs.h"

#include <linux/capability.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <pinlease/device.h>

static const struct fixture fixtures[] = {
	{"soft-faulting-ondemand", "soft", PINL_DEV_FAULTING, 0,
	 REVOCABLE | SCRATCHES | READS | ONDEMAND | TRACKS_DIRTY | CHECKS_WRITES | HALTS | ATOMIC},
	{"soft-faulting-pinned", "soft", PINL_DEV_FAULTING, PINL_PIN,
	 REVOCABLE | SCRATCHES | COPIES | READS | PINS | TRACKS_DIRTY | CHECKS_WRITES | HALTS | ATOMIC},
	{"soft-revocable", "soft", PINL_DEV_REVOCABLE, PINL_PIN,
	 REVOCABLE | SCRATCHES | COPIES | READS | PINS | CHECKS_WRITES | HALTS | ATOMIC},
	{"soft-quiesce-only", "soft", PINL_DEV_QUIESCE_ONLY, PINL_PIN,
	 READS | PINS | CHECKS_WRITES | HALTS},
	{"soft-none", "soft", PINL_DEV_NONE, PINL_PIN, PINS | CHECKS_WRITES | HALTS},
	{"uring", "uring", 0, PINL_PIN, REVOCABLE | SCRATCHES | COPIES | READS | PINS | HALTS | ATOMIC},
	{"verbs-ondemand", "verbs", 0, 0,
	 REVOCABLE | SCRATCHES | ONDEMAND | CHECKS_WRITES | HALTS | ATOMIC},
	{"verbs-rereg", "verbs", 0, PINL_PIN, REVOCABLE | PINS | PINS_READONLY | CHECKS_WRITES | HALTS},
	{"verbs-dereg", "verbs", PINL_VERBS_DEREG, PINL_PIN,
	 REVOCABLE | PINS | PINS_READONLY | CHECKS_WRITES | HALTS},
	{"verbs-qp", "verbs", PINL_VERBS_QP, PINL_PIN,
	 REVOCABLE | PINS | PINS_READONLY | CHECKS_WRITES | HALTS},
	{"verbs-read", "verbs", 0, PINL_PIN, REVOCABLE | COPIES | READS | PINS | CHECKS_WRITES | HALTS,
	 2},
	/* Pinned twice: type1 counts its own as locked memory, iommufd as io_uring does. */
	{"vfio", "vfio", 0, PINL_PIN, REVOCABLE | SCRATCHES | COPIES | READS | PINS | CHECKS_WRITES},
	{"iommufd", "iommufd", 0, PINL_PIN,
	 REVOCABLE | SCRATCHES | COPIES | READS | PINS | CHECKS_WRITES, 2},
	{"iommufd-switched", "iommufd", 0, PINL_PIN,
	 REVOCABLE | SCRATCHES | COPIES | READS | PINS | CHECKS_WRITES | ATOMIC, 2},
};

/* ---------------------------------------------------------------------------------- map and use -- */

static void one_address_per_page(void **state)
{
	struct rig *r = *state;
	char buf[PAGE];

	map(r, plain_policy(PINL_KEEP));
	for (unsigned i = 0; i < PAGES; i++) {
		memset(buf, 'a' + i, PAGE);
		assert_ok(dev_io(r, i, 1, buf, 1));
	}
	for (unsigned i = 0; i < PAGES; i++)
		assert_filled("page", r->va + i * PAGE, 'a' + i, PAGE);
}

/* In runs, too: of every page the address that is in addrs[], and all of them. */
static void addresses_coalesce(void **state)
{
	struct rig *r = *state;
	struct pinl_run runs[PAGES];
	unsigned page = 0;
	size_t n = 0;

	map(r, plain_policy(PINL_KEEP));
	assert_ok(pinl_addrs_coalesce(r->addrs, PAGES, runs, PAGES, &n));
	for (size_t i = 0; i < n; i++)
		for (uint64_t at = 0; at < runs[i].len; at += PAGE, page++) {
			assert_true(page < PAGES);
			assert_int_equal(r->addrs[page].addr, runs[i].at.addr + at);
			assert_int_equal(r->addrs[page].key, runs[i].at.key);
		}
	assert_int_equal(page, PAGES);
	assert_int_equal(n, 1); /* as every backend here does it, which saves its user elements */
}

static void device_sees_stores(void **state)
{
	struct rig *r = *state;
	char buf[SIZE];

	map(r, plain_policy(PINL_KEEP));
	memset(r->va, '1', SIZE);
	assert_ok(dev_io(r, 0, PAGES, buf, 0));
	assert_filled("device read", buf, '1', SIZE);
	memset(r->va + PAGE, '2', PAGE);
	assert_ok(dev_io(r, 1, 1, buf, 0));
	assert_filled("device read", buf, '2', PAGE);
}

static void unmap_ends_access(void **state)
{
	struct rig *r = *state;
	char buf[PAGE];

	map(r, plain_policy(PINL_KEEP));
	unmap(r);
	assert_true(dev_write(r, 0, 1, 'x') < 0);
	assert_true(dev_io(r, 0, 1, buf, 0) < 0);
	assert_filled("memory", r->va, 'F', SIZE);
}

static void overlap_is_refused(void **state)
{
	struct rig *r = *state;
	struct pinl_policy keep = plain_policy(PINL_KEEP);
	uintptr_t start = (uintptr_t)r->va;
	struct pinl_lease *other = NULL;
	unsigned flags = PINL_WRITE | PINL_COOPERATIVE | r->f->flags;

	assert_ok(pinl_map_range(r->dev, start, start + 2 * PAGE, flags, &keep, r->addrs, &r->lease));
	assert_int_equal(
		pinl_map_range(r->dev, start + PAGE, start + 3 * PAGE, flags, &keep, NULL, &other),
		-EEXIST);
	assert_null(other);
	assert_true(*pinl_error());
	assert_ok(pinl_map_range(r->dev, start + 2 * PAGE, start + SIZE, flags, &keep, NULL, &other));
	pinl_unmap_range(other);
	unmap(r);
	map(r, keep);
}

static void lease_can_be_read(void **state)
{
	struct rig *r = *state;
	char buf[SIZE] = {0};

	map(r, plain_policy(PINL_KEEP));
	for (unsigned i = 0; i < PAGES; i++)
		memset(r->va + i * PAGE, 'a' + i, PAGE);
	if (!(r->f->can & READS)) {
		assert_int_equal(pinl_lease_read(r->lease, 0, SIZE, buf), -EOPNOTSUPP);
		assert_true(*pinl_error());
		assert_filled("output", buf, 0, SIZE);
		return;
	}
	assert_ok(pinl_lease_read(r->lease, 0, SIZE, buf));
	assert_memory_equal(buf, r->va, SIZE);
	assert_ok(pinl_lease_read(r->lease, PAGE - 3, PAGE, buf));
	assert_memory_equal(buf, r->va + PAGE - 3, PAGE);
}

static void write_needs_permission(void **state)
{
	struct rig *r = *state;
	struct pinl_policy keep = plain_policy(PINL_KEEP);
	char buf[PAGE];

	assert_ok(try_map(r, &keep, 0));
	assert_ok(dev_io(r, 0, 1, buf, 0));
	assert_int_equal(dev_write(r, 0, 1, 'x'), -EFAULT);
	assert_filled("memory", r->va, 'F', PAGE);
}

static void readonly_memory(void **state)
{
	struct rig *r = *state;
	struct pinl_policy keep = plain_policy(PINL_KEEP);
	char buf[PAGE];
	int err;

	assert_int_equal(mprotect(r->va, SIZE, PROT_READ), 0);
	assert_int_equal(try_map(r, &keep, PINL_WRITE), -EACCES);
	assert_true(*pinl_error());
	err = try_map(r, &keep, 0);
	if ((r->f->flags & PINL_PIN) && (err || !(r->f->can & PINS_READONLY))) {
		assert_int_equal(err, -EOPNOTSUPP);
		assert_true(*pinl_error());
		return;
	}
	assert_ok(err);
	assert_ok(dev_io(r, 0, 1, buf, 0));
	assert_filled("device read", buf, 'F', PAGE);
	assert_int_equal(dev_write(r, 0, 1, 'x'), -EFAULT);
}

static void pins_balance(void **state)
{
	struct rig *r = *state;
	long size = r->f->flags & PINL_PIN ? SIZE / 1024 * (r->f->counted ? r->f->counted : 1) : 0;

	await_pinned(0);
	for (int i = 0; i < 20; i++) {
		map(r, plain_policy(PINL_KEEP));
		await_pinned(size); /* Linux 6.1 gives each buffer of a ring back a second late */
		unmap(r);
	}
	await_pinned(0);
}

/* CAP_IPC_LOCK in the effective set of this thread, where the process has it at all. What it was. */
static int set_ipc_lock(int on)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];
	int was;

	assert_int_equal(syscall(SYS_capget, &head, data), 0);
	was = !!(data[0].effective & (1u << CAP_IPC_LOCK));
	data[0].effective &= ~(1u << CAP_IPC_LOCK);
	if (on)
		data[0].effective |= data[0].permitted & (1u << CAP_IPC_LOCK);
	assert_int_equal(syscall(SYS_capset, &head, data), 0);
	return was;
}

static void memlock_limit_is_named(void **state)
{
	struct rig *r = *state;
	struct pinl_policy keep = plain_policy(PINL_KEEP);
	struct rlimit was, low;
	char why[512];
	int err, had;

	assert_int_equal(getrlimit(RLIMIT_MEMLOCK, &was), 0);
	low = was;
	low.rlim_cur = PAGE;
	close_device(r);
	had = set_ipc_lock(0);
	open_device(r); /* an io_uring is itself charged, and asks for the capability when it is made */
	setrlimit(RLIMIT_MEMLOCK, &low);
	err = try_map(r, &keep, PINL_WRITE);
	snprintf(why, sizeof why, "%s", pinl_error());
	setrlimit(RLIMIT_MEMLOCK, &was);
	set_ipc_lock(had);
	assert_int_equal(err, -ENOMEM);
	assert_non_null(strstr(why, "RLIMIT_MEMLOCK"));
	assert_non_null(strstr(why, "ulimit -l"));
}

/* -------------------------------------------------------------------------- the holder's answer -- */

struct actor {
	struct rig *r;
	int err;
};

static void *truncate_to_nothing(void *arg)
{
	struct actor *a = arg;

	a->err = pinl_ftruncate(a->r->ctx, a->r->fd, 0);
	return NULL;
}

static void answered_by(struct rig *r, int by_unmap)
{
	struct pinl_counters c = {.size = sizeof c};
	struct actor a = {.r = r, .err = 1};
	pthread_t thread;

	map(r, recall_policy(PINL_THEN_FAIL, 2 * LONG));
	assert_int_equal(pthread_create(&thread, NULL, truncate_to_nothing, &a), 0);
	await_event(r, PINL_EV_NOTICE);
	assert_ok(dev_write(r, 0, PAGES, 'G')); /* in the grace the device may go on */
	if (by_unmap)
		unmap(r);
	else
		assert_ok(pinl_quiesced(r->lease));
	pthread_join(thread, NULL);
	assert_int_equal(a.err, 0);
	assert_ok(pinl_counters(r->ctx, &c));
	assert_int_equal(c.forced, 0); /* what would have freed him otherwise, at the deadline */
	assert_true(dev_write(r, 0, 1, 'x') < 0);
}

static void quiesced_answers(void **state)
{
	struct rig *r = *state;

	answered_by(r, 0);
}

static void unmap_answers(void **state)
{
	struct rig *r = *state;

	answered_by(r, 1);
}

/* ------------------------------------------------------------------------------ dirty, protect -- */

static void dirty_pages(void **state)
{
	struct rig *r = *state;
	uintptr_t start = (uintptr_t)r->va;
	uint8_t dirty[PAGES] = {9, 9, 9, 9};

	map(r, plain_policy(PINL_KEEP));
	if (!(r->f->can & TRACKS_DIRTY)) {
		assert_int_equal(pinl_device_dirty(r->lease, start, start + SIZE, dirty), -EOPNOTSUPP);
		assert_int_equal(dirty[0], 9);
		assert_true(*pinl_error());
		assert_int_equal(pinl_device_protect(r->lease, start, start + SIZE), -EOPNOTSUPP);
		assert_true(*pinl_error());
		return;
	}
	assert_ok(dev_write(r, 1, 2, 'D'));
	assert_ok(pinl_device_dirty(r->lease, start, start + SIZE, dirty));
	assert_memory_equal(dirty, ((uint8_t[]){0, 1, 1, 0}), PAGES);
	assert_ok(pinl_device_dirty(r->lease, start + PAGE, start + 2 * PAGE, dirty));
	assert_int_equal(dirty[0], 0);
	assert_ok(pinl_device_protect(r->lease, start, start + SIZE));
	assert_ok(dev_write(r, 3, 1, 'D'));
	assert_ok(pinl_device_dirty(r->lease, start, start + SIZE, dirty));
	assert_memory_equal(dirty, ((uint8_t[]){0, 0, 0, 1}), PAGES);
}

/* --------------------------------------------------------------------------------------- runner -- */

#define TEST(fn, needs)                                                                                 \
	{                                                                                               \
#fn, fn, needs                                                                          \
	}
static const struct {
	const char *name;
	CMUnitTestFunction run;
	unsigned needs;
} contract[] = {
	TEST(one_address_per_page, 0),
	TEST(addresses_coalesce, 0),
	TEST(device_sees_stores, 0),
	TEST(unmap_ends_access, 0),
	TEST(overlap_is_refused, 0),
	TEST(lease_can_be_read, 0),
	TEST(write_needs_permission, CHECKS_WRITES),
	TEST(readonly_memory, 0),
	TEST(pins_balance, 0),
	TEST(memlock_limit_is_named, PINS),
	TEST(impossible_policies_are_refused, 0),
	TEST(recall_fail, REVOCABLE),
	TEST(recall_scratch, SCRATCHES),
	TEST(recall_copy, COPIES),
	TEST(part_scratch, SCRATCHES),
	TEST(part_copy, COPIES),
	TEST(part_fail_ends_a_flight, REVOCABLE | HALTS),
	TEST(fail_unpins, REVOCABLE | PINS),
	TEST(scratch_unpins, SCRATCHES | PINS),
	TEST(copy_unpins, COPIES | PINS),
	TEST(keep_leaves_a_readable_orphan, PINS),
	TEST(follow, ONDEMAND),
	TEST(quiesced_answers, REVOCABLE),
	TEST(unmap_answers, REVOCABLE),
	TEST(dirty_pages, 0),
	TEST(flight_fail, REVOCABLE),
	TEST(flight_scratch, SCRATCHES),
	TEST(flight_copy, COPIES),
	TEST(flight_at_unmap, 0),
	TEST(load_fail, REVOCABLE),
	TEST(load_scratch, SCRATCHES),
	TEST(load_copy, COPIES),
};

#define NR_CONTRACT (sizeof contract / sizeof *contract)
#define NR_FIXTURES (sizeof fixtures / sizeof *fixtures)

static struct CMUnitTest tests[NR_FIXTURES * NR_CONTRACT];
static char names[NR_FIXTURES * NR_CONTRACT][80];

/* NULL, or what a fixture's device needs and isn't here. */
static const char *lacks(const struct fixture *f)
{
	struct rig r = {.f = f};

	if (is_verbs(&r))
		return verbs_missing(f);
	return is_edu(&r) ? edu_missing(space_of(f)) : NULL;
}

/* In place of all tests of a fixture. */
static void not_here(void **state)
{
	const struct fixture *f = *state;

	print_message("skip: %s\n", lacks(f));
	skip();
}

static void add_test(size_t n, const struct fixture *f, const char *name, CMUnitTestFunction run)
{
	bool here = run != not_here;

	snprintf(names[n], sizeof names[n], "%s/%s", f->name, name);
	tests[n] = (struct CMUnitTest){
		.name = names[n],
		.test_func = run,
		.setup_func = here ? rig_up : NULL,
		.teardown_func = here ? rig_down : NULL,
		.initial_state = (void *)f,
	};
}

/* Every test on every fixture that has what it needs. */
static size_t list_tests(void)
{
	size_t n = 0;

	for (const struct fixture *f = fixtures; f < fixtures + NR_FIXTURES; f++) {
		if (lacks(f)) {
			add_test(n++, f, "not_here", not_here);
			continue;
		}
		for (size_t t = 0; t < NR_CONTRACT; t++)
			if (!(contract[t].needs & ~f->can))
				add_test(n++, f, contract[t].name, contract[t].run);
	}
	return n;
}

/* Does the kernel count what an io_uring of this process pins? */
static int rings_count(void)
{
	static char page[PAGE] __attribute__((aligned(PAGE)));
	struct iovec iov = {page, PAGE};
	long before = pinned_kb(), with;
	struct io_uring ring;

	if (io_uring_queue_init(1, &ring, 0))
		return 1;
	with = io_uring_register_buffers(&ring, &iov, 1) ? before + 1 : pinned_kb();
	io_uring_queue_exit(&ring);
	return with > before;
}

int main(int argc, char **argv)
{
	if (!rings_count()) /* Linux 7.2: not for who has this capability */
		set_ipc_lock(0);
	if (argc > 1) /* a pattern: only these */
		cmocka_set_test_filter(argv[1]);
	account_pins();
	return _cmocka_run_group_tests("contract", tests, list_tests(), NULL, NULL);
}
