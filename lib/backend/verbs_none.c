/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* In place of the verbs backend, where the library was built without libibverbs. */
#include <errno.h>

#include <pinlease/device.h>

#include "backend/backends.h"

static int none_open(const void *arg, struct pinl_device_info *info, void **dev)
{
	return pinl_set_error(-EOPNOTSUPP, "this libpinlease was built without verbs; build it with "
					   "libibverbs (meson configure -Dverbs=enabled)");
}

int pinl_verbs_bind(struct pinl_lease *lease, struct ibv_send_wr *wr)
{
	return none_open(NULL, NULL, NULL);
}

const struct pinl_device_ops pl_verbs_ops = {
	.size = sizeof(struct pinl_device_ops),
	.name = "verbs",
	.open = none_open,
};
