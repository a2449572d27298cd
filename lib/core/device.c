/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Devices: a backend's operations with defaults filled in, and the list of them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/ctx.h"

/* Filled in by lib/open.c, which knows the backends; the core includes none. */
extern void pl_device_ops_fill(const struct pinl_device_ops *ops, struct pinl_device_ops *out);

int pinl_device_open_ops(struct pinl_ctx *ctx, const struct pinl_device_ops *ops, const void *arg,
			 struct pinl_device **out)
{
	PL_CALL(call);
	struct pinl_device *dev;
	int err;

	if (!pl_alive(ctx))
		return pl_stale();
	dev = calloc(1, sizeof *dev);
	if (!dev)
		return pinl_set_error(-ENOMEM, "out of memory for a device");
	dev->ctx = ctx;
	dev->given = ops;
	pl_device_ops_fill(ops, &dev->ops);
	err = dev->ops.open(arg, &dev->info, &dev->priv);
	if (err) {
		free(dev);
		return err;
	}
	pthread_mutex_lock(&ctx->lock);
	dev->number = ++ctx->n_devices;
	dev->next = ctx->devices;
	ctx->devices = dev;
	pthread_mutex_unlock(&ctx->lock);
	*out = dev;
	return 0;
}

void *pinl_device_priv(struct pinl_device *dev, const struct pinl_device_ops *ops)
{
	return dev && dev->given == ops && pl_alive(dev->ctx) ? dev->priv : NULL;
}

/* A lease that nobody is ending, as a callback may be: ours to end now. */
static struct pinl_lease *left_on(struct pinl_device *dev)
{
	struct pinl_lease *l = dev->leases;

	while (l && !pl_lease_begin_end(l))
		l = l->dev_next;
	return l;
}

void pinl_device_close(struct pinl_device *dev)
{
	PL_CALL(call);
	struct pinl_ctx *ctx;
	struct pinl_lease *lease;

	if (!dev || !pl_alive(dev->ctx))
		return;
	ctx = dev->ctx;
	if (dev->cache)
		dev->cache_close(dev->cache);
	pthread_mutex_lock(&ctx->lock);
	dev->closing = true;
	while ((lease = left_on(dev)) || dev->enders) {
		if (!lease) { /* others are about to be through */
			pthread_cond_wait(&ctx->ended, &ctx->lock);
			continue;
		}
		pthread_mutex_unlock(&ctx->lock);
		pl_lease_end(lease, true);
		pthread_mutex_lock(&ctx->lock);
	}
	for (struct pinl_device **p = &ctx->devices; *p; p = &(*p)->next)
		if (*p == dev) {
			*p = dev->next;
			break;
		}
	pthread_mutex_unlock(&ctx->lock);
	dev->ops.close(dev->priv);
	free(dev);
}
