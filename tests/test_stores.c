/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Threads store to a leased range while it is switched to a private copy: no store is lost or torn (R7,
 * R16). Each thread counts up in a word of its own and reads it back; the counter must never go back.
 * The device's I/O runs at the same time. Many rounds, seeded.
 */
#include <errno.h>
#include <liburing.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pinlease/pinlease.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE	    4096ul
#define PAGES	    64
#define SIZE	    (PAGES * PAGE)
#define THREADS	    3
#define ROUNDS	    60
#define DEVICE_PAGE 32 /* the threads leave this page to the device */

struct round {
	_Atomic uint64_t *words; /* the leased range */
	atomic_bool stop;
	atomic_int lost;
	int first_page;
	_Atomic uint64_t last[PAGES];
};

struct storer {
	struct round *r;
	int id;
};

static void *store(void *arg)
{
	struct storer *s = arg;
	struct round *r = s->r;

	for (uint64_t n = 1; !atomic_load(&r->stop); n++)
		for (int page = s->id; page < PAGES; page += THREADS) {
			_Atomic uint64_t *word = &r->words[page * (PAGE / 8) + s->id];

			if (page == DEVICE_PAGE)
				continue;
			if (atomic_load(word) != n - 1)
				atomic_fetch_add(&r->lost, 1);
			atomic_store(word, n);
			atomic_store(&r->last[page], n);
		}
	return NULL;
}

static int device_write(struct io_uring *ring, struct pinl_device *dev, int fd, void *at, unsigned key)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	struct io_uring_cqe *cqe;
	int res;

	io_uring_prep_read_fixed(sqe, fd, at, PAGE, 0, key);
	sqe->user_data = 1;
	io_uring_submit(ring);
	for (;;) {
		uint64_t data;

		assert_int_equal(io_uring_wait_cqe(ring, &cqe), 0);
		res = cqe->res;
		data = cqe->user_data;
		io_uring_cqe_seen(ring, cqe);
		if (!pinl_uring_cqe(dev, data))
			return res;
	}
}

static void one_round(struct pinl_ctx *ctx, struct io_uring *ring, struct pinl_device *dev, int source,
		      int keep_pages)
{
	static struct round r;
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_RECALL, .then = PINL_THEN_COPY};
	struct storer s[THREADS];
	pthread_t t[THREADS];
	struct pinl_lease *lease;
	int fd = memfd_create("stores", 0);
	char *mem, *device_at;

	memset(&r, 0, sizeof r);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	device_at = mem + DEVICE_PAGE * PAGE;
	r.words = (_Atomic uint64_t *)mem;
	assert_int_equal(pinl_map_range(dev, (uintptr_t)mem, (uintptr_t)mem + SIZE,
					PINL_WRITE | PINL_PIN | PINL_COOPERATIVE, &policy, NULL, &lease),
			 0);
	for (int i = 0; i < THREADS; i++) {
		s[i] = (struct storer){&r, i};
		assert_int_equal(pthread_create(&t[i], NULL, store, &s[i]), 0);
	}
	while (!atomic_load(&r.last[0]) || !atomic_load(&r.last[1]) || !atomic_load(&r.last[2]))
		;
	assert_int_equal(device_write(ring, dev, source, device_at, pinl_lease_key(lease)), PAGE);
	assert_int_equal(pinl_ftruncate(ctx, fd, keep_pages * PAGE), 0);
	assert_int_equal(device_write(ring, dev, source, device_at, pinl_lease_key(lease)), PAGE);
	atomic_store(&r.stop, true);
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	assert_int_equal(atomic_load(&r.lost), 0);
	for (int page = 0; page < PAGES; page++)
		if (page != DEVICE_PAGE)
			assert_int_equal(atomic_load(&r.words[page * (PAGE / 8) + page % THREADS]),
					 atomic_load(&r.last[page]));
	assert_int_equal(device_at[0], 'D');
	pinl_unmap_range(lease);
	munmap(mem, SIZE);
	close(fd);
}

static void no_store_is_lost(void **state)
{
	struct io_uring ring;
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &ring};
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	char page[PAGE];
	int source = memfd_create("source", 0);
	unsigned seed = 7;

	memset(page, 'D', sizeof page);
	assert_int_equal(write(source, page, sizeof page), PAGE);
	assert_int_equal(io_uring_queue_init(16, &ring, 0), 0);
	assert_int_equal(pinl_open(NULL, &ctx), 0);
	assert_int_equal(pinl_device_open(ctx, "uring", &arg, &dev), 0);
	for (int i = 0; i < ROUNDS; i++)
		one_round(ctx, &ring, dev, source, rand_r(&seed) % 2 ? 0 : rand_r(&seed) % DEVICE_PAGE);
	pinl_close(ctx);
	io_uring_queue_exit(&ring);
	close(source);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(no_store_is_lost)};

	return cmocka_run_group_tests_name("stores", tests, NULL, NULL);
}
