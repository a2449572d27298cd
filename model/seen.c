/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Linked with spin's verifier: what came up in the search, so that a property isn't kept for want of
 * anything that could break it. `used` and `seen` are hidden variables of recall.pml. */
#include <stdio.h>

extern unsigned char used[24], seen[16];

__attribute__((destructor)) static void show(void)
{
	printf("rows used:");
	for (int i = 0; i < 24; i++)
		if (used[i])
			printf(" %d", i);
	printf("\nseen:");
	for (int i = 0; i < 16; i++)
		if (seen[i])
			printf(" %d", i);
	printf("\n");
}
