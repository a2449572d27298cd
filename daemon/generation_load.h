/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The programs that count changes (bpf/generation.bpf.c): loaded, tried, kept beyond this process. Whose
 * changes, and for how long, is generation.c's. By one thread, its worker. -errno and a sentence.
 */
#ifndef PL_DAEMON_GENERATION_LOAD_H
#define PL_DAEMON_GENERATION_LOAD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "bpf/generation.h"

struct generation_programs;

#define GENERATION_LIFE_NS 20000000000ull /* more than what holders wait for another pinleased */

/* dir: where they are pinned; NULL: nowhere. */
int generation_load(const char *dir, struct generation_programs **out);
void generation_unload(struct generation_programs *g);
void generation_renew(struct generation_programs *g); /* else all ends, at the first change after LIFE */

/* A process whose changes are counted from now on, in the two maps, the caller's. -EEXIST: they are. */
struct generation_space {
	unsigned slot; /* the caller's choice, a free one */
	int counts, ring;
	uint64_t mm;
	struct generation_counts *mapped;
};

int generation_enter(struct generation_programs *g, pid_t pid, struct generation_space *s);
bool generation_is_of(struct generation_programs *g, pid_t pid, const struct generation_space *s);
void generation_leave(struct generation_programs *g, struct generation_space *s);

/* All that is watched there is stale. */
void generation_tell_all(struct generation_counts *c);
void generation_end(struct generation_counts *c); /* and nothing is counted there any more */

/* At how many begins and ends of calls neither of two programs was run, at most; and at those of ends of
 * address spaces. */
uint64_t generation_passed(const struct generation_programs *g);
uint64_t generation_unforgotten(const struct generation_programs *g);

const char *generation_unpinned(const struct generation_programs *g); /* why; NULL: they are */
const char *generation_own(const struct generation_programs *g);      /* where; NULL: nowhere */

/* generation_types.c: where the kernel's functions have what. */
struct generation_types {
	const char *zap;
	unsigned zap_vma, zap_start, zap_end;
	unsigned huge_vma, huge_start, huge_end;
	unsigned move_vma, move_start, move_len, move_control;
	unsigned free_start, free_end, free_walk;
	bool sees_free;
	unsigned protect_vma, protect_start, protect_end, protect_flags;
};

int generation_look_at_types(struct generation_types *t);

/* generation_try.c: it sees what this process does. */
int generation_try(struct generation_programs *g);

#endif
