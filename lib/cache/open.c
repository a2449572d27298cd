/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Making a device's cache. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache/cache.h"

#define FLAGS (PINL_PIN | PINL_COOPERATIVE | PINL_STRICT | PINL_SEAL | PINL_STAGE)

struct pl_cache *pl_caches[PL_CACHES];

static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t last_id;

static void defaults(struct pinl_device *dev, struct pinl_cache_opts *o)
{
	bool pins = dev->info.caps & PINL_DEVCAP_PIN;

	if (!o->flags && pins && o->policy.kind != PINL_FOLLOW)
		o->flags = PINL_PIN;
	if (!o->policy.size)
		o->policy = (struct pinl_policy){.size = sizeof o->policy,
						 .kind = o->flags & PINL_PIN ? PINL_KEEP : PINL_FOLLOW};
}

/* Without its size nobody knows what a policy says. */
static int check_policy(const struct pinl_policy *p)
{
	static const struct pinl_policy none;

	if (!p->size && memcmp(p, &none, sizeof none))
		return pinl_set_error(-EINVAL, "pinl_cache_opts.policy.size must be sizeof(struct "
					       "pinl_policy), or the policy all zero");
	return 0;
}

/* What every pinl_get() would say. */
static int check_follow(const struct pinl_device *dev, const struct pinl_cache_opts *o)
{
	if (o->policy.kind != PINL_FOLLOW ||
	    !(o->flags & PINL_PIN || dev->info.device_class != PINL_DEV_FAULTING))
		return 0;
	return pinl_set_error(-EOPNOTSUPP, "FOLLOW needs an on-demand device, and pinl_cache_opts.flags "
					   "without PINL_PIN; use KEEP or RECALL");
}

static int check_opts(struct pinl_device *dev, const struct pinl_cache_opts *given,
		      struct pinl_cache_opts *o)
{
	int err;

	memset(o, 0, sizeof *o);
	if (given && (given->size < sizeof(size_t) || given->size > 4096))
		return pinl_set_error(-EINVAL,
				      "pinl_cache_opts.size must be sizeof(struct pinl_cache_opts)");
	if (given)
		memcpy(o, given, given->size < sizeof *o ? given->size : sizeof *o);
	if (o->flags & ~FLAGS)
		return pinl_set_error(-EINVAL, "pinl_cache_opts.flags has unknown flags %#x",
				      o->flags & ~FLAGS);
	err = check_policy(&o->policy);
	if (err)
		return err;
	defaults(dev, o);
	err = pl_lease_args(4096, 8192, o->flags, &o->policy);
	return err ? err : check_follow(dev, o);
}

static int take_slot(struct pl_cache *c)
{
	int i = 0;

	pthread_mutex_lock(&pl_tables_lock);
	while (i < PL_CACHES && pl_caches[i])
		i++;
	if (i < PL_CACHES)
		pl_caches[i] = c;
	pthread_mutex_unlock(&pl_tables_lock);
	c->slot = i;
	return i < PL_CACHES ? 0 : pinl_set_error(-ENOSPC, "no more than %d caches", PL_CACHES);
}

void pl_cache_free(struct pl_cache *c)
{
	for (size_t i = 0; i < c->n_chunks; i++)
		pl_chunk_free(c->chunk[i]);
	pl_tree_end(&c->tree);
	pl_guesses_end(&c->guesses);
	if (c->pagemap >= 0)
		close(c->pagemap);
	pthread_mutex_lock(&pl_tables_lock);
	if (c->slot < PL_CACHES)
		pl_caches[c->slot] = NULL;
	pthread_mutex_unlock(&pl_tables_lock);
	pthread_mutex_destroy(&c->lock);
	pthread_cond_destroy(&c->ended);
	free(c);
}

/* The slot comes first, so that no other cache's is given back. */
static int start(struct pl_cache *c)
{
	int err = take_slot(c);

	if (!err)
		err = pl_barrier_prepare();
	if (err)
		return err;
	err = pl_tree_init(&c->tree);
	if (!err)
		err = pl_guesses_init(&c->guesses);
	if (err)
		return pinl_set_error(err, "out of memory for the cache");
	err = pl_thread_start(&c->cleaner, pl_cleaner, c);
	if (err)
		return pinl_set_error(err, "the cache can't start its thread: %s", strerror(-err));
	pthread_setname_np(c->cleaner, "pinl-cache");
	return 0;
}

/* open_lock held. */
static int make(struct pinl_device *dev, const struct pinl_cache_opts *given)
{
	struct pinl_cache_opts opts;
	struct pl_cache *c;
	int err = check_opts(dev, given, &opts);

	if (err)
		return err;
	c = calloc(1, sizeof *c);
	if (!c)
		return pinl_set_error(-ENOMEM, "out of memory for a cache");
	c->id = ++last_id;
	c->dev = dev;
	c->ctx = dev->ctx;
	c->alive = dev->ctx->alive;
	c->opts = opts;
	c->slot = PL_CACHES;
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->ended, NULL);
	c->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	err = start(c);
	if (err) {
		pl_cache_free(c);
		return err;
	}
	dev->cache_close = pl_cache_close;
	atomic_store(&dev->cache, c);
	return 0;
}

int pl_cache_of(struct pinl_device *dev, struct pl_cache **out)
{
	int err = 0;

	if (!atomic_load(&dev->cache)) {
		pthread_mutex_lock(&open_lock);
		err = atomic_load(&dev->cache) ? 0 : make(dev, NULL);
		pthread_mutex_unlock(&open_lock);
	}
	if (!err)
		*out = atomic_load(&dev->cache);
	return err;
}

int pinl_cache_open(struct pinl_device *dev, const struct pinl_cache_opts *opts)
{
	PL_CALL(call);
	int err;

	if (!dev)
		return pinl_set_error(-EINVAL, "a device is needed");
	if (!pl_alive(dev->ctx))
		return pl_stale();
	pthread_mutex_lock(&open_lock);
	err = atomic_load(&dev->cache)
		      ? pinl_set_error(-EEXIST,
				       "the device has its cache; open it before the first pinl_get()")
		      : make(dev, opts);
	pthread_mutex_unlock(&open_lock);
	return err;
}
