/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: a call that ends something does nothing and can't fail; every other call answers
 * -EOPNOTSUPP with a sentence and leaves its outputs alone. The core therefore never tests for NULL.
 */
#include "backend/default_ops.h"

#include <errno.h>

static int no_open(const void *arg, struct pinl_device_info *info, void **dev)
{
	return pinl_set_error(-EOPNOTSUPP,
			      "this kind of device can't be opened: its backend has no open");
}

static void no_close(void *dev)
{
}

static int no_map(void *dev, struct pinl_mapping *m, struct pinl_addr *addrs)
{
	return pinl_set_error(-EOPNOTSUPP, "this device can't map memory");
}

static void no_unmap(void *dev, struct pinl_mapping *m)
{
}

static int no_stop(void *dev, struct pinl_mapping *m)
{
	return pinl_set_error(-EOPNOTSUPP,
			      "this device can't be stopped: only its holder can end its I/O");
}

static int no_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns)
{
	return pinl_set_error(-EOPNOTSUPP, "this device can't tell when its transfers have ended");
}

static int no_read(void *dev, struct pinl_mapping *m, size_t offset, size_t len, void *buf)
{
	return pinl_set_error(-EOPNOTSUPP, "the memory this device holds can't be read back");
}

static void no_drop(void *dev, struct pinl_mapping *m)
{
}

static void no_forget(void *dev, struct pinl_mapping *m)
{
}

static int no_retarget(void *dev, struct pinl_mapping *m)
{
	return pinl_set_error(-EOPNOTSUPP, "this device can't be given other pages at the same address");
}

static int no_invalidate(void *dev, struct pinl_mapping *m, uintptr_t start, uintptr_t end)
{
	return pinl_set_error(-EOPNOTSUPP, "this device can't fault: its entries can't be invalidated");
}

static int no_protect(void *dev, struct pinl_mapping *m, uintptr_t start, uintptr_t end)
{
	return pinl_set_error(-EOPNOTSUPP, "this device's pages can't be write-protected");
}

static int no_dirty(void *dev, struct pinl_mapping *m, uintptr_t start, uintptr_t end, uint8_t *dirty)
{
	return pinl_set_error(-EOPNOTSUPP, "this device doesn't track which pages it wrote");
}

static void no_handle(void *dev, const struct pinl_mapping *m, struct pinl_handle *handle)
{
}

static int no_import(void *dev, struct pinl_mapping *m, const struct pinl_import *from,
		     struct pinl_addr *addrs)
{
	return pinl_set_error(-EOPNOTSUPP, "this device can't map memory of another device");
}

static int no_dummy(void *dev, struct pinl_mapping *m, void *pages, size_t len)
{
	return pinl_set_error(-EOPNOTSUPP, "this device can't be given a dummy page");
}

static int always_holds(void *dev, const struct pinl_mapping *m)
{
	return 1;
}

const struct pinl_device_ops pl_default_device_ops = {
	.size = sizeof(struct pinl_device_ops),
	.name = "default",
	.open = no_open,
	.close = no_close,
	.map = no_map,
	.unmap = no_unmap,
	.stop = no_stop,
	.drain = no_drain,
	.read = no_read,
	.drop = no_drop,
	.retarget = no_retarget,
	.invalidate = no_invalidate,
	.protect = no_protect,
	.dirty = no_dirty,
	.handle = no_handle,
	.forget = no_forget,
	.import = no_import,
	.dummy = no_dummy,
	.holds = always_holds,
};

#define PL_OVERLAY(member)                                                                              \
	do {                                                                                            \
		if (offsetof(struct pinl_device_ops, member) + sizeof ops->member <= ops->size &&       \
		    ops->member)                                                                        \
			out->member = ops->member;                                                      \
	} while (0)

void pl_device_ops_fill(const struct pinl_device_ops *ops, struct pinl_device_ops *out)
{
	*out = pl_default_device_ops;
	PL_OVERLAY(name);
	PL_OVERLAY(open);
	PL_OVERLAY(close);
	PL_OVERLAY(map);
	PL_OVERLAY(unmap);
	PL_OVERLAY(stop);
	PL_OVERLAY(drain);
	PL_OVERLAY(read);
	PL_OVERLAY(drop);
	PL_OVERLAY(retarget);
	PL_OVERLAY(invalidate);
	PL_OVERLAY(protect);
	PL_OVERLAY(dirty);
	PL_OVERLAY(handle);
	PL_OVERLAY(forget);
	PL_OVERLAY(import);
	PL_OVERLAY(dummy);
	PL_OVERLAY(holds);
}
