/* SPDX-License-Identifier: GPL-2.0-or-later */
/* In place of doctor_rdma.c in a build without libibverbs. */
#include "doctor.h"

static void open_none(struct doctor *d)
{
	doctor_missing(d, "devices and memory", "RDMA",
		       "this build has no verbs: memory can't be leased to RDMA devices; build it with "
		       "libibverbs (meson configure -Dverbs=enabled)");
	doctor_device_missing(d, "verbs", "RDMA", "");
}

const struct doctor_backend doctor_rdma = {"verbs", open_none};
