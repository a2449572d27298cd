/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a pinleased that was killed has left in the kernel. */
#ifndef PINLEASE_LEFT_H
#define PINLEASE_LEFT_H

#include <stddef.h>

/* One line for each gate of a dead one's that is pinned still (pinleased(8)): whether it refuses, how
 * long, and what ends it. "": there is none, or who asks may not look. */
void left_gates(char *buf, size_t len);

#endif
