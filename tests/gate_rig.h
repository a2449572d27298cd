/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What takes pages out of a file, by every way there is, on every kind of file that the gate guards. */
#ifndef GATE_RIG_H
#define GATE_RIG_H

#include <pinlease/pinlease.h>
#include <stdbool.h>
#include <sys/types.h>

#define GATE_PAGES 8

/* A file of GATE_PAGES pages. */
struct gate_target {
	int fd, source;	 /* source: another one with the same content */
	char path[64];	 /* by which anybody with the right can open it */
	char *mem;	 /* shared */
	size_t page;	 /* what it consists of */
	bool clones;	 /* takes blocks of others */
	char named[128]; /* to be removed; "": none */
};

enum gate_place { PLACE_MEMFD, PLACE_HUGE, PLACE_DIR, PLACE_TMPFS };
#define GATE_PLACES 4

extern const char *const gate_place_names[GATE_PLACES];

bool gate_target_open(enum gate_place place, struct gate_target *t); /* false: there is none */
void gate_target_close(struct gate_target *t);

/* On XFS, which is made to share blocks, there is all of it; elsewhere some of it may be lacking. */
bool gate_may_lack(const struct gate_target *t, const char *op);

struct gate_op {
	const char *name;
	enum pinl_op op;
	int (*run)(const struct gate_target *t,
		   off_t at); /* on the page of that offset, or from it on */
	bool all;	      /* whatever the offset */
	bool copy;	      /* takes pages only where the file clones */
};

extern const struct gate_op gate_ops[];
extern const unsigned gate_n_ops;

/* It is lacking there: fails where it may not be, since then it wasn't tried. */
void gate_need_not(enum gate_place place, const struct gate_op *op);

/* Of a directory; and of those in it. */
unsigned gate_entries(const char *path);
unsigned gate_pins(const char *directory);

#endif
