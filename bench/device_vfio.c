/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * QEMU's edu devices behind an IOMMU. A transfer takes place 100 ms after it was started: under load
 * each device has one in flight, to a page of its own, from before the change until after it.
 */
#include "device.h"

#include <stdio.h>
#include <string.h>

#include "../tests/edu_rig.h"

#define SIZE	    (64 * KIB)
#define PLAIN_FIRST 0x8000000u /* above are the plain mappings */

struct board {
	struct edu edu;
	struct edu_part parts[EDU_MAX];
	char data[EDU_CHUNK];
	size_t plain;
};

/* The data is in the devices already when the lease is made. */
static void prepare(struct target *t)
{
	struct board *d = t->priv;

	memset(d->data, 'W', sizeof d->data);
	for (int i = 0; i < d->edu.n; i++)
		d->parts[i] = (struct edu_part){.buf = d->data, .len = sizeof d->data};
	edu_load(&d->edu, d->parts, d->edu.n);
}

static void launch(struct target *t, const struct pinl_addr *addrs)
{
	struct board *d = t->priv;

	for (int i = 0; i < d->edu.n; i++)
		d->parts[i].iova = addrs[i].addr;
	edu_launch(&d->edu, d->parts, d->edu.n);
}

static void land(struct target *t)
{
	struct board *d = t->priv;

	edu_land(&d->edu);
}

static int plain_map(struct target *t, char *at, size_t size, struct pinl_addr *first)
{
	struct board *d = t->priv;

	d->plain = size;
	*first = (struct pinl_addr){.addr = PLAIN_FIRST};
	return edu_map(&d->edu, at, PLAIN_FIRST, size);
}

static void plain_unmap(struct target *t)
{
	struct board *d = t->priv;

	must(edu_unmap(&d->edu, PLAIN_FIRST, d->plain), "unmapping");
}

static int open_device(struct rig *r, struct board *d, struct pinl_device **dev)
{
	static const struct pinl_iova_range own = {PLAIN_FIRST, EDU_OWN_LAST};
	struct pinl_vfio_arg type1 = {.size = sizeof type1,
				      .container = d->edu.fd,
				      .iova_first = EDU_IOVA_FIRST,
				      .iova_last = PLAIN_FIRST - 1};
	struct pinl_iommufd_arg iommufd = {.size = sizeof iommufd,
					   .iommufd = d->edu.fd,
					   .ioas_id = d->edu.ioas,
					   .iova_first = EDU_IOVA_FIRST,
					   .iova_last = PLAIN_FIRST - 1,
					   .own = &own,
					   .nr_own = 1};

	return d->edu.space == EDU_TYPE1 ? pinl_device_open(r->ctx, "vfio", &type1, dev)
					 : pinl_device_open(r->ctx, "iommufd", &iommufd, dev);
}

static void one(const struct bench *b, struct rig *r, struct board *d, const char *name)
{
	struct target t = {.name = name,
			   .rig = r,
			   .flags = PINL_WRITE | PINL_PIN,
			   .size = SIZE,
			   .priv = d,
			   .prepare = prepare,
			   .launch = launch,
			   .land = land,
			   .plain_map = plain_map,
			   .plain_unmap = plain_unmap};

	if (open_device(r, d, &t.dev)) {
		left_out(b, name, pinl_error());
		return;
	}
	device_revoke(b, &t);
	device_map(b, &t);
	pinl_device_close(t.dev);
}

static void measure(const struct bench *b, enum edu_space space, const char *what)
{
	static struct board d;
	char why[300];
	struct rig r;

	if (edu_missing(space)) {
		snprintf(why, sizeof why, "missing: %s", edu_missing(space));
		left_out(b, what, why);
		return;
	}
	rig_open(b, &r, false);
	edu_open(&d.edu, space);
	one(b, &r, &d, space == EDU_TYPE1 ? "vfio" : "iommufd");
	rig_close(&r);
	edu_close(&d.edu);
}

void group_device_vfio(const struct bench *b)
{
	measure(b, EDU_TYPE1, "leases on VFIO containers");
}

void group_device_iommufd(const struct bench *b)
{
	measure(b, EDU_IOMMUFD, "leases on iommufd");
}
