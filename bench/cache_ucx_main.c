/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* pinlease-bench-ucx: UCX's cache as it is. */
#include "cache_ucx.h"

#include <string.h>

static void measure(const struct bench *b)
{
	static const struct cache ucx = {"UCX", ucx_open, ucx_close, ucx_hits};

	if (strcmp(b->group, "huge-cache"))
		cache_measure(b, &ucx);
	else
		cache_measure_huge(b, &ucx);
}

int main(int argc, char **argv)
{
	return ucx_main(argc, argv, measure);
}
