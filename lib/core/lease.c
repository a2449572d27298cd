/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Making leases; end.c ends them.
 *
 * Making one is visible -> watched -> looked at again -> pinned, so no change is missed: one from the
 * watch on finds the lease in the index while `busy` still keeps the worker off the half-made mapping,
 * and the recall starts as soon as the pin is there; one before shows in the second look, also if it put
 * the same kind of memory there, which isn't watched then. (In an extent, all of that is so already and
 * stays so until a change finds the lease.) Under ctx->lock nothing is freed, nor asked
 * of the allocator.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/cached.h"
#include "core/counted.h"
#include "core/export.h"
#include "core/extent.h"
#include "core/fault.h"
#include "core/sentence.h"
#include "core/text.h"
#include "os/compat.h"
#include "os/vma.h"

#define PAGE	4096ul
#define GATE_MS 20
#define LOOK	1 /* no extent has the memory, or it isn't as that says */
#define KNOWN_FLAGS                                                                                     \
	(PINL_WRITE | PINL_PIN | PINL_COOPERATIVE | PINL_STRICT | PINL_SEAL | PINL_STAGE |              \
	 PINL_KEEP_NAME)

int pl_lease_args(uintptr_t start, uintptr_t end, unsigned flags, const struct pinl_policy *p)
{
	if ((start | end) & (PAGE - 1))
		return pinl_set_error(
			-EINVAL, "[%#lx, %#lx) is not page aligned; leases are whole pages of %lu bytes",
			start, end, PAGE);
	if (start >= end)
		return pinl_set_error(-EINVAL, "[%#lx, %#lx) is empty or its end lies before its start",
				      start, end);
	if (end > PL_VA_MAX)
		return pinl_set_error(-EINVAL, "[%#lx, %#lx) reaches beyond user space (%#lx)", start,
				      end, PL_VA_MAX);
	if (flags & ~KNOWN_FLAGS)
		return pinl_set_error(-EINVAL, "unknown flags %#x", flags & ~KNOWN_FLAGS);
	if (!p || p->size < sizeof *p)
		return pinl_set_error(-EINVAL,
				      "a policy is needed, with size = sizeof(struct pinl_policy)");
	if ((unsigned)p->kind > PINL_FOLLOW || (unsigned)p->then > PINL_THEN_KILL)
		return pinl_set_error(-EINVAL, "unknown policy kind %d or outcome %d", p->kind, p->then);
	if (p->refuse & ~PINL_OPS_ALL)
		return pinl_set_error(-EINVAL, "pinl_policy.refuse has unknown bits %#x",
				      p->refuse & ~PINL_OPS_ALL);
	if (p->kind == PINL_REFUSE && !p->refuse)
		return pinl_set_error(
			-EINVAL,
			"REFUSE without an operation in pinl_policy.refuse refuses nothing; use KEEP");
	return 0;
}

/* A released lease has no claim any more: its addresses may be anybody's by now. */
static struct pinl_lease *overlapping_on_device(struct pinl_lease *l)
{
	struct pl_node *n = NULL;

	if (!l->cached || l->ctx->others)
		n = pl_index_first(&l->ctx->index, l->m.start, l->m.end);
	for (; n; n = pl_index_next(n, l->m.start, l->m.end)) {
		struct pinl_lease *other = (struct pinl_lease *)n;

		if (other->dev == l->dev && other->state != PINL_RELEASED &&
		    !(other->cached && l->cached))
			return other;
	}
	return NULL;
}

static bool moves_memory(const struct pinl_lease *l)
{
	return l->policy.kind == PINL_RECALL && pl_then_moves(l->policy.then) && !l->more->import;
}

/* SCRATCH and COPY put other memory at the addresses of one lease: a second device there would be left
 * on pages that nobody maps any more. */
static struct pinl_lease *moved_with_another(struct pinl_lease *l)
{
	struct pl_node *n = NULL;

	if (moves_memory(l) || l->ctx->others)
		n = pl_index_first(&l->ctx->index, l->m.start, l->m.end);
	for (; n; n = pl_index_next(n, l->m.start, l->m.end)) {
		struct pinl_lease *other = (struct pinl_lease *)n;

		if (other->state != PINL_RELEASED && (moves_memory(l) || moves_memory(other)))
			return other;
	}
	return NULL;
}

static int say_moved(void)
{
	return pinl_set_error(
		-EOPNOTSUPP,
		"another device has a lease on part of the range, and SCRATCH or COPY of one "
		"would take the memory from under the other; use FAIL for both, or map the "
		"file a second time");
}

static void publish_locked(struct pinl_lease *l, struct pinl_lease *near)
{
	struct pinl_ctx *ctx = l->ctx;

	pl_index_insert_near(&ctx->index, &l->node, near ? &near->node : NULL);
	if (l->more->inode) {
		struct pl_node *n = &pl_more(l)->file_node;

		n->start = l->on->mem.offset;
		n->end = l->on->mem.offset + (l->m.end - l->m.start);
		pl_index_insert(&l->more->inode->leases, n);
	}
	l->dev_next = l->dev->leases;
	l->dev_prev = &l->dev->leases;
	if (l->dev_next)
		l->dev_next->dev_prev = &l->dev_next;
	l->dev->leases = l;
	if (l->policy.kind == PINL_RECALL)
		atomic_fetch_or(
			&ctx->wants_hold,
			pl_policy_relevant_ops(l->on->mem.kind, l->on->mem.shared, l->flags & PINL_PIN));
	l->alone = l->cached && !moves_memory(l);
	ctx->others += !l->alone;
	ctx->counters.leases++;
	ctx->counters.mapped++;
	ctx->counters.bytes += l->m.end - l->m.start;
}

/* The cache waits itself, holding no lock. */
static int busy(const struct pinl_lease *l)
{
	return l->cached ? -EAGAIN : -EBUSY;
}

static int say_changing(const struct pinl_lease *l)
{
	return pinl_set_error(busy(l),
			      "a change of [%#lx, %#lx) or of the file under it is under way; try "
			      "again when it is done",
			      l->m.start, l->m.end);
}

/* Visible and busy since now_ns, or the reason why not. */
static int publish_once(struct pinl_lease *l, struct pinl_lease *near, uint64_t now_ns, bool *gated)
{
	struct pinl_ctx *ctx = l->ctx;
	struct pinl_lease *other;
	uint64_t other_id = 0;
	bool own = false;
	int err = 0;

	pthread_mutex_lock(&ctx->lock);
	if (l->by_extent && !pl_extent_take(l)) {
		pthread_mutex_unlock(&ctx->lock);
		return LOOK;
	}
	other = l->dev->foreign ? NULL : overlapping_on_device(l); /* its holder has looked itself */
	if (other) {
		err = -EEXIST;
		other_id = other->id;
	} else if (!l->dev->foreign && (other = moved_with_another(l))) {
		err = -EOPNOTSUPP;
		other_id = other->id;
		own = other->dev == l->dev; /* of its cache, else it overlaps on the device */
	} else if (l->dev->closing) {
		err = -ENODEV;
	} else if (!l->more->resumed && pl_change_pending_on(l)) {
		err = -EBUSY;
	} else if (!l->more->resumed && pl_gate_blocks(l)) {
		err = -EBUSY;
		*gated = true;
	} else {
		l->id = ++ctx->next_id;
		l->busy = true;
		l->inside_ns = now_ns;
		publish_locked(l, near);
		if (l->more->resumed)
			pl_change_join(l);
	}
	pthread_mutex_unlock(&ctx->lock);
	if (err == -EEXIST)
		pinl_set_error(err,
			       "[%#lx, %#lx) overlaps lease %lu on the same device; unmap that first",
			       l->m.start, l->m.end, (unsigned long)other_id);
	else if (err == -EOPNOTSUPP)
		err = own ? pl_say_in_use(&l->m, other_id) : say_moved();
	else if (err == -EBUSY)
		err = say_changing(l);
	else if (err)
		pinl_set_error(err, "the device is being closed");
	return err;
}

/* What was let go happens soon, as a rule; a program shouldn't have to try again for that. */
static int publish(struct pinl_lease *l, struct pinl_lease *near, uint64_t now_ns)
{
	uint64_t until = now_ns + GATE_MS * 1000000ull;
	struct timespec pause = {0, 100000};
	bool gated = true;
	int err = -EBUSY;

	while (err == -EBUSY && gated) {
		gated = false;
		err = publish_once(l, near, now_ns, &gated);
		if (err != -EBUSY || now_ns > until)
			break;
		if (gated)
			nanosleep(&pause, NULL);
		now_ns = pl_clock_ns();
	}
	return err;
}

/* To whoever could take it from outside. */
static int show_handle(struct pinl_lease *l)
{
	struct pinl_ctx *ctx = l->ctx;
	struct pinl_handle h = {.kind = PINL_HANDLE_NONE};
	int err = 0;

	l->dev->ops.handle(l->dev->priv, &l->dm, &h);
	if (h.kind == PINL_HANDLE_VFIO || h.kind == PINL_HANDLE_IOMMUFD)
		pl_translate(l, h.tag);
	for (int i = 0; i < ctx->n_sources && !err && !l->by_extent; i++)
		if ((l->on->watched & (1u << i)) && ctx->sources[i].ops->pinned)
			err = ctx->sources[i].ops->pinned(ctx->sources[i].priv, &l->on->mem, &h);
	return err;
}

static int pin(struct pinl_lease *l, struct pinl_addr *addrs)
{
	struct pinl_change *answered = NULL;
	struct pinl_ctx *ctx = l->ctx;
	struct pl_sentence why;
	int err =
		l->more->import ? pl_import_map(l, addrs) : l->dev->ops.map(l->dev->priv, &l->dm, addrs);

	if (err == -EOPNOTSUPP && (l->flags & PINL_STAGE))
		err = pl_lease_stage(l, addrs);
	if (err)
		return err;
	err = show_handle(l);
	if (err) {
		pl_sentence_keep(&why);
		pl_lease_stop(l, true);
		l->dev->ops.unmap(l->dev->priv, &l->dm);
		pl_import_detach(l);
		l->dev->ops.forget(l->dev->priv, &l->dm);
		pthread_mutex_lock(&ctx->lock);
		pl_import_settled(l);
		pthread_mutex_unlock(&ctx->lock);
		pl_sentence_again(&why);
		return err;
	}
	pl_orphan_mark(l);
	pl_event_keys(l);
	pthread_mutex_lock(&ctx->lock);
	l->busy = false;
	l->inside_ns = 0;
	pl_import_settled(l);
	if (l->jobs)
		pl_job_add(l, 0);
	pl_settle(ctx, &answered);
	pthread_cond_broadcast(pl_settled(l));
	pthread_mutex_unlock(&ctx->lock);
	pl_answer_all(ctx, answered);
	return 0;
}

/* A lease that asked for nothing may be unseen in part: said once, at the start. */
static void say_unseen(struct pinl_lease *l)
{
	unsigned relevant =
		pl_policy_relevant_ops(l->on->mem.kind, l->on->mem.shared, l->flags & PINL_PIN) &
		~pl_policy_refused_ops(&l->policy, l->on->coverage);
	struct pinl_event ev;

	for (int op = 0; op < PINL_OP_NR && !l->more->import && !(l->flags & PINL_COOPERATIVE); op++) {
		if (!(relevant & PINL_OPBIT(op)) || (l->on->coverage[op] & PINL_CAN_TELL))
			continue;
		pl_event_lease(l, PINL_EV_DEGRADED, NULL, &ev);
		ev.op = op;
		ev.err = -EOPNOTSUPP;
		pl_event_push(l->ctx, &ev);
	}
}

static int check_file_end(const struct pinl_lease *l)
{
	uint64_t last = l->on->mem.offset + (l->m.end - l->m.start);
	struct stat st;

	if (l->on->mem.fd < 0 || fstat(l->on->mem.fd, &st) ||
	    last <= (((uint64_t)st.st_size + PAGE - 1) & ~(PAGE - 1)))
		return 0;
	return pinl_set_error(
		-EINVAL,
		"the range reaches byte %lu of its file, which ends at %lu; lease less or grow it",
		(unsigned long)last, (unsigned long)st.st_size);
}

static void lease_init(struct pinl_lease *l, struct pinl_device *dev, uintptr_t start, uintptr_t end,
		       unsigned flags, const struct pinl_policy *policy)
{
	l->ctx = dev->ctx;
	l->dev = dev;
	l->flags = flags;
	l->policy = *policy;
	if (l->policy.grace_ms > dev->ctx->opts.ceiling_ms)
		l->policy.grace_ms = dev->ctx->opts.ceiling_ms;
	l->m = (struct pl_range){start, end};
	l->dm = (struct pinl_mapping){.start = start, .end = end, .flags = pl_lease_access(l)};
	l->owner_thread = pl_self_tid(dev->ctx);
	l->since_ns = pl_clock_ns();
}

struct pinl_lease *pl_lease_alloc(struct pinl_device *dev, uintptr_t start, uintptr_t end,
				  unsigned flags, const struct pinl_policy *policy)
{
	struct {
		struct pinl_lease lease;
		struct pl_more more;
	} *both = calloc(1, sizeof *both);

	if (!both)
		return NULL;
	lease_init(&both->lease, dev, start, end, flags, policy);
	pl_more_join(&both->lease, &both->more);
	both->lease.on = &both->more.ground;
	return &both->lease;
}

static struct pinl_lease *cached_alloc(struct pinl_device *dev, const struct pl_lease_how *how)
{
	struct pinl_lease *l;

	if (!pl_more_reserve(&dev->ctx->mores))
		return NULL;
	l = pl_slab_new(&dev->ctx->slab);
	if (!l) {
		pl_more_unreserve(&dev->ctx->mores);
		return NULL;
	}
	l->more = &pl_more_none;
	l->on = &pl_more_none.ground;
	lease_init(l, dev, how->start, how->end, how->flags, how->policy);
	l->in_slab = true;
	return l;
}

static int lease_new(const struct pl_lease_how *how, struct pinl_device *dev, bool look,
		     struct pinl_lease **out)
{
	uintptr_t start = how->start, end = how->end;
	unsigned flags = how->flags;
	struct pinl_lease *l = how->cached ? cached_alloc(dev, how)
					   : pl_lease_alloc(dev, start, end, flags, how->policy);
	int err;

	if (!l)
		return pinl_set_error(-ENOMEM, "out of memory for a lease");
	l->caller = how->caller;
	l->cached = how->cached;
	l->cookie = how->cookie;
	l->by_extent = how->cached && !look;
	if (l->by_extent) {
		*out = l;
		return 0;
	}
	if (l->in_slab)
		l->on = &pl_more(l)->ground;
	err = pl_inode_under(l, start, end);
	if (!err && (flags & PINL_WRITE) && !l->on->mem.writable)
		err = pinl_set_error(-EACCES,
				     "[%#lx, %#lx) is mapped read-only, and PINL_WRITE was asked for",
				     start, end);
	if (!err)
		err = check_file_end(l);
	if (err) {
		pl_lease_free(l);
		return err;
	}
	*out = l;
	return 0;
}

/* Than was found; what it can't be watched for is nothing to say of it then. */
static bool is_other_memory(const struct pinl_lease *l, int err)
{
	if (l->dev->foreign || l->more->import || l->by_extent)
		return false;
	return !pl_vma_same(l->ctx->maps, &l->on->mem, l->m.start, l->m.end) ||
	       (!err && !pl_lease_is_watched(l));
}

/* Of a published lease; on failure it is nobody's any more. */
static int make(struct pinl_lease *l, struct pinl_addr *addrs)
{
	int err =
		l->by_extent || (l->more->import && l->more->import->by_handle) ? 0 : pl_lease_watch(l);
	struct pl_sentence why;

	if (!err)
		err = pl_counted_settle(l);
	if (is_other_memory(l, err))
		err = pinl_set_error(busy(l),
				     "[%#lx, %#lx) was mapped anew while it was being leased; try again "
				     "when that is done",
				     l->m.start, l->m.end);
	if (!err && !l->dev->foreign)
		err = l->more->import ? pl_import_validate(l) : pl_lease_validate(l);
	if (!err && !l->dev->foreign)
		err = pl_lease_seal(l);
	if (!err)
		err = pin(l, addrs);
	if (err) {
		pl_sentence_keep(&why);
		pl_lease_withdraw(l);
		pl_lease_unwatch(l);
		pl_sentence_again(&why);
	}
	return err;
}

int pl_lease_start(struct pinl_lease *l, struct pinl_lease *near, struct pinl_addr *addrs)
{
	bool waited = pl_wait_applied(l->ctx);
	/* by an extent nothing else has taken time since it was taken up */
	int err = publish(l, near, l->by_extent && !waited ? l->since_ns : pl_clock_ns());

	if (!err)
		err = make(l, addrs);
	if (err)
		pl_lease_free(l);
	else
		say_unseen(l);
	return err;
}

static bool may_be_protected(int err)
{
	return err == -EFAULT || err == -EACCES || err == -EOPNOTSUPP;
}

static int map_once(struct pinl_device *dev, const struct pl_lease_how *how, bool look,
		    struct pinl_addr *addrs, struct pinl_lease **out)
{
	unsigned long cuts = how->cached && look ? pl_extent_cuts(dev->ctx) : 0;
	struct pinl_lease *l = NULL;
	struct pl_inside in;
	int err = lease_new(how, dev, look, &l);
	bool by_extent;

	if (err)
		return err;
	by_extent = l->by_extent;
	pl_inside_begin(dev->ctx, &in);
	err = pl_lease_start(l, how->near, addrs);
	if (by_extent && may_be_protected(err))
		err = LOOK;
	if (!err && how->cached && !by_extent)
		pl_extent_keep(l, cuts);
	pl_inside_end(dev->ctx, &in);
	if (!err)
		*out = l;
	return err;
}

int pl_lease_map(struct pinl_device *dev, const struct pl_lease_how *how, struct pinl_addr *addrs,
		 struct pinl_lease **out)
{
	int err = pl_lease_args(how->start, how->end, how->flags, how->policy);

	if (!err)
		do
			err = map_once(dev, how, err == LOOK, addrs, out);
		while (err == LOOK);
	return err;
}

int pinl_map_range(struct pinl_device *dev, uintptr_t start, uintptr_t end, unsigned flags,
		   const struct pinl_policy *policy, struct pinl_addr *addrs, struct pinl_lease **out)
{
	PL_CALL(call);
	struct pl_lease_how how = {.start = start,
				   .end = end,
				   .flags = flags,
				   .policy = policy,
				   .caller = __builtin_return_address(0)};

	if (!dev || !out)
		return pinl_set_error(-EINVAL, "a device and a place for the lease are needed");
	return pl_alive(dev->ctx) ? pl_lease_map(dev, &how, addrs, out) : pl_stale();
}

uint32_t pinl_lease_key(struct pinl_lease *lease)
{
	return __atomic_load_n(&lease->dm.key, __ATOMIC_RELAXED);
}

uint32_t pinl_lease_rkey(struct pinl_lease *lease)
{
	return __atomic_load_n(&lease->dm.rkey, __ATOMIC_RELAXED);
}

void pinl_lease_set_cookie(struct pinl_lease *lease, void *cookie)
{
	if (pl_alive(lease->ctx))
		lease->cookie = cookie;
}
