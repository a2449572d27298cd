/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Leases by handle: device memory that has no address here, or whose address doesn't matter. */
#include <errno.h>

#include "core/export.h"

#define PAGE 4096ul

/* Of a reference to the exporter, which is used up. */
static int map_handle(struct pinl_device *dev, struct pinl_exporter *e, uint64_t offset, uint64_t length,
		      unsigned flags, const struct pinl_policy *policy, const void *caller,
		      struct pinl_addr *addrs, struct pinl_lease **out)
{
	uint64_t start = e->base + offset;
	struct pinl_lease *l = pl_lease_alloc(dev, start, start + length, flags, policy);
	struct pinl_memory *mem;
	struct pl_inside in;
	int err;

	if (!l) {
		pl_exporter_put(e);
		return pinl_set_error(-ENOMEM, "out of memory for a lease");
	}
	mem = &pl_more(l)->ground.mem;
	mem->kind = PINL_MEM_DEVICE;
	mem->shared = mem->writable = 1;
	mem->start = start;
	mem->end = start + length;
	l->caller = caller;
	err = pl_import_new(l, e, offset, true);
	if (!err)
		err = pl_inode_of(l);
	if (err) {
		pl_lease_free(l);
		return err;
	}
	pl_inside_begin(dev->ctx, &in);
	err = pl_lease_start(l, NULL, addrs);
	pl_inside_end(dev->ctx, &in);
	if (!err)
		*out = l;
	return err;
}

static int check_handle(struct pinl_device *dev, uint64_t offset, uint64_t length, unsigned flags,
			const struct pinl_policy *policy, struct pinl_lease **out)
{
	if (!dev || !out)
		return pinl_set_error(-EINVAL, "a device and a place for the lease are needed");
	if (!pl_alive(dev->ctx))
		return pl_stale();
	if ((offset | length) & (PAGE - 1) || !length || offset + length < offset)
		return pinl_set_error(-EINVAL,
				      "%lu bytes at %lu are not whole pages of %lu bytes, at least one",
				      (unsigned long)length, (unsigned long)offset, PAGE);
	return pl_lease_args(0, PAGE, flags, policy);
}

int pinl_map_exporter(struct pinl_device *dev, struct pinl_exporter *e, uint64_t offset, uint64_t length,
		      unsigned flags, const struct pinl_policy *policy, struct pinl_addr *addrs,
		      struct pinl_lease **out)
{
	PL_CALL(call);
	int err = check_handle(dev, offset, length, flags, policy, out);

	if (err)
		return err;
	if (!e || e->ctx != dev->ctx)
		return pinl_set_error(-EINVAL, "the device and the exporter are not of one context");
	if (offset > e->length || length > e->length - offset)
		return pinl_set_error(-EINVAL, "%lu bytes at %lu are not inside of %s, which has %lu",
				      (unsigned long)length, (unsigned long)offset, e->name,
				      (unsigned long)e->length);
	pl_exporter_get(e);
	return map_handle(dev, e, offset, length, flags, policy, __builtin_return_address(0), addrs,
			  out);
}

int pinl_map_fd(struct pinl_device *dev, int fd, uint64_t offset, uint64_t length, unsigned flags,
		const struct pinl_policy *policy, struct pinl_addr *addrs, struct pinl_lease **out)
{
	PL_CALL(call);
	int err = check_handle(dev, offset, length, flags, policy, out);
	struct pinl_exporter *e;
	uint64_t at;

	if (!err)
		err = pl_exporter_find_fd(dev->ctx, fd, offset, length, &e, &at);
	if (err)
		return err;
	return map_handle(dev, e, at, length, flags, policy, __builtin_return_address(0), addrs, out);
}
