/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Everything that was found out, as JSON. Names in it are those of the library; they only ever grow. */
#include "doctor.h"

#include <json-c/json.h>
#include <string.h>

static void put(struct json_object *o, const char *key, const char *text)
{
	json_object_object_add(o, key, text && *text ? json_object_new_string(text) : NULL);
}

static void put_bool(struct json_object *o, const char *key, bool value)
{
	json_object_object_add(o, key, json_object_new_boolean(value));
}

static void put_err(struct json_object *o, const char *key, int err)
{
	put(o, key, err ? tool_errno_name(err) : NULL);
}

static struct json_object *can_list(unsigned can)
{
	static const char *const words[] = {"told", "before", "held", "refused"};
	struct json_object *list = json_object_new_array();

	for (unsigned i = 0; i < 4; i++)
		if (can & 1u << i)
			json_object_array_add(list, json_object_new_string(words[i]));
	return list;
}

/* The names of the bits that are set. */
static struct json_object *names(unsigned bits, unsigned n, const char *(*name)(const void *, unsigned),
				 const void *arg)
{
	struct json_object *list = json_object_new_array();

	for (unsigned i = 0; i < n; i++)
		if (bits & 1u << i)
			json_object_array_add(list, json_object_new_string(name(arg, i)));
	return list;
}

static const char *op_name(const void *arg, unsigned i)
{
	return pinl_op_name(i);
}

static const char *row_name(const void *d, unsigned i)
{
	return ((const struct doctor *)d)->rows[i].memory->name;
}

static const char *device_name(const void *d, unsigned i)
{
	return ((const struct doctor *)d)->devices[i].name;
}

static const char *plan_name(const void *arg, unsigned i)
{
	return doctor_plans[i].name;
}

static struct json_object *bare(const struct doctor_row *row)
{
	struct json_object *all = json_object_new_object();

	for (int op = 0; op < PINL_OP_NR; op++) {
		const struct doctor_bare *b = &row->bare[op];
		struct json_object *o = json_object_new_object();

		put(o, "outcome", doctor_outcome_name(b->outcome));
		put_bool(o, "moved", b->moved);
		put_err(o, "error", b->err);
		json_object_object_add(all, pinl_op_name(op), o);
	}
	return all;
}

static struct json_object *cells(const struct doctor_pair *pair)
{
	struct json_object *all = json_object_new_object();

	for (int op = 0; op < PINL_OP_NR; op++) {
		const struct doctor_cell *c = &pair->cells[op];
		struct json_object *o = json_object_new_object();

		put_bool(o, "applicable", c->here);
		put_bool(o, "detaches", c->detaches);
		json_object_object_add(o, "coverage", can_list(c->coverage));
		json_object_object_add(o, "promised", can_list(c->promised));
		json_object_object_add(o, "seen", c->tried ? can_list(c->seen) : NULL);
		put_bool(o, "found_late", c->late);
		put_bool(o, "mismatch", doctor_short(c));
		put_err(o, "error", c->err);
		json_object_object_add(all, pinl_op_name(op), o);
	}
	return all;
}

static struct json_object *verdicts(const struct doctor_pair *pair)
{
	struct json_object *all = json_object_new_array();

	for (int i = 0; i < DOCTOR_NR_PLANS; i++) {
		const struct doctor_plan *plan = &doctor_plans[i];
		struct json_object *o = json_object_new_object();

		put(o, "policy", plan->name);
		json_object_object_add(o, "refuse",
				       names(plan->policy.refuse, PINL_OP_NR, op_name, NULL));
		put_bool(o, "accepted", !pair->verdicts[i].err);
		put_err(o, "error", pair->verdicts[i].err);
		put(o, "why", pair->verdicts[i].why);
		json_object_array_add(all, o);
	}
	return all;
}

static struct json_object *leases(const struct doctor *d, const struct doctor_row *row)
{
	struct json_object *all = json_object_new_array();

	for (unsigned i = 0; i < d->n_devices; i++) {
		const struct doctor_pair *pair = &row->pairs[i];
		struct json_object *o = json_object_new_object();

		put(o, "device", d->devices[i].name);
		put_bool(o, "leasable", pair->leased);
		put(o, "why", pair->why);
		put(o, "kind", pair->kind);
		put_bool(o, "staged", pair->staged);
		json_object_object_add(o, "operations", pair->leased ? cells(pair) : NULL);
		json_object_object_add(o, "policies", d->devices[i].dev ? verdicts(pair) : NULL);
		json_object_array_add(all, o);
	}
	return all;
}

static struct json_object *memories(const struct doctor *d)
{
	struct json_object *all = json_object_new_array();

	for (unsigned i = 0; i < d->n; i++) {
		const struct doctor_row *row = &d->rows[i];
		struct json_object *o = json_object_new_object();
		bool here = !row->memory->why[0];

		put(o, "name", row->memory->name);
		put(o, "directory", row->memory->dir);
		put_bool(o, "here", here);
		put(o, "why", row->memory->why);
		json_object_object_add(o, "without_pinlease", here ? bare(row) : NULL);
		json_object_object_add(o, "leases", here && d->ctx ? leases(d, row) : NULL);
		json_object_array_add(all, o);
	}
	return all;
}

static struct json_object *imports(const struct doctor *d, const struct doctor_export *e)
{
	struct json_object *all = json_object_new_array();

	for (unsigned i = 0; i < d->n_devices; i++) {
		struct json_object *o, *policies;

		if (!d->devices[i].dev)
			continue;
		o = json_object_new_object();
		policies = json_object_new_array();
		for (int then = 0; then < DOCTOR_IMPORT_NR; then++) {
			const struct doctor_import *im = &e->imports[i][then];
			struct json_object *p = json_object_new_object();

			put(p, "policy", doctor_import_name(then));
			put_bool(p, "accepted", im->leased);
			put_bool(p, "mismatch", im->stays);
			put(p, "why", im->why);
			json_object_array_add(policies, p);
		}
		put(o, "device", d->devices[i].name);
		json_object_object_add(o, "policies", policies);
		json_object_array_add(all, o);
	}
	return all;
}

static struct json_object *exports(const struct doctor *d)
{
	struct json_object *all = json_object_new_array();

	for (unsigned i = 0; i < d->n_exports; i++) {
		const struct doctor_export *e = &d->exports[i];
		struct json_object *o = json_object_new_object();

		put(o, "name", e->name);
		put_bool(o, "here", !*e->why);
		put(o, "why", e->why);
		json_object_object_add(o, "imports", *e->why ? NULL : imports(d, e));
		json_object_array_add(all, o);
	}
	return all;
}

static struct json_object *devices(const struct doctor *d)
{
	struct json_object *all = json_object_new_array();

	for (unsigned i = 0; i < d->n_devices; i++) {
		const struct doctor_device *device = &d->devices[i];
		struct json_object *o = json_object_new_object();

		put(o, "name", device->name);
		put(o, "class",
		    device->device_class < 0 ? NULL : doctor_class_name(device->device_class));
		put_bool(o, "pinned", device->pinned);
		put(o, "backend", device->backend);
		put_bool(o, "here", device->dev);
		put(o, "why", device->why);
		put(o, "found", device->found);
		json_object_array_add(all, o);
	}
	return all;
}

static struct json_object *facilities(const struct doctor *d)
{
	struct json_object *all = json_object_new_array();

	for (unsigned i = 0; i < d->n_facilities; i++) {
		const struct doctor_facility *f = &d->facilities[i];
		struct json_object *o = json_object_new_object();

		put(o, "group", f->group);
		put(o, "name", f->name);
		put_bool(o, "here", f->here);
		put(o, "found", f->found);
		put(o, "why", f->why);
		json_object_array_add(all, o);
	}
	return all;
}

static struct json_object *gaps(const struct doctor *d)
{
	struct json_object *all = json_object_new_array();

	for (unsigned i = 0; i < d->n_gaps; i++) {
		const struct doctor_gap *g = &d->gaps[i];
		struct json_object *o = json_object_new_object();

		json_object_object_add(o, "operations", names(g->ops, PINL_OP_NR, op_name, NULL));
		json_object_object_add(o, "missing", can_list(g->missing));
		json_object_object_add(o, "policies",
				       names(g->policies, DOCTOR_NR_PLANS, plan_name, NULL));
		json_object_object_add(o, "memories", names(g->rows, d->n, row_name, d));
		json_object_object_add(o, "devices", names(g->devices, d->n_devices, device_name, d));
		put(o, "reason", g->reason);
		put(o, "closed_by", g->remedy);
		json_object_array_add(all, o);
	}
	return all;
}

static struct json_object *sources(const struct doctor *d)
{
	struct json_object *all = json_object_new_array();
	char text[sizeof(d->sources)], *rest = text, *line;

	memcpy(text, d->sources, sizeof(text));
	while ((line = strsep(&rest, "\n")))
		if (*line)
			json_object_array_add(all, json_object_new_string(line));
	return all;
}

void doctor_json(FILE *out, const struct doctor *d)
{
	struct json_object *o = json_object_new_object();

	put(o, "machine", d->machine);
	put(o, "kernel", d->kernel);
	json_object_object_add(o, "sources", sources(d));
	json_object_object_add(o, "facilities", facilities(d));
	json_object_object_add(o, "devices", devices(d));
	json_object_object_add(o, "memories", memories(d));
	json_object_object_add(o, "device_memory", exports(d));
	json_object_object_add(o, "gaps", gaps(d));
	json_object_object_add(o, "mismatches", json_object_new_int((int)doctor_mismatches(d)));
	json_object_object_add(o, "seconds", json_object_new_double((double)d->took_ns / 1e9));
	fprintf(out, "%s\n",
		json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY |
							  JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(o);
}
