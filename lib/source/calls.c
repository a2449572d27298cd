/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Explicit calls: the caller asks first and then makes the system call itself, so every policy is kept
 * exactly, on every kind of memory. Invariant: between the answer and pinl_change_done() the range is
 * gated against new leases; the calling thread is exempt meanwhile, so that no other source asks about
 * the same change again.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <semaphore.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/ctx.h"
#include "os/compat.h"

#define PAGE	      4096ul
#define ROUND_UP(x)   (((x) + PAGE - 1) & ~(PAGE - 1))
#define ROUND_DOWN(x) ((x) & ~(PAGE - 1))

struct asking {
	struct pinl_change change;
	sem_t answered;
	int err, slot;
};

static void on_answer(struct pinl_change *ch, int err)
{
	struct asking *a = ch->arg;

	a->err = err;
	sem_post(&a->answered);
}

/* 0: go on, then finish(). -errno: refused, nothing to finish. */
static int ask(struct pinl_ctx *ctx, struct asking *a, const struct pl_call *call)
{
	a->change.can =
		PINL_CAN_TELL | PINL_CAN_BEFORE | PINL_CAN_HOLD | PINL_CAN_REFUSE | PINL_WILL_SAY_DONE;
	a->change.actor_pid = getpid();
	a->change.actor_tid = gettid();
	a->change.source = "calls";
	a->change.answer = on_answer;
	a->change.arg = a;
	sem_init(&a->answered, 0, 0);
	pinl_change_submit(ctx, &a->change);
	if (sem_trywait(&a->answered)) {
		pl_call_wait_begin(call);
		while (sem_wait(&a->answered))
			;
		pl_call_wait_end(call);
	}
	sem_destroy(&a->answered);
	if (a->err)
		return pinl_set_error(
			a->err, "a lease on the range refuses %s; unmap it first, or lease with RECALL",
			pinl_op_name(a->change.op));
	a->slot = pl_exempt_enter(ctx);
	return 0;
}

static int finish(struct pinl_ctx *ctx, struct asking *a, int err)
{
	pl_exempt_leave(ctx, a->slot);
	pinl_change_done(ctx, a->change.id);
	return err ? pinl_set_error(err, "%s: %s", pinl_op_name(a->change.op), strerror(-err)) : 0;
}

static int va_range(struct asking *a, enum pinl_op op, void *addr, size_t len)
{
	uintptr_t start = (uintptr_t)addr;

	memset(a, 0, sizeof *a);
	a->change.op = op;
	if (start & (PAGE - 1) || start + len < start)
		return pinl_set_error(-EINVAL, "[%p, +%zu) is not page aligned or overflows", addr, len);
	a->change.start = start;
	a->change.end = ROUND_UP(start + len);
	return 0;
}

int pinl_munmap(struct pinl_ctx *ctx, void *addr, size_t len)
{
	PL_CALL(call);
	struct asking a;
	int err;

	if (!pl_alive(ctx))
		return pl_stale();
	err = va_range(&a, PINL_OP_UNMAP, addr, len);
	if (!err && !len)
		err = pinl_set_error(-EINVAL, "munmap of nothing");
	if (!err)
		err = ask(ctx, &a, &call);
	if (err)
		return err;
	return finish(ctx, &a, munmap(addr, len) ? -errno : 0);
}

/* The target of MREMAP_FIXED is overmapped: that is a change of its own, asked first. */
static int ask_target(struct pinl_ctx *ctx, int flags, void *new_addr, size_t new_len,
		      struct asking *target, const struct pl_call *call)
{
	int err = va_range(target, PINL_OP_OVERMAP, new_addr, new_len);

	if (!(flags & MREMAP_FIXED)) {
		target->change.id = 0;
		target->slot = -1;
		return 0;
	}
	return err ? err : ask(ctx, target, call);
}

int pinl_mremap(struct pinl_ctx *ctx, void *addr, size_t old_len, size_t new_len, int flags,
		void *new_addr, void **out)
{
	PL_CALL(call);
	struct asking source, target;
	bool shrink = !(flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) && new_len <= old_len;
	size_t keep = shrink ? ROUND_UP(new_len) : 0;
	void *got;
	int err;

	if (!pl_alive(ctx))
		return pl_stale();
	err = va_range(&source, shrink ? PINL_OP_UNMAP : PINL_OP_REMAP, (char *)addr + keep,
		       old_len > keep ? old_len - keep : 0);
	if (!err)
		err = ask_target(ctx, flags, new_addr, new_len, &target, &call);
	if (err)
		return err;
	err = ask(ctx, &source, &call);
	if (err) {
		pl_exempt_leave(ctx, target.slot);
		pinl_change_done(ctx, target.change.id);
		return err;
	}
	got = mremap(addr, old_len, new_len, flags, new_addr);
	err = got == MAP_FAILED ? -errno : 0;
	pl_exempt_leave(ctx, target.slot);
	pinl_change_done(ctx, target.change.id);
	err = finish(ctx, &source, err);
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

/* A forced lease has private memory at addr by the time the hole is punched, so the punch goes through a
 * second mapping of the file, made before. */
static int remove_range(struct pinl_ctx *ctx, struct asking *a, void *addr, size_t len,
			const struct pl_call *call)
{
	void *alias = mremap(addr, 0, len, MREMAP_MAYMOVE);
	int err;

	if (alias == MAP_FAILED)
		return pinl_set_error(-EINVAL, "MADV_REMOVE works on shared file mappings only");
	err = ask(ctx, a, call);
	if (!err)
		err = finish(ctx, a, madvise(alias, len, MADV_REMOVE) ? -errno : 0);
	munmap(alias, len);
	return err;
}

int pinl_madvise(struct pinl_ctx *ctx, void *addr, size_t len, int advice)
{
	PL_CALL(call);
	struct asking a;
	enum pinl_op op;
	int err;

	if (!pl_alive(ctx))
		return pl_stale();
	if (!madvise_op(advice, &op) || !len)
		return madvise(addr, len, advice)
			       ? pinl_set_error(-errno, "madvise: %s", strerror(errno))
			       : 0;
	err = va_range(&a, op, addr, len);
	if (err)
		return err;
	if (op == PINL_OP_REMOVE)
		return remove_range(ctx, &a, addr, len, &call);
	err = ask(ctx, &a, &call);
	return err ? err : finish(ctx, &a, madvise(addr, len, advice) ? -errno : 0);
}

static int file_range(struct asking *a, enum pinl_op op, int fd, uint64_t start, uint64_t end,
		      struct stat *st)
{
	memset(a, 0, sizeof *a);
	if (fstat(fd, st))
		return pinl_set_error(-errno, "%s: %s", pinl_op_name(op), strerror(errno));
	a->change.op = op;
	a->change.on_file = 1;
	a->change.file_dev = st->st_dev;
	a->change.file_ino = st->st_ino;
	a->change.file_start = start;
	a->change.file_end = end;
	return 0;
}

int pinl_ftruncate(struct pinl_ctx *ctx, int fd, off_t size)
{
	PL_CALL(call);
	struct asking a;
	struct stat st;
	int err;

	if (!pl_alive(ctx))
		return pl_stale();
	if (size < 0)
		return pinl_set_error(-EINVAL, "a size below zero");
	err = file_range(&a, PINL_OP_TRUNCATE, fd, ROUND_UP((uint64_t)size), UINT64_MAX, &st);
	if (!err && size >= st.st_size) /* growing takes nothing away */
		return ftruncate(fd, size) ? pinl_set_error(-errno, "ftruncate: %s", strerror(errno))
					   : 0;
	if (!err)
		err = ask(ctx, &a, &call);
	return err ? err : finish(ctx, &a, ftruncate(fd, size) ? -errno : 0);
}

/* Only whole pages leave the file; the ends of a hole are zeroed in place. */
static int fallocate_op(int mode, off_t offset, off_t len, enum pinl_op *op, uint64_t *start,
			uint64_t *end)
{
	*start = ROUND_UP((uint64_t)offset);
	*end = ROUND_DOWN((uint64_t)offset + len);
	if (mode & FALLOC_FL_PUNCH_HOLE)
		*op = PINL_OP_PUNCH;
	else if (mode & FALLOC_FL_ZERO_RANGE)
		*op = PINL_OP_ZERO;
	else if (mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE)) {
		*op = mode & FALLOC_FL_COLLAPSE_RANGE ? PINL_OP_COLLAPSE : PINL_OP_INSERT;
		*start = ROUND_DOWN((uint64_t)offset);
		*end = UINT64_MAX;
	} else
		return 0;
	return *start < *end;
}

int pinl_fallocate(struct pinl_ctx *ctx, int fd, int mode, off_t offset, off_t len)
{
	PL_CALL(call);
	struct asking a;
	struct stat st;
	enum pinl_op op;
	uint64_t start, end;
	int err;

	if (!pl_alive(ctx))
		return pl_stale();
	if (offset < 0 || len <= 0 || !fallocate_op(mode, offset, len, &op, &start, &end))
		return fallocate(fd, mode, offset, len)
			       ? pinl_set_error(-errno, "fallocate: %s", strerror(errno))
			       : 0;
	err = file_range(&a, op, fd, start, end, &st);
	if (!err)
		err = ask(ctx, &a, &call);
	return err ? err : finish(ctx, &a, fallocate(fd, mode, offset, len) ? -errno : 0);
}
