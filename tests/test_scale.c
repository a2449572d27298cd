/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * 10^5 leases in a process, 10^4 files, 64 threads: nothing quadratic, one descriptor per file, and an
 * end in bounded time whatever was left undone.
 *
 * "Nothing quadratic" is shown by processor time, which other programs' load doesn't lengthen as it does
 * the clock's: a whole life (leased by 64 threads, found, all recalled by changes, half unmapped in
 * random order, half left to the device's end) may cost no more than LIMIT times as much for each lease
 * when there are FEWER times as many. What is quadratic and matters costs up to FEWER times as much;
 * cold caches cost less than twice. Counting steps would show only what has a counter.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pinlease/source.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "proc.h"

#define PAGE	 4096ul
#define PER_FILE 10
#define THREADS	 64
#define FEWER	 16
#define LIMIT	 3
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define LEASES 16000 /* their own cost per thread and page drowns ours */
#define SLOTS  4096
#else
#define LEASES 100000
#define SLOTS  16384
#endif

/* A slow machine may have fewer: PINLEASE_TEST_LEASES=N. */
static int leases(void)
{
	const char *n = getenv("PINLEASE_TEST_LEASES");

	return n && atoi(n) < LEASES ? atoi(n) : LEASES;
}

struct life {
	enum { ANON, MEMFD, FILES, RING } kind;
	int n;
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	char *mem;
	int *fd;
	struct pinl_lease **lease;
	atomic_int failed;
};

struct share {
	struct life *life;
	pthread_t thread;
	int from, to; /* files, of PER_FILE leases */
};

static const struct pinl_policy at_once = {
	.size = sizeof at_once, .kind = PINL_RECALL, .then = PINL_THEN_FAIL};

static uintptr_t page(const struct life *l, int i)
{
	return (uintptr_t)l->mem + i * PAGE;
}

static void *map_share(void *arg)
{
	struct share *s = arg;
	struct life *l = s->life;

	for (int i = s->from * PER_FILE; i < s->to * PER_FILE; i++) {
		unsigned flags = PINL_WRITE | PINL_COOPERATIVE;

		if (l->kind == RING || (l->kind != FILES && i % 100 == 0))
			flags |= PINL_PIN;
		if (pinl_map_range(l->dev, page(l, i), page(l, i + 1), flags, &at_once, NULL,
				   &l->lease[i])) {
			if (!atomic_fetch_add(&l->failed, 1))
				print_message("# %s\n", pinl_error());
		}
	}
	return NULL;
}

static void *truncate_share(void *arg)
{
	struct share *s = arg;

	for (int f = s->from; f < s->to; f++)
		if (pinl_ftruncate(s->life->ctx, s->life->fd[f], 0))
			atomic_fetch_add(&s->life->failed, 1);
	return NULL;
}

static void *unmap_share(void *arg)
{
	struct share *s = arg;

	for (int i = s->from * PER_FILE; i < s->to * PER_FILE; i++)
		pinl_unmap_range(s->life->lease[i]);
	return NULL;
}

static void in_threads(struct life *l, void *(*fn)(void *), int files)
{
	struct share s[THREADS];

	for (int i = 0; i < THREADS; i++) {
		s[i] = (struct share){.life = l, .from = (int64_t)files * i / THREADS};
		s[i].to = (int64_t)files * (i + 1) / THREADS;
		assert_int_equal(pthread_create(&s[i].thread, NULL, fn, &s[i]), 0);
	}
	for (int i = 0; i < THREADS; i++)
		pthread_join(s[i].thread, NULL);
	assert_int_equal(l->failed, 0);
}

static void make_memory(struct life *l)
{
	const char *dir = getenv("PINLEASE_TEST_DIR");
	size_t size = l->n * PAGE, part = PER_FILE * PAGE;

	l->mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(l->mem != MAP_FAILED);
	if (l->kind == MEMFD) {
		l->fd[0] = memfd_create("scale", MFD_CLOEXEC);
		assert_int_equal(ftruncate(l->fd[0], size), 0);
		assert_true(mmap(l->mem, size, PROT_READ | PROT_WRITE,
				 MAP_SHARED | MAP_FIXED | MAP_POPULATE, l->fd[0], 0) == l->mem);
	}
	for (int f = 0; l->kind == FILES && f < l->n / PER_FILE; f++) {
		l->fd[f] = open(dir ? dir : "/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
		assert_true(l->fd[f] >= 0);
		assert_int_equal(ftruncate(l->fd[f], part), 0);
		assert_true(mmap(l->mem + f * part, part, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
				 l->fd[f], 0) == l->mem + f * part);
	}
}

static void shuffle(struct life *l)
{
	unsigned seed = 20261121;

	for (int i = l->n - 1; i > 0; i--) {
		int j = rand_r(&seed) % (i + 1);
		struct pinl_lease *x = l->lease[i];

		l->lease[i] = l->lease[j];
		l->lease[j] = x;
	}
}

static void find_all(struct life *l)
{
	struct pinl_filter f = {.size = sizeof f};
	struct pinl_lease_info *infos = calloc(l->n, sizeof *infos);
	size_t found;

	infos->size = sizeof *infos;
	assert_ok(pinl_query(l->ctx, &f, infos, l->n, &found));
	assert_int_equal(found, l->n);
	assert_int_equal(infos[l->n - 1].start, page(l, l->n - 1));
	free(infos);
}

static void change_all(struct life *l)
{
	if (l->kind == ANON || l->kind == RING)
		assert_ok(pinl_munmap(l->ctx, l->mem, l->n * PAGE));
	else if (l->kind == MEMFD)
		assert_ok(pinl_ftruncate(l->ctx, l->fd[0], 0));
	else
		in_threads(l, truncate_share, l->n / PER_FILE);
}

static void lead(struct life *l)
{
	struct pinl_counters c = {.size = sizeof c};
	int before = open_fds(), files = l->kind == FILES ? l->n / PER_FILE : l->kind == MEMFD;

	in_threads(l, map_share, l->n / PER_FILE);
	assert_in_range(open_fds() - before, 0, files);
	find_all(l);
	change_all(l);
	pinl_counters(l->ctx, &c);
	assert_int_equal(c.leases, l->n);
	assert_int_equal(c.notices, l->n);
	assert_int_equal(c.forced, l->n);
	shuffle(l);
	in_threads(l, unmap_share, l->n / PER_FILE / 2);
	pinl_device_close(l->dev);
	assert_true(open_fds() <= before); /* the device's own went, too */
	pinl_counters(l->ctx, &c);
	assert_int_equal(c.leases, 0);
	assert_int_equal(c.bytes, 0);
	assert_int_equal(c.mapped, l->n);
	assert_int_equal(c.unmapped, l->n);
	assert_int_equal(c.leaks, l->n - l->n / PER_FILE / 2 * PER_FILE);
}

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* Microseconds of processor time per lease. */
static double cost(int kind, int n)
{
	struct life l = {.kind = kind, .n = n / PER_FILE * PER_FILE};
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1, .drain_ms = 100};
	struct io_uring_params p = {.flags = IORING_SETUP_CQSIZE, .cq_entries = 2 * SLOTS};
	struct io_uring ring; /* room for all completions, and nobody takes them out */
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &ring, .slots = SLOTS};
	double began;

	l.fd = calloc(l.n, sizeof *l.fd);
	l.lease = calloc(l.n, sizeof *l.lease);
	make_memory(&l);
	assert_ok(pinl_open(&opts, &l.ctx));
	assert_int_equal(io_uring_queue_init_params(64, &ring, &p), 0);
	assert_ok(kind == RING ? pinl_device_open(l.ctx, "uring", &arg, &l.dev)
			       : pinl_device_open(l.ctx, "soft", NULL, &l.dev));
	began = seconds();
	lead(&l);
	began = (seconds() - began) * 1e6 / l.n;
	pinl_close(l.ctx);
	io_uring_queue_exit(&ring);
	if (kind == MEMFD ||
	    kind == FILES) /* else it went in change_all() and may be anybody's by now */
		munmap(l.mem, l.n * PAGE);
	for (int i = 0; i < l.n && l.fd[i]; i++)
		close(l.fd[i]);
	free(l.fd);
	free(l.lease);
	return began;
}

static void does_not_grow(int kind, int n)
{
	double few = 0, many = 0;

	for (int i = 0; i < 3; i++) {
		double one = cost(kind, n / FEWER);

		few = one > few ? one : few;
	}
	for (int i = 0; i < 3 && (!i || many >= LIMIT * few); i++) { /* others use up the caches, too */
		many = cost(kind, n);
		print_message("# %d leases: %.1f us each, %d leases: %.1f us each\n", n / FEWER, few, n,
			      many);
	}
	assert_true(many < LIMIT * few);
}

static void one_mapping(void **state)
{
	does_not_grow(ANON, leases());
}

static void one_memfd(void **state)
{
	does_not_grow(MEMFD, leases());
}

static void many_files(void **state)
{
	struct rlimit r, more;
	int files = leases() / PER_FILE, mine = 100;

	if (geteuid()) {
		print_message("skip: opening a mapping's file (/proc/self/map_files, CAP_SYS_ADMIN)\n");
		skip();
	}
	getrlimit(RLIMIT_NOFILE, &r); /* the test itself has every file open, too */
	more = (struct rlimit){2 * files + mine, 2 * files + mine};
	if (r.rlim_cur < more.rlim_cur && setrlimit(RLIMIT_NOFILE, &more)) {
		files = ((int)r.rlim_max - mine) / 2;
		print_message("# only %d files: ulimit -Hn is %d\n", files, (int)r.rlim_max);
		r.rlim_cur = r.rlim_max;
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &r), 0);
	}
	does_not_grow(FILES, files * PER_FILE);
}

static void one_ring(void **state)
{
	struct rlimit r;

	getrlimit(RLIMIT_MEMLOCK, &r);
	if (geteuid() && r.rlim_cur < 2 * SLOTS * PAGE) {
		print_message("skip: pinning %lu MiB (ulimit -l)\n", SLOTS * PAGE >> 20);
		skip();
	}
	does_not_grow(RING, leases() < SLOTS ? leases() : SLOTS);
}

struct rig {
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct io_uring ring;
};

static int setup(void **state)
{
	static struct rig r;
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1, .drain_ms = 500};

	*state = &r;
	return pinl_open(&opts, &r.ctx) || pinl_device_open(r.ctx, "soft", NULL, &r.dev);
}

static int teardown(void **state)
{
	struct rig *r = *state;

	pinl_close(r->ctx);
	return 0;
}

/* What stands in docs/architecture.md, "What a lease costs". */
static void memory_per_lease(void **state)
{
	struct rig *r = *state;
	int n = 1000;
	char *m = mmap(NULL, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct pinl_lease *l;
	size_t before = mallinfo2().uordblks, bytes;

	for (int i = 0; i < n; i++)
		assert_ok(pinl_map_range(r->dev, (uintptr_t)m + i * PAGE, (uintptr_t)m + (i + 1) * PAGE,
					 PINL_WRITE | PINL_COOPERATIVE, &at_once, NULL, &l));
	bytes = (mallinfo2().uordblks - before) / n;
	print_message("# %zu bytes per lease of one page\n", bytes);
	assert_in_range(bytes, 0, 1920);
	pinl_device_close(r->dev);
	munmap(m, n * PAGE);
}

static int lease_new_file(struct rig *r, struct pinl_lease **l, char **m)
{
	int fd = memfd_create("one of many", MFD_CLOEXEC), err;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, PAGE))
		return -errno;
	*m = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	err = pinl_map_range(r->dev, (uintptr_t)*m, (uintptr_t)*m + PAGE, PINL_WRITE | PINL_COOPERATIVE,
			     &at_once, NULL, l);
	close(fd); /* so that the last one is missing to the lease */
	if (err)
		munmap(*m, PAGE);
	return err;
}

static void out_of_descriptors(void **state)
{
	struct rig *r = *state;
	struct rlimit was, low;
	struct pinl_lease *l[20], *more;
	char *m[20], *mm;
	int n = 0, err;

	getrlimit(RLIMIT_NOFILE, &was);
	low = was;
	low.rlim_cur = open_fds() + 10;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
	while (n < 20 && !(err = lease_new_file(r, &l[n], &m[n])))
		n++;
	assert_in_range(n, 2, 19);
	assert_int_equal(err, -EMFILE);
	assert_non_null(strstr(pinl_error(), "ulimit -n"));
	pinl_unmap_range(l[0]);
	assert_ok(lease_new_file(r, &more, &mm));
	setrlimit(RLIMIT_NOFILE, &was);
	munmap(mm, PAGE);
	while (n--)
		munmap(m[n], PAGE);
}

static void quit(int sig)
{
	static const char text[] = "# a recall took a drain's time for each lease\n";

	_exit(write(1, text, sizeof text - 1) < 0 ? 1 : 1);
}

/* The program takes no completions, so the queue is full after 16: one drain waits, not 512. */
static void a_ring_nobody_reads(void **state)
{
	struct rig *r = *state;
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring};
	struct pinl_counters c = {.size = sizeof c};
	size_t n = 512;
	char *m = mmap(NULL, 2 * n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct pinl_device *dev;
	struct pinl_lease *l;

	assert_int_equal(io_uring_queue_init(8, &r->ring, 0), 0);
	assert_ok(pinl_device_open(r->ctx, "uring", &arg, &dev));
	for (size_t i = 0; i < 2 * n; i++)
		assert_ok(pinl_map_range(dev, (uintptr_t)m + i * PAGE, (uintptr_t)m + (i + 1) * PAGE,
					 PINL_WRITE | PINL_PIN | PINL_COOPERATIVE, &at_once, NULL, &l));
	signal(SIGALRM, quit);
	alarm(100); /* of 256 s */
	assert_ok(pinl_munmap(r->ctx, m, n * PAGE));
	pinl_counters(r->ctx, &c);
	assert_int_equal(c.forced, n);
	assert_in_range(c.drains_unconfirmed, n - 16, n); /* said, as ever */
	pinl_device_close(dev);
	alarm(0);
	pinl_counters(r->ctx, &c);
	assert_int_equal(c.leases, 0);
	io_uring_queue_exit(&r->ring);
	munmap(m + n * PAGE, n * PAGE);
}

static void go_on(struct pinl_change *change, int err)
{
	assert_int_equal(err, 0);
}

static uint64_t allow(struct rig *r, uintptr_t start)
{
	struct pinl_change ch = {.op = PINL_OP_DONTNEED,
				 .can = PINL_CAN_TELL | PINL_CAN_BEFORE | PINL_CAN_HOLD |
					PINL_WILL_SAY_DONE,
				 .start = start,
				 .end = start + PAGE,
				 .source = "test",
				 .answer = go_on};

	pinl_change_submit(r->ctx, &ch);
	return ch.id;
}

/* Each of 1000 allowed changes keeps new leases out until it has happened; one too many keeps out all.
 */
static void many_changes_under_way(void **state)
{
	struct rig *r = *state;
	int n = 1000, max = 2048;
	char *m =
		mmap(NULL, (max + 1) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uintptr_t at = (uintptr_t)m;
	uint64_t id[2049];
	struct pinl_lease *l;
	struct pinl_event ev = {.size = sizeof ev};

	for (int i = 0; i < n; i++)
		id[i] = allow(r, at + i * PAGE);
	for (int i = 0; i < n; i += 50)
		assert_int_equal(pinl_map_range(r->dev, at + i * PAGE, at + (i + 1) * PAGE,
						PINL_COOPERATIVE, &at_once, NULL, &l),
				 -EBUSY);
	assert_int_equal(pinl_next_event(r->ctx, &ev), -EAGAIN);
	for (int i = n; i <= max; i++)
		id[i] = allow(r, at + i * PAGE);
	for (int i = 0; i < max; i++)
		pinl_change_done(r->ctx, id[i]);
	assert_int_equal(pinl_map_range(r->dev, at, at + PAGE, PINL_COOPERATIVE, &at_once, NULL, &l),
			 -EBUSY); /* no room for the last one's range: it keeps all out */
	pinl_change_done(r->ctx, id[max]);
	for (int i = 0; i < max; i++) {
		assert_ok(pinl_map_range(r->dev, at + i * PAGE, at + (i + 1) * PAGE, PINL_COOPERATIVE,
					 &at_once, NULL, &l));
	}
	pinl_device_close(r->dev);
	munmap(m, (max + 1) * PAGE);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_mapping), cmocka_unit_test(one_memfd),
		cmocka_unit_test(many_files),  cmocka_unit_test(one_ring),
		TEST(memory_per_lease),	       TEST(out_of_descriptors),
		TEST(a_ring_nobody_reads),     TEST(many_changes_under_way),
	};

	return cmocka_run_group_tests_name("scale", tests, NULL, NULL);
}
