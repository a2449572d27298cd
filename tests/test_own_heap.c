/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * I8 with an allocator: it discards, shrinks, moves and unmaps leased memory with its lock taken, and
 * the thread is held there. Nobody of ours may need that lock, and nobody may be waited for who does.
 */
#include "own_rig.h"

#include <dlfcn.h>
#include <link.h>
#include <malloc.h>
#include <sys/syscall.h>

/* The sanitizers bring an allocator of their own, which gives nothing back. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define GLIBC_HEAP 0
#else
#define GLIBC_HEAP 1
#endif

#define BLOCK (64 * PAGE)

struct block {
	char *at;
	struct pinl_lease *lease;
	void *volatile barrier; /* between it and the top of the heap */
};

static void *aligned(size_t len)
{
	void *p;

	must_ok(posix_memalign(&p, PAGE, len));
	memset(p, 'h', len);
	return p;
}

static struct block lease_block(struct own *o, const struct pinl_policy *policy)
{
	struct block b = {.at = aligned(BLOCK)};

	b.barrier = malloc(100);
	b.lease = own_lease_again(o, b.at, BLOCK, PINNED, policy);
	return b;
}

static void trim(void *arg)
{
	malloc_trim(0);
}

/* One arena, which nothing is taken from or given back to but by malloc_trim(). */
static void one_arena(void)
{
	mallopt(M_ARENA_MAX, 1);
	mallopt(M_MMAP_THRESHOLD, 64 << 20);
	mallopt(M_TRIM_THRESHOLD, 64 << 20);
}

/* ----------------------------------------------------------------- with the allocator's lock -- */

/*
 * malloc_trim() discards with the lock of the only arena taken, and is held until the force is over: the
 * worker can do all of it without that lock. More rounds than its thread's cache of free chunks has
 * room for.
 */
static void discard_by_trim(const char *device, enum pinl_then then)
{
	struct pinl_policy policy = own_recall(0, then);
	struct own o;

	own_open(&o, device, 0, NULL);
	for (int i = 0; i < 12; i++) {
		struct block b = lease_block(&o, &policy);

		free(b.at);
		malloc_trim(0);
		own_stale(b.lease);
		pinl_unmap_range(b.lease);
		free(b.barrier);
	}
	own_close(&o);
}

ISOLATED(a_force_needs_no_allocator)
{
	one_arena();
	for (enum pinl_then then = PINL_THEN_FAIL; then <= PINL_THEN_COPY; then++) {
		discard_by_trim("soft", then);
		discard_by_trim("uring", then);
	}
}

/*
 * fork() waits for the allocator's lock, which the held thread has, and a switch to a copy may not
 * happen in a fork. The child is made in the end, the copy perhaps not.
 */
ISOLATED(a_fork_waits_for_the_allocator)
{
	struct pinl_policy policy = own_recall(200, PINL_THEN_COPY);
	struct own_thread t;
	struct own o;
	int status;

	one_arena();
	own_open(&o, "uring", 0, NULL);
	for (int i = 0; i < 3; i++) {
		struct block b = lease_block(&o, &policy);
		pid_t pid;

		free(b.at);
		own_start(&t, trim, NULL);
		own_wait(&o.noticed);
		pid = fork();
		if (!pid)
			_exit(0);
		must(waitpid(pid, &status, 0) == pid && !status);
		own_join(&t);
		own_stale(b.lease);
		pinl_unmap_range(b.lease);
		free(b.barrier);
	}
	own_close(&o);
}

/* --------------------------------------------- what the allocator does inside a call of ours -- */

/* A device that does something when a lease is made or ended, as if it allocated or freed. */
static struct {
	_Atomic(const char *) at;
	void (*fn)(void *arg);
	void *arg;
} allocating;

static void allocate(const char *call)
{
	const char *at = allocating.at;

	if (at && !strcmp(call, at))
		allocating.fn(allocating.arg);
}

static void open_allocating(struct own *o)
{
	allocating.at = NULL;
	own_hook = allocate;
	own_open(o, "hooked", 0, NULL);
}

static void discard(void *arg)
{
	must_ok(madvise(arg, SIZE, MADV_DONTNEED));
}

/*
 * A call of ours frees something of its own, and the allocator takes the occasion to discard memory that
 * the program has freed while it was leased. The thread isn't held, it could wait for itself, who is to
 * answer; but it is told.
 */
ISOLATED(what_a_call_of_ours_frees_is_told)
{
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);
	struct pinl_lease *lease, *other;
	struct own_memory m, more;
	struct own o;

	open_allocating(&o);
	own_map(&m, 'a');
	own_map(&more, 'a');
	lease = own_lease(&o, m.va, SIZE, PINNED, &policy);
	other = own_lease(&o, more.va, SIZE, PINNED, &policy);
	allocating.fn = discard;
	allocating.arg = m.va;
	allocating.at = "unmap";
	pinl_unmap_range(other);
	allocating.at = NULL;
	own_wait(&o.noticed);
	must_ok(pinl_quiesced(lease));
	own_stale(lease);
	pinl_unmap_range(lease);
	own_unmap(&m);
	own_unmap(&more);
	own_close(&o);
}

/* As if a thread of this program had the allocator's lock while it discards, and we wanted the lock. */
static void wait_for_discard(void *arg)
{
	struct own_thread t;

	own_start(&t, discard, arg);
	own_join(&t);
}

/* The lease is being ended or made, and cannot be before the discarding thread has gone on. */
static void wait_inside(const char *at)
{
	struct pinl_policy policy = own_recall(0, PINL_THEN_FAIL);
	struct pinl_lease *lease;
	struct own_memory m;
	struct own o;

	own_drain_ms = 20;
	open_allocating(&o);
	own_map(&m, 'a');
	allocating.fn = wait_for_discard;
	allocating.arg = m.va;
	allocating.at = at;
	lease = own_lease(&o, m.va, SIZE, PINNED, &policy);
	if (!strcmp(at, "map"))
		own_stale(lease);
	pinl_unmap_range(lease);
	own_unmap(&m);
	own_close(&o);
}

ISOLATED(making_a_lease_waits_for_the_allocator)
{
	wait_inside("map");
}

ISOLATED(ending_a_lease_waits_for_the_allocator)
{
	wait_inside("unmap");
}

/* ------------------------------------------------------------------------------ with the linker's -- */

static int last_page(struct dl_phdr_info *info, size_t size, void *arg)
{
	char **page = arg;

	if (!strstr(info->dlpi_name, "libresolv"))
		return 0;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];
		uintptr_t end = info->dlpi_addr + p->p_vaddr + p->p_memsz;

		if (p->p_type == PT_LOAD && (p->p_flags & PF_W))
			*page = (char *)((end - 1) & ~(PAGE - 1));
	}
	return 1;
}

static void close_library(void *arg)
{
	must_ok(dlclose(arg));
}

static void load_something(struct own *o, const struct pinl_event *ev)
{
	void *lib = dlopen("libthread_db.so.1", RTLD_NOW);

	if (lib)
		dlclose(lib);
}

/* dlclose() unmaps leased data of the library; the callback needs the same lock, and comes too late. */
ISOLATED(a_library_with_leased_data_is_closed)
{
	struct pinl_policy policy = own_recall(50, PINL_THEN_FAIL);
	struct pinl_lease *lease;
	struct own_thread t;
	char *page = NULL;
	struct own o;
	void *lib;

	lib = dlopen("libresolv.so.2", RTLD_NOW);
	must(lib);
	dl_iterate_phdr(last_page, &page);
	must(page);
	own_open(&o, "soft", 0, load_something);
	lease = own_lease(&o, page, PAGE, PINNED | PINL_COOPERATIVE, &policy);
	own_start(&t, close_library, lib);
	own_join(&t);
	own_stale(lease);
	pinl_unmap_range(lease);
	own_close(&o);
}

/* -------------------------------------------------------------------- others go on meanwhile -- */

static void *use_stack(void *arg)
{
	char page[PAGE];

	memset(page, 1, sizeof page);
	__asm__ volatile("" : : "r"(page) : "memory");
	return NULL;
}

/* Threads come and go, and with them their stacks; more than the cache of stacks keeps. */
static void threads_come_and_go(void)
{
	enum { N = 12 };
	pthread_attr_t attr;
	pthread_t t[N];

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 8 << 20);
	for (int round = 0; round < 5; round++) {
		for (int i = 0; i < N; i++)
			must_ok(pthread_create(&t[i], &attr, use_stack, NULL));
		for (int i = 0; i < N; i++)
			must_ok(pthread_join(t[i], NULL));
	}
	pthread_attr_destroy(&attr);
}

static void heap_work(unsigned *seed, int rounds)
{
	void *p[64] = {0};

	for (int i = 0; i < rounds; i++) {
		int at = rand_r(seed) % 64;
		size_t len = rand_r(seed) % (4 * BLOCK);

		if (rand_r(seed) % 2) {
			free(p[at]);
			p[at] = NULL;
		}
		p[at] = realloc(p[at], len + 1);
		must(p[at]);
		memset(p[at], 1, len);
		if (!(i % 32))
			malloc_trim(0);
	}
	for (int i = 0; i < 64; i++)
		free(p[i]);
}

static void unmap_block(void *arg)
{
	must_ok(munmap(arg, SIZE));
}

/* One thread is held for a lease, for as long as it takes the others to do all that. */
ISOLATED(a_held_thread_holds_no_other)
{
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);
	struct pinl_lease *lease;
	struct own_memory m;
	struct own_thread t;
	unsigned seed = 3;
	struct own o;

	mallopt(M_TRIM_THRESHOLD, 0);
	mallopt(M_MMAP_THRESHOLD, 64 << 10);
	own_open(&o, "soft", 0, NULL);
	own_map(&m, 'a');
	lease = own_lease(&o, m.va, SIZE, m.flags, &policy);
	own_start(&t, unmap_block, m.va);
	own_wait(&o.noticed);
	heap_work(&seed, 200);
	threads_come_and_go();
	load_something(&o, NULL);
	must_ok(pinl_quiesced(lease));
	own_join(&t);
	pinl_unmap_range(lease);
	own_gone(&m);
	own_unmap(&m);
	own_close(&o);
}

/* -------------------------------------------------------------------------------- all at once -- */

static atomic_int stop;

static void churn_heap(void *arg)
{
	unsigned seed = (uintptr_t)arg;

	while (!stop)
		heap_work(&seed, 50);
}

static void churn_threads(void *arg)
{
	while (!stop) {
		threads_come_and_go();
		load_something(NULL, NULL);
	}
}

/* What callbacks do: stdio, the heap, and now and then the answer. */
static void print_and_free(struct own *o, const struct pinl_event *ev)
{
	FILE *f = fopen("/dev/null", "we");
	char *text = NULL;

	must(f && asprintf(&text, "lease %lu", (unsigned long)ev->lease_id) > 0);
	fprintf(f, "%s\n", text);
	free(text);
	fclose(f);
}

static void one_block(struct own *o, unsigned *seed)
{
	struct pinl_policy policy = own_recall(rand_r(seed) % 3, rand_r(seed) % 3);
	size_t len = (1 + rand_r(seed) % 64) * PAGE;
	char *p = aligned(len);
	struct pinl_lease *lease = own_lease_again(o, p, len, PINNED, &policy);

	switch (rand_r(seed) % 4) {
	case 0:
		free(p); /* may be given back now, later or never */
		break;
	case 1:
		p = realloc(p, 8 * len);
		must(p);
		free(p);
		break;
	case 2:
		free(p);
		malloc_trim(0);
		break;
	default:
		pinl_unmap_range(lease);
		free(p);
		return;
	}
	pinl_unmap_range(lease);
}

ISOLATED(heap_threads_and_libraries_at_once)
{
	enum { HEAPS = 3 };
	struct own_thread heap[HEAPS], threads;
	unsigned seed = 11;
	struct own o;

	mallopt(M_TRIM_THRESHOLD, 0);
	mallopt(M_MMAP_THRESHOLD, 64 << 10);
	mallopt(M_ARENA_MAX, 2);
	own_drain_ms = 20;
	own_open(&o, "soft", 0, print_and_free);
	for (int i = 0; i < HEAPS; i++)
		own_start(&heap[i], churn_heap, (void *)(uintptr_t)(i + 1));
	own_start(&threads, churn_threads, NULL);
	for (int i = 0; i < 150; i++)
		one_block(&o, &seed);
	stop = 1;
	for (int i = 0; i < HEAPS; i++)
		own_join(&heap[i]);
	own_join(&threads);
	own_close(&o);
}

int main(void)
{
	const struct CMUnitTest glibc[] = {
		cmocka_unit_test(a_force_needs_no_allocator),
		cmocka_unit_test(a_fork_waits_for_the_allocator),
	};
	const struct CMUnitTest any[] = {
		cmocka_unit_test(what_a_call_of_ours_frees_is_told),
		cmocka_unit_test(making_a_lease_waits_for_the_allocator),
		cmocka_unit_test(ending_a_lease_waits_for_the_allocator),
		cmocka_unit_test(a_library_with_leased_data_is_closed),
		cmocka_unit_test(a_held_thread_holds_no_other),
		cmocka_unit_test(heap_threads_and_libraries_at_once),
	};
	int failed = GLIBC_HEAP ? cmocka_run_group_tests_name("own_heap", glibc, NULL, NULL) : 0;

	return failed + cmocka_run_group_tests_name("own_heap", any, NULL, NULL);
}
