/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * I8 with signals and cancellation: no call of ours is a cancellation point or leaves a lock taken, a
 * signal handler may change watched memory wherever it interrupts its thread, and system calls that
 * signals interrupt break nothing.
 */
#include "own_rig.h"

#include <sys/syscall.h>
#include <sys/time.h>

/* --------------------------------------------------------------- a device that stops where it is told
 * --
 */

static struct {
	sem_t entered, go;
	_Atomic(const char *) stop_at; /* the call that stops, once */
} device;

static void stop_here(const char *call)
{
	const char *at = device.stop_at;

	if (!at || strcmp(at, call))
		return;
	device.stop_at = NULL;
	sem_post(&device.entered);
	own_wait(&device.go);
}

static void open_stoppable(struct own *o)
{
	own_open(o, "hooked", 0, NULL);
	sem_init(&device.entered, 0, 0);
	sem_init(&device.go, 0, 0);
	device.stop_at = NULL;
	own_hook = stop_here;
}

/* ---------------------------------------------------------------------------------- cancellation -- */

struct cancelled {
	struct own *o;
	struct own_memory m;
	struct pinl_lease *lease;
	atomic_int came_back;
};

/* The call didn't end the thread. A sanitizer's stack doesn't survive cancellation, so it stays pending.
 */
static void came_back(struct cancelled *c)
{
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	c->came_back = 1;
}

/* Every call, with a cancellation pending. */
static void call_all(void *arg)
{
	struct pinl_policy policy = own_recall(0, PINL_THEN_COPY);
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};
	struct pinl_counters counters = {.size = sizeof counters};
	struct pinl_lease_info info = {.size = sizeof info};
	struct pinl_event ev = {.size = sizeof ev};
	struct cancelled *c = arg;
	struct pinl_lease *lease;
	struct pinl_device *dev;
	struct pinl_ctx *ctx;
	char text[512];

	pthread_cancel(pthread_self());
	must_ok(pinl_open(&opts, &ctx));
	must_ok(pinl_device_open(ctx, "soft", NULL, &dev));
	must_ok(pinl_map_range(dev, (uintptr_t)c->m.va, (uintptr_t)c->m.va + SIZE, c->m.flags, &policy,
			       NULL, &lease));
	must_ok(pinl_counters(ctx, &counters));
	must_ok(pinl_lease_info(lease, &info));
	must(settled_check(lease) == 0);
	must(pinl_lease_describe(lease, text, sizeof text) > 0);
	must(pinl_sources(ctx, text, sizeof text) > 0);
	must_ok(pinl_lease_read(lease, 0, sizeof text, text));
	must_ok(pinl_fallocate(ctx, c->m.fd, 3 /* a hole */, 0, PAGE));
	must_ok(pinl_madvise(ctx, c->m.va + PAGE, PAGE, MADV_REMOVE));
	must_ok(pinl_ftruncate(ctx, c->m.fd, 3 * PAGE));
	must_ok(pinl_next_event(ctx, &ev));
	must_ok(pinl_quiesced(lease));
	must_ok(pinl_munmap(ctx, c->m.va, SIZE));
	own_gone(&c->m);
	pinl_unmap_range(lease);
	pinl_watch_fs(ctx, own_dir());
	pinl_device_close(dev);
	pinl_close(ctx);
	came_back(c);
}

ISOLATED(no_call_is_a_cancellation_point)
{
	struct cancelled c = {0};
	struct own_thread t;

	own_map(&c.m, 'm');
	own_start(&t, call_all, &c);
	own_join(&t);
	must(c.came_back);
	own_unmap(&c.m);
}

static void truncate_explicitly(void *arg)
{
	struct cancelled *c = arg;

	must_ok(pinl_ftruncate(c->o->ctx, c->m.fd, 0));
	came_back(c);
}

static void truncate_raw(void *arg)
{
	struct cancelled *c = arg;

	must_ok(ftruncate(c->m.fd, 0));
	came_back(c);
}

static void unmap_raw(void *arg)
{
	struct cancelled *c = arg;

	must_ok(munmap(c->m.va, SIZE));
	own_gone(&c->m);
	came_back(c);
}

/* Held in the call, then cancelled: nothing happens until the lease is quiesced. */
static void cancel_held(char kind, void (*call)(void *arg), long nr)
{
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);
	struct own o;
	struct cancelled c = {.o = &o};
	struct own_thread t;

	own_open(&o, "soft", 0, NULL);
	if (kind == 'f' && !own_files(&o))
		exit(77);
	own_map(&c.m, kind);
	c.lease = own_lease(&o, c.m.va, SIZE, c.m.flags, &policy);
	own_start(&t, call, &c);
	own_wait(&o.noticed);
	own_wait_blocked(t.tid, nr);
	pthread_cancel(t.thread);
	usleep(10000); /* time to go on, if it could */
	must(!c.came_back && pthread_tryjoin_np(t.thread, NULL) == EBUSY);
	must_ok(pinl_quiesced(c.lease));
	own_join(&t);
	must(c.came_back);
	pinl_unmap_range(c.lease);
	own_unmap(&c.m);
	own_close(&o);
}

ISOLATED(cancelled_while_held)
{
	cancel_held('m', truncate_explicitly, SYS_futex);
	cancel_held('a', unmap_raw, SYS_munmap);
	cancel_held('f', truncate_raw, SYS_ftruncate);
}

static void map(void *arg)
{
	struct pinl_policy policy = own_recall(0, PINL_THEN_FAIL);
	struct cancelled *c = arg;

	c->lease = own_lease(c->o, c->m.va, SIZE, c->m.flags, &policy);
	came_back(c);
}

static void unmap(void *arg)
{
	struct cancelled *c = arg;

	pinl_unmap_range(c->lease);
	c->lease = NULL;
	came_back(c);
}

static void quiesce(void *arg)
{
	struct cancelled *c = arg;

	must_ok(pinl_quiesced(c->lease));
	came_back(c);
}

/* Cancelled in the middle of the device's work: others go on at once, the call comes back. */
static void cancel_inside(void (*call)(void *arg), const char *stop_at)
{
	struct pinl_counters counters = {.size = sizeof counters};
	struct pinl_policy policy = own_recall(0, PINL_THEN_FAIL);
	struct own o;
	struct cancelled c = {.o = &o};
	struct own_memory other;
	struct own_thread t;

	open_stoppable(&o);
	own_map(&c.m, 'a');
	own_map(&other, 'a');
	if (call != map)
		c.lease = own_lease(&o, c.m.va, SIZE, c.m.flags, &policy);
	device.stop_at = stop_at;
	own_start(&t, call, &c);
	own_wait(&device.entered);
	pthread_cancel(t.thread);
	usleep(10000);
	must_ok(pinl_counters(o.ctx, &counters));
	pinl_unmap_range(own_lease(&o, other.va, SIZE, other.flags, &policy));
	must(!c.came_back);
	sem_post(&device.go);
	own_join(&t);
	must(c.came_back);
	if (c.lease)
		pinl_unmap_range(c.lease);
	own_unmap(&c.m);
	own_unmap(&other);
	own_close(&o);
}

ISOLATED(cancelled_inside)
{
	cancel_inside(map, "map");
	cancel_inside(unmap, "unmap");
	cancel_inside(quiesce, "drain");
}

/* -------------------------------------------------------------------------------- signal handlers -- */

static struct {
	char *va; /* what the handler changes */
	int unmap;
	atomic_int ran, stop;
} handler;

static void change_watched(int sig)
{
	int saved = errno;

	if (handler.unmap)
		munmap(handler.va, SIZE);
	else
		madvise(handler.va, PAGE, MADV_DONTNEED);
	handler.ran++;
	errno = saved;
}

static void handle(int sig, void (*fn)(int), int flags)
{
	struct sigaction sa = {.sa_handler = fn, .sa_flags = flags};

	must_ok(sigaction(sig, &sa, NULL));
}

struct busy {
	struct own *o;
	uint64_t daddr;
};

/* Calls that take the library's locks, in a row. */
static void be_busy(void *arg)
{
	struct pinl_counters counters = {.size = sizeof counters};
	struct pinl_lease_info info = {.size = sizeof info};
	struct pinl_policy policy = own_recall(0, PINL_THEN_FAIL);
	struct pinl_event ev = {.size = sizeof ev};
	struct busy *b = arg;
	char text[512];

	while (!handler.stop) {
		struct pinl_lease *lease;
		struct own_memory m;

		own_map(&m, 'm');
		lease = own_lease(b->o, m.va, SIZE, m.flags, &policy);
		for (int i = 0; i < 50; i++) {
			must_ok(pinl_counters(b->o->ctx, &counters));
			must_ok(pinl_lease_info(lease, &info));
			must(settled_check(lease) == 0);
			must(pinl_lease_describe(lease, text, sizeof text) > 0);
			pinl_next_event(b->o->ctx, &ev);
			pinl_lease_set_cookie(lease, b);
		}
		must_ok(pinl_lease_read(lease, 0, sizeof text, text));
		must_ok(pinl_soft_dma(b->o->dev, b->daddr, text, sizeof text, 0));
		must_ok(pinl_ftruncate(b->o->ctx, m.fd, 0));
		must(pinl_quiesced(lease) == -EALREADY);
		pinl_unmap_range(lease);
		own_unmap(&m);
	}
}

/* Watched memory nobody holds, so that each handler ends; what matters is that it is let go. */
ISOLATED(a_handler_discards_watched_memory_anywhere)
{
	enum { SIGNALS = 1000 };
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);
	struct pinl_addr addrs[PAGES];
	struct own_memory watched;
	struct own_thread t;
	struct pinl_lease *lease;
	struct own o;
	struct busy b = {.o = &o};

	own_open(&o, "soft", 0, NULL);
	own_map(&watched, 'a');
	must_ok(pinl_map_range(o.dev, (uintptr_t)watched.va, (uintptr_t)watched.va + PAGE, PINNED,
			       &policy, addrs, &lease));
	b.daddr = addrs[0].addr;
	handler.va = watched.va + PAGE;
	handle(SIGUSR1, change_watched, SA_RESTART);
	own_start(&t, be_busy, &b);
	for (int i = 1; i <= SIGNALS; i++) {
		must_ok(pthread_kill(t.thread, SIGUSR1));
		while (handler.ran < i)
			sched_yield();
	}
	handler.stop = 1;
	own_join(&t);
	must_ok(settled_check(lease));
	pinl_unmap_range(lease);
	own_unmap(&watched);
	own_close(&o);
}

/* A handler that unmaps leased memory is held and recalls, also if it interrupts a call of ours. */
ISOLATED(a_handler_inside_a_call_is_held_like_anybody)
{
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);
	struct pinl_lease *lease;
	struct own_memory m;
	struct own_thread t;
	struct own o;
	struct cancelled c = {.o = &o};

	open_stoppable(&o);
	own_map(&c.m, 'a');
	own_map(&m, 'a');
	c.lease = own_lease(&o, c.m.va, SIZE, c.m.flags, &policy);
	lease = own_lease(&o, m.va, PAGE, m.flags, &policy);
	handler.va = m.va;
	handler.unmap = 1;
	handle(SIGUSR1, change_watched, 0);
	device.stop_at = "unmap";
	own_start(&t, unmap, &c);
	own_wait(&device.entered);
	must_ok(pthread_kill(t.thread, SIGUSR1));
	usleep(10000);
	sem_post(&device.go);
	own_wait(&o.noticed);
	must(!handler.ran);
	must_ok(pinl_quiesced(lease));
	own_join(&t);
	must(handler.ran);
	pinl_unmap_range(lease);
	own_gone(&m);
	own_unmap(&m);
	own_unmap(&c.m);
	own_close(&o);
}

/* The program's handlers run on no thread of ours: who blocks a signal everywhere will not get it. */
ISOLATED(handlers_run_on_no_thread_of_ours)
{
	struct pinl_policy policy = own_recall(0, PINL_THEN_COPY);
	sigset_t set, pending;
	struct own_memory m;
	struct own o;

	handle(SIGUSR2, change_watched, 0);
	own_open(&o, "uring", 0, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	must_ok(kill(getpid(), SIGUSR2));
	for (int i = 0; i < 10; i++) { /* every thread of ours works */
		struct pinl_lease *lease;

		own_map(&m, 'm');
		lease = own_lease(&o, m.va, SIZE, m.flags, &policy);
		must_ok(pinl_ftruncate(o.ctx, m.fd, 0));
		own_stale(lease);
		pinl_unmap_range(lease);
		own_unmap(&m);
	}
	must_ok(sigpending(&pending));
	must(sigismember(&pending, SIGUSR2) && !handler.ran);
	own_close(&o);
}

/* ----------------------------------------------------------------------------------- a flood -- */

static void count_signal(int sig)
{
	handler.ran++;
}

/* Until it is held, quiesced and through, in every kind of call; `m` is memory of its own. */
static void recall_by(struct own *o, char kind, void (*call)(void *arg))
{
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);
	struct cancelled c = {.o = o};
	struct own_thread t;
	char text[512];

	own_map(&c.m, kind);
	c.lease = own_lease_again(o, c.m.va, SIZE, c.m.flags | PINL_PIN, &policy);
	own_start(&t, call, &c);
	own_wait(&o->noticed);
	must_ok(pinl_lease_read(c.lease, 0, sizeof text, text));
	must_ok(pthread_kill(t.thread, SIGUSR1));
	must_ok(pinl_quiesced(c.lease));
	own_join(&t);
	pinl_unmap_range(c.lease);
	own_unmap(&c.m);
}

/* SIGALRM to any thread all the time, with and without SA_RESTART, and SIGUSR1 to those held. */
static void flood(int flags)
{
	struct itimerval often = {{0, 500}, {0, 500}}, never = {0};
	struct pinl_policy copy = own_recall(0, PINL_THEN_COPY);
	struct own o;

	own_open(&o, "uring", 0, NULL);
	handle(SIGUSR1, count_signal, flags);
	handle(SIGALRM, count_signal, flags);
	setitimer(ITIMER_REAL, &often, NULL);
	for (int i = 0; i < 30; i++) {
		struct pinl_lease *lease;
		struct own_memory m;

		recall_by(&o, 'm', truncate_explicitly);
		recall_by(&o, 'a', unmap_raw);
		own_map(&m, 'm');
		lease = own_lease(&o, m.va, SIZE, m.flags, &copy);
		must_ok(pinl_ftruncate(o.ctx, m.fd, 0));
		must(m.va[0] == 'm' && m.va[SIZE - 1] == 'm');
		pinl_unmap_range(lease);
		own_unmap(&m);
	}
	must(handler.ran > 30);
	setitimer(ITIMER_REAL, &never, NULL);
	own_close(&o);
}

ISOLATED(a_flood_of_signals)
{
	flood(0);
}

ISOLATED(a_flood_of_signals_that_restart)
{
	flood(SA_RESTART);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_call_is_a_cancellation_point),
		cmocka_unit_test(cancelled_while_held),
		cmocka_unit_test(cancelled_inside),
		cmocka_unit_test(a_handler_discards_watched_memory_anywhere),
		cmocka_unit_test(a_handler_inside_a_call_is_held_like_anybody),
		cmocka_unit_test(handlers_run_on_no_thread_of_ours),
		cmocka_unit_test(a_flood_of_signals),
		cmocka_unit_test(a_flood_of_signals_that_restart),
	};

	return cmocka_run_group_tests_name("own_signals", tests, NULL, NULL);
}
