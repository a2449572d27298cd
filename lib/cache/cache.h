/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inside of the registration cache.
 *
 * A region is a registration with its lease. Its `gen` has a bit for "valid": whoever clears that bit
 * puts the region on the garbage list, once. Then nobody new can get it, and when all who have it have
 * put it, its lease is ended and the region is used again, with a gen that never was.
 *
 *	free --> valid, in the tree --(clear the bit: change, merge, evict)--> garbage --> parted -->
 *free
 *
 * Memory of regions and tree nodes is never given back while the cache lives, so a reader can look at
 * any of it at any time; what it read counts if gen (of a node: version) was the same before and after.
 *
 * Who has a region: the sum of `count` in every thread's table for it and of `refs`. Only its own thread
 * writes to a table. The other side, after clearing the bit, makes every thread pass a barrier
 * (membarrier(2)) before it sums up: a get that the sum misses then sees the cleared bit.
 *
 * Locks, in this order: cache->lock (the tree, the regions' lists, limits; held while a lease is made,
 * so no source thread takes it); ctx->lock; pl_tables_lock (which tables there are; nothing is called
 * under it, so changed() takes it). All with signals blocked (PL_CALL).
 */
#ifndef PL_CACHE_CACHE_H
#define PL_CACHE_CACHE_H

#include <pinlease/cache.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "cache/guess.h"
#include "cache/tree.h"
#include "core/cached.h"
#include "os/chunk.h"
#include "os/vma.h"

#define PL_CACHES 32
#define PL_HITS	  1024 /* of a thread's table: a power of two */
#define PL_PINS	  64
#define PL_CHUNKS 1024

#define PL_GEN_VALID 1u
#define PL_GEN_WRITE 2u /* the device may write */
#define PL_GEN_INDEX                                                                                    \
	4u /* may be found: who has read a guess before can come to one that is being made */
#define PL_GEN_STEP 8u

/* What a hit reads of it. */
struct pl_region {
	_Alignas(64) struct pinl_reg reg;
	_Atomic uint64_t gen;
	uint32_t number;      /* of its place */
	uint16_t cache;	      /* its slot */
	_Atomic uint8_t used; /* since the clock's hand was there */
};

/* The rest of it. */
struct pl_rest {
	atomic_long refs;
	struct pl_cached cached;
	struct pl_region *next;	   /* on garbage, or a list of the lock's holder */
	bool in_tree, taken, seen; /* seen: off the garbage list */
};

_Static_assert(sizeof(struct pl_region) == 64 && sizeof(struct pl_rest) == 32,
	       "a line, and half of one");

/* A chunk has so many regions, and then the rest of each. */
#define PL_CHUNK (PL_CHUNK_SIZE / (sizeof(struct pl_region) + sizeof(struct pl_rest)))
#define PL_RESTS (PL_CHUNK * sizeof(struct pl_region))

/* What a thread found last, and has now. */
struct pl_hit {
	uintptr_t start, end;
	struct pl_region *region;
	uint64_t gen;
};

struct pl_pin {
	struct pl_region *_Atomic region;
	_Atomic long count;
};

struct pl_table {
	_Atomic uint64_t id; /* of the cache; 0: it has ended */
	_Atomic uint64_t hits;
	struct pl_table *next, **prev; /* of the cache; pl_tables_lock */
	struct pl_pin pin[PL_PINS];
	struct pl_hit hit[PL_HITS];
};

#define PL_STATS(X)                                                                                     \
	X(misses)                                                                                       \
	X(registered)                                                                                   \
	X(failed)                                                                                       \
	X(merged)                                                                                       \
	X(invalidated)                                                                                  \
	X(evicted)                                                                                      \
	X(retried)                                                                                      \
	X(over_limit)                                                                                   \
	X(transient)                                                                                    \
	X(deregistered)                                                                                 \
	X(batches)                                                                                      \
	X(waited)

struct pl_stats {
#define PL_STAT_MEMBER(name) _Atomic uint64_t name;
	PL_STATS(PL_STAT_MEMBER)
};

#define pl_count(c, name) atomic_fetch_add_explicit(&(c)->stats.name, 1, memory_order_relaxed)

/* Addresses that were no huge page: how many misses there don't look again, then and next time. For
 * 128 GiB: two that share a place look each time. */
#define PL_SMALL 65536
struct pl_small {
	uintptr_t at;
	unsigned left, next;
};

struct pl_cache {
	/* Read by every hit, and not written to. */
	uint64_t id;
	uint8_t *alive;
	struct pinl_ctx *ctx;
	unsigned slot;
	int pagemap;
	_Atomic size_t top;	   /* no region from here on was ever used; a power of two, or 0 */
	struct pl_guesses guesses; /* begins with what they read */
	struct pl_tree tree;

	char after_hot[64];
	struct pinl_device *dev;
	struct pinl_cache_opts opts;
	struct pl_region *_Atomic garbage;
	struct pl_region *chunk[PL_CHUNKS]; /* set before `top` includes it, and then as it is */
	struct pl_stats stats;
	_Atomic uint64_t hits;	 /* of threads that have ended */
	struct pl_table *tables; /* pl_tables_lock */

	pthread_mutex_t lock; /* all below */
	pthread_cond_t ended; /* one of `ending` is through */
	size_t ending;	      /* threads that end some */
	struct pl_region *parted;
	size_t n_chunks, taken, regions, bytes, n_parted;
	size_t hand, sweep; /* of the clock: the region it is at; of who looks for a free one */
	size_t guessed,
		to_guess; /* from `guessed` to there, regions may not be in the table of guesses */
	struct pl_small small[PL_SMALL];

	pthread_t cleaner;
	_Atomic unsigned bell;	  /* a futex, rung for the cleaner */
	atomic_bool asleep, stop; /* asleep: until somebody rings */
};

struct pl_want {
	uintptr_t start, end; /* as asked */
	unsigned access;      /* PINL_WRITE or 0 */
	const void *caller;
};

static inline struct pl_rest *pl_rest(const struct pl_region *r)
{
	uintptr_t chunk = (uintptr_t)r & ~(PL_CHUNK_SIZE - 1);

	return (struct pl_rest *)(chunk + PL_RESTS) +
	       ((struct pl_region *)r - (struct pl_region *)chunk);
}

static inline struct pl_region *pl_region_of_rest(const struct pl_rest *rest)
{
	uintptr_t chunk = (uintptr_t)rest & ~(PL_CHUNK_SIZE - 1);

	return (struct pl_region *)chunk + (rest - (struct pl_rest *)(chunk + PL_RESTS));
}

static inline struct pl_region *pl_region_of(const struct pinl_reg *reg)
{
	return (struct pl_region *)((char *)reg - offsetof(struct pl_region, reg));
}

static inline unsigned pl_pin_index(const struct pl_region *r)
{
	return ((uintptr_t)r >> 6) % PL_PINS;
}

/* The gen of a registration that will do for this access, in the bits that matter. */
static inline uint64_t pl_gen_need(unsigned access)
{
	return PL_GEN_VALID | (access & PINL_WRITE ? PL_GEN_WRITE : 0);
}

/* Of one that may be found without the lock. */
static inline uint64_t pl_gen_found(unsigned access)
{
	return PL_GEN_INDEX | pl_gen_need(access);
}

/* The order of the two is the reader's: it raises the sequence before it takes the kernel's mark down.
 */
static inline bool pl_marked(struct pinl_ctx *ctx)
{
	const _Atomic(unsigned) *mark = atomic_load_explicit(&ctx->mark, memory_order_acquire);

	return (atomic_load_explicit(mark, memory_order_acquire) &
		atomic_load_explicit(&ctx->mark_bit, memory_order_relaxed)) ||
	       (atomic_load_explicit(&ctx->sequence, memory_order_acquire) & 1);
}

/* Something may have changed that the cache doesn't know of yet. */
static inline bool pl_changing(struct pinl_ctx *ctx)
{
	return pl_counts_behind(ctx) || pl_marked(ctx);
}

static inline void pl_count_hit(struct pl_table *t, struct pl_region *r)
{
	if (!atomic_load_explicit(&r->used, memory_order_relaxed))
		atomic_store_explicit(&r->used, 1, memory_order_relaxed);
	atomic_store_explicit(&t->hits, atomic_load_explicit(&t->hits, memory_order_relaxed) + 1,
			      memory_order_relaxed);
}

/* open.c, close.c */
extern struct pl_cache *pl_caches[PL_CACHES];
int pl_cache_of(struct pinl_device *dev, struct pl_cache **cache);
void pl_cache_free(struct pl_cache *c);
void pl_cache_close(struct pl_cache *c);

/* table.c */
extern pthread_mutex_t pl_tables_lock;
extern _Thread_local struct pl_table *pl_tables[PL_CACHES] __attribute__((tls_model("initial-exec")));
struct pl_table *pl_table_of(struct pl_cache *c); /* NULL: no memory, do without */
void pl_tables_part(struct pl_cache *c);
long pl_users(struct pl_cache *c, const struct pl_region *r);
uint64_t pl_table_hits(struct pl_cache *c);

/* get.c */
void pl_pin(struct pl_table *t, struct pl_region *r);
void pl_unpin(struct pl_table *t, struct pl_region *r);

/* miss.c */
int pl_cache_miss(struct pinl_device *dev, const struct pl_want *want, const struct pinl_reg **reg);

/* Somebody else is at it: asked again so often, and for so long. */
#define PL_PAUSE_NS 50000
#define PL_WAIT_NS  100000000ull

/* wait.c; in a PL_CALL. Every change that has happened is applied, and none is under way; or -EAGAIN. */
int pl_wait_settled(struct pl_cache *c);
/* What is registered and stays valid while what has been told of by now is applied, counted for the
 * caller; NULL: there is no such thing, or no need to wait. -EAGAIN as above. */
int pl_get_told(struct pl_cache *c, struct pl_table *t, const struct pl_want *want,
		struct pl_region **out);

/* huge.c: to the whole of the huge pages at both ends */
void pl_extend_huge(struct pl_cache *c, struct pl_range *range);

/* region.c; cache->lock held, but for kill */
struct pl_region *pl_region_new(struct pl_cache *c, uintptr_t start); /* NULL: no memory */
void pl_region_free(struct pl_cache *c, struct pl_region *r);
void pl_region_start(struct pl_region *r, const struct pl_range *range, unsigned access);
bool pl_region_kill(struct pl_region *r);   /* true: it was valid till now */
bool pl_region_cancel(struct pl_region *r); /* the same, but then it isn't garbage: it has no lease */
int pl_region_link(struct pl_cache *c, struct pl_region *r); /* into the index; -ENOMEM */
void pl_region_unlink(struct pl_cache *c, struct pl_region *r);

/*
 * Where the region that begins at an address is, if it isn't elsewhere: at two places in the half of all
 * that was added last, two in the one before, one in each of the next. Only a guess, so that its memory
 * can be on its way while the table of guesses is asked.
 */
#define PL_HOMES 6
static inline size_t pl_region_home(size_t top, uint64_t hash, unsigned k)
{
	static const uint8_t halves[PL_HOMES] = {1, 1, 2, 2, 3, 4};
	size_t half = top >> halves[k];
	uint64_t h = k == 1 || k == 3 ? hash * 0xc2b2ae3d27d4eb4full : hash;

	return half + (h >> (64 - __builtin_ctzl(half)));
}

static inline struct pl_region *pl_region_at(const struct pl_cache *c, size_t i)
{
	return &c->chunk[i / PL_CHUNK][i % PL_CHUNK];
}

/* evict.c; cache->lock held. The first two: true: something was ended, and the lock dropped. */
bool pl_make_room(struct pl_cache *c, size_t n); /* by what is n of those longest unused */
bool pl_keep_limits(struct pl_cache *c, const struct pl_range *range);
bool pl_lacks_room(struct pl_cache *c, const struct pl_range *range,
		   int err); /* and ending others could help */

/* clean.c */
int pl_barrier_prepare(void);
void pl_barrier_everywhere(void);	  /* every other thread has passed one since this was called */
size_t pl_clean(struct pl_cache *c);	  /* ends what nobody has; cache->lock held, dropped meanwhile */
size_t pl_clean_wait(struct pl_cache *c); /* or what another thread is about to end */
void pl_ring_bell(struct pl_cache *c, bool now);
void *pl_cleaner(void *cache);

#endif
