/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Changes of leased memory, raw and by the explicit calls. What a call is to be told to is noted before
 * it; that it was done is published after it returned.
 */
#include "stress.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

struct part {
	struct slot *s;
	unsigned first, n; /* pages */
};

static char *at(const struct part *p)
{
	return p->s->va + p->first * PAGE;
}

static size_t len(const struct part *p)
{
	return p->n * PAGE;
}

/* ------------------------------------------------------------------------------------ the calls -- */

static int result(int ret)
{
	return ret ? -errno : 0;
}

static int do_unmap(const struct part *p, bool raw)
{
	return raw ? result(munmap(at(p), len(p))) : pinl_munmap(round_.ctx, at(p), len(p));
}

/* A fresh mapping is moved over it, or made over it. */
static int do_overmap(const struct part *p, bool raw, bool move)
{
	int prot = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS, err = 0;
	void *fresh, *got = at(p);

	if (raw && !move)
		return result(mmap(at(p), len(p), prot, flags | MAP_FIXED, -1, 0) == MAP_FAILED);
	fresh = mmap(NULL, len(p), prot, flags, -1, 0);
	if (fresh == MAP_FAILED)
		return -errno;
	if (raw)
		err = result(mremap(fresh, len(p), len(p), MREMAP_MAYMOVE | MREMAP_FIXED, at(p)) ==
			     MAP_FAILED);
	else
		err = pinl_mremap(round_.ctx, fresh, len(p), len(p), MREMAP_MAYMOVE | MREMAP_FIXED,
				  at(p), &got);
	if (err)
		munmap(fresh, len(p));
	return err;
}

/* Away to a place of our own, and gone. One page: of several mappings the kernel gives up the target
 * before it refuses, and then that may be anybody's. */
static int do_move(const struct part *p, bool raw)
{
	void *to = mmap(NULL, len(p), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *got = to;
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED, err;

	if (to == MAP_FAILED)
		return -errno;
	if (raw)
		err = result(mremap(at(p), len(p), len(p), flags, to) == MAP_FAILED);
	else
		err = pinl_mremap(round_.ctx, at(p), len(p), len(p), flags, to, &got);
	munmap(to, len(p));
	return err;
}

static int do_advise(const struct part *p, bool raw, int advice)
{
	return raw ? result(madvise(at(p), len(p), advice))
		   : pinl_madvise(round_.ctx, at(p), len(p), advice);
}

/* The file lock is held: the file has its full length, and has it again afterwards. */
static int do_truncate(const struct part *p, bool raw)
{
	off_t size = p->s->offset + p->first * PAGE, full = p->s->kind == GROUPED ? GROUP * SIZE : SIZE;
	int err = raw ? result(ftruncate(p->s->fd, size)) : pinl_ftruncate(round_.ctx, p->s->fd, size);

	if (!err && ftruncate(p->s->fd, full))
		broken("test", "a file can't grow: %s", strerror(errno));
	return err;
}

static int do_punch(const struct part *p, bool raw)
{
	int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	off_t from = p->s->offset + p->first * PAGE;

	return raw ? result(fallocate(p->s->fd, mode, from, len(p)))
		   : pinl_fallocate(round_.ctx, p->s->fd, mode, from, len(p));
}

static int do_op(enum pinl_op op, const struct part *p, bool raw, bool move)
{
	switch (op) {
	case PINL_OP_UNMAP:
		return do_unmap(p, raw);
	case PINL_OP_OVERMAP:
		return do_overmap(p, raw, move);
	case PINL_OP_REMAP:
		return do_move(p, raw);
	case PINL_OP_DONTNEED:
		return do_advise(p, raw, MADV_DONTNEED);
	case PINL_OP_FREE:
		return do_advise(p, raw, MADV_FREE);
	case PINL_OP_REMOVE:
		return do_advise(p, raw, MADV_REMOVE);
	case PINL_OP_GUARD:
		return do_advise(p, raw, MADV_GUARD_INSTALL);
	case PINL_OP_TRUNCATE:
		return do_truncate(p, raw);
	default:
		return do_punch(p, raw);
	}
}

/* --------------------------------------------------------------------- who has to be told of it -- */

/* What was leased when the call began. */
struct before {
	struct slot *s;
	uint64_t id;
	uintptr_t start, end;
	bool hit;     /* its pages go, and that has to be said */
	bool told;    /* before the call returns */
	bool taken;   /* and the device is off them by then */
	bool refuses; /* it names this operation, which can be refused */
};

static bool gives_up_addresses(enum pinl_op op)
{
	return op == PINL_OP_UNMAP || op == PINL_OP_REMAP;
}

static bool is_file_op(enum pinl_op op)
{
	return op == PINL_OP_TRUNCATE || op == PINL_OP_PUNCH;
}

/* Do pages of such a lease go? Written down here independently of the library. */
static bool takes_pages(enum pinl_op op, const struct pinl_lease_info *i)
{
	bool shared = i->memory == PINL_MEM_SHMEM || i->memory == PINL_MEM_FILE_SHARED;
	bool pinned = i->flags & PINL_PIN;

	switch (op) {
	case PINL_OP_TRUNCATE:
		return i->memory != PINL_MEM_ANON;
	case PINL_OP_PUNCH:
		return shared || (i->memory == PINL_MEM_FILE_PRIVATE && !pinned);
	case PINL_OP_REMOVE:
		return shared;
	case PINL_OP_DONTNEED:
		return !shared;
	case PINL_OP_FREE:
		return i->memory == PINL_MEM_ANON;
	default:
		return true;
	}
}

static uint64_t greater(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static void flight_begins(struct slot *s)
{
	pthread_mutex_lock(&s->flight_lock);
	s->in_flight++;
	atomic_fetch_add(&s->begun, 1);
	pthread_mutex_unlock(&s->flight_lock);
}

static void flight_ends(struct slot *s, uint64_t hit, uint64_t changed)
{
	pthread_mutex_lock(&s->flight_lock);
	s->will_be_hit = greater(s->will_be_hit, hit);
	s->will_be_changed = greater(s->will_be_changed, changed);
	if (!--s->in_flight) {
		atomic_store(&s->hit, s->will_be_hit);
		atomic_store(&s->changed, s->will_be_changed);
	}
	atomic_fetch_add(&s->ended, 1);
	pthread_mutex_unlock(&s->flight_lock);
}

static void note_before(struct before *b, const struct part *p, enum pinl_op op, bool raw)
{
	struct slot *s = p->s;
	const struct pinl_lease_info *i = &s->info;
	unsigned named = PINL_OPBIT(op) | (op == PINL_OP_REMOVE ? PINL_OPBIT(PINL_OP_PUNCH) : 0);

	*b = (struct before){.s = s, .start = (uintptr_t)at(p), .end = (uintptr_t)at(p) + len(p)};
	flight_begins(s);
	pthread_rwlock_rdlock(&s->lease_lock);
	if (s->lease) {
		bool pinned = i->flags & PINL_PIN,
		     seen = !raw || (i->coverage[op] & (PINL_CAN_BEFORE | PINL_CAN_HOLD));

		b->id = s->id;
		b->hit = takes_pages(op, i) && (!raw || pinned || i->coverage[op]);
		b->told = b->hit && seen && (pinned || s->policy.kind == PINL_RECALL);
		b->taken = b->told && !raw && s->policy.kind == PINL_RECALL;
		b->refuses = s->policy.kind == PINL_REFUSE && (s->policy.refuse & named) &&
			     (i->memory != PINL_MEM_ANON || !is_file_op(op)) &&
			     (!raw || (i->coverage[op] & PINL_CAN_REFUSE));
	}
	pthread_rwlock_unlock(&s->lease_lock);
}

static void check_refused(const struct before *b, enum pinl_op op, bool raw)
{
	pthread_rwlock_rdlock(&b->s->lease_lock);
	if (b->s->lease && b->s->id == b->id)
		broken("REFUSE", "lease %lu, %s: %s %s went through", (unsigned long)b->id,
		       kind_names[b->s->kind], raw ? "raw" : "explicit", pinl_op_name(op));
	pthread_rwlock_unlock(&b->s->lease_lock);
}

static void note_after(struct actor *a, const struct before *b, enum pinl_op op, bool raw, int err)
{
	struct record *r = b->id && b->id < RECORDS ? &round_.record[b->id] : NULL;

	if (!err && b->hit && r)
		atomic_fetch_or(raw ? &r->raw : &r->explicit, 1u << op);
	flight_ends(b->s, !err && b->hit ? b->id : 0, !err && b->told ? b->id : 0);
	if (!err && b->refuses)
		check_refused(b, op, raw);
	if (!err && b->taken)
		witness_released(a, b->s, b->id, b->start, b->end);
}

/* ------------------------------------------------------------------------------------ one change -- */

static enum pinl_op random_op(struct actor *a, const struct slot *s, bool raw)
{
	static const enum pinl_op va[] = {PINL_OP_UNMAP,    PINL_OP_REMAP,  PINL_OP_OVERMAP,
					  PINL_OP_OVERMAP,  PINL_OP_REMOVE, PINL_OP_DONTNEED,
					  PINL_OP_DONTNEED, PINL_OP_FREE,   PINL_OP_GUARD};
	enum pinl_op op;

	if (s->fd >= 0 && roll(a, 2))
		return roll(a, 2) ? PINL_OP_TRUNCATE : PINL_OP_PUNCH;
	do
		op = va[roll(a, sizeof va / sizeof *va)];
	while ((op == PINL_OP_GUARD && raw) || (op == PINL_OP_REMOVE && s->fd < 0) ||
	       (op == PINL_OP_FREE && s->fd >= 0));
	/* An on-demand device follows to whoever is at the addresses next, so they aren't given up. */
	if ((s->kind == ANON_DEMAND || s->kind == DISK_DEMAND) &&
	    (op == PINL_OP_UNMAP || op == PINL_OP_REMAP))
		op = PINL_OP_OVERMAP;
	return op;
}

static bool lock_memory(struct slot *s, bool write, bool wait)
{
	if (wait)
		return !(write ? pthread_rwlock_wrlock(&s->mem_lock)
			       : pthread_rwlock_rdlock(&s->mem_lock));
	return !(write ? pthread_rwlock_trywrlock(&s->mem_lock)
		       : pthread_rwlock_tryrdlock(&s->mem_lock));
}

static void apply(struct actor *a, const struct part *p, enum pinl_op op, bool raw, bool whole_group)
{
	struct before before[GROUP];
	unsigned n = 0, bits = ((1u << p->n) - 1) << p->first;
	/* An overmap those that the new mapping comes from, pinl_madvise() those of a second mapping. */
	bool gives = gives_up_addresses(op) || op == PINL_OP_OVERMAP || op == PINL_OP_REMOVE;
	int err;

	note_before(&before[n++], p, op, raw);
	for (int i = p->s->nr + 1; whole_group && i < GROUP; i++) {
		struct part rest = {&round_.slot[i], 0, PAGES};

		if (rest.s->made && rest.s->kind == GROUPED)
			note_before(&before[n++], &rest, op, raw);
	}
	now_doing(a, pinl_op_name(op), p->s);
	if (op == PINL_OP_GUARD)
		atomic_store(&p->s->guarded, true);
	atomic_fetch_add(&round_.giving_begun, gives);
	err = do_op(op, p, raw, roll(a, 2));
	atomic_fetch_add(&round_.giving_ended, gives);
	a->n[err == -EBUSY ? N_REFUSED : raw ? N_RAW : N_EXPLICIT]++;
	if (!err && gives_up_addresses(op))
		p->s->gone |= bits;
	while (n--)
		note_after(a, &before[n], op, raw, err);
}

/* A truncation of the common file takes from all behind it; they are not remade meanwhile. */
static bool lock_group(struct slot *s, bool wait, bool lock)
{
	for (int i = s->nr + 1; i < GROUP; i++) {
		if (!lock) {
			pthread_rwlock_unlock(&round_.slot[i].mem_lock);
		} else if (!lock_memory(&round_.slot[i], false, wait)) {
			while (--i > s->nr)
				pthread_rwlock_unlock(&round_.slot[i].mem_lock);
			return false;
		}
	}
	return true;
}

static void locked_change(struct actor *a, struct slot *s, enum pinl_op op, bool raw, bool wait)
{
	bool file = is_file_op(op), group = s->kind == GROUPED && op == PINL_OP_TRUNCATE;
	struct part p = {.s = s, .first = roll(a, PAGES)};

	p.n = op == PINL_OP_TRUNCATE ? PAGES - p.first : 1 + roll(a, PAGES - p.first);
	if (op == PINL_OP_REMAP)
		p.n = 1;
	if (group && !lock_group(s, wait, true))
		return;
	if (!file) {
		apply(a, &p, op, raw, false);
	} else if (wait ? !pthread_mutex_lock(s->file_lock) : !pthread_mutex_trylock(s->file_lock)) {
		apply(a, &p, op, raw, group);
		pthread_mutex_unlock(s->file_lock);
	}
	if (group)
		lock_group(s, wait, false);
}

/* wait: false in the event callback, which others may be waiting for. */
void change(struct actor *a, struct slot *s, bool wait)
{
	bool raw = roll(a, 2), write;
	enum pinl_op op;

	now_doing(a, "lock memory to change it", s);
	if (!lock_memory(s, false, wait))
		return;
	if (!s->made || s->gone) {
		pthread_rwlock_unlock(&s->mem_lock);
		return;
	}
	op = random_op(a, s, raw);
	write = gives_up_addresses(op);
	if (write) {
		pthread_rwlock_unlock(&s->mem_lock);
		if (!lock_memory(s, true, wait))
			return;
	}
	/* In between it may have been remade, as something else. */
	if (s->made && !s->gone && !(write && (s->kind == ANON_DEMAND || s->kind == DISK_DEMAND)))
		locked_change(a, s, op, raw, wait);
	pthread_rwlock_unlock(&s->mem_lock);
}
