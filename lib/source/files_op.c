/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which operation, on which pages. Invariant: what isn't known to leave the pages alone is taken to
 * detach the most that the event allows. No state, no lock, no system call.
 *
 * fanotify gives only a range, rounded out to pages; so ranges come from the arguments of the blocked
 * call where it has them. What becomes of pages that a range covers in part:
 *
 *	truncate		the page of the new size stays, its tail is zeroed in place
 *	punch, zero on ext4	partial pages at either edge stay; the last page of the file goes
 *	punch, zero elsewhere	XFS drops them too
 *	collapse, insert	everything from the page of the offset on; on XFS from the one before
 *
 * What makes the file longer, or as long as it is, is judged alike: by the time it happens the file may
 * have become longer by somebody else, with leases on what is new. Now nobody has one there.
 *
 * (A large folio that somebody holds can't be split: the kernel then drops all of it, also what lies
 * outside of the range. No writable long-term pin can be on such a folio on disk, so it is left out.)
 *
 * System calls are those of this architecture's own table. Numbers of a 32-bit task never get here
 * (lib/os/task.c). An io_uring worker doesn't either; what a task does inside io_uring_enter itself can
 * only be reads, writes and plain opens, because io_uring hands truncation, fallocate and O_TRUNC to
 * its workers always.
 */
#include "source/files_op.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#ifndef FALLOC_FL_WRITE_ZEROES
#define FALLOC_FL_WRITE_ZEROES 0x80
#endif

/* XFS's old space ioctls, which every file system takes. The kernel doesn't export the numbers. */
struct space_resv {
	int16_t type, whence;
	int64_t start, len;
	int32_t sysid;
	uint32_t pid;
	int32_t pad[4];
};
#define RESVSP	   _IOW('X', 40, struct space_resv)
#define UNRESVSP   _IOW('X', 41, struct space_resv)
#define RESVSP64   _IOW('X', 42, struct space_resv)
#define UNRESVSP64 _IOW('X', 43, struct space_resv)
#define ZERO_RANGE _IOW('X', 57, struct space_resv)

/* clang-format off */
static const int harmless_calls[] = {
	SYS_read, SYS_pread64, SYS_readv, SYS_preadv, SYS_preadv2,
	SYS_write, SYS_pwrite64, SYS_writev, SYS_pwritev, SYS_pwritev2,
	SYS_mmap, SYS_mremap, SYS_sendfile, SYS_splice, SYS_readahead, SYS_fadvise64,
	SYS_io_submit, SYS_io_uring_enter,
	SYS_execve, SYS_execveat, SYS_finit_module, SYS_kexec_file_load,
};
/* clang-format on */

static uint64_t page_down(const struct pl_file_event *ev, uint64_t at)
{
	return at & ~((uint64_t)ev->page - 1);
}

static uint64_t page_up(const struct pl_file_event *ev, uint64_t at)
{
	return at >= PL_FILE_END ? PL_FILE_END : page_down(ev, at + ev->page - 1);
}

static bool found(struct pl_file_op *out, enum pinl_op op, uint64_t start, uint64_t end)
{
	if (start >= end)
		return false;
	*out = (struct pl_file_op){.op = op, .start = start, .end = end, .new_size = -1};
	return true;
}

static bool truncation(const struct pl_file_event *ev, uint64_t size, struct pl_file_op *out)
{
	if (!found(out, PINL_OP_TRUNCATE, page_up(ev, size), PL_FILE_END))
		return false;
	if (size < ev->size)
		out->new_size = size;
	return true;
}

static bool hole(const struct pl_file_event *ev, enum pinl_op op, uint64_t offset, uint64_t len,
		 struct pl_file_op *out)
{
	uint64_t end = len > PL_FILE_END - offset ? PL_FILE_END : offset + len;

	if (offset >= PL_FILE_END)
		return false;
	if (!ev->keeps_edges)
		return found(out, op, page_down(ev, offset), page_up(ev, end));
	end = end >= ev->size ? page_up(ev, end) : page_down(ev, end);
	return found(out, op, page_up(ev, offset), end);
}

/* From the page of the offset to the end. XFS drops the page before, too. */
static bool shift(const struct pl_file_event *ev, enum pinl_op op, uint64_t offset,
		  struct pl_file_op *out)
{
	uint64_t start = page_down(ev, offset);

	if (!ev->keeps_edges && start)
		start -= ev->page;
	return found(out, op, start, PL_FILE_END);
}

/*
 * Somebody does something with this range. The range of a truncation that isn't a multiple of the
 * page size looks like that of a read, and a collapse reaches the end: so to the end. The name is the
 * likeliest one.
 */
static bool worst(const struct pl_file_event *ev, struct pl_file_op *out)
{
	bool detaches;

	if (ev->open || !ev->ranged)
		detaches = found(out, PINL_OP_TRUNCATE, 0, PL_FILE_END);
	else if (!ev->count)
		detaches = truncation(ev, ev->offset, out);
	else /* it appends, or nobody could tell */
		detaches = ev->offset < ev->size && shift(ev, PINL_OP_PUNCH, ev->offset, out);
	if (detaches)
		out->also = PINL_OPS_FILE;
	return detaches;
}

static bool opening(const struct pl_file_event *ev, unsigned long flags, struct pl_file_op *out)
{
	if (!(flags & O_TRUNC) || (flags & O_PATH))
		return false;
	return truncation(ev, 0, out);
}

static bool fallocating(const struct pl_file_event *ev, const struct pl_syscall *sc,
			struct pl_file_op *out)
{
	int mode = (int)sc->args[1] & ~FALLOC_FL_KEEP_SIZE;
	uint64_t offset = sc->args[2], len = sc->args[3];

	switch (mode) {
	case 0:
	case FALLOC_FL_UNSHARE_RANGE: /* rewrites through the page cache */
		return false;
	case FALLOC_FL_PUNCH_HOLE:
		return hole(ev, PINL_OP_PUNCH, offset, len, out);
	case FALLOC_FL_ZERO_RANGE:
	case FALLOC_FL_WRITE_ZEROES:
		return hole(ev, PINL_OP_ZERO, offset, len, out);
	case FALLOC_FL_COLLAPSE_RANGE:
		return shift(ev, PINL_OP_COLLAPSE, offset, out);
	case FALLOC_FL_INSERT_RANGE:
		return shift(ev, PINL_OP_INSERT, offset, out);
	default:
		return worst(ev, out);
	}
}

/* The event's range, or all of the file where it has none or the call means "to the end" by 0. */
static bool over_event(const struct pl_file_event *ev, enum pinl_op op, struct pl_file_op *out)
{
	if (!ev->ranged)
		return found(out, op, 0, PL_FILE_END);
	if (!ev->count)
		return shift(ev, op, ev->offset, out);
	return hole(ev, op, ev->offset, ev->count, out);
}

static bool controlling(const struct pl_file_event *ev, const struct pl_syscall *sc,
			struct pl_file_op *out)
{
	switch ((unsigned int)sc->args[1]) {
	case (unsigned int)FICLONE:
	case (unsigned int)FICLONERANGE:
		return !ev->not_target && over_event(ev, PINL_OP_ZERO, out);
	case (unsigned int)FIDEDUPERANGE:
		return over_event(ev, PINL_OP_ZERO, out);
	case (unsigned int)RESVSP:
	case (unsigned int)RESVSP64:
		return false;
	case (unsigned int)UNRESVSP:
	case (unsigned int)UNRESVSP64:
		return over_event(ev, PINL_OP_PUNCH, out);
	case (unsigned int)ZERO_RANGE:
		return over_event(ev, PINL_OP_ZERO, out);
	default:
		return worst(ev, out);
	}
}

static bool is_harmless(const struct pl_syscall *sc, const struct pl_file_event *ev)
{
	for (unsigned i = 0; i < sizeof harmless_calls / sizeof *harmless_calls; i++)
		if (sc->nr == harmless_calls[i])
			return !ev->open || sc->nr == SYS_execve || sc->nr == SYS_execveat ||
			       sc->nr == SYS_io_uring_enter;
	return false;
}

/* openat2's flags are behind a pointer; the caller has put them where openat has them. */
bool pl_file_decode(const struct pl_syscall *sc, const struct pl_file_event *ev, struct pl_file_op *out)
{
	if (!sc)
		return worst(ev, out);
	switch (sc->nr) {
	case SYS_openat:
	case SYS_open_by_handle_at:
		return opening(ev, sc->args[2], out);
#ifdef SYS_open
	case SYS_open:
		return opening(ev, sc->args[1], out);
	case SYS_creat:
		return opening(ev, O_TRUNC, out);
#endif
	}
	if (is_harmless(sc, ev))
		return false;
	if (ev->open)
		return worst(ev, out);
	switch (sc->nr) {
	case SYS_truncate:
	case SYS_ftruncate:
		return truncation(ev, sc->args[1], out);
	case SYS_fallocate:
		return fallocating(ev, sc, out);
	case SYS_madvise:
		return (int)sc->args[2] == MADV_REMOVE && over_event(ev, PINL_OP_REMOVE, out);
	case SYS_copy_file_range:
		return ev->clones && !ev->not_target && over_event(ev, PINL_OP_ZERO, out);
	case SYS_ioctl:
		return controlling(ev, sc, out);
	}
	return worst(ev, out);
}

int pl_file_target_fd(const struct pl_syscall *sc)
{
	unsigned int request = sc->args[1];

	if (sc->nr == SYS_copy_file_range)
		return (int)sc->args[2];
	if (sc->nr == SYS_ioctl &&
	    (request == (unsigned int)FICLONE || request == (unsigned int)FICLONERANGE))
		return (int)sc->args[0];
	return -1;
}
