/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * I8 with changes inside of changes: several of one range at once, one that comes while a lease is being
 * made, one made in the callback about another, and two holders who wait for each other.
 */
#include "own_rig.h"

#include <sys/syscall.h>

/* ------------------------------------------------------------------------- several of one range -- */

struct cut {
	struct own_memory *m;
	struct own *o;
	size_t size;
};

static void truncate_raw(void *arg)
{
	struct cut *c = arg;

	must_ok(ftruncate(c->m->fd, c->size));
}

static void truncate_explicitly(void *arg)
{
	struct cut *c = arg;

	must_ok(pinl_ftruncate(c->o->ctx, c->m->fd, c->size));
}

static void unmap_raw(void *arg)
{
	must_ok(munmap(arg, SIZE));
}

static void discard(void *arg)
{
	must_ok(madvise(arg, SIZE, MADV_DONTNEED));
}

/* Another process, which truncates and ends. */
static pid_t truncating_child(struct own_memory *m, size_t size)
{
	pid_t pid = fork();

	if (!pid)
		_exit(ftruncate(m->fd, size) != 0);
	must(pid > 0);
	return pid;
}

/* All are held until the lease is quiesced, all go on then, and nothing of them stays behind. */
ISOLATED(truncates_at_once_of_the_same_pages)
{
	enum { N = 3 };
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);
	struct own_thread t[N];
	struct cut c[N];
	struct own_memory m;
	struct pinl_lease *lease;
	struct own o;
	pid_t child;
	int status;

	own_open(&o, "soft", 0, NULL);
	if (!own_files(&o))
		exit(77);
	own_map(&m, 'f');
	lease = own_lease(&o, m.va, SIZE, m.flags, &policy);
	for (int i = 0; i < N; i++) {
		c[i] = (struct cut){&m, &o, i ? 3 * PAGE : 5 * PAGE};
		own_start(&t[i], truncate_raw, &c[i]);
		if (!i)
			own_wait(&o.noticed);
		own_wait_blocked(t[i].tid, SYS_ftruncate);
	}
	child = truncating_child(&m, 7 * PAGE);
	own_wait_blocked(child, SYS_ftruncate);
	must(own_size(m.fd) == (off_t)SIZE);
	must_ok(pinl_quiesced(lease));
	for (int i = 0; i < N; i++)
		own_join(&t[i]);
	must(waitpid(child, &status, 0) == child && !status);
	pinl_unmap_range(lease);
	must_ok(ftruncate(m.fd, SIZE));
	pinl_unmap_range(own_lease_again(&o, m.va, SIZE, m.flags, &policy));
	own_unmap(&m);
	own_close(&o);
}

/* A munmap comes while a truncate of the same file is held, and the other way round. */
static void truncate_and_unmap(int unmap_first)
{
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);
	struct own_thread cutter, unmapper;
	struct own_memory m;
	struct pinl_lease *lease;
	struct own o;
	struct cut c = {&m, &o, 0};

	own_open(&o, "soft", 0, NULL);
	if (!own_files(&o))
		exit(77);
	own_map(&m, 'f');
	lease = own_lease(&o, m.va, SIZE, m.flags, &policy);
	for (int i = 0; i < 2; i++) {
		if (i == unmap_first) {
			own_start(&cutter, truncate_raw, &c);
			own_wait_blocked(cutter.tid, SYS_ftruncate);
		} else {
			own_start(&unmapper, unmap_raw, m.va);
			own_wait_blocked(unmapper.tid, SYS_munmap);
		}
	}
	own_wait(&o.noticed);
	must(!cutter.done && !unmapper.done);
	must_ok(pinl_quiesced(lease));
	own_join(&cutter);
	own_join(&unmapper);
	pinl_unmap_range(lease);
	own_gone(&m);
	own_unmap(&m);
	own_close(&o);
}

ISOLATED(a_munmap_while_a_truncate_is_held)
{
	truncate_and_unmap(0);
}

ISOLATED(a_truncate_while_a_munmap_is_held)
{
	truncate_and_unmap(1);
}

/* -------------------------------------------------------------------- while a lease is being made -- */

/* A device that has a change made while it maps, and goes on when that is held. */
static struct {
	void (*fn)(void *arg);
	void *arg;
	long nr; /* the system call that `fn` is held in */
	struct own_thread t;
} changing;

static void change_now(const char *call)
{
	if (strcmp(call, "map"))
		return;
	own_start(&changing.t, changing.fn, changing.arg);
	own_wait_blocked(changing.t.tid, changing.nr);
}

static void change_while_mapping(char kind, void (*fn)(void *arg), long nr)
{
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);
	struct pinl_lease *lease;
	struct own_memory m;
	struct own o;
	struct cut c = {&m, &o, 0};

	own_open(&o, "hooked", 0, NULL);
	if (kind == 'f' && !own_files(&o))
		exit(77);
	own_map(&m, kind);
	own_hook = change_now;
	changing.fn = fn;
	changing.arg = nr == SYS_futex || nr == SYS_ftruncate ? (void *)&c : m.va;
	changing.nr = nr;
	lease = own_lease(&o, m.va, SIZE, m.flags, &policy);
	own_wait(&o.noticed);
	must(settled_check(lease) == -ESTALE && !changing.t.done);
	must_ok(pinl_quiesced(lease));
	own_join(&changing.t);
	pinl_unmap_range(lease);
	if (nr == SYS_munmap)
		own_gone(&m);
	own_unmap(&m);
	own_close(&o);
}

ISOLATED(a_change_while_a_lease_is_made_recalls_it)
{
	change_while_mapping('a', discard, SYS_madvise);
	change_while_mapping('a', unmap_raw, SYS_munmap);
	change_while_mapping('m', truncate_explicitly, SYS_futex);
	change_while_mapping('f', truncate_raw, SYS_ftruncate);
}

ISOLATED(no_lease_is_made_while_a_change_is_held)
{
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);
	struct pinl_lease *lease, *second;
	struct pinl_device *dev;
	struct own_memory m;
	struct own_thread t;
	struct own o;

	own_open(&o, "soft", 0, NULL);
	must_ok(pinl_device_open(o.ctx, "soft", NULL, &dev));
	own_map(&m, 'a');
	lease = own_lease(&o, m.va, SIZE, m.flags, &policy);
	own_start(&t, discard, m.va);
	own_wait(&o.noticed);
	must(pinl_map_range(dev, (uintptr_t)m.va, (uintptr_t)m.va + SIZE, m.flags, &policy, NULL,
			    &second) == -EBUSY);
	must_ok(pinl_quiesced(lease));
	own_join(&t);
	pinl_unmap_range(lease);
	pinl_unmap_range(own_lease_again(&o, m.va, SIZE, m.flags, &policy));
	own_unmap(&m);
	own_close(&o);
}

/* Leases are made while another thread discards all the time: each is recalled, none is left. */
static atomic_int rounds, since_lease, stop;

/* With room to make a lease in: a change is over when a look says so. A slow machine gets more of it. */
static void discard_on(void *arg)
{
	while (!stop) {
		memset(arg, 1, SIZE);
		must_ok(madvise(arg, SIZE, MADV_DONTNEED));
		rounds++;
		usleep(3000 * (1 + since_lease++ / 8));
	}
}

ISOLATED(no_change_is_missed)
{
	struct pinl_policy policy = own_recall(0, PINL_THEN_FAIL);
	struct own_memory m;
	struct own_thread t;
	struct own o;

	own_open(&o, "soft", 0, NULL);
	own_map(&m, 'a');
	own_start(&t, discard_on, m.va);
	for (int i = 0; i < 100; i++) {
		struct pinl_lease *lease = own_lease_again(&o, m.va, SIZE, m.flags, &policy);
		int seen = rounds;

		since_lease = 0;
		while (rounds < seen + 2) /* one was begun after the lease was made */
			sched_yield();
		must(settled_check(lease) == -ESTALE);
		pinl_unmap_range(lease);
	}
	stop = 1;
	own_join(&t);
	own_unmap(&m);
	own_close(&o);
}

/* -------------------------------------------------------------------------------- in callbacks -- */

struct two {
	struct pinl_lease *a, *b;
	struct own_memory ma, mb;
	_Atomic pid_t callback;
	sem_t done;
};

static void discard_a_for_b(struct own *o, const struct pinl_event *ev)
{
	struct two *two = o->arg;

	if (ev->start != (uintptr_t)two->mb.va)
		return;
	two->callback = gettid();
	discard(two->ma.va);
	must_ok(pinl_quiesced(two->b));
	sem_post(&two->done);
}

/* The callback about B waits for A, as somebody else does already; A's holder ends all of it. */
ISOLATED(a_callback_waits_for_the_lease_another_is_held_for)
{
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);
	struct own_thread a, b;
	struct two two = {0};
	struct own o;

	sem_init(&two.done, 0, 0);
	own_open(&o, "soft", 0, discard_a_for_b);
	own_map(&two.ma, 'a');
	own_map(&two.mb, 'a');
	two.a = own_lease(&o, two.ma.va, SIZE, PINNED, &policy);
	two.b = own_lease(&o, two.mb.va, SIZE, PINNED, &policy);
	o.arg = &two;
	own_start(&a, discard, two.ma.va);
	own_wait(&o.noticed);
	own_start(&b, discard, two.mb.va);
	own_wait(&o.noticed);
	while (!two.callback)
		sched_yield();
	own_wait_blocked(two.callback, SYS_madvise);
	must_ok(pinl_quiesced(two.a));
	own_wait(&two.done);
	own_join(&a);
	own_join(&b);
	pinl_unmap_range(two.a);
	pinl_unmap_range(two.b);
	own_unmap(&two.ma);
	own_unmap(&two.mb);
	own_close(&o);
}

/* ------------------------------------------------------------------- who wait for each other -- */

/* `o` is of who is asked about this file, `other` the file that its callback truncates. */
struct side {
	struct own o;
	struct own_memory m;
	struct pinl_lease *lease;
	struct side *other;
	int explicitly;
	sem_t done;
};

static void truncate_other(struct own *o, const struct pinl_event *ev)
{
	struct side *s = o->arg;
	struct cut c = {&s->other->m, &s->other->o, 0};

	(s->explicitly ? truncate_explicitly : truncate_raw)(&c);
	sem_post(&s->done);
}

/* Each callback truncates the file that the other leases: both go on at the deadlines. */
static void cycle(char kind, int explicitly)
{
	struct pinl_policy policy = own_recall(100, PINL_THEN_FAIL);
	struct side s[2] = {0};
	struct own_thread t[2];
	struct cut c[2];

	for (int i = 0; i < 2; i++) {
		own_open(&s[i].o, "soft", 0, truncate_other);
		if (kind == 'f' && !own_files(&s[i].o))
			exit(77);
		own_map(&s[i].m, kind);
		s[i].other = &s[!i];
		s[i].explicitly = explicitly;
		sem_init(&s[i].done, 0, 0);
		s[i].lease = own_lease(&s[i].o, s[i].m.va, SIZE, s[i].m.flags, &policy);
	}
	for (int i = 0; i < 2; i++) {
		c[i] = (struct cut){&s[i].m, &s[i].o, 0};
		s[i].o.arg = &s[i];
	}
	for (int i = 0; i < 2; i++)
		own_start(&t[i], explicitly ? truncate_explicitly : truncate_raw, &c[i]);
	for (int i = 0; i < 2; i++) {
		own_join(&t[i]);
		own_wait(&s[i].done);
		own_stale(s[i].lease);
	}
	for (int i = 0; i < 2; i++) {
		pinl_unmap_range(s[i].lease);
		own_unmap(&s[i].m);
	}
	for (int i = 0; i < 2; i++)
		own_close(&s[i].o);
}

ISOLATED(two_callbacks_truncate_each_others_file)
{
	cycle('m', 1);
	cycle('f', 0);
}

/* ------------------------------------------------------------- into memory that is being switched -- */

struct into {
	struct pinl_device *soft; /* or NULL */
	struct pinl_lease *from;
	uint64_t daddr;
	char *to;
};

static void read_into(void *arg)
{
	struct into *i = arg;

	while (!stop) {
		must_ok(pinl_lease_read(i->from, 0, SIZE, i->to));
		if (i->soft)
			must_ok(pinl_soft_dma(i->soft, i->daddr, i->to, SIZE, 0));
	}
}

static void copy_under_it(struct own *o, struct into *into)
{
	struct pinl_policy policy = own_recall(0, PINL_THEN_COPY);
	struct pinl_lease *lease;
	struct own_memory m;
	struct own_thread t;

	own_map(&m, 'm');
	lease = own_lease(o, m.va, SIZE, m.flags, &policy);
	into->to = m.va;
	stop = 0;
	own_start(&t, read_into, into);
	must_ok(pinl_ftruncate(o->ctx, m.fd, 0));
	stop = 1;
	own_join(&t);
	pinl_unmap_range(lease);
	own_unmap(&m);
}

/* A lease is read into another lease's range while that is switched to a copy: the copy needs the device
 * that is being read. */
ISOLATED(a_lease_is_read_into_a_range_being_copied)
{
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);
	const char *devices[] = {"soft", "uring"};

	for (int d = 0; d < 2; d++) {
		struct pinl_addr addrs[PAGES];
		struct into into = {0};
		struct own_memory source;
		struct own o;

		own_open(&o, devices[d], 0, NULL);
		own_map(&source, 'a');
		must_ok(pinl_map_range(o.dev, (uintptr_t)source.va, (uintptr_t)source.va + SIZE, PINNED,
				       &policy, addrs, &into.from));
		into.soft = d ? NULL : o.dev;
		into.daddr = addrs[0].addr;
		for (int i = 0; i < 100; i++)
			copy_under_it(&o, &into);
		pinl_unmap_range(into.from);
		own_unmap(&source);
		own_close(&o);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(truncates_at_once_of_the_same_pages),
		cmocka_unit_test(a_munmap_while_a_truncate_is_held),
		cmocka_unit_test(a_truncate_while_a_munmap_is_held),
		cmocka_unit_test(a_change_while_a_lease_is_made_recalls_it),
		cmocka_unit_test(no_lease_is_made_while_a_change_is_held),
		cmocka_unit_test(no_change_is_missed),
		cmocka_unit_test(a_callback_waits_for_the_lease_another_is_held_for),
		cmocka_unit_test(two_callbacks_truncate_each_others_file),
		cmocka_unit_test(a_lease_is_read_into_a_range_being_copied),
	};

	return cmocka_run_group_tests_name("own_nested", tests, NULL, NULL);
}
