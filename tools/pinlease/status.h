/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Inside of pinlease status: status.c asks and prints, status_waits.c who waits. */
#ifndef PINLEASE_STATUS_H
#define PINLEASE_STATUS_H

#include "ps.h"

struct json_object;

void status_put(const char *label, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void status_print_waits(const struct ps_found *leases);
struct json_object *status_waits_json(const struct ps_found *leases);

#endif
