/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is done to a file of UNITS pages of its file system, of which FIRST to LAST are leased: by name,
 * so that the program that does it (matrix_actor.c) can run anywhere.
 */
#ifndef MATRIX_ACTS_H
#define MATRIX_ACTS_H

#include <pinlease/pinlease.h>
#include <stdbool.h>

#define UNITS 8
#define FIRST 2
#define LAST  6

struct matrix_act {
	const char *name;
	enum pinl_op op; /* what a lease that refuses it has to name; NR: no operation of a lease */
	bool passes;	 /* takes no page on any file system: nobody is to wait for it */
	bool may;	 /* takes a page on some file systems only */
	bool old;	 /* by a descriptor from before the file system was watched: not promised */
};

static const struct matrix_act matrix_acts[] = {
	{"truncate", PINL_OP_TRUNCATE},
	{"ftruncate", PINL_OP_TRUNCATE},
	{"ftruncate, old descriptor", PINL_OP_TRUNCATE},
	{"open O_TRUNC", PINL_OP_TRUNCATE},
	{"io_uring ftruncate", PINL_OP_TRUNCATE},
	{"io_uring open O_TRUNC", PINL_OP_TRUNCATE},
	{"punch", PINL_OP_PUNCH},
	{"punch, old descriptor", PINL_OP_PUNCH, .old = true},
	{"io_uring punch", PINL_OP_PUNCH},
	{"zero", PINL_OP_ZERO},
	{"collapse", PINL_OP_COLLAPSE},
	{"insert", PINL_OP_INSERT},
	{"MADV_REMOVE", PINL_OP_REMOVE},
	{"clone into it", PINL_OP_ZERO, .may = true},
	{"dedupe", PINL_OP_ZERO, .may = true},
	{"copy_file_range into it", PINL_OP_ZERO, .may = true},
	{"write", PINL_OP_NR, .passes = true},
	{"rename over it", PINL_OP_NR, .passes = true},
	{"unlink", PINL_OP_NR, .passes = true},
};

#define N_ACTS (sizeof matrix_acts / sizeof *matrix_acts)

#endif
