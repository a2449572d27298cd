/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A second process that obeys orders: somebody else, to whom files change hands. Start it before there
 * is a ring, a context or a thread: it shares nothing with this process but a socket.
 */
#ifndef PINLEASE_SECOND_H
#define PINLEASE_SECOND_H

#include <stddef.h>

#define SECOND_MAX 512 /* of an order and of a report */

struct second_ops {
	size_t order_size, report_size;
	void (*obey)(const void *order, void *report); /* in the second process */
};

struct second;

int second_start(const struct second_ops *ops, struct second **second);
void second_stop(struct second *second);

/* Doesn't wait. The report can be read from second_fd(), which ends when the process has died. */
int second_order(struct second *second, const void *order);
int second_fd(const struct second *second);

#endif
