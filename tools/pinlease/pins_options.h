/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The command line of pinlease pins, which is the same where it can't run. */
#ifndef PINLEASE_PINS_OPTIONS_H
#define PINLEASE_PINS_OPTIONS_H

#include "pins.h"

enum pins_sort { PINS_BY_BYTES, PINS_BY_PID, PINS_BY_PINS, PINS_NR_SORTS };

struct pins_options {
	struct pins_filter filter;
	enum pins_sort sort;
	bool json, exact;
};

void pins_parse(int argc, char **argv, struct pins_options *options); /* ends where they are wrong */

#endif
