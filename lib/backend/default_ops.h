/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a device answers to a call its backend does not have. */
#ifndef PL_BACKEND_DEFAULT_OPS_H
#define PL_BACKEND_DEFAULT_OPS_H

#include <pinlease/device.h>

extern const struct pinl_device_ops pl_default_device_ops;

/* The defaults overlaid with what `ops` has: no member of `out` is NULL. Members past
 * ops->size are from a newer device.h than the backend's author had, and are not looked at. */
void pl_device_ops_fill(const struct pinl_device_ops *ops, struct pinl_device_ops *out);

#endif
