/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The policies whose recalls are measured; used by recall_mem.c and recall_file.c. */
#ifndef RECALL_H
#define RECALL_H

#include "bench.h"

#define RECALL_SIZE (64 * KIB)
#define WARM_UP	    3

struct variant {
	const char *name;
	enum pinl_policy_kind kind;
	enum pinl_then then;
	unsigned grace_ms;
	bool answers;		    /* a callback answers the notice */
	enum pinl_event_type event; /* what says that the device is off, or that it stays on */
};

extern const struct variant recall_variants[];
extern const int n_recall_variants;

/* The i-th one in this round's order. */
const struct variant *recall_variant(const struct bench *b, int i);

struct pinl_policy recall_policy(const struct variant *v, enum pinl_op op);

/* Two kinds of samples of one case: when the device was off, when the actor went on. */
struct latency {
	struct samples device, actor;
};

void latency_result(const struct bench *b, const char *what, const char *variant, struct latency *l);

#endif
