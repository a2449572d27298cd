/* SPDX-License-Identifier: GPL-2.0-or-later */
/* pinlease top: who has how much leased, and what is being recalled, again and again. */
#include "top.h"

#include <argp.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "common.h"

enum { BY = 'k', BYTES = 'b', DELAY = 'd', ONCE = '1' };

#define MIN_DELAY_MS 100
#define MAX_DELAY_MS 3600000

static const struct argp_option option_table[] = {
	{"by", BY, "WHAT", 0, "Add up by holder (unless given), file or device", 0},
	{"bytes", BYTES, NULL, 0, "Sizes in bytes, exactly", 0},
	{"delay", DELAY, "SECONDS", 0, "Look again so often [2]", 0},
	{"once", ONCE, NULL, 0, "Print what there is and end; so it is where there is no terminal", 0},
	{0},
};

struct options {
	struct top_picture *p;
	bool once;
};

static void choose_by(struct top_picture *p, const char *arg, struct argp_state *state)
{
	static const char *const names[TOP_NR] = {"holder", "file", "device"};

	for (p->by = 0; p->by < TOP_NR; p->by++)
		if (!strcmp(arg, names[p->by]))
			return;
	argp_error(state, "can't add up by \"%s\"; by holder, file or device", arg);
}

static void choose_delay(struct top_picture *p, const char *arg, struct argp_state *state)
{
	char *end;
	double s = strtod(arg, &end);

	if (*end || end == arg || !(s >= MIN_DELAY_MS / 1e3 && s <= MAX_DELAY_MS / 1e3))
		argp_error(state, "\"%s\" is no number of seconds from 0.1 to 3600", arg);
	p->delay_ms = (unsigned)(s * 1000);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case BY:
		choose_by(o->p, arg, state);
		return 0;
	case BYTES:
		o->p->exact = true;
		return 0;
	case DELAY:
		choose_delay(o->p, arg, state);
		return 0;
	case ONCE:
		o->once = true;
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "unexpected \"%s\"", arg);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

/* ---------------------------------------------------------------------------------------- asking -- */

static int take_status(const union pl_message *m, void *arg)
{
	if (m->head.type == PL_STATUS)
		*(struct pl_status_msg *)arg = m->status;
	return 0;
}

static int ask(struct arbiter *a, struct top_picture *p)
{
	union pl_message m;
	int err;

	p->found.n = 0;
	pl_message_init(&m, PL_ASK_STATUS);
	err = arbiter_ask(a, &m, take_status, &p->status, ARBITER_PATIENCE_MS, NULL);
	pl_message_init(&m, PL_LIST);
	if (!err)
		err = arbiter_ask(a, &m, ps_collect, &p->found, ARBITER_PATIENCE_MS, NULL);
	return err ? err : top_count(p);
}

/* An arbiter that was restarted is asked anew. */
static int look(struct arbiter *a, struct top_picture *p)
{
	int err = a->sock < 0 ? arbiter_open(a) : 0;

	if (!err) {
		err = ask(a, p);
		if (err)
			arbiter_close(a);
	}
	p->error = err ? *a->why ? a->why : strerror(-err) : NULL;
	return err;
}

static int print_once(struct arbiter *a, struct top_picture *p)
{
	if (look(a, p)) {
		fprintf(stderr, "pinlease: %s\n", p->error);
		return EXIT_CANT_START;
	}
	top_print(p);
	return tool_flush("pinlease top") ? EXIT_CANT_START : 0;
}

/* False: to end. */
static bool obey(struct top_picture *p, int key)
{
	static const char switches[] = "hfd";
	const char *at = key > 0 && key < 128 ? strchr(switches, key) : NULL;

	if (at)
		p->by = (enum top_by)(at - switches);
	else if (key == 'b')
		p->exact = !p->exact;
	else if (key == '+' && p->delay_ms < MAX_DELAY_MS / 2)
		p->delay_ms *= 2;
	else if (key == '-' && p->delay_ms >= 2 * MIN_DELAY_MS)
		p->delay_ms /= 2;
	return key != 'q' && key != -2;
}

static int show(struct arbiter *a, struct top_picture *p)
{
	do {
		look(a, p);
		top_screen_show(p);
	} while (obey(p, top_screen_key(p->delay_ms)));
	top_screen_close();
	return 0;
}

int cmd_top(int argc, char **argv)
{
	static const struct argp argp = {
		.options = option_table,
		.parser = parse,
		.doc = "Watch who has how much memory of files leased, and what is being recalled. Asks "
		       "pinleased; who isn't root sees his own leases."};
	struct top_picture p = {.delay_ms = 2000};
	struct arbiter a = {.sock = -1, .quiet = true};
	struct options o = {.p = &p};
	int status;

	argp_err_exit_status = EXIT_CANT_START;
	argp_parse(&argp, argc, argv, 0, NULL, &o);
	status = o.once || !top_screen_open() ? print_once(&a, &p) : show(&a, &p);
	arbiter_close(&a);
	free(p.found.entries);
	free(p.groups);
	return status;
}
