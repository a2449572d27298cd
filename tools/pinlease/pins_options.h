/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The command line of pinlease pins, which is the same where it can't run. */
#ifndef PINLEASE_PINS_OPTIONS_H
#define PINLEASE_PINS_OPTIONS_H

#include "pins.h"

enum pins_sort { PINS_BY_BYTES, PINS_BY_PID, PINS_BY_PINS, PINS_NR_SORTS };

enum pins_mode { PINS_CENSUS, PINS_WATCH, PINS_TRACE };

struct pins_options {
	enum pins_mode mode;
	struct pins_filter filter;
	enum pins_sort sort;
	bool json, exact;
	bool followed; /* every call and every page, not only some of them */
	unsigned delay_ms;
	unsigned buffer; /* of events, in bytes */
};

void pins_parse(int argc, char **argv, struct pins_options *options); /* ends where they are wrong */

#endif
