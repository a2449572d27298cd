/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An arbiter with one lease, its holder, and who watches both. */
#ifndef TOLD_SCENE_H
#define TOLD_SCENE_H

#include "told_rig.h"

extern struct arbiter a;
extern const char *const patient[]; /* options of pinleased: a ceiling that no test meets */

void start(struct holder *h, struct asker *c, const struct lending *what, const char *const *options);
void finish(struct holder *h, struct asker *c);
void leave(struct holder *h);  /* the holder closes its context, so that all has been told */
void restart(struct asker *c); /* kill -9 and a new one, which is watched again */

/* What pinleased says to who asks just for this. */
struct pl_status_msg status(void);
struct pl_entry_msg entry(void);

uint64_t now_ns(void);

#endif
