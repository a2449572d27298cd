/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Promises that no test of a component states; docs/promises.md has the list of all. Counts and order
 * only, no times: what didn't happen is seen by the kernel's count of how often a thread has run.
 */
#include "uffd_rig.h"

#include <dirent.h>
#include <stdbool.h>
#include <linux/falloc.h>
#include <sys/uio.h>

#include "proc.h"

/* ---------------------------------------------------------------------------------------- lookups -- */

/* I1: the call has returned, so the very first lookup says it. */
static void a_lookup_after_a_change_says_so(void **state)
{
	struct pinl_opts opts = {0};
	struct rig r;

	rig_open(&r, ANON, &opts);
	for (int i = 0; i < 300; i++) {
		enum pinl_op op = i % 2 ? PINL_OP_DONTNEED : PINL_OP_OVERMAP;

		assert_ok(rig_lease(&r, i % 4 < 2 ? PINL_KEEP : PINL_RECALL, 0));
		assert_ok(settled_check(r.lease));
		assert_int_equal(do_op(op, r.va + (i % PAGES) * PAGE, PAGE, NULL), 0);
		assert_int_not_equal(pinl_lease_check(r.lease), 0);
		pinl_unmap_range(r.lease);
		r.lease = NULL;
	}
	rig_close(&r);
}

/* I1, I5: what is mapped over a followed range is followed as well. */
static void a_followed_range_stays_watched(void **state)
{
	struct kind demand = kinds[0];
	struct pinl_event ev;
	struct rig r;

	demand.lease_flags = PINL_WRITE;
	rig_open(&r, &demand, NULL);
	assert_ok(rig_lease(&r, PINL_FOLLOW, 0));
	assert_int_equal(do_op(PINL_OP_OVERMAP, r.va + 2 * PAGE, PAGE, NULL), 0);
	await(&r, PINL_EV_FOLLOWED);
	assert_int_equal(do_op(PINL_OP_DONTNEED, r.va + 2 * PAGE, PAGE, NULL), 0);
	ev = await(&r, PINL_EV_FOLLOWED);
	assert_int_equal(ev.start, (uintptr_t)r.va + 2 * PAGE);
	rig_close(&r);
}

/* --------------------------------------------------------------------------------- strangers -- */

struct stray {
	pthread_t thread;
	_Atomic uintptr_t at;
	atomic_bool stop;
};

static void *touch(void *arg)
{
	struct stray *s = arg;
	char byte;

	while (!s->stop) {
		struct iovec to = {&byte, 1}, from = {(void *)atomic_load(&s->at), 1};

		process_vm_readv(getpid(), &to, 1, &from, 1, 0);
	}
	return NULL;
}

/*
 * I8: an on-demand device, or a thread with a stale address, reads where nothing is mapped, and a forced
 * COPY makes its new memory just there before it moves it into place. Who looked in between comes back.
 */
static void a_stray_access_during_a_copy_comes_back(void **state)
{
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_RECALL, .then = PINL_THEN_COPY};
	struct stray stray = {0};
	struct rig r;

	rig_open(&r, MEMFD, NULL);
	assert_int_equal(pthread_create(&stray.thread, NULL, touch, &stray), 0);
	for (int i = 0; i < 400; i++) {
		char *next = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		munmap(next, SIZE);
		atomic_store(&stray.at, (uintptr_t)next);
		assert_ok(pinl_map_range(r.dev, (uintptr_t)r.va, (uintptr_t)r.va + SIZE,
					 PINNED | PINL_COOPERATIVE, &policy, NULL, &r.lease));
		assert_ok(pinl_ftruncate(r.ctx, r.fd, 0));
		pinl_unmap_range(r.lease);
		r.lease = NULL;
		assert_int_equal(ftruncate(r.fd, SIZE), 0);
		assert_ptr_equal(
			mmap(r.va, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, r.fd, 0), r.va);
	}
	stray.stop = true;
	pthread_join(stray.thread, NULL);
	rig_close(&r);
}

/* ------------------------------------------------------------------------------------ unconcerned -- */

#define MAX_THREADS 64

/* How often each of the process's threads has run so far. */
struct runs {
	int nr;
	struct {
		pid_t tid;
		char name[32], state;
		long times;
	} thread[MAX_THREADS];
};

static void read_status(const char *task, char name[32], char *state, long *times)
{
	char path[300], line[128];
	FILE *f;
	long n;

	*times = 0;
	snprintf(path, sizeof path, "/proc/self/task/%s/status", task);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof line, f)) {
		sscanf(line, "Name: %31s", name);
		sscanf(line, "State: %c", state);
		if (sscanf(line, "voluntary_ctxt_switches: %ld", &n) == 1 ||
		    sscanf(line, "nonvoluntary_ctxt_switches: %ld", &n) == 1)
			*times += n;
	}
	if (f)
		fclose(f);
}

static bool among(const struct runs *r, pid_t tid)
{
	for (int i = 0; i < r->nr; i++)
		if (r->thread[i].tid == tid)
			return true;
	return false;
}

/* Those that are not in `others`: a sanitizer has a thread of its own, which runs all the time. Nor are
 * those of the kernel's for a ring. */
static void count_runs(struct runs *r, const struct runs *others)
{
	DIR *dir = opendir("/proc/self/task");

	memset(r, 0, sizeof *r);
	for (struct dirent *e; (e = readdir(dir)) && r->nr < MAX_THREADS;) {
		pid_t tid = atoi(e->d_name);

		if (!tid || among(others, tid) || is_uring_worker(e->d_name))
			continue;
		r->thread[r->nr].tid = tid;
		read_status(e->d_name, r->thread[r->nr].name, &r->thread[r->nr].state,
			    &r->thread[r->nr].times);
		r->nr++;
	}
	closedir(dir);
}

static bool all_sleep(const struct runs *r)
{
	for (int i = 0; i < r->nr; i++)
		if (r->thread[i].state != 'S')
			return false;
	return true;
}

/* Nobody has run for a while, nor would have on a free processor: what was begun is over. */
static void await_rest(struct runs *now, const struct runs *others)
{
	struct runs before;

	count_runs(now, others);
	do {
		before = *now;
		usleep(300000);
		count_runs(now, others);
	} while (!all_sleep(now) || memcmp(&before, now, sizeof before));
}

static void assert_nobody_ran(const struct runs *before, const struct runs *others)
{
	struct runs now;

	count_runs(&now, others);
	for (int i = 0; i < now.nr; i++)
		if (now.thread[i].times != before->thread[i].times)
			fail_msg("thread %s has run %ld times", now.thread[i].name,
				 now.thread[i].times - before->thread[i].times);
	assert_int_equal(now.nr, before->nr);
	assert_true(now.nr > 4);
}

static const char *disk(void)
{
	const char *dir = getenv("PINLEASE_TEST_DIR");

	return dir ? dir : "/var/tmp";
}

/* Everything that is watched on leased memory, on `mem` of its own, and on a file of its own. */
static void use_what_is_not_leased(char *mem)
{
	int fd = open(disk(), O_TMPFILE | O_RDWR, 0600);
	char page[PAGE] = {1}, *map;

	assert_true(fd >= 0);
	for (int i = 0; i < 50; i++) {
		assert_int_equal(pwrite(fd, page, PAGE, 0), PAGE);
		assert_int_equal(pread(fd, page, PAGE, 0), PAGE);
		map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		map[0] = 2;
		fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE);
		munmap(map, PAGE);
		assert_int_equal(ftruncate(fd, 0), 0);
		memset(mem, 3, SIZE);
		for (enum pinl_op op = PINL_OP_OVERMAP; op <= PINL_OP_FREE; op++)
			if (op != PINL_OP_REMAP)
				assert_int_equal(do_op(op, mem, SIZE, NULL), 0);
	}
	close(fd);
}

/* I9: no event, no wake-up, nothing is done for files and memory without a lease. */
static void what_is_not_leased_wakes_nobody(void **state)
{
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_RECALL};
	struct pinl_lease *leased[2];
	struct pinl_device *dev;
	struct pinl_ctx *ctx;
	/* Close to the leased memory, and no part of its mapping, which is watched as a whole. */
	char *leased_mem = mmap(NULL, 2 * SIZE + 3 * PAGE, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *mem = leased_mem + SIZE + PAGE, *file;
	int fd = open(disk(), O_TMPFILE | O_RDWR, 0600);
	struct runs none = {0}, others, before, after;

	leased_mem += PAGE;
	mem += PAGE;
	assert_int_equal(do_op(PINL_OP_OVERMAP, leased_mem, SIZE, NULL), 0);
	assert_int_equal(do_op(PINL_OP_OVERMAP, mem, SIZE, NULL), 0);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	file = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	alarm(HANG_S);
	count_runs(&others, &none);
	assert_ok(pinl_open(NULL, &ctx));
	assert_ok(pinl_device_open(ctx, "soft", NULL, &dev));

	await_rest(&before, &others);
	use_what_is_not_leased(mem);
	assert_nobody_ran(&before, &others);

	assert_ok(pinl_map_range(dev, (uintptr_t)leased_mem, (uintptr_t)leased_mem + SIZE, PINNED,
				 &policy, NULL, &leased[0]));
	assert_ok(pinl_map_range(dev, (uintptr_t)file, (uintptr_t)file + SIZE,
				 PINL_WRITE | PINL_COOPERATIVE, &policy, NULL, &leased[1]));
	await_rest(&before, &others);
	use_what_is_not_leased(mem);
	assert_nobody_ran(&before, &others);

	/* The same on what is leased is seen: so this would have been, too. */
	assert_int_equal(madvise(leased_mem, PAGE, MADV_DONTNEED), 0);
	count_runs(&after, &others);
	assert_memory_not_equal(&before, &after, sizeof before);
	pinl_close(ctx);
	alarm(0);
	munmap(leased_mem - PAGE, 2 * SIZE + 3 * PAGE);
	munmap(file, SIZE);
	close(fd);
}

/* Making and ending a lease is work of the thread that calls: a wake-up costs more than all the rest. */
static void a_lease_that_nothing_happens_to_wakes_nobody(void **state)
{
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_RECALL};
	char *mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct runs none = {0}, others, before;
	struct pinl_lease *lease;
	struct pinl_device *dev;
	struct pinl_ctx *ctx;

	count_runs(&others, &none);
	assert_ok(pinl_open(NULL, &ctx));
	assert_ok(pinl_device_open(ctx, "soft", NULL, &dev));
	await_rest(&before, &others);
	for (int i = 0; i < 50; i++) {
		assert_ok(pinl_map_range(dev, (uintptr_t)mem, (uintptr_t)mem + SIZE, PINNED, &policy,
					 NULL, &lease));
		pinl_unmap_range(lease);
	}
	usleep(20000); /* whoever was woken has gone to sleep again */
	assert_nobody_ran(&before, &others);
	pinl_close(ctx);
	munmap(mem, SIZE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_lookup_after_a_change_says_so),
		cmocka_unit_test(a_followed_range_stays_watched),
		cmocka_unit_test(a_stray_access_during_a_copy_comes_back),
		cmocka_unit_test(what_is_not_leased_wakes_nobody),
		cmocka_unit_test(a_lease_that_nothing_happens_to_wakes_nobody),
	};

	return cmocka_run_group_tests_name("promises", tests, NULL, NULL);
}
