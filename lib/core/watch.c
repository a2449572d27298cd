/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a new lease stands on: the sources that watch its memory, what they can do together, and whether
 * that is enough for its policy (R4). Runs in the thread that maps, while the lease is visible and busy;
 * no lock. Invariant: a source watches only if it adds something to those before it, so a change is not
 * reported twice, and `coverage` is what the watching sources really can. What they can for the changes
 * of some processes only counts for no policy.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/ctx.h"
#include "core/text.h"
#include "os/compat.h"

/* What the source can do for this memory that no source before it can; false: nothing. */
static bool source_adds(struct pl_source *s, const struct pinl_lease *l, uint8_t can[PINL_OP_NR])
{
	bool adds = false;

	for (int op = 0; op < PINL_OP_NR; op++) {
		can[op] = s->ops->coverage(s->priv, &l->on->mem, op);
		adds |= (can[op] & ~l->on->coverage[op]) != 0;
	}
	return adds;
}

/* Of what it can, what nobody before it tells of. */
static unsigned only_by(const struct pinl_lease *l, const uint8_t can[PINL_OP_NR])
{
	unsigned ops = 0;

	for (int op = 0; op < PINL_OP_NR; op++)
		if ((can[op] & PINL_CAN_TELL) && !(l->on->coverage[op] & PINL_CAN_TELL))
			ops |= PINL_OPBIT(op);
	return ops;
}

/* Who doesn't refuse has no need of a source that can do nothing else. */
static bool is_needed(const struct pinl_lease *l, const uint8_t can[PINL_OP_NR])
{
	unsigned use = l->policy.kind == PINL_REFUSE ? ~0u : ~(unsigned)PINL_CAN_REFUSE;
	bool needed = false;

	for (int op = 0; op < PINL_OP_NR; op++)
		needed |= (can[op] & ~l->on->coverage[op] & use) != 0;
	return needed;
}

/* What it adds for changes by supervised processes. */
static bool source_supervises(struct pl_source *s, const struct pinl_lease *l, uint8_t can[PINL_OP_NR])
{
	bool adds = false;

	for (int op = 0; op < PINL_OP_NR; op++) {
		can[op] =
			s->ops->size > offsetof(struct pinl_source_ops, supervised) && s->ops->supervised
				? s->ops->supervised(s->priv, &l->on->mem, op)
				: 0;
		adds |= (can[op] & ~l->on->coverage[op]) != 0;
	}
	return adds;
}

bool pl_source_keeps_name(const struct pl_source *s, const struct pinl_memory *mem)
{
	return s->ops->size > offsetof(struct pinl_source_ops, keeps_name) && s->ops->keeps_name &&
	       s->ops->keeps_name(s->priv, mem);
}

static int say_unnamed(void)
{
	return pinl_set_error(
		-EOPNOTSUPP,
		"PINL_KEEP_NAME takes a pinleased of this release with its gate (`pinlease status` says "
		"why there is none), and a file on tmpfs, hugetlbfs, ext4 or XFS");
}

/* So is what this source alone tells of; before it tells of anything, or that would be another's news.
 */
static void set_counted(struct pinl_lease *l, unsigned ops)
{
	pthread_mutex_lock(&l->ctx->lock);
	pl_more(l)->ground.counted = ops;
	pthread_mutex_unlock(&l->ctx->lock);
}

static int watch_by(struct pl_source *s, struct pinl_lease *l, const uint8_t can[PINL_OP_NR])
{
	bool counts = s->ops == l->ctx->counting;
	int err;

	if (counts)
		set_counted(l, only_by(l, can));
	err = s->ops->watch(s->priv, &l->on->mem);
	if (err && counts)
		set_counted(l, 0);
	return err;
}

/* With the lock, because the lease is visible. */
static void add_coverage(struct pinl_lease *l, uint8_t to[PINL_OP_NR], const uint8_t can[PINL_OP_NR])
{
	pthread_mutex_lock(&l->ctx->lock);
	for (int op = 0; op < PINL_OP_NR; op++)
		to[op] |= can[op];
	pthread_mutex_unlock(&l->ctx->lock);
}

void pl_sources_suspend(struct pinl_ctx *ctx, uintptr_t start, uintptr_t end, int suspended)
{
	for (int i = 0; i < ctx->n_sources; i++)
		if (ctx->sources[i].ops->suspend)
			ctx->sources[i].ops->suspend(ctx->sources[i].priv, start, end, suspended);
}

void pl_lease_unwatch(struct pinl_lease *l)
{
	if (l->by_extent)
		return;
	for (int i = 0; i < l->ctx->n_sources; i++)
		if (l->on->watched & (1u << i))
			l->ctx->sources[i].ops->unwatch(l->ctx->sources[i].priv, &l->on->mem);
	pl_more(l)->ground.watched = 0;
}

/* The same kind of memory may have been mapped there after the watch began; that isn't watched. */
bool pl_lease_is_watched(const struct pinl_lease *l)
{
	for (int i = 0; i < l->ctx->n_sources; i++) {
		const struct pl_source *s = &l->ctx->sources[i];

		if ((l->on->watched & (1u << i)) &&
		    s->ops->size > offsetof(struct pinl_source_ops, watching) && s->ops->watching &&
		    !s->ops->watching(s->priv, &l->on->mem))
			return false;
	}
	return true;
}

int pl_lease_watch(struct pinl_lease *l)
{
	struct pinl_ctx *ctx = l->ctx;
	bool must = !(l->flags & PINL_COOPERATIVE) && (l->policy.kind != PINL_KEEP || l->cached);
	uint8_t can[PINL_OP_NR], supervised[PINL_OP_NR];
	bool resumed = l->more->resumed; /* its holder counts on the rest all the same */
	bool unnamed = (l->flags & PINL_KEEP_NAME) && !resumed;
	unsigned life = atomic_load(&ctx->counts_life);

	for (int i = 0; i < ctx->n_sources; i++) {
		struct pl_source *s = &ctx->sources[i];
		bool adds = source_adds(s, l, can);
		bool keeps = (l->flags & PINL_KEEP_NAME) && pl_source_keeps_name(s, &l->on->mem);
		int err;

		if (!source_supervises(s, l, supervised) && !adds && !keeps)
			continue;
		err = watch_by(s, l, can);
		if (err && ((keeps && !resumed) || (must && (is_needed(l, can) || err == -EBUSY))))
			return err;
		if (err)
			continue;
		unnamed &= !keeps;
		pl_more(l)->ground.watched |= 1u << i;
		source_supervises(s, l, supervised); /* this very lease, as is known by now */
		add_coverage(l, pl_more(l)->ground.coverage, can);
		add_coverage(l, pl_more(l)->ground.supervised, supervised);
	}
	if (l->on->counted && atomic_load(&ctx->counts_life) != life)
		return pinl_set_error(l->cached ? -EAGAIN : -EBUSY,
				      "who counts changes for [%#lx, %#lx) has just changed; try again",
				      l->m.start, l->m.end);
	return unnamed ? say_unnamed() : 0;
}

static long get_seals(void *arg)
{
	return syscall(SYS_fcntl, *(int *)arg, F_GET_SEALS);
}

static long add_seals(void *arg)
{
	return syscall(SYS_fcntl, *(int *)arg, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE) ? -errno
												 : 0;
}

static bool is_sealable(struct pinl_lease *l)
{
	long seals;

	if (!l->on->mem.is_memfd || !l->more->inode || l->more->inode->real < 0)
		return false;
	seals = pl_aside_run(l->ctx->aside, get_seals, &l->more->inode->real);
	return seals >= 0 && !(seals & F_SEAL_SEAL);
}

/* The rule, and the operations it fails for. */
static int say_missing(int err, const char *why, unsigned ops)
{
	char text[160];
	struct pl_text t = {text, sizeof text, 0};

	for (int op = 0; op < PINL_OP_NR; op++)
		if (ops & PINL_OPBIT(op))
			pl_text_add(&t, "%s%s", t.used ? ", " : "", pinl_op_name(op));
	return pinl_set_error(err, "%s: %s", why, text);
}

static bool can_be_taken_from_outside(const struct pinl_lease *l)
{
	for (int i = 0; i < l->ctx->n_sources; i++)
		if ((l->on->watched & (1u << i)) && l->ctx->sources[i].ops->pinned)
			return true;
	return false;
}

/* Whatever its policy: who doesn't hear of a change returns a registration of what was there before. */
static int validate_cached(const struct pinl_lease *l)
{
	unsigned missing =
		pl_policy_relevant_ops(l->on->mem.kind, l->on->mem.shared, l->flags & PINL_PIN);

	for (int op = 0; op < PINL_OP_NR; op++)
		if ((l->on->coverage[op] & PINL_CAN_TELL) || (l->flags & PINL_COOPERATIVE))
			missing &= ~PINL_OPBIT(op);
	return missing ? say_missing(
				 -EOPNOTSUPP,
				 "the cache must hear of changes, and no source here tells of these on "
				 "this memory (pinl_sources says why; PINL_COOPERATIVE accepts that "
				 "changes come by pinl_ calls only)",
				 missing)
		       : 0;
}

/* What is anonymous has no file to change. */
static enum pl_refuser refuser_of(const struct pinl_memory *mem)
{
	switch (mem->fs_magic) {
	case TMPFS_MAGIC:
	case HUGETLBFS_MAGIC:
	case EXT4_SUPER_MAGIC:
	case XFS_SUPER_MAGIC:
		return PL_GATE_REFUSES;
	case BTRFS_SUPER_MAGIC:
		return PL_FILES_REFUSES;
	}
	return PL_NO_REFUSER;
}

int pl_lease_validate(struct pinl_lease *l)
{
	struct pl_plan plan = {
		.policy = &l->policy,
		.flags = l->flags,
		.device_class = l->dev->info.device_class,
		.caps = l->dev->info.caps,
		.device_why = l->dev->info.why_pinned && (l->flags & PINL_PIN) ? l->dev->info.why_pinned
									       : l->dev->info.why,
		.kind = l->on->mem.kind,
		.shared = l->on->mem.shared,
		.sealable = (l->flags & PINL_SEAL) && is_sealable(l),
		.is_memfd = l->on->mem.is_memfd,
		.refuser = refuser_of(&l->on->mem),
		.can_copy = pl_swap_can_fill(l->ctx->swap),
		.can_kill = can_be_taken_from_outside(l),
		.coverage = l->on->coverage,
	};
	const char *why = "";
	int err;

	if ((l->flags & PINL_SEAL) && !plan.sealable)
		return pinl_set_error(-EOPNOTSUPP,
				      "PINL_SEAL needs a memfd made with MFD_ALLOW_SEALING");
	err = pl_policy_validate(&plan, &why);
	if (err && plan.missing)
		return say_missing(err, why, plan.missing);
	if (err && plan.device_why)
		return pinl_set_error(err, "%s (%s %s: %s)", why, "device", l->dev->given->name,
				      plan.device_why);
	if (err)
		return pinl_set_error(err, "%s", why);
	return l->cached ? validate_cached(l) : 0;
}

int pl_lease_seal(struct pinl_lease *l)
{
	static const uint8_t refused[PINL_OP_NR] = {[PINL_OP_TRUNCATE] = PINL_CAN_REFUSE,
						    [PINL_OP_PUNCH] = PINL_CAN_REFUSE,
						    [PINL_OP_REMOVE] = PINL_CAN_REFUSE};
	int fd, err;

	if (!(l->flags & PINL_SEAL))
		return 0;
	fd = pl_aside_open(l->ctx->aside, l->on->mem.fd, O_RDWR);
	err = fd < 0 ? fd : pl_aside_run(l->ctx->aside, add_seals, &fd);
	if (fd >= 0)
		pl_aside_close(l->ctx->aside, fd);
	if (err)
		return pinl_set_error(err, "can't seal the memfd: %s", strerror(-err));
	add_coverage(l, pl_more(l)->ground.coverage, refused);
	return 0;
}
