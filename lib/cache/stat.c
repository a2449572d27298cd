/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Figures by name. */
#include <errno.h>
#include <string.h>

#include "cache/cache.h"

static uint64_t regions(struct pl_cache *c)
{
	return c->regions;
}

static uint64_t bytes(struct pl_cache *c)
{
	return c->bytes;
}

static uint64_t parted(struct pl_cache *c)
{
	return c->n_parted;
}

#define READ(name)                                                                                      \
	static uint64_t name(struct pl_cache *c)                                                        \
	{                                                                                               \
		return atomic_load(&c->stats.name);                                                     \
	}
PL_STATS(READ)

static const struct {
	const char *name;
	uint64_t (*read)(struct pl_cache *c);
} figures[] = {
	{"hits", pl_table_hits},
#define ENTRY(name) {#name, name},
	PL_STATS(ENTRY){"regions", regions},
	{"bytes", bytes},
	{"parted", parted},
};

#define FIGURES (sizeof figures / sizeof *figures)

const char *pinl_cache_stat_name(unsigned i)
{
	return i < FIGURES ? figures[i].name : NULL;
}

int pinl_cache_stat(struct pinl_device *dev, const char *name, uint64_t *value)
{
	PL_CALL(call);
	struct pl_cache *c;
	size_t i = 0;

	if (!pl_alive(dev->ctx))
		return pl_stale();
	while (i < FIGURES && strcmp(figures[i].name, name))
		i++;
	if (i == FIGURES)
		return pinl_set_error(
			-ENOENT, "the cache has no figure \"%s\"; see pinl_cache_stat_name()", name);
	c = atomic_load(&dev->cache);
	if (c)
		pthread_mutex_lock(&c->lock);
	*value = c ? figures[i].read(c) : 0;
	if (c)
		pthread_mutex_unlock(&c->lock);
	return 0;
}
