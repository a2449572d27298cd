/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sending and receiving messages, checked against the table. No allocation, no lock, no thread. */
#ifndef PL_PROTO_WIRE_H
#define PL_PROTO_WIRE_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/messages.h"

/* Zeroed, with its size and type. */
void pl_message_init(union pl_message *m, enum pl_type type);

const char *pl_message_name(unsigned type); /* "?" */

/*
 * Is this a message of a type there is, of the right size, with that many descriptors, its strings
 * ended? 0, -EPROTO and *why (static). buf is aligned as a message is, and only len bytes are read.
 */
int pl_message_check(const void *buf, size_t len, int n_fds, const char **why);

/* One packet of anything; never waits, never signals. fd -1: none goes along. */
int pl_packet_send(int sock, const void *what, size_t size, int fd);

/* The same of a message. -EAGAIN: no room. */
int pl_message_send(int sock, const union pl_message *m, int fd);

/*
 * One packet into m, checked. *fd: the descriptor that came along, the caller's, or -1; others are
 * closed. 0; -EAGAIN: none there; -EPIPE: the other end is gone; -EPROTO and *why; another -errno.
 */
int pl_message_receive(int sock, union pl_message *m, int *fd, const char **why);

#endif
