/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * I8: the holder changes its own leased memory: in any thread, in an event callback, while a notice of
 * the same lease is pending, in the callback of that very notice. It goes on at the deadline at the
 * latest, and the lease is recalled like by anybody's change.
 */
#include "own_rig.h"

#include <linux/falloc.h>

/* -------------------------------------------------------------------- every change, anywhere -- */

enum what { TRUNCATE, PUNCH, UNMAP, OVERMAP, REMAP, DONTNEED, REMOVE, FORK, X_TRUNCATE, X_UNMAP, WHATS };
enum where { MAIN, THREAD, CALLBACK, PENDING, OWN_CALLBACK, WHERES };

/* What the kinds of memory lose something by. */
static const char *const what_for[WHATS] = {
	[TRUNCATE] = "mf", [PUNCH] = "mf", [UNMAP] = "amf", [OVERMAP] = "amf",	 [REMAP] = "amf",
	[DONTNEED] = "a",  [REMOVE] = "m", [FORK] = "amf",  [X_TRUNCATE] = "mf", [X_UNMAP] = "amf",
};

struct one {
	struct own *o;
	struct own_memory m;
	struct pinl_lease *lease, *other;
	enum what what;
	sem_t done; /* the callback is through */
};

/* The child has no lease, and keeps nobody waiting. */
static void fork_child(struct one *x)
{
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(pinl_lease_check(x->lease) != -ESTALE || pinl_quiesced(x->lease) != -ESTALE);
	must(waitpid(pid, &status, 0) == pid && !status);
}

static void change(struct one *x)
{
	char *va = x->m.va;
	void *to;

	switch (x->what) {
	case TRUNCATE:
		must_ok(ftruncate(x->m.fd, 0));
		break;
	case PUNCH:
		must_ok(fallocate(x->m.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SIZE));
		break;
	case UNMAP:
		must_ok(munmap(va, SIZE));
		break;
	case OVERMAP:
		must(mmap(va, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == va);
		break;
	case REMAP:
		to = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		/* The range may be gone already: then nothing is left to move. */
		must(mremap(va, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to || errno == EFAULT);
		munmap(to, SIZE);
		break;
	case DONTNEED:
		must_ok(madvise(va, SIZE, MADV_DONTNEED));
		break;
	case REMOVE: /* private memory by now, if another change was first */
		must(!madvise(va, SIZE, MADV_REMOVE) || errno == EINVAL);
		break;
	case X_TRUNCATE:
		must_ok(pinl_ftruncate(x->o->ctx, x->m.fd, 0));
		break;
	case X_UNMAP:
		must_ok(pinl_munmap(x->o->ctx, va, SIZE));
		break;
	default:
		fork_child(x);
	}
}

static void change_it(void *arg)
{
	change(arg);
}

/*
 * Some other thread's change of the same range, held: of the mapping, or of the file. The mapping may be
 * gone when it goes on.
 */
static void disturb(void *arg)
{
	struct one *x = arg;

	if (x->m.kind == 'a')
		must(!madvise(x->m.va, SIZE, MADV_DONTNEED) || errno == ENOMEM);
	else
		must_ok(pinl_ftruncate(x->o->ctx, x->m.fd, 0));
}

static void disturb_other(void *arg)
{
	struct one *other = arg;

	must_ok(madvise(other->m.va, SIZE, MADV_DONTNEED));
}

/* In a callback: about the other lease, or about this one, once. */
static void on_notice(struct own *o, const struct pinl_event *ev)
{
	struct one *x = o->arg;

	if (!x)
		return;
	o->arg = NULL;
	change(x);
	if (x->other)
		pinl_quiesced(x->other);
	sem_post(&x->done);
}

static void in_callback(struct one *x, int its_own)
{
	struct one other = {.o = x->o};
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);
	struct own_thread t;

	if (!its_own) {
		own_map(&other.m, 'a');
		x->other = own_lease_again(x->o, other.m.va, SIZE, PINNED, &policy);
	}
	x->o->arg = x;
	own_start(&t, its_own ? disturb : disturb_other, its_own ? x : &other);
	own_wait(&x->done);
	own_join(&t);
	if (its_own)
		return;
	pinl_unmap_range(x->other);
	own_unmap(&other.m);
}

static void while_pending(struct one *x)
{
	struct own_thread t;

	own_start(&t, disturb, x);
	own_wait(&x->o->noticed);
	change(x);
	own_join(&t);
}

static void do_one(struct own *o, char kind, enum what what, enum where where, enum pinl_then then)
{
	struct pinl_policy policy = own_recall(10, then);
	struct one x = {.o = o, .what = what};
	struct own_thread t;

	sem_init(&x.done, 0, 0);
	while (!sem_trywait(&o->noticed))
		;
	o->arg = NULL;
	own_map(&x.m, kind);
	x.lease = own_lease_again(o, x.m.va, SIZE, x.m.flags, &policy);
	if (where == MAIN)
		change(&x);
	else if (where == PENDING)
		while_pending(&x);
	else if (where != THREAD)
		in_callback(&x, where == OWN_CALLBACK);
	else {
		own_start(&t, change_it, &x);
		own_join(&t);
	}
	if (what != FORK || where == PENDING || where == OWN_CALLBACK)
		own_stale(x.lease);
	else
		must(settled_check(x.lease) == 0);
	pinl_unmap_range(x.lease);
	if (what == UNMAP || what == REMAP || what == X_UNMAP)
		own_gone(&x.m);
	own_unmap(&x.m);
	sem_destroy(&x.done);
}

static void everything(enum where where)
{
	struct own o;

	own_open(&o, "soft", 0, on_notice);
	for (enum what what = 0; what < WHATS; what++)
		for (const char *kind = what_for[what]; *kind; kind++)
			for (enum pinl_then then = PINL_THEN_FAIL; then <= PINL_THEN_COPY; then++)
				if (*kind != 'f' || then != PINL_THEN_COPY) /* needs a pin */
					do_one(&o, *kind, what, where, then);
	own_close(&o);
}

ISOLATED(the_main_thread_changes_leased_memory)
{
	everything(MAIN);
}

ISOLATED(another_thread_changes_leased_memory)
{
	everything(THREAD);
}

ISOLATED(a_callback_changes_another_lease)
{
	everything(CALLBACK);
}

ISOLATED(a_change_while_a_notice_is_pending)
{
	everything(PENDING);
}

ISOLATED(the_callback_of_the_notice_changes_the_same_lease)
{
	everything(OWN_CALLBACK);
}

/* -------------------------------------------------------------------- calls of ours in a callback -- */

struct calls {
	struct pinl_lease *lease;
	struct own_memory spare;
	void (*end)(struct pinl_lease *lease);
	sem_t done;
};

static void quiesce(struct pinl_lease *lease)
{
	must_ok(pinl_quiesced(lease));
}

/* Everything that a callback may call; the lease of the notice is ended by `end`. */
static void call_everything(struct own *o, const struct pinl_event *ev)
{
	struct pinl_policy policy = own_recall(0, PINL_THEN_COPY);
	struct pinl_counters counters = {.size = sizeof counters};
	struct calls *c = o->arg;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	char text[512];

	if (!c)
		return;
	o->arg = NULL;
	must_ok(pinl_counters(o->ctx, &counters));
	must(pinl_sources(o->ctx, text, sizeof text) > 0);
	must(pinl_lease_describe(c->lease, text, sizeof text) > 0);
	must_ok(pinl_lease_read(c->lease, 0, sizeof text, text));
	lease = own_lease(o, c->spare.va, SIZE, PINNED, &policy);
	must_ok(pinl_madvise(o->ctx, c->spare.va, SIZE, MADV_DONTNEED));
	own_stale(lease);
	pinl_unmap_range(lease);
	must_ok(pinl_device_open(o->ctx, "soft", NULL, &dev));
	pinl_device_close(dev);
	c->end(c->lease);
	sem_post(&c->done);
}

static void callbacks_call(void (*end)(struct pinl_lease *lease))
{
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);
	struct calls c = {.end = end};
	struct one x = {.what = DONTNEED};
	struct own_thread t;
	struct own o;

	sem_init(&c.done, 0, 0);
	own_open(&o, "soft", 0, call_everything);
	own_map(&c.spare, 'a');
	own_map(&x.m, 'a');
	c.lease = own_lease(&o, x.m.va, SIZE, PINNED, &policy);
	o.arg = &c;
	own_start(&t, change_it, &x);
	own_wait(&c.done);
	own_join(&t);
	if (end == quiesce)
		pinl_unmap_range(c.lease);
	own_unmap(&x.m);
	own_unmap(&c.spare);
	own_close(&o);
	sem_destroy(&c.done);
}

ISOLATED(a_callback_may_call_all_and_quiesce)
{
	callbacks_call(quiesce);
}

ISOLATED(a_callback_may_call_all_and_unmap)
{
	callbacks_call(pinl_unmap_range);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_main_thread_changes_leased_memory),
		cmocka_unit_test(another_thread_changes_leased_memory),
		cmocka_unit_test(a_callback_changes_another_lease),
		cmocka_unit_test(a_change_while_a_notice_is_pending),
		cmocka_unit_test(the_callback_of_the_notice_changes_the_same_lease),
		cmocka_unit_test(a_callback_may_call_all_and_quiesce),
		cmocka_unit_test(a_callback_may_call_all_and_unmap),
	};

	return cmocka_run_group_tests_name("own_changes", tests, NULL, NULL);
}
