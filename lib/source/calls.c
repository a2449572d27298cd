/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Explicit calls: the caller asks first and then makes the system call itself, so every policy is kept
 * exactly, on every kind of memory. Invariant: between the answer and pinl_change_done() the range is
 * gated against new leases; the calling thread is exempt meanwhile, so that no other source asks about
 * the same change again; and from the question to pinl_change_done() it can't be cancelled.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <pthread.h>
#include <semaphore.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "core/extent.h"
#include "os/compat.h"
#include "os/vma.h"
#include "source/files_op.h"
#include "source/later.h"

#define PAGE	    4096ul
#define ROUND_UP(x) (((x) + PAGE - 1) & ~(PAGE - 1))

struct asking {
	struct pinl_change change;
	sem_t answered;
	int err;
};

static void on_answer(struct pinl_change *ch, int err)
{
	struct asking *a = ch->arg;

	a->err = err;
	sem_post(&a->answered);
}

/* 0: go on, and pinl_change_done() afterwards. -errno: refused, nothing to finish. */
static int ask(struct pinl_ctx *ctx, struct asking *a)
{
	sem_init(&a->answered, 0, 0);
	pinl_change_submit(ctx, &a->change);
	if (sem_trywait(&a->answered)) {
		struct pl_waiting w;

		pl_call_wait_begin(&w);
		while (sem_wait(&a->answered))
			;
		pl_call_wait_end(&w);
	}
	sem_destroy(&a->answered);
	if (a->err)
		return pinl_set_error(
			a->err, "a lease on the range refuses %s; unmap it first, or lease with RECALL",
			pinl_op_name(a->change.op));
	return 0;
}

/* Ask, and go on with the thread exempt until finish(). */
static int begin(struct pinl_ctx *ctx, struct asking *a, int *slot)
{
	int err = ask(ctx, a);

	if (!err)
		*slot = pl_exempt_enter_call(ctx);
	return err;
}

static int finish(struct pinl_ctx *ctx, const struct asking *a, int slot, int err)
{
	pl_exempt_leave(ctx, slot);
	pinl_change_done(ctx, a->change.id);
	return err ? pinl_set_error(err, "%s: %s", pinl_op_name(a->change.op), strerror(-err)) : 0;
}

static void prepare(struct asking *a, enum pinl_op op)
{
	memset(a, 0, sizeof *a);
	a->change.op = op;
	a->change.can =
		PINL_CAN_TELL | PINL_CAN_BEFORE | PINL_CAN_HOLD | PINL_CAN_REFUSE | PINL_WILL_SAY_DONE;
	a->change.actor_pid = getpid();
	a->change.actor_tid = gettid();
	a->change.source = "calls";
	a->change.answer = on_answer;
	a->change.arg = a;
}

static void on_file(struct asking *a, uint64_t dev, uint64_t ino, uint64_t start, uint64_t end)
{
	a->change.on_file = 1;
	a->change.file_dev = dev;
	a->change.file_ino = ino;
	a->change.file_start = start;
	a->change.file_end = end;
}

static int check_range(void *addr, size_t len)
{
	uintptr_t start = (uintptr_t)addr;

	if (start & (PAGE - 1) || start + len < start || ROUND_UP(start + len) < start + len)
		return pinl_set_error(-EINVAL, "[%p, +%zu) is not page aligned or overflows", addr, len);
	return 0;
}

static int va_range(struct asking *a, enum pinl_op op, void *addr, size_t len)
{
	uintptr_t start = (uintptr_t)addr;

	prepare(a, op);
	if (check_range(addr, len))
		return -EINVAL;
	a->change.start = start;
	a->change.end = ROUND_UP(start + len);
	return 0;
}

static int unmap(struct pinl_ctx *ctx, void *addr, size_t len)
{
	struct asking a;
	int err = va_range(&a, PINL_OP_UNMAP, addr, len), slot;
	bool leave;

	if (!err && !len)
		err = pinl_set_error(-EINVAL, "munmap of nothing");
	if (err)
		return err;
	leave = pl_extent_can_leave(ctx, a.change.start, a.change.end);
	err = begin(ctx, &a, &slot);
	if (err)
		return err;
	if (leave)
		pl_extent_leave(ctx, a.change.start, a.change.end);
	err = munmap(addr, len) ? -errno : 0;
	if (leave)
		pl_extent_left(ctx, a.change.start, a.change.end, !err);
	return finish(ctx, &a, slot, err);
}

/* To devices the same as an unmapping; what it is, only the caller knows. */
static int invalidate(struct pinl_ctx *ctx, void *addr, size_t len, int (*change)(void *arg), void *arg)
{
	struct asking a;
	int err = va_range(&a, PINL_OP_UNMAP, addr, len), slot;

	if (!err && !len)
		err = pinl_set_error(-EINVAL, "invalidation of nothing");
	if (!err)
		err = begin(ctx, &a, &slot);
	if (err)
		return err;
	if (change)
		err = change(arg);
	pl_exempt_leave(ctx, slot);
	pinl_change_done(ctx, a.change.id);
	return err;
}

/*
 * The target of MREMAP_FIXED is overmapped: that is a change of its own. The one that is going to be
 * refused is asked first, so that no lease is recalled by the other for a move that doesn't come. (A
 * lease made while the first waits can still refuse.)
 */
static int ask_both(struct pinl_ctx *ctx, struct asking *source, struct asking *target)
{
	bool swap = pl_would_refuse(ctx, &source->change);
	struct asking *first = swap ? source : target, *second = swap ? target : source;
	int err = ask(ctx, first);

	if (err)
		return err;
	err = ask(ctx, second);
	if (err)
		pinl_change_done(ctx, first->change.id);
	return err;
}

/* Where it is, or not at all. */
static int grow(void *addr, size_t old_len, size_t new_len, int flags, void *new_addr, void **out)
{
	void *got = mremap(addr, old_len, new_len, flags, new_addr);

	if (got == MAP_FAILED)
		return pinl_set_error(-errno, "mremap: %s", strerror(errno));
	*out = got;
	return 0;
}

static int remap(struct pinl_ctx *ctx, void *addr, size_t old_len, size_t new_len, int flags,
		 void *new_addr, void **out)
{
	struct asking source, target;
	bool fixed = flags & MREMAP_FIXED;
	bool shrink = !(flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) && new_len <= old_len;
	size_t keep = shrink ? ROUND_UP(new_len) : 0;
	void *got;
	int err, slot;

	if (!shrink && !(flags & MREMAP_MAYMOVE))
		return grow(addr, old_len, new_len, flags, new_addr, out);
	err = check_range(addr, old_len);
	if (!err)
		err = va_range(&source, shrink ? PINL_OP_UNMAP : PINL_OP_REMAP, (char *)addr + keep,
			       old_len > keep ? old_len - keep : 0);
	if (!err && fixed)
		err = va_range(&target, PINL_OP_OVERMAP, new_addr, new_len);
	if (!err)
		err = fixed ? ask_both(ctx, &source, &target) : ask(ctx, &source);
	if (err)
		return err;
	slot = pl_exempt_enter_call(ctx);
	got = mremap(addr, old_len, new_len, flags, new_addr);
	err = got == MAP_FAILED ? -errno : 0;
	if (fixed)
		pinl_change_done(ctx, target.change.id);
	err = finish(ctx, &source, slot, err);
	if (!err)
		*out = got;
	return err;
}

static int madvise_op(int advice, enum pinl_op *op)
{
	switch (advice) {
	case MADV_DONTNEED:
	case MADV_DONTNEED_LOCKED:
		*op = PINL_OP_DONTNEED;
		return 1;
	case MADV_FREE:
		*op = PINL_OP_FREE;
		return 1;
	case MADV_REMOVE:
		*op = PINL_OP_REMOVE;
		return 1;
	case MADV_GUARD_INSTALL:
		*op = PINL_OP_GUARD;
		return 1;
	}
	return 0;
}

/*
 * A second mapping of the same pages: a forced lease has private memory at the addresses by the time the
 * hole is made. Mapped by a descriptor if there is one; a copy of a watched mapping would make events,
 * for which its maker waits and others' holds are cut short. But only the mapping knows whether it may
 * be written to when it isn't just now.
 */
struct way {
	char *map, *alias; /* all of it; where the range is */
	size_t len;	   /* of map */
};

static char *map_file(struct pinl_ctx *ctx, const struct pinl_memory *m, uint64_t from, size_t len)
{
	int fd = m->fd >= 0 && m->writable ? pl_aside_open(ctx->aside, m->fd, O_RDWR) : -1;
	char *map = MAP_FAILED;

	if (fd >= 0) {
		map = pl_aside_map(ctx->aside, fd, PROT_READ | PROT_WRITE, from, len);
		pl_aside_close(ctx->aside, fd);
	}
	return map;
}

static int way_open(struct way *w, struct pinl_ctx *ctx, const struct pinl_memory *m, size_t len)
{
	uint64_t page = PAGE, before;
	struct stat st;

	if (m->kind == PINL_MEM_HUGETLB && m->fd >= 0 && !fstat(m->fd, &st))
		page = st.st_blksize; /* which is mapped as a whole */
	before = m->offset % page;
	w->len = (before + len + page - 1) / page * page;
	w->map = map_file(ctx, m, m->offset - before, w->len);
	w->alias = w->map + before;
	if (w->map != MAP_FAILED)
		return 0;
	w->len = len;
	w->map = w->alias = mremap((void *)m->start, 0, len, MREMAP_MAYMOVE);
	if (w->map == MAP_FAILED)
		return pinl_set_error(-errno, "can't map the range at [%#lx, +%zu) once more: %s",
				      m->start, len, strerror(errno));
	return 0;
}

/* Asked about as a change of the file: a lease may have the same pages by another mapping. */
static int remove_shared(struct pinl_ctx *ctx, const struct pinl_memory *m)
{
	size_t len = m->end - m->start;
	struct asking a;
	struct way way;
	int err = way_open(&way, ctx, m, len), slot;

	if (err)
		return err;
	prepare(&a, PINL_OP_REMOVE);
	on_file(&a, m->dev, m->ino, m->offset, m->offset + len);
	err = begin(ctx, &a, &slot);
	if (!err)
		err = finish(ctx, &a, slot, madvise(way.alias, len, MADV_REMOVE) ? -errno : 0);
	munmap(way.map, way.len);
	return err;
}

static int none_known(void *arg, uint64_t dev, uint64_t ino)
{
	return -1;
}

/* Of one file, or of something that isn't shared; then the kernel says why not. */
static int remove_run(struct pinl_ctx *ctx, uintptr_t start, uintptr_t end)
{
	struct pl_vma_how how = {.maps = ctx->maps, .aside = ctx->aside, .known = none_known};
	struct pinl_memory m;
	int real, err = pl_vma_query(&how, start, end, &m, &real);

	if (err)
		return err;
	if (m.shared && m.kind != PINL_MEM_DEVICE && m.kind != PINL_MEM_SECRET)
		err = remove_shared(ctx, &m);
	else if (madvise((void *)start, end - start, MADV_REMOVE))
		err = pinl_set_error(-errno, "MADV_REMOVE works on shared file mappings only: %s",
				     strerror(errno));
	if (m.fd >= 0)
		close(m.fd);
	if (real >= 0)
		pl_aside_close(ctx->aside, real);
	return err;
}

/*
 * As the kernel does it: mapping by mapping, the first error ends it, holes are passed over and make it
 * ENOMEM in the end. But a refusal anywhere in the range comes before any of it is gone.
 */
static int remove_range(struct pinl_ctx *ctx, struct asking *a)
{
	uintptr_t at = a->change.start, end = a->change.end, from, to;
	bool hole = false;
	int err = 0;

	if (pl_would_refuse(ctx, &a->change)) {
		err = ask(ctx, a);
		if (err)
			return err;
		pinl_change_done(ctx, a->change.id); /* that lease has just ended */
	}
	for (; at < end && !err; at = to) {
		from = at;
		to = end;
		err = pl_vma_run(ctx->maps, &from, &to);
		hole |= err == -ENOENT || from > at;
		if (!err)
			err = remove_run(ctx, from, to);
	}
	if (hole && (!err || err == -ENOENT))
		return pinl_set_error(-ENOMEM, "part of [%#lx, %#lx) is not mapped; the rest is removed",
				      a->change.start, end);
	return err;
}

static int advise(struct pinl_ctx *ctx, void *addr, size_t len, int advice)
{
	struct asking a;
	enum pinl_op op;
	int err, slot;

	if (!madvise_op(advice, &op) || !len)
		return madvise(addr, len, advice)
			       ? pinl_set_error(-errno, "madvise: %s", strerror(errno))
			       : 0;
	err = va_range(&a, op, addr, len);
	if (err)
		return err;
	if (op == PINL_OP_REMOVE)
		return remove_range(ctx, &a);
	err = begin(ctx, &a, &slot);
	return err ? err : finish(ctx, &a, slot, madvise(addr, len, advice) ? -errno : 0);
}

/* Asked in any case: a file that would grow can have been made longer by others when it's cut. */
static int resize(struct pinl_ctx *ctx, int fd, off_t size)
{
	struct asking a;
	struct stat st;
	int err, slot;

	if (size < 0)
		return pinl_set_error(-EINVAL, "a size below zero");
	if (fstat(fd, &st))
		return pinl_set_error(-errno, "ftruncate: %s", strerror(errno));
	prepare(&a, PINL_OP_TRUNCATE);
	on_file(&a, st.st_dev, st.st_ino, ROUND_UP((uint64_t)size), UINT64_MAX);
	err = begin(ctx, &a, &slot);
	return err ? err : finish(ctx, &a, slot, ftruncate(fd, size) ? -errno : 0);
}

/*
 * What becomes of pages at the edges is up to the file system. Seen: these zero them in place (bar the
 * last of the file, on ext4), XFS drops them.
 */
static bool keeps_edges(int fd)
{
	struct statfs fs;

	return !fstatfs(fd, &fs) && (fs.f_type == EXT4_SUPER_MAGIC || fs.f_type == BTRFS_SUPER_MAGIC ||
				     fs.f_type == TMPFS_MAGIC || fs.f_type == HUGETLBFS_MAGIC);
}

/* False: it leaves every page where it is. As the files source judges the call when made raw, but not by
 * the end of the file, which can be another by the time of the call. */
static bool fallocate_op(int fd, int mode, off_t offset, off_t len, const struct stat *st,
			 struct pl_file_op *op)
{
	struct pl_syscall call = {SYS_fallocate, {fd, mode, offset, len}};
	struct pl_file_event ev = {
		.ranged = true,
		.offset = offset,
		.count = len,
		.size = (uint64_t)(st->st_size > offset ? st->st_size - 1 : offset) + 1,
		.page = PAGE,
		.keeps_edges = keeps_edges(fd),
	};

	return pl_file_decode(&call, &ev, op);
}

static int allocate(struct pinl_ctx *ctx, int fd, int mode, off_t offset, off_t len)
{
	struct pl_file_op op;
	struct asking a;
	struct stat st;
	int err, slot;

	if (fstat(fd, &st))
		return pinl_set_error(-errno, "fallocate: %s", strerror(errno));
	if (offset < 0 || len <= 0 || !fallocate_op(fd, mode, offset, len, &st, &op))
		return fallocate(fd, mode, offset, len)
			       ? pinl_set_error(-errno, "fallocate: %s", strerror(errno))
			       : 0;
	prepare(&a, op.op);
	a.change.also = op.also;
	on_file(&a, st.st_dev, st.st_ino, op.start, op.end);
	err = begin(ctx, &a, &slot);
	return err ? err : finish(ctx, &a, slot, fallocate(fd, mode, offset, len) ? -errno : 0);
}

/* ------------------------------------------------------------------ those that nobody waits for -- */

void pl_later_plan(int fd, const struct stat *st, struct pl_later_job *j)
{
	struct pl_file_op op = {.op = j->op}; /* of no byte: it leaves every page where it is */

	j->start = j->mode ? 0 : ROUND_UP((uint64_t)j->len);
	j->end = j->mode ? 0 : UINT64_MAX;
	if (!j->mode || !fallocate_op(fd, j->mode, j->offset, j->len, st, &op))
		return;
	j->op = op.op;
	j->also = op.also;
	j->start = op.start;
	j->end = op.end;
}

int pl_later_make(struct pinl_ctx *ctx, const struct pl_later_job *j, int (*make)(void *arg), void *arg,
		  bool *done)
{
	struct asking a;
	int err;

	prepare(&a, j->op);
	a.change.also = j->also;
	on_file(&a, j->dev, j->ino, j->start, j->end);
	err = ask(ctx, &a);
	*done = !err;
	if (err)
		return err;
	err = make(arg);
	pinl_change_done(ctx, a.change.id);
	return err;
}

/* ---------------------------------------------------------------------------------- the calls -- */

int pinl_munmap(struct pinl_ctx *ctx, void *addr, size_t len)
{
	PL_CALL(call);

	return pl_alive(ctx) ? unmap(ctx, addr, len) : pl_stale();
}

int pinl_mremap(struct pinl_ctx *ctx, void *addr, size_t old_len, size_t new_len, int flags,
		void *new_addr, void **out)
{
	PL_CALL(call);

	return pl_alive(ctx) ? remap(ctx, addr, old_len, new_len, flags, new_addr, out) : pl_stale();
}

int pinl_madvise(struct pinl_ctx *ctx, void *addr, size_t len, int advice)
{
	PL_CALL(call);

	return pl_alive(ctx) ? advise(ctx, addr, len, advice) : pl_stale();
}

int pinl_invalidate(struct pinl_ctx *ctx, void *addr, size_t len, int (*change)(void *arg), void *arg)
{
	PL_CALL(call);

	return pl_alive(ctx) ? invalidate(ctx, addr, len, change, arg) : pl_stale();
}

int pinl_ftruncate(struct pinl_ctx *ctx, int fd, off_t size)
{
	PL_CALL(call);

	return pl_alive(ctx) ? resize(ctx, fd, size) : pl_stale();
}

int pinl_fallocate(struct pinl_ctx *ctx, int fd, int mode, off_t offset, off_t len)
{
	PL_CALL(call);

	return pl_alive(ctx) ? allocate(ctx, fd, mode, offset, len) : pl_stale();
}
