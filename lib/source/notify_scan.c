/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which leased pages of a file have gone. A pinned page of shared memory is in its file, so a hole under
 * it, or an end before it, means that the file has let it go. Invariants:
 * - a page is reported once;
 * - a page that wasn't there at the start is only reported after it has been;
 * - private pages of a MAP_PRIVATE mapping survive a hole in the file, so there only the end counts.
 *
 * What can't be found this way: a hole that was filled again before the scan, and data that was moved
 * (collapse, insert); coverage() doesn't claim those. hugetlbfs doesn't tell its holes: there, when the
 * file has shrunk, a page that was mapped and isn't any more is gone.
 *
 * No lock, no allocation; the caller owns `n` while it scans. The file's time and size are asked for by
 * its own thread, everything about its ranges in the thread aside, where the file is open.
 */
#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "os/holes.h"
#include "source/notify.h"

#define PAGE	      4096ull
#define WORD	      (8 * sizeof(unsigned long))
#define MINCORE_PAGES 1024
#define SOME_RANGES   1024 /* in one scan: about a millisecond */

static bool bit(const unsigned long *map, uint64_t i)
{
	return map[i / WORD] >> (i % WORD) & 1;
}

static void set_bit(unsigned long *map, uint64_t i)
{
	map[i / WORD] |= 1ul << (i % WORD);
}

struct scan {
	struct pl_noted *n;
	struct pl_noted_range *r;
	bool baseline;
	struct pl_told **free, **found;
	struct stat st;
	bool again;
};

static void there(struct scan *s, uint64_t from, uint64_t to)
{
	if (s->baseline || !s->r->unborn)
		return;
	for (uint64_t i = from; i < to; i++)
		if (bit(s->r->absent, i)) {
			s->r->absent[i / WORD] &= ~(1ul << (i % WORD));
			s->r->unborn--;
		}
}

static bool tell(struct scan *s, enum pinl_op op, uint64_t from, uint64_t to)
{
	struct pl_told *t = *s->free;

	if (!t) {
		s->again = true;
		return false;
	}
	*s->free = t->next;
	t->next = *s->found;
	*s->found = t;
	t->change = (struct pinl_change){
		.op = op,
		.can = PINL_CAN_TELL,
		.on_file = 1,
		.file_dev = s->n->dev,
		.file_ino = s->n->ino,
		.file_start = s->r->offset + from * PAGE,
		.file_end = s->r->offset + to * PAGE,
		.source = "notify",
	};
	for (uint64_t i = from; i < to; i++)
		set_bit(s->r->gone, i);
	return true;
}

/* Pages [from, to) of the range aren't in the file. */
static void not_there(struct scan *s, enum pinl_op op, uint64_t from, uint64_t to)
{
	struct pl_noted_range *r = s->r;

	for (uint64_t i = from, end; i < to; i = end) {
		end = i + 1;
		if (s->baseline) {
			r->unborn += !bit(r->absent, i);
			set_bit(r->absent, i);
			continue;
		}
		if (bit(r->gone, i) || bit(r->absent, i))
			continue;
		while (end < to && !bit(r->gone, end) && !bit(r->absent, end))
			end++;
		if (!tell(s, op, i, end))
			return;
	}
}

/* The page of a file offset, within [0, limit]. */
static uint64_t page_at(const struct pl_noted_range *r, uint64_t at, uint64_t limit, bool up)
{
	uint64_t page;

	if (at <= r->offset)
		return 0;
	page = (at - r->offset + (up ? PAGE - 1 : 0)) / PAGE;
	return page < limit ? page : limit;
}

/* A truncation sets the size first: what looks like a hole may lie behind a new end. */
static bool has_shrunk(struct scan *s)
{
	struct stat st;

	if (syscall(SYS_fstat, s->n->real, &st) || st.st_size >= s->st.st_size)
		return false;
	s->st = st;
	return true;
}

/*
 * Where the file has data and where holes, from the kernel; pages [0, limit) lie before its end. False:
 * not any more.
 */
static bool scan_holes(struct scan *s, uint64_t limit)
{
	struct pl_noted_range *r = s->r;
	off_t at = r->offset, end = r->offset + limit * PAGE;

	while (at < end) {
		off_t data = lseek(s->n->real, at, SEEK_DATA), hole;

		if (data < 0 && errno != ENXIO)
			return true;
		if (data < 0 || data > end)
			data = end;
		if (data > at && has_shrunk(s))
			return false;
		not_there(s, PINL_OP_PUNCH, page_at(r, at, limit, true), page_at(r, data, limit, false));
		if (data >= end)
			return true;
		hole = pl_next_hole(s->n->real, data, end, s->st.st_size);
		if (hole <= data)
			return true;
		there(s, page_at(r, data, limit, false), page_at(r, hole, limit, true));
		at = hole;
	}
	return true;
}

/* hugetlb: what is mapped now. A page that isn't may still be in the file, unless that lost some. */
static void scan_mapped(struct scan *s, uint64_t limit, bool shrunk)
{
	unsigned char vec[MINCORE_PAGES];

	for (uint64_t at = 0; at < limit; at += MINCORE_PAGES) {
		uint64_t n = limit - at < MINCORE_PAGES ? limit - at : MINCORE_PAGES, from;

		if (mincore((void *)(s->r->node.start + at * PAGE), n * PAGE, vec))
			return;
		for (uint64_t i = 0; i < n; i++) {
			for (from = i; i < n && !(vec[i] & 1); i++)
				;
			if (i > from && (shrunk || s->baseline))
				not_there(s, PINL_OP_PUNCH, at + from, at + i);
			if (i < n)
				there(s, at + i, at + i + 1);
		}
	}
}

static void scan_range(struct scan *s)
{
	bool shrunk = s->st.st_blocks < s->r->blocks;
	uint64_t limit;

	do
		limit = page_at(s->r, s->st.st_size, s->r->pages, true);
	while (s->r->kind != PINL_MEM_HUGETLB && s->r->kind != PINL_MEM_FILE_PRIVATE &&
	       !scan_holes(s, limit));
	if (s->r->kind == PINL_MEM_HUGETLB)
		scan_mapped(s, limit, shrunk);
	else if (s->r->kind == PINL_MEM_FILE_PRIVATE)
		there(s, 0, limit);
	not_there(s, PINL_OP_TRUNCATE, limit, s->r->pages);
}

static bool same_time(const struct timespec *a, const struct timespec *b)
{
	return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

/*
 * A hole changes the time or the block count, and both at once are cheap to ask for. But mapping a page
 * of a hugetlb file changes neither.
 */
static bool unchanged(const struct pl_noted *n, const struct stat *st)
{
	const struct pl_noted_range *r = n->ranges;

	for (unsigned i = 0; i < n->refs && r->kind == PINL_MEM_HUGETLB; i++, r = r->next)
		if (r->unborn)
			return false;
	return n->seen && n->st.st_size == st->st_size && n->st.st_blocks == st->st_blocks &&
	       same_time(&n->st.st_ctim, &st->st_ctim) && same_time(&n->st.st_mtim, &st->st_mtim);
}

static long scan_first(void *arg)
{
	scan_range(arg);
	return 0;
}

void pl_noted_baseline(struct pl_aside *aside, int fd, int real, struct pl_noted_range *r)
{
	struct pl_noted n = {.fd = fd, .real = real};
	struct scan s = {.n = &n, .r = r, .baseline = true};

	if (fstat(fd, &s.st))
		return;
	if (r->kind != PINL_MEM_SHMEM || !pl_all_present(r->node.start, r->node.end))
		pl_aside_run(aside, scan_first, &s);
	r->blocks = s.st.st_blocks;
}

static long scan_some(void *arg)
{
	struct scan *s = arg;
	struct pl_noted *n = s->n;

	for (unsigned i = 0; i < SOME_RANGES && n->left; i++) {
		s->r = n->ranges;
		scan_range(s);
		if (s->again)
			return PL_SCAN_NO_REPORTS;
		s->r->blocks = s->st.st_blocks;
		n->ranges = n->ranges->next;
		n->left--;
	}
	return n->left ? PL_SCAN_MORE : PL_SCANNED;
}

enum pl_scanned pl_noted_scan(struct pl_aside *aside, struct pl_noted *n, struct pl_told **free,
			      struct pl_told **found)
{
	struct scan s = {.n = n, .free = free, .found = found};

	if (fstat(n->fd, &s.st))
		return PL_SCANNED;
	if (!unchanged(n, &s.st)) {
		n->st = s.st;
		n->seen = true;
		n->left = n->refs;
	}
	return n->left ? (enum pl_scanned)pl_aside_run(aside, scan_some, &s) : PL_SCANNED;
}
