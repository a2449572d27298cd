/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The verbs fixtures of the contract tests: a peer of the same host writes to and reads from the lease.
 */
#ifndef CONTRACT_VERBS_H
#define CONTRACT_VERBS_H

#include "contract_rig.h"

/* Why this fixture can't run here; NULL: it can. */
const char *verbs_missing(const struct fixture *f);

void verbs_open_device(struct rig *r);
void verbs_close_device(struct rig *r);

/* One page; -EFAULT: the peer got an error. */
int verbs_page(struct rig *r, const struct pinl_addr *a, void *buf, int write);

/* Writes of the first page, one after the other, and at the end one of all; the result of the last. */
void verbs_take_off(struct rig *r, const char *buf);
int verbs_land(struct rig *r);

#endif
