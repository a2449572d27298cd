/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Opening an RDMA device: what the program asks for, and of that what works here. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "backend/verbs_dev.h"
#include "backend/verbs_probe.h"
#include "os/errname.h"
#include "os/forked.h"

#define MEANS (PINL_VERBS_REREG | PINL_VERBS_DEREG | PINL_VERBS_QP | PINL_VERBS_MW)
#define FLAGS (PINL_VERBS_WHOLE_PAGES | PINL_VERBS_READ)
#define RIGHTS                                                                                          \
	(IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC | IBV_ACCESS_REMOTE_READ |                  \
	 IBV_ACCESS_RELAXED_ORDERING)

static int check_arg(const struct pinl_verbs_arg *arg)
{
	if (!arg || arg->size < sizeof *arg || !arg->pd)
		return pinl_set_error(-EINVAL,
				      "device verbs needs a struct pinl_verbs_arg with size and pd set");
	if (arg->access & IBV_ACCESS_MW_BIND)
		return pinl_set_error(
			-EOPNOTSUPP,
			"a memory region with windows of the program's own bound to it can't be "
			"taken back by the library; leave out IBV_ACCESS_MW_BIND, and see "
			"PINL_VERBS_MW");
	if (arg->access & ~RIGHTS)
		return pinl_set_error(-EINVAL,
				      "pinl_verbs_arg.access %#x has bits other than "
				      "IBV_ACCESS_REMOTE_READ, _WRITE, _ATOMIC and RELAXED_ORDERING",
				      arg->access);
	if ((arg->means & ~MEANS) || (arg->flags & ~FLAGS))
		return pinl_set_error(-EINVAL, "pinl_verbs_arg has unknown means %#x or flags %#x",
				      arg->means & ~MEANS, arg->flags & ~FLAGS);
	if ((arg->means & PINL_VERBS_MW) && (arg->flags & PINL_VERBS_READ))
		return pinl_set_error(-EINVAL, "PINL_VERBS_MW and PINL_VERBS_READ don't go together: a "
					       "COPY would need a window that nobody has bound");
	if ((arg->means & PINL_VERBS_QP) && (!arg->n_qps || !arg->qps))
		return pinl_set_error(-EINVAL,
				      "PINL_VERBS_QP needs the queue pairs in pinl_verbs_arg.qps");
	for (unsigned i = 0; arg->qps && i < arg->n_qps; i++)
		if (!arg->qps[i] || arg->qps[i]->context != arg->pd->context)
			return pinl_set_error(
				-EINVAL, "pinl_verbs_arg.qps[%u] is not of the context of its pd", i);
	return 0;
}

/* The most specific first: a window is asked for only by programs that bind it. */
static int choose_means(struct pl_verbs *d, const struct pinl_verbs_arg *arg,
			const struct pl_verbs_found *found)
{
	static const unsigned order[] = {PINL_VERBS_MW, PINL_VERBS_REREG, PINL_VERBS_DEREG,
					 PINL_VERBS_QP};
	unsigned from = arg->means ? arg->means : PINL_VERBS_REREG | PINL_VERBS_DEREG;

	from &= found->means | PINL_VERBS_QP;
	for (size_t i = 0; !d->means && i < sizeof order / sizeof *order; i++)
		d->means = from & order[i];
	if (d->means)
		return 0;
	return pinl_set_error(
		-EOPNOTSUPP,
		"this RDMA device doesn't take memory regions back by %s: a self-test found "
		"it; leave pinl_verbs_arg.means 0 to use what works",
		arg->means & PINL_VERBS_MW ? "PINL_VERBS_MW" : "PINL_VERBS_REREG");
}

static int take_fd(struct pl_verbs *d, int given)
{
	int err;

	d->uverbs.fd = fcntl(given, F_DUPFD_CLOEXEC, 0);
	err = d->uverbs.fd < 0 ? -errno : pl_forked_add(d->uverbs.fd);
	if (err)
		pinl_set_error(err, "can't duplicate the RDMA device's descriptor: %s%s", strerror(-err),
			       err == -EMFILE ? "; raise ulimit -n" : "");
	return err;
}

static int take_qps(struct pl_verbs *d, const struct pinl_verbs_arg *arg)
{
	if (d->means != PINL_VERBS_QP)
		return 0;
	d->qps = calloc(arg->n_qps, sizeof *d->qps);
	if (!d->qps)
		return pinl_set_error(-ENOMEM, "out of memory for a device");
	for (; d->n_qps < arg->n_qps; d->n_qps++)
		d->qps[d->n_qps] = arg->qps[d->n_qps]->handle;
	return 0;
}

static int make_aside(struct pl_verbs *d, struct ibv_context *ctx)
{
	if (d->means != PINL_VERBS_REREG)
		return 0;
	d->aside = ibv_alloc_pd(ctx);
	return d->aside ? 0
			: pinl_set_error(-errno, "can't make a protection domain: %s", strerror(errno));
}

void pl_verbs_close(void *dev)
{
	struct pl_verbs *d = dev;
	struct pl_verbs_map *u;

	pl_verbs_settle(d);
	while ((u = d->left)) {
		d->left = u->next;
		free(u);
	}
	pl_readback_close(&d->readback);
	if (d->aside)
		ibv_dealloc_pd(d->aside);
	pl_forked_close(d->uverbs.fd);
	pthread_mutex_destroy(&d->lock);
	free(d->qps);
	free(d);
}

static const char *why_pinned(const struct pl_verbs *d)
{
	if (d->readback.why_not)
		return d->readback.why_not;
	if (d->readback.pins)
		return "a pinned memory region gets other pages only with new keys, for COPY; SCRATCH "
		       "is for leases without PINL_PIN, where the device has on-demand regions (ODP)";
	return "a pinned memory region keeps its pages and can't be read back; COPY needs the device "
	       "opened with PINL_VERBS_READ, and SCRATCH is for leases without PINL_PIN, where the "
	       "device has on-demand regions (ODP)";
}

static void fill(struct pl_verbs *d, const struct pinl_verbs_arg *arg,
		 const struct pl_verbs_found *found)
{
	d->uverbs = (struct pl_uverbs){-1, found->driver};
	d->given = arg->pd;
	d->access = arg->access;
	d->asks = found->asks;
	d->odp = found->odp_bytes || (found->odp && (arg->flags & PINL_VERBS_WHOLE_PAGES));
	pthread_mutex_init(&d->lock, NULL);
}

static void tell(const struct pl_verbs *d, const struct pl_verbs_found *found,
		 struct pinl_device_info *info)
{
	info->device_class = d->odp ? PINL_DEV_FAULTING : PINL_DEV_REVOCABLE;
	info->caps = PINL_DEVCAP_PIN | (d->odp ? PINL_DEVCAP_ONDEMAND | PINL_DEVCAP_FOLLOWS : 0) |
		     (d->readback.pins ? PINL_DEVCAP_READ | PINL_DEVCAP_REKEYS : 0);
	info->why = d->odp ? NULL : found->why_no_odp;
	info->why_pinned = why_pinned(d);
}

int pl_verbs_open(const void *given, struct pinl_device_info *info, void **out)
{
	const struct pinl_verbs_arg *arg = given;
	struct pl_verbs_found found;
	struct pl_verbs *d;
	int err = check_arg(arg);

	if (!err)
		err = pl_verbs_probe(arg->pd->context->device, arg->access, &found);
	if (err)
		return err;
	d = calloc(1, sizeof *d);
	if (!d)
		return pinl_set_error(-ENOMEM, "out of memory for a device");
	fill(d, arg, &found);
	err = choose_means(d, arg, &found);
	if (!err)
		err = take_fd(d, arg->pd->context->cmd_fd);
	if (!err)
		err = take_qps(d, arg);
	if (!err)
		err = make_aside(d, arg->pd->context);
	if (err) {
		pl_verbs_close(d);
		return err;
	}
	if (arg->flags & PINL_VERBS_READ)
		pl_readback_open(&d->readback, "without PINL_VERBS_READ");
	tell(d, &found, info);
	*out = d;
	return 0;
}
