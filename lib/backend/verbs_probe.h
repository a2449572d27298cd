/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What an RDMA device can really do, found by trying it on memory of our own. */
#ifndef PL_BACKEND_VERBS_PROBE_H
#define PL_BACKEND_VERBS_PROBE_H

#include <infiniband/verbs.h>
#include <stdbool.h>

struct pl_verbs_found {
	uint32_t driver;	/* its number, for struct pl_uverbs */
	unsigned means;		/* PINL_VERBS_REREG, _DEREG, _MW: those that end access */
	bool asks;		/* pl_mr_is() knows a region */
	bool odp;		/* on-demand regions work, at least for whole pages, */
	bool odp_bytes;		/* for any transfer */
	const char *why_no_odp; /* one clause, static; also if only odp_bytes is missing */
};

/* For leases with these rights of peers. 0, also if little is found; -errno with a sentence: nothing at
 * all can be done with this device. */
int pl_verbs_probe(struct ibv_device *device, unsigned access, struct pl_verbs_found *found);

#endif
