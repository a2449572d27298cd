/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Inside of pinlease ps: ps.c asks and sorts, ps_print.c prints. */
#ifndef PINLEASE_PS_H
#define PINLEASE_PS_H

#include <stdbool.h>
#include <stddef.h>

#include "arbiter.h"

struct ps_found {
	struct pl_entry_msg *entries;
	size_t n, room;
};

int ps_collect(const union pl_message *m, void *found); /* for arbiter_list() */
const char *ps_policy_words(const struct pl_entry_msg *entry);
const char *ps_state_words(const struct pl_entry_msg *entry);
/* Not, although it is being taken, if it just ends. */
bool ps_is_recalled(const struct pl_entry_msg *entry);
void ps_actor_name(const struct pl_entry_msg *entry, char *buf, size_t len);
/* For whom it is recalled, and whether he waits. */
void ps_actor_words(const struct pl_entry_msg *entry, char *buf, size_t len);
void ps_print_table(const struct ps_found *found, bool exact);
void ps_print_json(const struct ps_found *found);

#endif
