/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * I8: who makes a change that is held may hold any lock of the program's, the allocator's too. So the
 * library's threads allocate and free nothing, and neither does a call of the program's while a lease
 * is there for which somebody may be held.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <malloc.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "child.h"

#define PAGE  4096ul
#define PAGES 64
#define SIZE  (PAGES * PAGE)

/* -------------------------------------------------------------------- who allocates, and when -- */

static _Thread_local bool programs; /* a thread of this program's, not of the library's */
static _Atomic(void *) by_library;  /* the last one on a thread of the library's, */
static _Atomic(void *) under_lease; /* and the last one in a call during which a lease was there */
static struct pinl_ctx *watched;    /* in such a call */

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void __real_free(void *p);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);
void __wrap_free(void *p);
char *__real_strerror(int err);
char *__wrap_strerror(int err);
FILE *__real_fopen64(const char *path, const char *mode);
FILE *__wrap_fopen64(const char *path, const char *mode);

extern char __executable_start[];

/* The argument for addr2line -e of this program. */
static unsigned long place(void *caller)
{
	return (unsigned long)((char *)caller - __executable_start);
}

static void note(void *caller)
{
	struct pinl_counters now = {.size = sizeof now};

	if (!programs)
		atomic_store(&by_library, caller);
	else if (watched && !pinl_counters(watched, &now) && now.leases)
		atomic_store(&under_lease, caller);
}

void *__wrap_malloc(size_t size)
{
	note(__builtin_return_address(0));
	return __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
	note(__builtin_return_address(0));
	return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t size)
{
	note(__builtin_return_address(0));
	return __real_realloc(p, size);
}

void __wrap_free(void *p)
{
	if (p)
		note(__builtin_return_address(0));
	__real_free(p);
}

/* These two allocate: one where messages are translated, the other always. */
char *__wrap_strerror(int err)
{
	note(__builtin_return_address(0));
	return __real_strerror(err);
}

FILE *__wrap_fopen64(const char *path, const char *mode)
{
	note(__builtin_return_address(0));
	return __real_fopen64(path, mode);
}

/* ------------------------------------------------------------------------------ lives of a lease -- */

struct rig {
	struct io_uring ring;
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
};

static void rig_open(struct rig *r, const char *kind)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring};

	assert_int_equal(io_uring_queue_init(8, &r->ring, 0), 0);
	assert_ok(pinl_open(&opts, &r->ctx));
	assert_ok(pinl_device_open(r->ctx, kind, strcmp(kind, "uring") ? NULL : (void *)&arg, &r->dev));
}

static void rig_close(struct rig *r)
{
	pinl_close(r->ctx);
	io_uring_queue_exit(&r->ring);
}

struct life {
	const char *kind;
	struct pinl_policy policy;
	unsigned pin;
	bool answer, long_path;
};

/* A file without a name, whose last name was longer than what the library asks the kernel for. */
static int long_named(void)
{
	char name[251] = {0};
	int dir[4], fd;

	memset(name, 'n', sizeof name - 1);
	dir[0] = open("/dev/shm", O_PATH | O_DIRECTORY);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(mkdirat(dir[i], name, 0700), 0);
		dir[i + 1] = openat(dir[i], name, O_PATH | O_DIRECTORY);
	}
	fd = openat(dir[3], name, O_RDWR | O_CREAT, 0600);
	unlinkat(dir[3], name, 0);
	for (int i = 3; i-- > 0;) {
		close(dir[i + 1]);
		unlinkat(dir[i], name, AT_REMOVEDIR);
	}
	close(dir[0]);
	assert_true(fd >= 0);
	return fd;
}

/* One page goes, is told of and recalled; then all; with what a program calls in between and after. */
static void live(struct rig *r, const struct life *life)
{
	char *mem, bytes[PAGE];
	int fd = life->long_path ? long_named() : memfd_create("locks", MFD_CLOEXEC);
	struct pinl_lease *lease;

	assert_int_equal(ftruncate(fd, SIZE), 0);
	mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	memset(mem, 'O', SIZE);
	assert_ok(pinl_map_range(r->dev, (uintptr_t)mem, (uintptr_t)mem + SIZE, PINL_WRITE | life->pin,
				 &life->policy, NULL, &lease));
	watched = r->ctx;
	assert_ok(pinl_lease_read(lease, 0, PAGE, bytes));
	watched = NULL;
	assert_ok(pinl_ftruncate(r->ctx, fd, SIZE - PAGE));
	assert_ok(pinl_ftruncate(r->ctx, fd, SIZE - 2 * PAGE));
	watched = r->ctx;
	pinl_lease_read(lease, SIZE - PAGE, PAGE, bytes); /* some can't any more */
	if (life->answer)
		pinl_quiesced(lease);
	pinl_unmap_range(lease);
	watched = NULL;
	munmap(mem, SIZE);
	close(fd);
}

static const struct life lives[] = {
	{"soft", {.kind = PINL_RECALL, .then = PINL_THEN_FAIL}, PINL_PIN, false, false},
	{"soft", {.kind = PINL_RECALL, .then = PINL_THEN_SCRATCH}, PINL_PIN, false, false},
	{"soft", {.kind = PINL_RECALL, .then = PINL_THEN_COPY}, PINL_PIN, false, false},
	{"soft", {.kind = PINL_KEEP}, PINL_PIN, true, false},
	{"soft", {.kind = PINL_FOLLOW}, 0, false, false},
	{"uring", {.kind = PINL_RECALL, .then = PINL_THEN_FAIL}, PINL_PIN, false, false},
	{"uring", {.kind = PINL_RECALL, .then = PINL_THEN_SCRATCH}, PINL_PIN, false, true},
	{"uring", {.kind = PINL_RECALL, .then = PINL_THEN_COPY}, PINL_PIN, false, false},
	{"uring", {.kind = PINL_KEEP}, PINL_PIN, true, false},
};

static void live_all(void)
{
	programs = true;
	atomic_store(&by_library, NULL);
	atomic_store(&under_lease, NULL);
	for (size_t i = 0; i < sizeof lives / sizeof *lives; i++) {
		struct life life = lives[i];
		struct rig r;

		life.policy.size = sizeof life.policy;
		rig_open(&r, life.kind);
		live(&r, &life);
		rig_close(&r);
	}
}

static void the_librarys_threads_neither_allocate_nor_free(void **state)
{
	live_all();
	if (by_library)
		fail_msg("allocates or frees: code at %#lx", place(by_library));
}

static void nothing_is_freed_while_somebody_may_be_held_for_a_lease(void **state)
{
	live_all();
	if (under_lease)
		fail_msg("allocates or frees: code at %#lx", place(under_lease));
}

/* -------------------------------------------------------------- the allocator gives memory back -- */

/*
 * The allocator gives free pages back, leased ones among them, and is held there with the lock of the
 * only arena until the worker is through.
 */
static void trim_leased_heap(const void *arg)
{
	struct pinl_policy policy = {
		.size = sizeof policy, .kind = PINL_RECALL, .then = PINL_THEN_SCRATCH, .grace_ms = 50};
	struct pinl_lease_info info = {.size = sizeof info};
	struct pinl_lease *lease;
	uintptr_t start;
	struct rig r;
	char *buf;

	mallopt(M_ARENA_MAX, 1);
	mallopt(M_MMAP_THRESHOLD, 32 << 20);
	mallopt(M_TRIM_THRESHOLD, 32 << 20);
	rig_open(&r, "soft");
	buf = malloc(1 << 20);
	memset(buf, 'O', 1 << 20);
	start = ((uintptr_t)buf + PAGE - 1) & ~(PAGE - 1);
	assert_ok(pinl_map_range(r.dev, start, start + (512 << 10), PINL_WRITE | PINL_PIN, &policy, NULL,
				 &lease));
	free(buf);
	if (malloc_trim(0)) { /* not in a sanitizer's allocator */
		assert_ok(pinl_lease_info(lease, &info));
		assert_int_equal(info.outcome, PINL_OUT_SCRATCH);
	}
	pinl_unmap_range(lease);
	rig_close(&r);
}

static void the_allocator_may_give_leased_memory_back(void **state)
{
	in_time(trim_leased_heap, NULL);
}

/* ------------------------------------------------------------- buffers whose pages are not there -- */

#define READERS 5 /* more than a device has lanes */

/* A buffer as in memory that is being copied: who touches a page of it waits until it is given. The page
 * before it is there. */
struct missing {
	int uffd;
	char *mem;
};

static void missing_make(struct missing *m)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register reg = {.range.len = READERS * PAGE, .mode = UFFDIO_REGISTER_MODE_MISSING};

	m->uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (m->uffd < 0) {
		print_message("skip: userfaultfd\n");
		_exit(CHILD_SKIPPED);
	}
	m->mem = mmap(NULL, (1 + READERS) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	m->mem += PAGE;
	reg.range.start = (uintptr_t)m->mem;
	assert_int_equal(ioctl(m->uffd, UFFDIO_API, &api), 0);
	assert_int_equal(ioctl(m->uffd, UFFDIO_REGISTER, &reg), 0);
}

static void missing_wait(struct missing *m)
{
	struct uffd_msg msg;

	assert_int_equal(read(m->uffd, &msg, sizeof msg), sizeof msg);
	assert_int_equal(msg.event, UFFD_EVENT_PAGEFAULT);
}

static void missing_give_page(struct missing *m, int i)
{
	struct uffdio_zeropage zero = {.range = {(uintptr_t)m->mem + i * PAGE, PAGE}};

	if (ioctl(m->uffd, UFFDIO_ZEROPAGE, &zero))
		assert_int_equal(errno, EEXIST);
}

static void missing_give(struct missing *m)
{
	for (int i = 0; i < READERS; i++)
		missing_give_page(m, i);
}

struct access {
	pthread_t thread;
	struct pinl_lease *lease;
	struct pinl_device *dev; /* NULL: read the lease; else write to */
	struct pinl_addr addr;
	char *buf;
	int err;
};

static void *access_it(void *arg)
{
	struct access *a = arg;

	programs = true;
	a->err = a->dev ? pinl_soft_dma(a->dev, a->addr.addr, a->buf, PAGE, 1)
			: pinl_lease_read(a->lease, 0, PAGE, a->buf);
	return NULL;
}

/* Each on a lease of its own, all on one device, all stopped at their buffer. */
static void access_all(struct rig *r, struct access *a, int n, bool dma, char *leased,
		       struct missing *bufs)
{
	struct pinl_policy keep = {.size = sizeof keep, .kind = PINL_KEEP};

	for (int i = 0; i < n; i++) {
		uintptr_t page = (uintptr_t)leased + i * PAGE;

		a[i] = (struct access){.dev = dma ? r->dev : NULL, .buf = bufs->mem + i * PAGE};
		*(char *)page = 'a' + i;
		assert_ok(pinl_map_range(r->dev, page, page + PAGE, PINL_WRITE | PINL_PIN, &keep,
					 &a[i].addr, &a[i].lease));
		assert_int_equal(pthread_create(&a[i].thread, NULL, access_it, &a[i]), 0);
		missing_wait(bufs);
	}
}

static void access_end(struct access *a, int n, struct missing *bufs)
{
	missing_give(bufs);
	for (int i = 0; i < n; i++) {
		assert_int_equal(pthread_join(a[i].thread, NULL), 0);
		assert_int_equal(a[i].err, 0);
		if (!a[i].dev)
			assert_int_equal(*a[i].buf, 'a' + i);
		pinl_unmap_range(a[i].lease);
	}
}

/* What else writes to a place of the program's: each in a page of its own, all stopped there. */
struct answers {
	struct pinl_ctx *ctx;
	struct pinl_lease *lease;
	uintptr_t page; /* the lease's */
	char *mem;
	pthread_t thread[4];
	int next;
};

static void *get_counters(void *arg)
{
	struct answers *a = arg;
	struct pinl_counters *c = (void *)(a->mem - sizeof(size_t)); /* size can be read */

	programs = true;
	c->size = sizeof *c;
	assert_ok(pinl_counters(a->ctx, c));
	return NULL;
}

static void *get_event(void *arg)
{
	struct answers *a = arg;
	struct pinl_event *ev = (void *)(a->mem + 2 * PAGE - sizeof(size_t)); /* the same */

	programs = true;
	ev->size = sizeof *ev;
	assert_ok(pinl_next_event(a->ctx, ev));
	return NULL;
}

static void *get_words(void *arg)
{
	struct answers *a = arg;

	programs = true;
	assert_true(pinl_lease_describe(a->lease, a->mem + 3 * PAGE, PAGE) > 0);
	return NULL;
}

static void *get_dirty(void *arg)
{
	struct answers *a = arg;

	programs = true;
	assert_ok(pinl_device_dirty(a->lease, a->page, a->page + PAGE, (uint8_t *)a->mem + 4 * PAGE));
	return NULL;
}

static void answers_begin(struct answers *a, struct rig *r, struct missing *bufs)
{
	static void *(*const get[])(void *) = {get_counters, get_event, get_words, get_dirty};
	struct pinl_policy keep = {.size = sizeof keep, .kind = PINL_KEEP};
	char *mem = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	missing_give_page(bufs, 1);
	*a = (struct answers){.ctx = r->ctx, .page = (uintptr_t)mem, .mem = bufs->mem};
	for (int i = 0; i < 2; i++) {
		assert_ok(pinl_map_range(r->dev, a->page, a->page + PAGE, PINL_WRITE | PINL_PIN, &keep,
					 NULL, &a->lease));
		if (i == 0) { /* there is an event then */
			assert_ok(pinl_quiesced(a->lease));
			pinl_unmap_range(a->lease);
		}
	}
	for (int i = 0; i < 4; i++) {
		assert_int_equal(pthread_create(&a->thread[i], NULL, get[i], a), 0);
		missing_wait(bufs);
	}
}

static void answers_end(struct answers *a, struct missing *bufs)
{
	missing_give(bufs);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_join(a->thread[i], NULL), 0);
	pinl_unmap_range(a->lease);
}

/* While the device waits for a program's buffer, it can copy. */
static void copy_during(const char *kind, int n, bool dma)
{
	struct pinl_policy copy = {.size = sizeof copy, .kind = PINL_RECALL, .then = PINL_THEN_COPY};
	struct pinl_lease_info info = {.size = sizeof info};
	int fd = memfd_create("locks", MFD_CLOEXEC);
	struct access a[READERS];
	struct answers answers;
	struct pinl_lease *lease;
	struct missing bufs;
	char *mem, *leased;
	struct rig r;

	missing_make(&bufs);
	rig_open(&r, kind);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	memset(mem, 'O', SIZE);
	assert_ok(pinl_map_range(r.dev, (uintptr_t)mem, (uintptr_t)mem + SIZE, PINL_WRITE | PINL_PIN,
				 &copy, NULL, &lease));
	leased = mmap(NULL, READERS * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (n)
		access_all(&r, a, n, dma, leased, &bufs);
	else
		answers_begin(&answers, &r, &bufs);
	assert_ok(pinl_ftruncate(r.ctx, fd, 0));
	assert_ok(pinl_lease_info(lease, &info));
	assert_int_equal(info.outcome, PINL_OUT_COPY);
	for (size_t i = 0; i < SIZE; i++)
		assert_int_equal(mem[i], 'O');
	if (n)
		access_end(a, n, &bufs);
	else
		answers_end(&answers, &bufs);
	pinl_unmap_range(lease);
	rig_close(&r);
}

static void copy_during_reads_uring(const void *arg)
{
	copy_during("uring", READERS, false);
}

static void copy_during_reads_soft(const void *arg)
{
	copy_during("soft", READERS, false);
}

static void copy_during_dma(const void *arg)
{
	copy_during("soft", 1, true);
}

static void copy_during_answers(const void *arg)
{
	copy_during("soft", 0, false);
}

static void an_answer_that_waits_for_its_place_stops_no_copy(void **state)
{
	in_time(copy_during_answers, NULL);
}

static void a_read_that_waits_for_its_buffer_stops_no_copy_uring(void **state)
{
	in_time(copy_during_reads_uring, NULL);
}

static void a_read_that_waits_for_its_buffer_stops_no_copy_soft(void **state)
{
	in_time(copy_during_reads_soft, NULL);
}

static void a_transfer_that_waits_for_its_buffer_stops_no_copy(void **state)
{
	in_time(copy_during_dma, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		/* first: once there were other threads, there are other arenas */
		cmocka_unit_test(the_allocator_may_give_leased_memory_back),
		cmocka_unit_test(a_read_that_waits_for_its_buffer_stops_no_copy_uring),
		cmocka_unit_test(a_read_that_waits_for_its_buffer_stops_no_copy_soft),
		cmocka_unit_test(a_transfer_that_waits_for_its_buffer_stops_no_copy),
		cmocka_unit_test(an_answer_that_waits_for_its_place_stops_no_copy),
		cmocka_unit_test(the_librarys_threads_neither_allocate_nor_free),
		cmocka_unit_test(nothing_is_freed_while_somebody_may_be_held_for_a_lease),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
