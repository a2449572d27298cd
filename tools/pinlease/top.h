/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Inside of pinlease top: top.c asks and goes round, top_count.c adds up, top_screen.c shows.
 */
#ifndef PINLEASE_TOP_H
#define PINLEASE_TOP_H

#include <stdbool.h>
#include <stddef.h>

#include "ps.h"

enum top_by { TOP_HOLDER, TOP_FILE, TOP_DEVICE, TOP_NR };

/* All leases of one holder, of one file, or on one kind of device. */
struct top_group {
	const struct pl_entry_msg *first;
	uint64_t leases, leased, pinned, oldest_ns;
	unsigned recalls;
};

/* One moment's picture. */
struct top_picture {
	struct pl_status_msg status;
	struct ps_found found;
	struct top_group *groups; /* the largest first */
	size_t n_groups;
	size_t n_recalls; /* leases found[0] to found[n_recalls - 1]: being recalled, the most urgent
			     first */
	enum top_by by;
	bool exact;
	unsigned delay_ms; /* 0: shown once */
	const char *error; /* instead of all that; NULL: none */
};

/* 0, or -ENOMEM. */
int top_count(struct top_picture *p);

/* False: the terminal can't, or there is none. */
bool top_screen_open(void);
void top_screen_close(void);
void top_screen_show(const struct top_picture *p);
int top_screen_key(unsigned ms); /* -1: none came in this time, -2: none will any more */

void top_print(const struct top_picture *p); /* to stdout, all of it */

#endif
