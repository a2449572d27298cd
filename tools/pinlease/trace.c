/* SPDX-License-Identifier: GPL-2.0-or-later */
/* pinlease trace: what happens to leases, as it happens. */
#include <argp.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command.h"
#include "common.h"
#include "trace.h"

enum { JSON = 'j', PID = 'p', FILE_OPTION = 'f', BYTES = 'b' };

struct options {
	struct pl_watch_msg filter;
	bool json, exact;
};

static const struct argp_option option_table[] = {
	{"bytes", BYTES, NULL, 0, "Sizes in bytes, exactly", 0},
	{"file", FILE_OPTION, "PATH", 0, "Only leases of this file", 0},
	{"json", JSON, NULL, 0, "Print a JSON object on each line", 0},
	{"pid", PID, "PID", 0, "Only leases of this process", 0},
	{0},
};

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
	case ARGP_KEY_ARG:
		argp_error(state, "unexpected \"%s\"", arg);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

/* ----------------------------------------------------------------------------------------- paths -- */

static struct trace_path *find(struct trace_paths *p, uint64_t dev, uint64_t ino)
{
	for (size_t i = 0; i < p->n; i++)
		if (p->paths[i].ino == ino && p->paths[i].dev == dev)
			return &p->paths[i];
	return NULL;
}

const char *trace_path_of(struct trace_paths *p, uint64_t dev, uint64_t ino)
{
	const struct trace_path *found = find(p, dev, ino);

	return found ? found->path : "?";
}

/* The newest take the places of the oldest: what isn't there any more is shown by number. */
static void learn(struct trace_paths *p, uint64_t dev, uint64_t ino, const char *path)
{
	struct trace_path *at = find(p, dev, ino);

	if (!at)
		at = &p->paths[p->next++ % TRACE_PATHS];
	if (p->n < TRACE_PATHS && at == &p->paths[p->n])
		p->n++;
	at->dev = dev;
	at->ino = ino;
	snprintf(at->path, sizeof at->path, "%s", path);
}

static int learn_entry(const union pl_message *m, void *arg)
{
	if (m->head.type == PL_ENTRY)
		learn(arg, m->entry.file_dev, m->entry.file_ino, m->entry.path);
	return 0;
}

/* ---------------------------------------------------------------------------------------- events -- */

static int follow(struct arbiter *a, struct trace_paths *paths, const struct options *o)
{
	int width = isatty(STDOUT_FILENO) ? tool_width(stdout, 120) : INT_MAX;
	union pl_message m;
	int err;

	if (!o->json)
		trace_print_head(o->exact);
	if (tool_flush("pinlease trace")) /* not only when something happens, which may be never */
		return -EIO;
	while (!(err = arbiter_next(a, &m, -1))) {
		if (m.head.type != PL_EVENT)
			return -EPROTO;
		if (*m.event.path)
			learn(paths, m.event.file_dev, m.event.file_ino, m.event.path);
		if (o->json)
			trace_print_json(&m.event, paths);
		else
			trace_print(&m.event, paths, o->exact, width);
		if (tool_flush("pinlease trace"))
			return -EIO;
	}
	return err;
}

int cmd_trace(int argc, char **argv)
{
	static const struct argp argp = {.options = option_table,
					 .parser = parse,
					 .doc = "Follow what happens to leases, until interrupted. Asks "
						"pinleased; who isn't root "
						"sees what happens to his own leases."};
	static struct trace_paths paths;
	struct pl_list_msg list = {0};
	struct options o = {0};
	union pl_message m;
	struct arbiter a = {0};
	int err;

	argp_err_exit_status = EXIT_CANT_START;
	argp_parse(&argp, argc, argv, 0, NULL, &o);
	if (arbiter_open(&a))
		return EXIT_CANT_START;
	pl_message_init(&m, PL_WATCH);
	m.watch.file_dev = list.file_dev = o.filter.file_dev;
	m.watch.file_ino = list.file_ino = o.filter.file_ino;
	m.watch.pid = list.pid = o.filter.pid;
	err = arbiter_ask(&a, &m, NULL, NULL, ARBITER_PATIENCE_MS, NULL);
	if (!err) /* after that, so that no lease is missed */
		err = arbiter_list(&list, learn_entry, &paths);
	if (!err)
		follow(&a, &paths, &o);
	arbiter_close(&a);
	return EXIT_CANT_START; /* it ends otherwise only by a signal */
}
