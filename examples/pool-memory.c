/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Memory of which the kernel hears nothing: a card with memory of its own, whose allocator frees blocks
 *and gives out the same addresses again with other memory behind them, as those of GPUs do. No system
 *call is made, so nothing but the allocator can say that a registration has become wrong; it does so by
 * pinl_invalidate(), and pinl_get() then never finds one of a block that was freed.
 *
 * usage: pool-memory [forget]: with "forget" the allocator says nothing, and the network card sends what
 * has become somebody else's.
 *
 * Prints:
 *	2000 blocks at 4 addresses: 0 were sent from what was freed
 */
#define _GNU_SOURCE 1
#include <errno.h>
#include <pinlease/cache.h>
#include <pinlease/device.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE   4096ul
#define BLOCKS 4  /* addresses to give out, a page each */
#define CELLS  64 /* pages that the card has */
#define ROUNDS 2000

static void check(int err)
{
	if (!err)
		return;
	fprintf(stderr, "pool-memory: %s: %s\n", strerror(-err), pinl_error());
	exit(1);
}

/* ------------------------------------------------------------------- the card and its allocator -- */

static unsigned cell[CELLS]; /* what is in each page: only the card gets there */

static struct pool {
	char *at;	    /* addresses without memory: they only have to be nobody else's */
	int behind[BLOCKS]; /* which cell; -1: the block is free */
	int next_cell;
	struct pinl_ctx *ctx; /* NULL: it tells nobody */
} pool;

static void pool_open(struct pinl_ctx *ctx)
{
	pool.at = mmap(NULL, BLOCKS * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (pool.at == MAP_FAILED)
		check(-errno);
	memset(pool.behind, -1, sizeof(pool.behind));
	pool.ctx = ctx;
}

static size_t number(const void *block)
{
	return ((const char *)block - pool.at) / PAGE;
}

/* The first free address, with another cell behind it than last time. */
static void *pool_alloc(unsigned content)
{
	size_t i = 0;

	while (i < BLOCKS - 1 && pool.behind[i] >= 0)
		i++;
	pool.behind[i] = pool.next_cell++ % CELLS;
	cell[pool.behind[i]] = content;
	return pool.at + i * PAGE;
}

static int give_back(void *block)
{
	cell[pool.behind[number(block)]] = 0; /* the next one's, from here on */
	pool.behind[number(block)] = -1;
	return 0;
}

/* Registrations end first; until give_back() has returned none is made. */
static void pool_free(void *block)
{
	if (pool.ctx)
		check(pinl_invalidate(pool.ctx, block, PAGE, give_back, block));
	else
		give_back(block);
}

/* ------------------------------------------------------------------------------ the network card -- */

/* It is told where in the other card a block is when that is registered, and asks no more. */
struct registered {
	int cell, stopped;
};

static int nic_open(const void *arg, struct pinl_device_info *info, void **dev)
{
	(void)arg;
	*info = (struct pinl_device_info){.device_class = PINL_DEV_REVOCABLE,
					  .caps = PINL_DEVCAP_ONDEMAND};
	*dev = NULL;
	return 0;
}

static int nic_map(void *dev, struct pinl_mapping *m, struct pinl_addr *addrs)
{
	struct registered *r = calloc(1, sizeof(*r));

	(void)dev;
	if (!r)
		return pinl_set_error(-ENOMEM, "out of memory");
	r->cell = pool.behind[number((void *)m->start)];
	m->priv = r;
	if (addrs)
		addrs[0].addr = (uintptr_t)r;
	return 0;
}

static int nic_stop(void *dev, struct pinl_mapping *m)
{
	(void)dev;
	((struct registered *)m->priv)->stopped = 1;
	return 0;
}

static int nic_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns)
{
	(void)dev;
	(void)m;
	(void)deadline_ns;
	return 0; /* what it sends it sends in one step */
}

static void nic_unmap(void *dev, struct pinl_mapping *m)
{
	(void)dev;
	(void)m;
}

static void nic_forget(void *dev, struct pinl_mapping *m)
{
	(void)dev;
	free(m->priv);
}

static const struct pinl_device_ops nic = {
	.size = sizeof(nic),
	.name = "nic",
	.open = nic_open,
	.map = nic_map,
	.stop = nic_stop,
	.drain = nic_drain,
	.unmap = nic_unmap,
	.forget = nic_forget,
};

static unsigned send_block(struct pinl_device *dev, void *block)
{
	const struct pinl_reg *reg;
	const struct registered *r;
	unsigned sent;

	check(pinl_get(dev, block, PAGE, 0, &reg));
	r = (const struct registered *)(uintptr_t)reg->addr;
	sent = r->stopped ? 0 : cell[r->cell];
	pinl_put(reg);
	return sent;
}

/* ------------------------------------------------------------------------------------ the program -- */

static int rounds(struct pinl_device *dev)
{
	void *block[BLOCKS] = {0};
	int wrong = 0;

	for (unsigned i = 1; i <= ROUNDS; i++) {
		void **b = &block[rand() % BLOCKS];

		if (*b)
			pool_free(*b);
		*b = pool_alloc(i);
		wrong += send_block(dev, *b) != i;
	}
	return wrong;
}

int main(int argc, char **argv)
{
	int tells = argc < 2 || strcmp(argv[1], "forget"), wrong;
	struct pinl_cache_opts opts = {.size = sizeof(opts), .max_merge = 1, .no_huge = 1};
	struct pinl_opts how = {.size = sizeof(how), .summary_fd = -1};
	struct pinl_device *dev;
	struct pinl_ctx *ctx;

	opts.policy = (struct pinl_policy){
		.size = sizeof(opts.policy), .kind = PINL_RECALL, .then = PINL_THEN_FAIL};
	check(pinl_open(&how, &ctx));
	check(pinl_device_open_ops(ctx, &nic, NULL, &dev));
	check(pinl_cache_open(dev, &opts));
	pool_open(tells ? ctx : NULL);
	wrong = rounds(dev);
	printf("%d blocks at %d addresses: %d were sent from what was freed\n", ROUNDS, BLOCKS, wrong);
	pinl_close(ctx);
	return tells && wrong ? 1 : 0;
}
