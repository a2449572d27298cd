/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef TESTS_FAKE_VERBS_H
#define TESTS_FAKE_VERBS_H

#include <infiniband/verbs.h>

#pragma GCC visibility push(default)

extern void (*fake_meanwhile)(void *addr); /* called while the pages of addr are pinned */
extern int fake_error;			   /* of all calls; 0: they succeed */

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t len, uint64_t iova,
				unsigned access);

#endif
