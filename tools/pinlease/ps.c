/* SPDX-License-Identifier: GPL-2.0-or-later */
/* pinlease ps: the leases of all programs that pinleased knows of. */
#include <argp.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "common.h"
#include "ps.h"

enum { SORT = 's', JSON = 'j', PID = 'p', FILE_OPTION = 'f', BYTES = 'b' };

enum sort { BY_PID, BY_AGE, BY_BYTES, NR_SORTS };

struct options {
	struct pl_list_msg filter;
	enum sort sort;
	bool json, exact;
};

static const struct argp_option option_table[] = {
	{"bytes", BYTES, NULL, 0, "Sizes in bytes, exactly", 0},
	{"file", FILE_OPTION, "PATH", 0, "Only leases of this file", 0},
	{"json", JSON, NULL, 0, "Print one JSON array", 0},
	{"pid", PID, "PID", 0, "Only leases of this process", 0},
	{"sort", SORT, "KEY", 0, "By pid (unless given), age or bytes", 0},
	{0},
};

static void choose_sort(struct options *o, const char *key, struct argp_state *state)
{
	static const char *const keys[] = {"pid", "age", "bytes"};

	for (o->sort = 0; o->sort < NR_SORTS; o->sort++)
		if (!strcmp(key, keys[o->sort]))
			return;
	argp_error(state, "can't sort by \"%s\"; by pid, age or bytes", key);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case BYTES:
		o->exact = true;
		return 0;
	case JSON:
		o->json = true;
		return 0;
	case PID:
		o->filter.pid = arbiter_pid(arg, state);
		return 0;
	case FILE_OPTION:
		arbiter_file(arg, &o->filter.file_dev, &o->filter.file_ino, state);
		return 0;
	case SORT:
		choose_sort(o, arg, state);
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "unexpected \"%s\"", arg);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int ps_collect(const union pl_message *m, void *arg)
{
	struct ps_found *f = arg;
	struct pl_entry_msg *more;

	if (f->n == f->room) {
		f->room = f->room ? 2 * f->room : 64;
		more = realloc(f->entries, f->room * sizeof *more);
		if (!more) {
			fprintf(stderr, "pinlease: out of memory\n");
			return -ENOMEM;
		}
		f->entries = more;
	}
	if (m->head.type == PL_ENTRY)
		f->entries[f->n++] = m->entry;
	return 0;
}

static int order(uint64_t a, uint64_t b)
{
	return a < b ? -1 : a > b;
}

static int by_pid(const void *a, const void *b)
{
	const struct pl_entry_msg *x = a, *y = b;

	return x->pid != y->pid ? order(x->pid, y->pid) : order(x->lease, y->lease);
}

static int by_age(const void *a, const void *b)
{
	const struct pl_entry_msg *x = a, *y = b;

	return order(x->since_ns, y->since_ns);
}

static int by_bytes(const void *a, const void *b)
{
	const struct pl_entry_msg *x = a, *y = b;

	return order(y->end - y->start, x->end - x->start);
}

int cmd_ps(int argc, char **argv)
{
	static const struct argp argp = {
		.options = option_table,
		.parser = parse,
		.doc = "Show which files' memory is leased to devices: by whom, since when, under which "
		       "policy. Asks pinleased; who isn't root sees his own leases."};
	static int (*const orders[NR_SORTS])(const void *, const void *) = {by_pid, by_age, by_bytes};
	struct options o = {0};
	struct ps_found f = {0};
	int err;

	argp_err_exit_status = EXIT_CANT_START;
	argp_parse(&argp, argc, argv, 0, NULL, &o);
	err = arbiter_list(&o.filter, ps_collect, &f);
	if (!err && f.n)
		qsort(f.entries, f.n, sizeof *f.entries, orders[o.sort]);
	if (!err && o.json)
		ps_print_json(&f);
	else if (!err)
		ps_print_table(&f, o.exact);
	free(f.entries);
	return err || tool_flush("pinlease ps") ? EXIT_CANT_START : 0;
}
