/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * P5 and P2 on a pinning device: shared mappings of files on disk, which the kernel lets no ring pin,
 * leased by a staged copy. What the device wrote is in the file after every point where the header says
 * so, others' stores stay, and a recall ends as its policy says.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pinlease/device.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "files_rig.h"

#define FLAGS (PINL_WRITE | PINL_PIN | PINL_STAGE)
#define N     (LAST - FIRST)

static struct pinl_addr addrs[N];

static void lease_staged(struct rig *r, const struct pinl_policy *policy, unsigned flags)
{
	uintptr_t va;
	int err;

	start(r, test_dir(), MAP_SHARED);
	open_uring(r);
	va = (uintptr_t)r->va;
	err = map(r, FIRST, LAST, flags & ~PINL_STAGE, policy, &r->lease);
	if (!err) {
		print_message("skip: a file system whose shared mappings can't be pinned\n");
		skip();
	}
	assert_int_equal(err, -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "PINL_STAGE"));
	assert_ok(
		pinl_map_range(r->dev, va + FIRST * P, va + LAST * P, flags, policy, addrs, &r->lease));
}

static struct pinl_policy keep(void)
{
	return (struct pinl_policy){.size = sizeof(struct pinl_policy), .kind = PINL_KEEP};
}

static int complete(struct rig *r)
{
	struct io_uring_cqe *cqe;
	int res, mine;

	do {
		assert_int_equal(io_uring_wait_cqe(&r->ring, &cqe), 0);
		mine = !pinl_uring_cqe(r->dev, cqe->user_data);
		res = cqe->res;
		io_uring_cqe_seen(&r->ring, cqe);
	} while (!mine);
	return res;
}

/* The device moves `len` bytes between its address of leased page `page` + `at` and `buf`, by a memfd.
 */
static int transfer(struct rig *r, int page, size_t at, char *buf, size_t len, int to_memory)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);
	void *where = (char *)addrs[page].addr + at;
	int fd = memfd_create("other end", MFD_CLOEXEC), res;

	if (to_memory) {
		assert_int_equal(pwrite(fd, buf, len, 0), len);
		io_uring_prep_read_fixed(sqe, fd, where, len, 0, addrs[page].key);
	} else {
		io_uring_prep_write_fixed(sqe, fd, where, len, 0, addrs[page].key);
	}
	assert_int_equal(io_uring_submit(&r->ring), 1);
	res = complete(r);
	if (!to_memory && res == (int)len)
		assert_int_equal(pread(fd, buf, len, 0), len);
	close(fd);
	return res;
}

static void device_writes(struct rig *r, int page, char with)
{
	char buf[P];

	memset(buf, with, P);
	assert_int_equal(transfer(r, page, 0, buf, P, 1), P);
}

static char device_reads(struct rig *r, int page)
{
	char buf[P];

	assert_int_equal(transfer(r, page, 0, buf, P, 0), P);
	assert_int_equal(buf[0], buf[P - 1]);
	return buf[0];
}

static char in_file(struct rig *r, int page)
{
	char buf[P];

	assert_int_equal(pread(r->fd, buf, P, (FIRST + page) * P), P);
	assert_int_equal(buf[0], buf[P - 1]);
	return buf[0];
}

/* What is on the disk: the page cache is written back and dropped, and read past. */
static char on_disk(struct rig *r, int page)
{
	int fd = open(r->path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	char *buf = aligned_alloc(P, P), found;

	assert_true(fd >= 0);
	assert_int_equal(fsync(r->fd), 0);
	assert_int_equal(posix_fadvise(r->fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	assert_int_equal(pread(fd, buf, P, (FIRST + page) * P), P);
	found = buf[0];
	assert_int_equal(found, buf[P - 1]);
	free(buf);
	close(fd);
	return found;
}

/* ------------------------------------------------------------------------------- coherence points -- */

static void the_copy_begins_with_the_file(void **state)
{
	struct pinl_policy policy = keep();

	lease_staged(*state, &policy, FLAGS);
	for (int i = 0; i < N; i++)
		assert_int_equal(device_reads(*state, i), 'a' + FIRST + i);
}

static void sync_for_cpu_puts_what_the_device_wrote_on_disk(void **state)
{
	struct pinl_policy policy = keep();
	struct rig *r = *state;

	lease_staged(r, &policy, FLAGS);
	device_writes(r, 1, 'X');
	assert_int_equal(in_file(r, 1), 'a' + FIRST + 1); /* not yet */
	assert_ok(pinl_lease_sync(r->lease, P, P, PINL_FOR_CPU));
	assert_int_equal(r->va[(FIRST + 1) * P], 'X');
	assert_int_equal(in_file(r, 1), 'X');
	assert_int_equal(on_disk(r, 1), 'X');
	assert_int_equal(on_disk(r, 0), 'a' + FIRST);
}

static void sync_for_device_gives_it_what_the_cpu_stored(void **state)
{
	struct pinl_policy policy = keep();
	struct rig *r = *state;

	lease_staged(r, &policy, FLAGS);
	memset(r->va + FIRST * P, 'Y', P);
	assert_ok(pinl_lease_sync(r->lease, 0, N * P, PINL_FOR_DEVICE));
	assert_int_equal(device_reads(r, 0), 'Y');
	assert_int_equal(device_reads(r, 1), 'a' + FIRST + 1);
}

static void unmap_writes_back(void **state)
{
	struct pinl_policy policy = keep();
	struct rig *r = *state;

	lease_staged(r, &policy, FLAGS);
	for (int i = 0; i < N; i++)
		device_writes(r, i, 'A' + i);
	pinl_unmap_range(r->lease);
	for (int i = 0; i < N; i++)
		assert_int_equal(on_disk(r, i), 'A' + i);
}

static void unmap_writes_back_when_the_mapping_is_gone(void **state)
{
	struct pinl_policy policy = keep();
	struct rig *r = *state;

	lease_staged(r, &policy, FLAGS);
	device_writes(r, 2, 'M');
	assert_ptr_equal(mmap(r->va, SIZE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			 r->va);
	pinl_unmap_range(r->lease);
	assert_int_equal(on_disk(r, 2), 'M');
	assert_int_equal(r->va[(FIRST + 2) * P], 0); /* and nothing where it was */
}

static void others_stores_to_the_same_page_stay(void **state)
{
	struct pinl_policy policy = keep();
	struct rig *r = *state;
	char part[512], page[P];

	lease_staged(r, &policy, FLAGS);
	memset(part, 'D', sizeof part);
	assert_int_equal(transfer(r, 0, 1024, part, sizeof part, 1), sizeof part);
	assert_int_equal(pwrite(r->fd, "other", 5, FIRST * P), 5);
	assert_int_equal(pwrite(r->fd, "other", 5, FIRST * P + 2048), 5);
	assert_ok(pinl_lease_sync(r->lease, 0, P, PINL_FOR_CPU));
	assert_int_equal(pread(r->fd, page, P, FIRST * P), P);
	assert_memory_equal(page, "other", 5);
	assert_memory_equal(page + 2048, "other", 5);
	assert_memory_equal(page + 1024, part, sizeof part);
	assert_int_equal(page[1023], 'a' + FIRST);
	assert_int_equal(page[1536], 'a' + FIRST);
	assert_ok(pinl_lease_sync(r->lease, 0, P, PINL_FOR_DEVICE));
	assert_int_equal(transfer(r, 0, 2048, page, 5, 0), 5);
	assert_memory_equal(page, "other", 5);
}

static void a_read_only_mapping_can_be_read_by_the_device(void **state)
{
	struct pinl_policy policy = keep();
	struct rig *r = *state;

	start(r, test_dir(), MAP_SHARED);
	open_uring(r);
	assert_int_equal(mprotect(r->va, SIZE, PROT_READ), 0);
	assert_int_equal(pinl_map_range(r->dev, (uintptr_t)r->va, (uintptr_t)r->va + P, FLAGS, &policy,
					addrs, &r->lease),
			 -EACCES);
	assert_ok(pinl_map_range(r->dev, (uintptr_t)r->va, (uintptr_t)r->va + P,
				 PINL_PIN | PINL_STAGE | PINL_COOPERATIVE, &policy, addrs, &r->lease));
	assert_int_equal(device_reads(r, 0), 'a');
}

static void the_lease_says_what_it_is_and_costs(void **state)
{
	struct pinl_policy policy = keep();
	struct pinl_lease_info info = {.size = sizeof info};
	struct rig *r = *state;
	char text[1024];

	lease_staged(r, &policy, FLAGS);
	assert_ok(pinl_lease_info(r->lease, &info));
	assert_int_equal(info.stage, addrs[0].addr);
	assert_true(pinl_lease_describe(r->lease, text, sizeof text) < (int)sizeof text);
	assert_non_null(strstr(text, "staged copy"));
	assert_non_null(strstr(text, "64 KiB more"));
	assert_non_null(strstr(text, "pinl_lease_sync"));
	assert_int_equal(pinl_lease_sync(r->lease, 0, N * P + 1, PINL_FOR_CPU), -EINVAL);
	assert_int_equal(pinl_lease_sync(r->lease, 0, P, 4), -EINVAL);
}

/* ----------------------------------------------------------------------------------- recalls -- */

static void quiesced_in_time_the_file_gets_all_before_the_change(void **state)
{
	struct pinl_policy policy = recall(LONG);
	struct pinl_event ev;
	struct rig *r = *state;

	lease_staged(r, &policy, FLAGS);
	device_writes(r, 0, 'Q');
	device_writes(r, N - 1, 'Q');
	send_order(r, PUNCH); /* of some pages: the others keep what the device wrote */
	assert_held(r, PINL_OP_PUNCH, &ev);
	assert_ok(pinl_quiesced(r->lease));
	assert_int_equal(reply(r, LONG), 0);
	assert_true(ev.start > (uintptr_t)r->va + FIRST * P || ev.end < (uintptr_t)r->va + LAST * P);
	assert_int_equal(on_disk(r, N - 1), ev.end < (uintptr_t)r->va + LAST * P ? 'Q' : 0);
	assert_int_equal(on_disk(r, 0), ev.start > (uintptr_t)r->va + FIRST * P ? 'Q' : 0);
}

static struct pinl_policy forced(enum pinl_then then)
{
	struct pinl_policy policy = recall(0);

	policy.then = then;
	return policy;
}

static void copy_keeps_content_and_joins_cpu_and_device(void **state)
{
	struct pinl_policy policy = forced(PINL_THEN_COPY);
	struct pinl_event ev;
	struct rig *r = *state;
	char *leased;

	lease_staged(r, &policy, FLAGS);
	leased = r->va + FIRST * P;
	device_writes(r, 1, 'D');
	leased[2 * P] = 'C'; /* neither has been synced */
	send_order(r, FTRUNCATE);
	await(r, PINL_EV_FORCED, &ev);
	assert_int_equal(ev.outcome, PINL_OUT_COPY);
	assert_int_equal(ev.err, 0);
	assert_int_equal(reply(r, LONG), 0);
	assert_int_equal(leased[P], 'D');
	assert_int_equal(leased[2 * P], 'C');
	assert_int_equal(leased[3 * P], 'a' + FIRST + 3);
	device_writes(r, N - 1, 'E'); /* no sync from now on */
	assert_int_equal(leased[N * P - 1], 'E');
	memset(leased + (N - 1) * P, 'F', P);
	assert_int_equal(device_reads(r, N - 1), 'F');
}

struct counting {
	_Atomic uint64_t *at;
	atomic_int stop;
	uint64_t n;
};

static void *count(void *arg)
{
	struct counting *c = arg;

	while (!atomic_load(&c->stop)) {
		atomic_store(c->at, ++c->n);
		if (atomic_load(c->at) != c->n)
			return "a store was lost";
	}
	return NULL;
}

static void copy_loses_no_store_of_other_threads(void **state)
{
	struct pinl_policy policy = forced(PINL_THEN_COPY);
	struct counting c[2] = {0};
	pthread_t thread[2];
	struct pinl_event ev;
	struct rig *r = *state;
	void *why;

	lease_staged(r, &policy, FLAGS);
	for (int i = 0; i < 2; i++) {
		c[i].at = (_Atomic uint64_t *)(r->va + (LAST - 1 - i) * P);
		assert_int_equal(pthread_create(&thread[i], NULL, count, &c[i]), 0);
	}
	send_order(r, FTRUNCATE);
	await(r, PINL_EV_FORCED, &ev);
	assert_int_equal(ev.outcome, PINL_OUT_COPY);
	for (int i = 0; i < 2; i++) {
		atomic_store(&c[i].stop, 1);
		pthread_join(thread[i], &why);
		assert_null(why);
	}
	assert_int_equal(reply(r, LONG), 0);
}

static void scratch_lets_the_device_go_on(void **state)
{
	struct pinl_policy policy = forced(PINL_THEN_SCRATCH);
	struct pinl_event ev;
	struct rig *r = *state;

	lease_staged(r, &policy, FLAGS);
	device_writes(r, 0, 'D');
	send_order(r, FTRUNCATE);
	await(r, PINL_EV_FORCED, &ev);
	assert_int_equal(ev.outcome, PINL_OUT_SCRATCH);
	assert_int_equal(reply(r, LONG), 0);
	assert_int_equal(r->va[(LAST - 1) * P], 0);
	device_writes(r, N - 1, 'E');
	assert_int_equal(r->va[(LAST - 1) * P], 'E');
}

static void fail_writes_back_and_then_the_device_gets_errors(void **state)
{
	struct pinl_policy policy = forced(PINL_THEN_FAIL);
	struct pinl_event ev;
	struct rig *r = *state;
	char buf[P] = {0};

	lease_staged(r, &policy, FLAGS);
	device_writes(r, 0, 'D');
	device_writes(r, N - 1, 'D');
	send_order(r, PUNCH);
	await(r, PINL_EV_RELEASED, &ev);
	assert_int_equal(reply(r, LONG), 0);
	assert_int_equal(transfer(r, 0, 0, buf, P, 1), -EFAULT);
	assert_true(on_disk(r, 0) == 'D' || on_disk(r, N - 1) == 'D');
	assert_int_equal(pinl_lease_sync(r->lease, 0, P, PINL_FOR_CPU), -ESTALE);
}

static void what_has_no_place_any_more_is_an_orphan_and_can_be_read(void **state)
{
	struct pinl_policy policy = keep();
	struct pinl_counters c = {.size = sizeof c};
	struct pinl_event ev;
	struct rig *r = *state;
	char page[P];

	lease_staged(r, &policy, FLAGS | PINL_COOPERATIVE);
	assert_int_equal(ftruncate(r->fd, FIRST * P), 0);
	await(r, PINL_EV_ORPHAN, &ev); /* as for every device */
	device_writes(r, 3, 'O');
	assert_int_equal(pinl_lease_sync(r->lease, 0, N * P, PINL_FOR_CPU), -ENODATA);
	await(r, PINL_EV_ORPHAN, &ev);
	assert_int_equal(ev.err, -ENODATA);
	assert_int_equal(ev.bytes, P);
	assert_ok(pinl_lease_read(r->lease, 3 * P, P, page));
	assert_int_equal(page[P - 1], 'O');
	assert_ok(pinl_counters(r->ctx, &c));
	assert_true(c.orphan_bytes_written >= P);
}

static void nothing_is_written_where_the_file_has_moved_on(void **state)
{
	struct pinl_policy policy = keep();
	struct pinl_event ev;
	struct rig *r = *state;

	lease_staged(r, &policy, FLAGS | PINL_COOPERATIVE);
	if (fallocate(r->fd, FALLOC_FL_COLLAPSE_RANGE, 0, P)) {
		print_message("skip: FALLOC_FL_COLLAPSE_RANGE on this file system\n");
		skip();
	}
	await(r, PINL_EV_ORPHAN, &ev);
	device_writes(r, 0, 'W');
	pinl_unmap_range(r->lease);
	assert_int_equal(in_file(r, 0), 'a' + FIRST + 1);
}

/* A device that doesn't pin the file, and takes its time with the copy. Nothing here orders the threads,
 * so that ThreadSanitizer sees what the library orders. */
static _Atomic int maps, may_go;

static int slow_open(const void *arg, struct pinl_device_info *info, void **dev)
{
	info->device_class = PINL_DEV_REVOCABLE;
	info->caps = PINL_DEVCAP_PIN;
	*dev = &maps;
	return 0;
}

static int slow_map(void *dev, struct pinl_mapping *m, struct pinl_addr *a)
{
	if (atomic_fetch_add_explicit(&maps, 1, memory_order_relaxed) == 0)
		return -EOPNOTSUPP;
	while (!atomic_load_explicit(&may_go, memory_order_relaxed))
		sched_yield();
	return 0;
}

static const struct pinl_device_ops slow_ops = {
	.size = sizeof slow_ops, .name = "slow", .open = slow_open, .map = slow_map};

static void *lease_slowly(void *arg)
{
	struct pinl_policy policy = keep();
	struct rig *r = arg;

	assert_ok(map(r, FIRST, LAST, FLAGS, &policy, &r->lease));
	return NULL;
}

static void a_lease_being_staged_can_be_asked_about(void **state)
{
	struct pinl_filter f = {.size = sizeof f};
	struct pinl_lease_info info = {.size = sizeof info};
	struct rig *r = *state;
	pthread_t thread;
	size_t found;

	start(r, test_dir(), MAP_SHARED);
	assert_ok(pinl_device_open_ops(r->ctx, &slow_ops, NULL, &r->dev));
	assert_int_equal(pthread_create(&thread, NULL, lease_slowly, r), 0);
	while (atomic_load_explicit(&maps, memory_order_relaxed) < 2)
		sched_yield();
	assert_ok(pinl_query(r->ctx, &f, &info, 1, &found));
	atomic_store_explicit(&may_go, 1, memory_order_relaxed);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(found, 1);
	assert_true(info.stage);
	assert_true(info.coverage[PINL_OP_UNMAP]);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(the_copy_begins_with_the_file),
		T(sync_for_cpu_puts_what_the_device_wrote_on_disk),
		T(sync_for_device_gives_it_what_the_cpu_stored),
		T(unmap_writes_back),
		T(unmap_writes_back_when_the_mapping_is_gone),
		T(others_stores_to_the_same_page_stay),
		T(a_read_only_mapping_can_be_read_by_the_device),
		T(the_lease_says_what_it_is_and_costs),
		T(quiesced_in_time_the_file_gets_all_before_the_change),
		T(copy_keeps_content_and_joins_cpu_and_device),
		T(copy_loses_no_store_of_other_threads),
		T(scratch_lets_the_device_go_on),
		T(fail_writes_back_and_then_the_device_gets_errors),
		T(what_has_no_place_any_more_is_an_orphan_and_can_be_read),
		T(nothing_is_written_where_the_file_has_moved_on),
		T(a_lease_being_staged_can_be_asked_about),
	};

	return cmocka_run_group_tests_name("stage", tests, NULL, NULL);
}
