/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Asking pinleased. Errors are printed, with what would help. */
#ifndef PINLEASE_ARBITER_H
#define PINLEASE_ARBITER_H

#include <pinlease/pinlease.h>

#include "proto/wire.h"

/* Calls `each` for every lease that fits; stops when it returns an error. 0 or -errno. */
int arbiter_list(const struct pl_list_msg *filter,
		 int (*each)(const struct pl_entry_msg *entry, void *arg), void *arg);

#endif
