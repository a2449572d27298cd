/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* UCX's cache, for the programs that measure it. */
#ifndef BENCH_CACHE_UCX_H
#define BENCH_CACHE_UCX_H

#include "cache.h"

void ucx_open(void);
void ucx_close(void);
void ucx_hits(char *arena, const uint32_t *order, unsigned n);

/* PROGRAM GROUP N ACTOR_CPU LIB_CPU REGIONS PLACE DIR: from pinlease-bench, which has read the options.
 */
int ucx_main(int argc, char **argv, void (*measure)(const struct bench *b));

#endif
