/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Ending what is out of the cache, many at a time: one barrier for all, and then the device lets go of
 * those that nobody has. The cleaner does it a millisecond after the first has come, so that a program
 * that frees much pays for one wakeup and one barrier; a miss does it at once when it needs the room.
 */
#include <errno.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "cache/cache.h"

#define ROUND_NS   1000000
#define MAX_ROUNDS 20 /* with nothing to do before it goes to sleep */

int pl_barrier_prepare(void)
{
	if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0))
		return pinl_set_error(-ENOSYS,
				      "the cache needs membarrier(2), which is forbidden here, most "
				      "likely by a container's seccomp filter: allow it there");
	return 0;
}

void pl_barrier_everywhere(void)
{
	syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
}

/* ---------------------------------------------------------------------------------- the cleaning -- */

/* cache->lock held. */
static void collect_garbage(struct pl_cache *c)
{
	struct pl_region *r = atomic_exchange(&c->garbage, NULL), *next;

	for (; r; r = next) {
		next = pl_rest(r)->next;
		pl_region_unlink(c, r);
		pl_rest(r)->next = c->parted;
		c->parted = r;
		c->n_parted++;
	}
}

static void note_used(struct pl_region *r)
{
	if (pl_rest(r)->seen || !r->reg.lease)
		return;
	pl_rest(r)->seen = true;
	pl_cached_used(r->reg.lease);
}

/* Of those parted, what nobody has. */
static struct pl_region *take_unused(struct pl_cache *c)
{
	struct pl_region **p = &c->parted, *ready = NULL;

	while (*p) {
		struct pl_region *r = *p;

		if (pl_users(c, r)) {
			note_used(r);
			p = &pl_rest(r)->next;
			continue;
		}
		*p = pl_rest(r)->next;
		c->n_parted--;
		pl_rest(r)->next = ready;
		ready = r;
	}
	return ready;
}

static void over(struct pl_cache *c, struct pl_region *r)
{
	if (r->reg.lease) {
		c->regions--;
		c->bytes -= r->reg.end - r->reg.start;
		pl_count(c, deregistered);
	}
	pl_region_free(c, r);
}

size_t pl_clean(struct pl_cache *c)
{
	struct pl_region *ready, *r;
	size_t n = 0;

	collect_garbage(c);
	if (!c->parted)
		return 0;
	pl_barrier_everywhere();
	ready = take_unused(c);
	if (!ready)
		return 0;
	c->ending++;
	pthread_mutex_unlock(&c->lock);
	for (r = ready; r; r = pl_rest(r)->next)
		pinl_unmap_range(r->reg.lease);
	pthread_mutex_lock(&c->lock);
	for (; (r = ready); n++) {
		ready = pl_rest(r)->next;
		over(c, r);
	}
	c->ending--;
	pthread_cond_broadcast(&c->ended);
	pl_count(c, batches);
	return n;
}

size_t pl_clean_wait(struct pl_cache *c)
{
	size_t n = pl_clean(c);

	if (n || !c->ending)
		return n;
	pthread_cond_wait(&c->ended, &c->lock);
	return 1;
}

/* ----------------------------------------------------------------------------------- the cleaner -- */

/* ctx->lock may be held. Who pushed garbage before comes too late for the cleaner's last look, or sees
 * that it is asleep. */
void pl_ring_bell(struct pl_cache *c, bool now)
{
	if (!now && !atomic_load(&c->asleep))
		return;
	atomic_store(&c->asleep, false);
	atomic_fetch_add(&c->bell, 1);
	syscall(SYS_futex, &c->bell, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void wait_bell(struct pl_cache *c, unsigned seen, bool asleep)
{
	struct timespec round = {0, ROUND_NS};

	syscall(SYS_futex, &c->bell, FUTEX_WAIT_PRIVATE, seen, asleep ? NULL : &round, NULL, 0);
}

void *pl_cleaner(void *arg)
{
	struct pl_cache *c = arg;
	int rounds = 0;

	while (!atomic_load(&c->stop)) {
		unsigned seen = atomic_load(&c->bell);
		size_t n;

		pthread_mutex_lock(&c->lock);
		n = pl_clean(c);
		pthread_mutex_unlock(&c->lock);
		rounds = n ? 0 : rounds + 1;
		if (rounds < MAX_ROUNDS) {
			wait_bell(c, seen, false);
			continue;
		}
		atomic_store(&c->asleep, true);
		if (!atomic_load(&c->garbage) && !atomic_load(&c->stop))
			wait_bell(c, seen, true);
		atomic_store(&c->asleep, false);
		rounds = 0;
	}
	return NULL;
}
