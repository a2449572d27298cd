/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Leases by the device addresses at which an IOMMU translates them. */
#ifndef PL_CORE_FAULT_H
#define PL_CORE_FAULT_H

#include "core/ctx.h"

/* The device has the lease at these addresses. */
void pl_translate(struct pinl_lease *lease, uint64_t iova);

/* ctx->lock held: it ends, and a transfer may come yet. */
void pl_translate_end(struct pinl_lease *lease);

/* An IOMMU has stopped a transfer. Any thread, no lock; allocates nothing. */
void pl_fault_report(struct pinl_ctx *ctx, const char *device, uint64_t iova, bool write);

#endif
