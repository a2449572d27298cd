/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Inside of pinlease trace: trace.c follows, trace_print.c prints. */
#ifndef PINLEASE_TRACE_H
#define PINLEASE_TRACE_H

#include <stdbool.h>
#include <stddef.h>

#include "arbiter.h"

#define TRACE_PATHS 1024

struct trace_path {
	uint64_t dev, ino;
	char path[152];
};

/* Names of files that events have numbers of. */
struct trace_paths {
	struct trace_path paths[TRACE_PATHS];
	size_t n, next;
};

const char *trace_path_of(struct trace_paths *paths, uint64_t dev, uint64_t ino);

void trace_print_head(bool exact);
void trace_print(const struct pl_event_msg *event, struct trace_paths *paths, bool exact, int width);
void trace_print_json(const struct pl_event_msg *event, struct trace_paths *paths);

#endif
