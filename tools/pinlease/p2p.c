/* SPDX-License-Identifier: GPL-2.0-or-later */
/* pinlease p2p: may these two devices talk to each other, and why (not). */
#include <argp.h>
#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "common.h"
#include "p2p.h"

#define EXIT_NO	       1
#define EXIT_CANT_TELL 2

enum { JSON = 'j', ROOT = 0x100 };

struct options {
	const char *name[2];
	const char *root;
	bool json;
};

static const struct argp_option option_table[] = {
	{"json", JSON, NULL, 0, "As JSON", 0},
	{"root", ROOT, "DIR", 0, "Another machine's /sys and /proc/cpuinfo, recorded below DIR", 0},
	{0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case JSON:
		o->json = true;
		return 0;
	case ROOT:
		o->root = arg;
		return 0;
	case ARGP_KEY_ARG:
		if (state->arg_num > 1)
			argp_error(state, "unexpected \"%s\"", arg);
		o->name[state->arg_num] = arg;
		return 0;
	case ARGP_KEY_END:
		if (state->arg_num == 1)
			argp_error(state,
				   "one device alone talks to nobody; name two, or none for all pairs");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

/* ------------------------------------------------------------------------------------- print -- */

static const char *verdict_words(enum p2p_verdict v)
{
	return v == P2P_YES ? "yes" : v == P2P_NO ? "no" : "unknown";
}

static struct json_object *device_json(const struct p2p_device *d)
{
	static const char *const iommu[] = {"none", "identity", "translates"};
	static const char *const acs[] = {"none", "redirects", "unknown"};
	struct json_object *o = json_object_new_object(), *ports = json_object_new_array();
	char words[P2P_NAME];

	p2p_address_words(&d->at, words);
	json_object_object_add(o, "address", json_object_new_string(words));
	snprintf(words, sizeof words, "%04x:%04x", d->ids.vendor, d->ids.device);
	json_object_object_add(o, "id", json_object_new_string(words));
	json_object_object_add(o, "memory", json_object_new_boolean(d->memory));
	json_object_object_add(o, "decodes", json_object_new_boolean(d->decodes));
	json_object_object_add(o, "iommu", json_object_new_string(iommu[d->iommu]));
	if (d->group >= 0)
		json_object_object_add(o, "group", json_object_new_int(d->group));
	for (unsigned i = 0; i < d->nr_ports; i++) {
		struct json_object *port = json_object_new_object();

		p2p_address_words(&d->ports[i].at, words);
		json_object_object_add(port, "port", json_object_new_string(words));
		json_object_object_add(port, "acs", json_object_new_string(acs[d->ports[i].acs]));
		json_object_array_add(ports, port);
	}
	json_object_object_add(o, "ports", ports);
	if (d->has_bridge) {
		snprintf(words, sizeof words, "%04x:%04x", d->bridge.vendor, d->bridge.device);
		json_object_object_add(o, "host_bridge", json_object_new_string(words));
	}
	return o;
}

static struct json_object *answer_json(const struct p2p_device *from, const struct p2p_device *to,
				       const struct p2p_answer *a)
{
	static const char *const routes[] = {"none", "port", "host bridge"};
	struct json_object *o = json_object_new_object();
	char words[P2P_NAME];

	json_object_object_add(o, "answer", json_object_new_string(verdict_words(a->verdict)));
	json_object_object_add(o, "reason", json_object_new_string(a->reason));
	json_object_object_add(o, "route", json_object_new_string(routes[a->route]));
	if (a->route == P2P_BELOW_PORT) {
		p2p_address_words(&a->through, words);
		json_object_object_add(o, "through", json_object_new_string(words));
	}
	if (a->verdict == P2P_YES)
		json_object_object_add(o, "hops", json_object_new_int((int)a->hops));
	json_object_object_add(o, "from", device_json(from));
	json_object_object_add(o, "to", device_json(to));
	return o;
}

static void print_json(struct json_object *o)
{
	tool_put_json(o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE);
}

/* --------------------------------------------------------------------------------------- ask -- */

static int one_pair(const struct p2p_machine *m, const struct options *o)
{
	static const int status[] = {
		[P2P_YES] = 0, [P2P_NO] = EXIT_NO, [P2P_CANT_TELL] = EXIT_CANT_TELL};
	struct p2p_address at[2];
	struct p2p_device d[2];
	struct p2p_answer a;

	for (int i = 0; i < 2; i++)
		if (p2p_find(m, o->name[i], &at[i]) || p2p_read(m, &at[i], &d[i]))
			return EXIT_CANT_START;
	if (p2p_same(&at[0], &at[1])) {
		fprintf(stderr, "pinlease p2p: %s and %s are the same device\n", o->name[0], o->name[1]);
		return EXIT_CANT_START;
	}
	p2p_decide(m, &d[0], &d[1], &a);
	if (o->json)
		print_json(answer_json(&d[0], &d[1], &a));
	else
		printf("%s: %s%s\n", verdict_words(a.verdict), a.reason,
		       a.verdict == P2P_YES && !d[1].decodes
			       ? " (the second doesn't decode memory accesses now)"
			       : "");
	return tool_flush("pinlease p2p") ? EXIT_CANT_START : status[a.verdict];
}

/* The better direction: for a pair it is enough that one of them has memory. */
static void decide_pair(const struct p2p_machine *m, const struct p2p_device *a,
			const struct p2p_device *b, bool json, struct json_object *list)
{
	const struct p2p_device *from = b->memory ? a : b, *to = b->memory ? b : a;
	char x[P2P_NAME], y[P2P_NAME];
	struct p2p_answer answer;

	p2p_decide(m, from, to, &answer);
	if (json) {
		json_object_array_add(list, answer_json(from, to, &answer));
		return;
	}
	p2p_address_words(&from->at, x);
	p2p_address_words(&to->at, y);
	printf("%-13s %-13s %-7s %s\n", x, y, verdict_words(answer.verdict), answer.reason);
}

/* All that can be read; the others are complained about. The number, or -errno. */
static int read_all(const struct p2p_machine *m, struct p2p_device **out)
{
	struct p2p_address *at = NULL;
	int n = p2p_list(m, &at), kept = 0;

	if (n < 0)
		return n;
	*out = calloc(n + 1, sizeof **out);
	if (!*out)
		fprintf(stderr, "pinlease p2p: out of memory\n");
	for (int i = 0; *out && i < n; i++)
		kept += !p2p_read(m, &at[i], &(*out)[kept]);
	free(at);
	return *out ? kept : -ENOMEM;
}

static int all_pairs(const struct p2p_machine *m, const struct options *o)
{
	struct json_object *list, *top;
	struct p2p_device *d;
	int n = read_all(m, &d);

	if (n < 0)
		return EXIT_CANT_START;
	list = o->json ? json_object_new_array() : NULL;
	if (!o->json && n > 1)
		printf("%-13s %-13s %-7s %s\n", "FROM", "TO", "ANSWER", "REASON");
	for (int i = 0; i < n; i++)
		for (int j = i + 1; j < n; j++)
			if (d[i].memory || d[j].memory)
				decide_pair(m, &d[i], &d[j], o->json, list);
	if (n < 2)
		fprintf(stderr, "pinlease p2p: there are no two PCI devices here\n");
	if (o->json) {
		top = json_object_new_object();
		json_object_object_add(top, "pairs", list);
		print_json(top);
	}
	free(d);
	if (tool_flush("pinlease p2p"))
		return EXIT_CANT_START;
	return n < 2 ? EXIT_NO : 0;
}

int cmd_p2p(int argc, char **argv)
{
	static const struct argp argp = {
		.options = option_table,
		.parser = parse,
		.args_doc = "[FROM TO]",
		.doc = "May one PCI device read and write the memory of another? Names are PCI "
		       "addresses, "
		       "network interfaces, RDMA or block devices; without, all pairs are shown.\v"
		       "Exit status: 0 yes, 1 no, 2 it can't be told."};
	struct options o = {0};
	struct p2p_machine m;

	argp_err_exit_status = EXIT_CANT_START;
	argp_parse(&argp, argc, argv, 0, NULL, &o);
	if (p2p_open(&m, o.root))
		return EXIT_CANT_START;
	return o.name[0] ? one_pair(&m, &o) : all_pairs(&m, &o);
}
