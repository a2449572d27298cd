/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * RDMA devices: each twice, for leases that pin and for those on demand (ODP), which work only if the
 * backend finds them right when it tries. It is asked by opening it for one means after the other, and
 * by a lease of a page of our own; nothing is sent anywhere else.
 */
#include "doctor.h"

#include <errno.h>
#include <infiniband/verbs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE	    4096ul
#define MAX_DEVICES 3

struct rdma {
	struct ibv_context *ctx;
	struct ibv_pd *pd;
};

static void rdma_close(void *priv)
{
	struct rdma *r = priv;

	if (r->pd)
		ibv_dealloc_pd(r->pd);
	if (r->ctx)
		ibv_close_device(r->ctx);
	free(r);
}

static struct rdma *rdma_open(struct ibv_device *device, char *why)
{
	struct rdma *r = calloc(1, sizeof(*r));

	errno = ENOMEM;
	if (r)
		r->ctx = ibv_open_device(device);
	if (r && r->ctx)
		r->pd = ibv_alloc_pd(r->ctx);
	if (r && r->pd)
		return r;
	snprintf(why, DOCTOR_WHY, "the RDMA device %s can't be opened: %s%s",
		 ibv_get_device_name(device), strerror(errno),
		 errno == EACCES ? "; it needs read and write on /dev/infiniband/uverbs*"
		 : errno == ENOENT
			 ? "; is there a /dev/infiniband/uverbs*, and libibverbs' provider for it?"
			 : "");
	if (r)
		rdma_close(r);
	return NULL;
}

static int open_as(struct doctor *d, struct rdma *r, unsigned means, unsigned flags,
		   struct pinl_device **dev)
{
	struct pinl_verbs_arg arg = {
		.size = sizeof(arg),
		.pd = r->pd,
		.access = IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE,
		.means = means,
		.flags = flags,
	};

	return pinl_device_open(d->ctx, "verbs", &arg, dev);
}

static bool works_by(struct doctor *d, struct rdma *r, unsigned means)
{
	struct pinl_device *dev;

	if (open_as(d, r, means, 0, &dev))
		return false;
	pinl_device_close(dev);
	return true;
}

/* A lease of one page: 0, or -errno with pinl_error(). */
static int maps(struct pinl_device *dev, unsigned flags, const struct pinl_policy *policy)
{
	void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uintptr_t at = (uintptr_t)page;
	struct pinl_lease *lease;
	int err;

	if (page == MAP_FAILED)
		return -ENOMEM;
	err = pinl_map_range(dev, at, at + PAGE, PINL_WRITE | flags, policy, NULL, &lease);
	if (!err)
		pinl_unmap_range(lease);
	munmap(page, PAGE);
	return err;
}

static int maps_on_demand(struct pinl_device *dev)
{
	struct pinl_policy keep = {.size = sizeof(keep), .kind = PINL_KEEP};

	return maps(dev, 0, &keep);
}

static bool copies(struct doctor *d, struct rdma *r)
{
	struct pinl_policy copy = {
		.size = sizeof(copy), .kind = PINL_RECALL, .then = PINL_THEN_COPY, .grace_ms = 1};
	struct pinl_device *dev;
	bool can;

	if (open_as(d, r, 0, PINL_VERBS_READ, &dev))
		return false;
	can = !maps(dev, PINL_PIN | PINL_COOPERATIVE, &copy);
	pinl_device_close(dev);
	return can;
}

/* The device's own reason, which stands at the end in brackets. */
static void keep_reason(char *buf, size_t len)
{
	const char *said = pinl_error(), *from = strstr(said, " (device verbs: "), *end;

	from = from ? from + strlen(" (device verbs: ") : said;
	end = from != said && from[strlen(from) - 1] == ')' ? from + strlen(from) - 1
							    : from + strlen(from);
	snprintf(buf, len, "%.*s", (int)(end - from), from);
}

static void open_pinned(struct doctor *d, struct ibv_device *ibv, const char *name)
{
	struct doctor_device *device = doctor_device_add(d, "verbs", true, name);
	struct rdma *r = device ? rdma_open(ibv, device->why) : NULL;

	if (!r)
		return;
	device->priv = r;
	device->close = rdma_close;
	if (open_as(d, r, 0, 0, &device->dev)) {
		snprintf(device->why, sizeof(device->why), "%s", pinl_error());
		return;
	}
	snprintf(device->found, sizeof(device->found),
		 "regions are taken back by %s%s%s, or by queue pairs that are given (QP)%s",
		 works_by(d, r, PINL_VERBS_REREG) ? "changing rights and domain (REREG), " : "",
		 works_by(d, r, PINL_VERBS_MW) ? "memory windows that the program binds (MW), " : "",
		 works_by(d, r, PINL_VERBS_DEREG) ? "deregistering (DEREG)" : "nothing else",
		 works_by(d, r, PINL_VERBS_REREG)
			 ? ""
			 : "; not by REREG, which this kernel or driver refuses");
	if (copies(d, r))
		device->copy = "PINL_VERBS_READ in pinl_verbs_arg.flags: a second pin, which counts "
			       "against RLIMIT_MEMLOCK, to read the pages back";
	if (device->copy)
		tool_append(device->found, sizeof(device->found), "; COPY with PINL_VERBS_READ");
	else
		tool_append(device->found, sizeof(device->found),
			    "; no COPY, also with PINL_VERBS_READ: %.*s",
			    (int)doctor_sentence_len(pinl_error()), pinl_error());
}

/* True: it is open; else pinl_error() says why not. */
static bool open_if_maps(struct doctor *d, struct doctor_device *device, unsigned flags)
{
	struct pinl_device *dev;

	if (open_as(d, device->priv, 0, flags, &dev))
		return false;
	if (!maps_on_demand(dev)) {
		device->dev = dev;
		return true;
	}
	keep_reason(device->why, sizeof(device->why));
	pinl_device_close(dev);
	return false;
}

static void open_on_demand(struct doctor *d, struct ibv_device *ibv, const char *name)
{
	struct doctor_device *device = doctor_device_add(d, "verbs", false, name);

	device = device && (device->priv = rdma_open(ibv, device->why)) ? device : NULL;
	if (!device)
		return;
	device->close = rdma_close;
	snprintf(device->why, sizeof(device->why), "it can't be opened, see above");
	if (open_if_maps(d, device, 0)) {
		snprintf(device->found, sizeof(device->found), "transfers of any place and length");
	} else if (open_if_maps(d, device, PINL_VERBS_WHOLE_PAGES)) {
		snprintf(device->found, sizeof(device->found), "whole pages only: %.300s", device->why);
	} else {
		tool_append(device->why, sizeof(device->why), "; lease with PINL_PIN");
		return;
	}
	device->why[0] = '\0';
}

static void open_device(struct doctor *d, struct ibv_device *ibv)
{
	const char *name = ibv_get_device_name(ibv);
	char full[40];

	snprintf(full, sizeof(full), "RDMA %.16s", name);
	open_pinned(d, ibv, full);
	tool_append(full, sizeof(full), " on demand");
	open_on_demand(d, ibv, full);
}

static void open_all(struct doctor *d)
{
	int n = 0;
	struct ibv_device **list = ibv_get_device_list(&n);
	char names[200] = "";

	for (int i = 0; i < n; i++) {
		tool_append(names, sizeof(names), "%s%s", i ? ", " : "", ibv_get_device_name(list[i]));
		if (i < MAX_DEVICES)
			open_device(d, list[i]);
		else
			tool_append(names, sizeof(names), " (not tried)");
	}
	if (list)
		ibv_free_device_list(list);
	if (n)
		doctor_here(d, "devices and memory", "RDMA", "%s", names);
	else
		doctor_missing(d, "devices and memory", "RDMA",
			       "no RDMA device is here: load the driver of yours; to try it without "
			       "one, soft-RoCE: rdma link add rxe0 type rxe netdev NAME");
	if (!n)
		doctor_device_missing(d, "verbs", "RDMA", "");
}

const struct doctor_backend doctor_rdma = {"verbs", open_all};
