/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Questions about all leases (P3). The walk takes the narrowest index there is for the question: a
 * file's leases by offset, all leases by address. ctx->lock is held for all of it, so that the answer is
 * one moment's; nothing but copying into memory of the library's happens under it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/ctx.h"

/* What the filter says of the place, as a change of it would. */
static struct pinl_change place_of(const struct pinl_filter *f)
{
	return (struct pinl_change){.on_file = f->file_ino != 0,
				    .file_dev = f->file_dev,
				    .file_ino = f->file_ino,
				    .file_start = f->file_start,
				    .file_end = f->file_end ? f->file_end : UINT64_MAX,
				    .start = f->end ? f->start : 0,
				    .end = f->end ? f->end : UINTPTR_MAX};
}

/* A part that was moved to memory of its own is not on the file any more. */
static bool fits(const struct pinl_lease *l, const struct pinl_filter *f,
		 const struct pinl_change *place)
{
	unsigned states = f->states ? f->states : ~PINL_STATEBIT(PINL_RELEASED);
	struct pl_range va;

	return (states & PINL_STATEBIT(l->state)) &&
	       (!f->policies || (f->policies & PINL_POLICYBIT(l->policy.kind))) &&
	       (!f->device || l->dev == f->device) && (!f->pid || pl_lease_owner(l) == f->pid) &&
	       (!f->tid || l->owner_thread == f->tid) &&
	       (!f->end || (l->m.start < f->end && l->m.end > f->start)) &&
	       (!f->file_ino || pl_lease_overlap(l, place, &va));
}

static int check_filter(const struct pinl_filter *given, struct pinl_filter *f)
{
	if (!given || given->size < sizeof(size_t) || given->size > 4096)
		return pinl_set_error(-EINVAL, "pinl_filter.size must be sizeof(struct pinl_filter)");
	memset(f, 0, sizeof *f);
	memcpy(f, given, given->size < sizeof *f ? given->size : sizeof *f);
	if ((f->states & ~(2 * PINL_STATEBIT(PINL_RELEASED) - 1)) ||
	    (f->policies & ~(2 * PINL_POLICYBIT(PINL_FOLLOW) - 1)))
		return pinl_set_error(-EINVAL, "pinl_filter has unknown states %#x or policies %#x",
				      f->states, f->policies);
	if ((f->end && f->end <= f->start) || (f->file_end && f->file_end <= f->file_start))
		return pinl_set_error(-EINVAL, "a range of pinl_filter ends before it starts");
	return 0;
}

/* How many fit; the first `room` of them into infos. */
static size_t collect(struct pinl_ctx *ctx, const struct pinl_filter *f, struct pinl_lease_info *infos,
		      size_t room)
{
	struct pinl_change place = place_of(f);
	size_t n = 0;

	pthread_mutex_lock(&ctx->lock);
	for (struct pinl_lease *l = pl_lease_first(ctx, &place); l; l = pl_lease_next(l, &place))
		if (fits(l, f, &place) && n++ < room)
			pl_lease_snapshot(l, &infos[n - 1]);
	pthread_mutex_unlock(&ctx->lock);
	return n;
}

static void copy_out(struct pinl_lease_info *from, size_t n, struct pinl_lease_info *to)
{
	size_t size = n ? to->size : 0;

	for (size_t i = 0; i < n; i++) {
		from[i].size = size;
		memcpy((char *)to + i * size, &from[i], size < sizeof *from ? size : sizeof *from);
	}
}

int pinl_query(struct pinl_ctx *ctx, const struct pinl_filter *filter, struct pinl_lease_info *infos,
	       size_t max, size_t *found)
{
	PL_CALL(call);
	struct pinl_lease_info *own = NULL;
	struct pinl_filter f;
	size_t n, room = 0;
	int err;

	if (!pl_alive(ctx))
		return pl_stale();
	err = check_filter(filter, &f);
	if (err)
		return err;
	if (max && (infos->size < 2 * sizeof(size_t) || infos->size % sizeof(size_t)))
		return pinl_set_error(-EINVAL, "infos[0].size must be sizeof(struct pinl_lease_info)");
	while ((n = collect(ctx, &f, own, room)) > room && room < max) {
		room = n < max ? n : max;
		free(own);
		own = calloc(room, sizeof *own);
		if (!own)
			return pinl_set_error(-ENOMEM, "out of memory for %zu leases", room);
	}
	copy_out(own, n < room ? n : room, infos);
	free(own);
	*found = n;
	return 0;
}

static int set_file(struct pinl_filter *filter, const struct stat *st)
{
	if (filter->size < offsetof(struct pinl_filter, file_start))
		return pinl_set_error(-EINVAL, "pinl_filter.size must be sizeof(struct pinl_filter)");
	filter->file_dev = st->st_dev;
	filter->file_ino = st->st_ino;
	return 0;
}

int pinl_filter_file(struct pinl_filter *filter, int fd)
{
	struct stat st;

	if (fstat(fd, &st))
		return pinl_set_error(-errno, "descriptor %d: %s", fd, strerror(errno));
	return set_file(filter, &st);
}

int pinl_filter_path(struct pinl_filter *filter, const char *path)
{
	struct stat st;

	if (stat(path, &st))
		return pinl_set_error(-errno, "%s: %s", path, strerror(errno));
	return set_file(filter, &st);
}
