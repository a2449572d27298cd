/* SPDX-License-Identifier: GPL-2.0-or-later */
/* pinlease pins: who pins which memory of this machine now, whether he knows pinlease or not. */
#include <argp.h>
#include <stdlib.h>
#include <string.h>

#include "arbiter.h"
#include "command.h"
#include "common.h"
#include "pins.h"
#include "pins_live.h"
#include "pins_options.h"

static int by_bytes(const void *a, const void *b)
{
	const struct pins_row *x = a, *y = b;

	return x->bytes != y->bytes ? (x->bytes < y->bytes ? 1 : -1) : x->pid - y->pid;
}

static int by_pid(const void *a, const void *b)
{
	const struct pins_row *x = a, *y = b;

	return x->pid != y->pid ? (x->pid < y->pid ? -1 : 1) : by_bytes(a, b);
}

static int by_pins(const void *a, const void *b)
{
	const struct pins_row *x = a, *y = b;
	uint64_t of_x = x->pins + x->refs, of_y = y->pins + y->refs;

	return of_x != of_y ? (of_x < of_y ? 1 : -1) : by_bytes(a, b);
}

void pins_start(struct census *c)
{
	*c = (struct census){.own = {.device = -1, .pipe = {-1, -1}},
			     .pins = {.size = sizeof(struct census_pin)},
			     .files = {.size = sizeof(struct census_file)},
			     .vmas = {.size = sizeof(struct census_vma)},
			     .tasks = {.size = sizeof(struct census_task)},
			     .holds = {.size = sizeof(struct pins_hold)},
			     .pieces = {.size = sizeof(struct pins_piece)},
			     .regions = {.size = sizeof(struct pins_region)},
			     .maps = {.size = sizeof(struct pins_map)},
			     .rows = {.size = sizeof(struct pins_row)},
			     .memories = {.size = sizeof(struct pins_range)},
			     .objects = {.size = sizeof(uint64_t)},
			     .places = {.size = sizeof(struct pins_place)}};
}

int pins_take(struct census *c, const struct pins_filter *filter)
{
	uint64_t began = tool_now(), scanned;
	int err = pins_load(c);

	if (!err)
		err = pins_calibrate(c);
	if (!err)
		err = pins_scan(c);
	scanned = tool_now();
	if (!err)
		err = pins_list_holds(c);
	if (!err)
		err = pins_list_maps(c);
	if (!err)
		err = pins_look_again(c);
	if (!err)
		err = pins_make_rows(c, filter);
	c->who_ns = tool_now() - scanned;
	pins_release_own(c);
	c->total_ns = tool_now() - began;
	return err;
}

void pins_end(struct census *c)
{
	for (size_t i = 0; i < c->rows.n; i++) {
		pins_free(&pins_at(&c->rows, struct pins_row, i)->ranges);
		free(pins_at(&c->rows, struct pins_row, i)->path);
	}
	pins_free(&c->pins);
	pins_free(&c->files);
	pins_free(&c->vmas);
	pins_free(&c->tasks);
	pins_free(&c->holds);
	pins_free(&c->pieces);
	pins_free(&c->regions);
	pins_free(&c->maps);
	pins_free(&c->rows);
	pins_free(&c->leases);
	pins_free(&c->memories);
	pins_free(&c->objects);
	pins_free(&c->haves);
	pins_free(&c->groups);
	pins_free(&c->places);
	pins_unload(c);
}

int cmd_pins(int argc, char **argv)
{
	static int (*const orders[])(const void *, const void *) = {by_bytes, by_pid, by_pins};
	struct pins_options o;
	struct census c;
	int status = EXIT_CANT_START;

	pins_parse(argc, argv, &o);
	pins_start(&c);
	if (o.mode != PINS_CENSUS)
		status = pins_live(&c, &o) ? EXIT_CANT_START : 0;
	else if (!pins_take(&c, &o.filter)) {
		pins_order(&c.rows, orders[o.sort]);
		if (o.json)
			pins_print_json(&c);
		else
			pins_print_table(&c, o.exact,
					 o.filter.pid || o.filter.by_file || o.filter.device >= 0);
		status = pins_off(&c) <= pins_meanwhile(&c) ? 0 : EXIT_FAILED_PROMISE;
	}
	pins_end(&c);
	return tool_flush("pinlease pins") ? EXIT_CANT_START : status;
}
