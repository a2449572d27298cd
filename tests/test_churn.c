/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Everything at once, seeded: threads make leases under random policies on memory of their own and of
 * one shared file, write through the device, and change the memory by raw and by explicit calls, while a
 * holder thread answers some of the notices. Nothing may crash, hang, leak a lease or leave a pin; and a
 * device write that says it succeeded on an unchanged lease must be seen by the CPU.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <linux/falloc.h>
#include <pinlease/pinlease.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE	4096ul
#define PAGES	8
#define SIZE	(PAGES * PAGE)
#define THREADS 4
#define ROUNDS	150

static struct pinl_ctx *ctx;
static struct pinl_device *dev;
static int shared_fd;
static atomic_int failures;

struct worker {
	pthread_t thread;
	unsigned seed;
};

static unsigned roll(struct worker *w, unsigned n)
{
	return rand_r(&w->seed) % n;
}

static struct pinl_policy random_policy(struct worker *w)
{
	struct pinl_policy p = {.size = sizeof p, .kind = roll(w, 3) ? PINL_RECALL : PINL_KEEP};

	p.then = roll(w, 3);
	p.grace_ms = roll(w, 4);
	return p;
}

static char *random_memory(struct worker *w, int *fd)
{
	*fd = -1;
	switch (roll(w, 3)) {
	case 0:
		return mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	case 1:
		*fd = memfd_create("churn", MFD_CLOEXEC);
		if (ftruncate(*fd, SIZE))
			atomic_fetch_add(&failures, 1);
		return mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	default:
		*fd = dup(shared_fd);
		return mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	}
}

/*
 * Whatever the calls return is right; that everybody comes back is what counts. True: the memory is
 * unmapped, all of it, for another thread may get the addresses at once.
 */
static bool random_change(struct worker *w, char *mem, int fd)
{
	size_t from = roll(w, PAGES) * PAGE, len = (1 + roll(w, PAGES)) * PAGE;

	if (from + len > SIZE)
		len = SIZE - from;
	switch (roll(w, 9)) {
	case 0:
		munmap(mem, SIZE);
		return true;
	case 1:
		pinl_munmap(ctx, mem, SIZE);
		return true;
	case 2:
		madvise(mem + from, len, MADV_DONTNEED);
		break;
	case 3:
		pinl_madvise(ctx, mem + from, len, roll(w, 2) ? MADV_REMOVE : MADV_DONTNEED);
		break;
	case 4:
		mmap(mem + from, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
		     -1, 0);
		break;
	case 5:
		madvise(mem + from, len, MADV_REMOVE);
		break;
	case 6:
		if (fd >= 0 && !pinl_ftruncate(ctx, fd, from) && ftruncate(fd, SIZE))
			atomic_fetch_add(&failures, 1);
		break;
	case 7:
		if (fd >= 0)
			pinl_fallocate(ctx, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from, len);
		break;
	case 8:
		break;
	}
	return false;
}

static void one_round(struct worker *w)
{
	struct pinl_policy policy = random_policy(w);
	struct pinl_addr addrs[PAGES];
	struct pinl_lease *lease;
	int fd, err;
	char *mem = random_memory(w, &fd), page[PAGE];
	bool gone = false;

	memset(page, 1 + roll(w, 200), PAGE);
	err = pinl_map_range(dev, (uintptr_t)mem, (uintptr_t)mem + SIZE,
			     PINL_WRITE | PINL_PIN | PINL_COOPERATIVE, &policy, addrs, &lease);
	if (!err) {
		err = pinl_soft_dma(dev, addrs[0].addr, page, PAGE, 1);
		if (!err && fd < 0 && mem[0] != page[0])
			atomic_fetch_add(&failures, 1);
		gone = random_change(w, mem, fd);
		pinl_soft_dma(dev, addrs[roll(w, PAGES)].addr, page, PAGE, roll(w, 2));
		if (!gone && roll(w, 2))
			gone = random_change(w, mem, fd);
		if (!roll(w, 4))
			pinl_quiesced(lease);
		pinl_unmap_range(lease);
	} else if (err != -EBUSY && err != -EEXIST && fd < 0) {
		/* a change, or a lease kept, is where it was; a file may be short at the moment */
		fprintf(stderr, "map: %s: %s\n", strerror(-err), pinl_error());
		atomic_fetch_add(&failures, 1);
	}
	if (!gone)
		munmap(mem, SIZE);
	if (fd >= 0)
		close(fd);
}

static void *work(void *arg)
{
	for (int i = 0; i < ROUNDS; i++)
		one_round(arg);
	return NULL;
}

static void read_events(const struct pinl_event *event, void *arg)
{
	char text[512];

	if (pinl_event_format(event, text, sizeof text) <= 0)
		atomic_fetch_add(&failures, 1);
}

static void churn(unsigned seed)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1, .on_event = read_events};
	struct pinl_counters c = {.size = sizeof c};
	struct worker w[THREADS];

	shared_fd = memfd_create("shared", MFD_CLOEXEC);
	assert_int_equal(ftruncate(shared_fd, SIZE), 0);
	assert_int_equal(pinl_open(&opts, &ctx), 0);
	assert_int_equal(pinl_device_open(ctx, "soft", NULL, &dev), 0);
	for (int i = 0; i < THREADS; i++) {
		w[i].seed = seed * 100 + i;
		assert_int_equal(pthread_create(&w[i].thread, NULL, work, &w[i]), 0);
	}
	for (int i = 0; i < THREADS; i++)
		pthread_join(w[i].thread, NULL);
	assert_int_equal(pinl_counters(ctx, &c), 0);
	assert_int_equal(c.leases, 0);
	assert_int_equal(c.bytes, 0);
	assert_int_equal(c.mapped, c.unmapped);
	pinl_close(ctx);
	close(shared_fd);
	assert_int_equal(atomic_load(&failures), 0);
}

static void everything_at_once(void **state)
{
	const char *given = getenv("PINLEASE_TEST_SEED"); /* to replay one */

	if (given)
		churn(strtoul(given, NULL, 0));
	for (unsigned seed = 1; !given && seed <= 3; seed++) {
		print_message("# seed %u\n", seed);
		churn(seed);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(everything_at_once)};

	return cmocka_run_group_tests_name("churn", tests, NULL, NULL);
}
