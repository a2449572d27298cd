/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The terminal: one matrix for each group of devices that are alike, a row per memory, a column per
 * operation; then the reasons. Never wider than 80 columns.
 */
#include "doctor.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WIDTH 80
#define CELL  8

struct column {
	const char *first, *second;
	int width;
};

static const struct column columns[PINL_OP_NR] = {
	[PINL_OP_TRUNCATE] = {"trun", "cate", 4}, [PINL_OP_PUNCH] = {"punch", "", 5},
	[PINL_OP_ZERO] = {"zero", "", 4},	  [PINL_OP_COLLAPSE] = {"coll", "apse", 4},
	[PINL_OP_INSERT] = {"ins", "ert", 4},	  [PINL_OP_UNMAP] = {"mun", "map", 4},
	[PINL_OP_OVERMAP] = {"over", "map", 4},	  [PINL_OP_REMAP] = {"mre", "map", 4},
	[PINL_OP_DONTNEED] = {"dont", "need", 4}, [PINL_OP_FREE] = {"free", "", 4},
	[PINL_OP_REMOVE] = {"re", "move", 4},	  [PINL_OP_GUARD] = {"guard", "", 5},
};

static void colour(FILE *out, const char *code)
{
	if (isatty(fileno(out)) && !getenv("NO_COLOR"))
		fprintf(out, "\033[%sm", code);
}

void doctor_bold(FILE *out, const char *text)
{
	colour(out, "1");
	fputs(text, out);
	colour(out, "0");
	fputc('\n', out);
}

void doctor_wrap(FILE *out, int indent, const char *text)
{
	while (*text) {
		const char *line = text;
		int n = tool_cut(line, WIDTH - 1 - indent, &text);

		fprintf(out, "%*s%.*s\n", indent, "", n, line);
	}
}

/* The cells of a row in their columns, without blanks at the end. */
static void line(FILE *out, const char *label, char cells[PINL_OP_NR][CELL])
{
	int blanks = DOCTOR_LABEL - fprintf(out, "%s", label);

	for (int op = 0; op < PINL_OP_NR; op++) {
		if (*cells[op]) {
			fprintf(out, "%*s%s", blanks, "", cells[op]);
			blanks = -(int)strlen(cells[op]);
		}
		blanks += columns[op].width + 1;
	}
	fputc('\n', out);
}

static void head(FILE *out)
{
	char first[PINL_OP_NR][CELL], second[PINL_OP_NR][CELL];

	for (int op = 0; op < PINL_OP_NR; op++) {
		snprintf(first[op], CELL, "%s", columns[op].first);
		snprintf(second[op], CELL, "%s", columns[op].second);
	}
	line(out, "", first);
	line(out, "", second);
}

/* ----------------------------------------------------------------------------------- folding -- */

struct shown {
	bool leased, staged;
	char cells[PINL_OP_NR][CELL];
	bool accepted[DOCTOR_NR_PLANS - PINL_OP_NR];
};

/* What is printed of a pair: pairs that look the same are folded. */
static void show(const struct doctor_pair *pair, struct shown *s)
{
	memset(s, 0, sizeof(*s));
	s->leased = pair->leased;
	s->staged = pair->staged;
	for (int op = 0; s->leased && op < PINL_OP_NR; op++)
		doctor_cell_text(pair, op, s->cells[op], CELL);
	for (int i = 0; i < DOCTOR_NR_PLANS - PINL_OP_NR; i++)
		s->accepted[i] = !pair->verdicts[i].err;
}

static bool alike(const struct doctor_pair *a, const struct doctor_pair *b)
{
	struct shown x, y;
	bool cells = true;

	show(a, &x);
	show(b, &y);
	for (int op = 0; op < PINL_OP_NR; op++)
		cells &= !strcmp(x.cells[op], y.cells[op]);
	return cells && x.leased == y.leased && x.staged == y.staged &&
	       !memcmp(x.accepted, y.accepted, sizeof(x.accepted));
}

static bool devices_alike(const struct doctor *d, int a, int b)
{
	if (!d->devices[a].dev || !d->devices[b].dev)
		return false;
	for (unsigned i = 0; i < d->n; i++)
		if (!alike(&d->rows[i].pairs[a], &d->rows[i].pairs[b]))
			return false;
	return true;
}

/* The names of the rows from `at` on that look the same, as far as they fit; marks them as done. */
static void labels(const struct doctor *d, unsigned at, int device, uint32_t *done, char *label)
{
	snprintf(label, DOCTOR_LABEL, "%s", d->rows[at].memory->name);
	for (unsigned i = at + 1; i < d->n; i++) {
		const char *name = d->rows[i].memory->name;

		if (*done & 1u << i || d->rows[i].memory->why[0] ||
		    !alike(&d->rows[at].pairs[device], &d->rows[i].pairs[device]) ||
		    strlen(label) + 2 + strlen(name) >= DOCTOR_LABEL)
			continue;
		tool_append(label, DOCTOR_LABEL, ", %s", name);
		*done |= 1u << i;
	}
}

/* --------------------------------------------------------------------------------------- matrices -- */

static void policies_line(FILE *out, const struct shown *s)
{
	fprintf(out, "%*s  %s", DOCTOR_LABEL, "", s->staged ? " by a staged copy:" : "");
	for (int i = 0; i < DOCTOR_NR_PLANS - PINL_OP_NR; i++)
		if (s->accepted[i])
			fprintf(out, " %s", doctor_plans[i].name);
	fputc('\n', out);
}

static void matrix(FILE *out, const struct doctor *d, int device)
{
	uint32_t done = 0;
	char label[DOCTOR_LABEL];
	struct shown s;

	head(out);
	for (unsigned i = 0; i < d->n; i++) {
		if (done & 1u << i || d->rows[i].memory->why[0])
			continue;
		labels(d, i, device, &done, label);
		show(&d->rows[i].pairs[device], &s);
		if (!s.leased) {
			fprintf(out, "%-*scan't be leased\n", DOCTOR_LABEL, label);
			continue;
		}
		line(out, label, s.cells);
		policies_line(out, &s);
	}
}

static void device_title(const struct doctor *d, int device, char *buf, size_t len)
{
	const struct doctor_device *dev = &d->devices[device];

	if (strcmp(dev->backend, "soft"))
		tool_append(buf, len, "%s, found %s", dev->name, doctor_class_name(dev->device_class));
	else
		tool_append(buf, len, "%s", dev->name);
}

/* What is known of this device and of those that look the same. */
static void about(FILE *out, const struct doctor *d, unsigned device)
{
	char text[DOCTOR_WHY + 64];

	for (unsigned i = device; i < d->n_devices; i++) {
		const struct doctor_device *dev = &d->devices[i];

		if (!*dev->found || (i != device && !devices_alike(d, device, i)))
			continue;
		snprintf(text, sizeof(text), "%s: %s", dev->name, dev->found);
		doctor_wrap(out, 2, text);
	}
}

static void matrices(FILE *out, const struct doctor *d)
{
	bool done[DOCTOR_MAX_DEVICES] = {0};

	for (unsigned i = 0; i < d->n_devices; i++) {
		char title[400] = "\nDevice: ";

		if (done[i] || !d->devices[i].dev)
			continue;
		device_title(d, i, title, sizeof(title));
		for (unsigned k = i + 1; k < d->n_devices; k++)
			if (devices_alike(d, i, k)) {
				tool_append(title, sizeof(title), "; ");
				device_title(d, k, title, sizeof(title));
				done[k] = true;
			}
		doctor_bold(out, title);
		about(out, d, i);
		matrix(out, d, i);
	}
}

static void legend(FILE *out)
{
	fprintf(out, "T told, at the latest afterwards    B told before it takes effect\n"
		     "H held: the caller waits for the recall    R refused, if the policy asks for it\n"
		     "- unseen    . takes no page from the lease    (blank) not for this memory\n"
		     "! not as promised when it was tried    ? could not be tried\n"
		     "Second line: policies that pinl_map_range() accepts. KEEP; RECALL then FAIL,\n"
		     "SCRATCH or COPY; STRICT: FAIL, and all changes held; FOLLOW. REFUSE: see R.\n"
		     "By a staged copy: the device can't have the memory itself (PINL_STAGE).\n");
}

/* ------------------------------------------------------------------------------------- lists -- */

static void not_here(FILE *out, const struct doctor *d)
{
	char text[DOCTOR_WHY + 64];

	for (unsigned i = 0; i < d->n; i++) {
		if (!d->rows[i].memory->why[0])
			continue;
		snprintf(text, sizeof(text), "%s: %s", d->rows[i].memory->name, d->rows[i].memory->why);
		doctor_wrap(out, 2, text);
	}
	for (unsigned i = 0; d->ctx && i < d->n_devices; i++) {
		if (d->devices[i].dev)
			continue;
		snprintf(text, sizeof(text), "%s: %s", d->devices[i].name, d->devices[i].why);
		doctor_wrap(out, 2, text);
	}
}

/* What a device is given of it, or why nothing. */
static void import_text(const struct doctor_import im[DOCTOR_IMPORT_NR], char *buf, size_t len)
{
	const struct doctor_import *fail = &im[DOCTOR_IMPORT_FAIL],
				   *scratch = &im[DOCTOR_IMPORT_SCRATCH];

	if (!fail->leased)
		snprintf(buf, len, "no: %s", fail->why);
	else if (!scratch->leased)
		snprintf(buf, len, "FAIL%s; no SCRATCH: %s", fail->stays ? "!" : "", scratch->why);
	else
		snprintf(buf, len, "FAIL%s, SCRATCH%s", fail->stays ? "!" : "",
			 scratch->stays ? "!" : "");
}

/* Devices of which the same is to be said are named together. */
static void export(FILE *out, const struct doctor *d, const struct doctor_export *e)
{
	bool done[DOCTOR_MAX_DEVICES] = {0};
	char text[2000], what[DOCTOR_WHY + 40], other[DOCTOR_WHY + 40];

	snprintf(text, sizeof(text), "%s%s%s", e->name, *e->why ? ": " : "", e->why);
	doctor_wrap(out, 2, text);
	for (unsigned i = 0; !*e->why && i < d->n_devices; i++) {
		if (!d->devices[i].dev || done[i])
			continue;
		import_text(e->imports[i], what, sizeof(what));
		snprintf(text, sizeof(text), "%s", d->devices[i].name);
		for (unsigned k = i + 1; k < d->n_devices; k++) {
			import_text(e->imports[k], other, sizeof(other));
			if (!d->devices[k].dev || strcmp(what, other))
				continue;
			tool_append(text, sizeof(text), ", %s", d->devices[k].name);
			done[k] = true;
		}
		tool_append(text, sizeof(text), ": %s", what);
		doctor_wrap(out, 6, text);
	}
}

static void exports(FILE *out, const struct doctor *d)
{
	doctor_bold(out, "\nDevice memory");
	doctor_wrap(out, 2,
		    "It is never pinned, but leased through its exporter, who takes it back. "
		    "Under RECALL with these ends:");
	for (unsigned i = 0; i < d->n_exports; i++)
		export(out, d, &d->exports[i]);
}

static void gap(FILE *out, const struct doctor *d, const struct doctor_gap *g)
{
	char what[200], rows[400], devices[200], text[2000];

	doctor_rows_words(d, g->rows, rows, sizeof(rows));
	doctor_devices_words(d, g->devices, devices, sizeof(devices));
	if (g->ops) {
		doctor_ops_words(g->ops, what, sizeof(what));
		snprintf(text, sizeof(text), "%s of %s: ", what, rows);
		doctor_missing_words(g->missing, what, sizeof(what));
		tool_append(text, sizeof(text), "%s", what);
	} else if (g->policies) {
		doctor_policies_words(g->policies, what, sizeof(what));
		snprintf(text, sizeof(text), "%s not accepted for %s, %s", what, rows, devices);
	} else {
		snprintf(text, sizeof(text), "No lease of %s, %s", rows, devices);
	}
	doctor_wrap(out, 2, text);
	snprintf(text, sizeof(text), "Why: %s", g->reason);
	doctor_wrap(out, 6, text);
	if (!*g->remedy)
		return;
	snprintf(text, sizeof(text), "Closed by: %s", g->remedy);
	doctor_wrap(out, 6, text);
}

static void mismatch(FILE *out, const struct doctor *d, unsigned at, int device, enum pinl_op op)
{
	const struct doctor_cell *c = &d->rows[at].pairs[device].cells[op];
	char text[400], missing[100];

	if (!doctor_short(c) && !c->err)
		return;
	doctor_missing_words(c->promised & ~c->seen, missing, sizeof(missing));
	snprintf(text, sizeof(text), "%s of %s, %s: %s", pinl_op_name(op), d->rows[at].memory->name,
		 d->devices[device].name,
		 c->harmful ? "takes pages, and the library says it doesn't" : missing);
	if (c->err)
		tool_append(text, sizeof(text), " (the attempt ended with %s)", tool_errno_name(c->err));
	doctor_wrap(out, 2, text);
}

static void mismatches(FILE *out, const struct doctor *d)
{
	unsigned n = doctor_mismatches(d);

	if (n) {
		colour(out, "31");
		fprintf(out, "\nNot as promised when it was tried: %u\n", n);
		colour(out, "0");
	}
	for (unsigned i = 0; n && i < d->n; i++)
		for (unsigned k = 0; k < d->n_devices; k++)
			for (int op = 0; op < PINL_OP_NR; op++)
				mismatch(out, d, i, k, op);
}

/* The first two rows of a directory are its shared and its private mapping. */
static void places(FILE *out, const struct doctor *d)
{
	const char *last = "";
	char text[2000] = "";

	for (unsigned i = 0; i < d->n; i++) {
		const struct doctor_memory *m = d->rows[i].memory;
		const char *fs = tool_fs_name(m->dir);

		if (!fs || m->why[0] || !strcmp(m->dir, last))
			continue;
		tool_append(text, sizeof(text), "%s %s in %s", *text ? "," : "Files: on", fs, m->dir);
		last = m->dir;
	}
	if (*text)
		doctor_wrap(out, 0, text);
}

static void lines(FILE *out, const char *all)
{
	for (const char *at = all; *at; at = *strchrnul(at, '\n') ? strchrnul(at, '\n') + 1 : "") {
		char text[600];

		snprintf(text, sizeof(text), "%.*s", (int)(strchrnul(at, '\n') - at), at);
		doctor_wrap(out, 0, text);
	}
}

void doctor_table(FILE *out, const struct doctor *d)
{
	doctor_wrap(out, 0, d->machine);
	lines(out, d->sources);
	places(out, d);
	doctor_facilities(out, d);
	fputc('\n', out);
	legend(out);
	matrices(out, d);
	exports(out, d);
	doctor_bold(out, "\nGaps");
	for (unsigned i = 0; i < d->n_gaps; i++)
		gap(out, d, &d->gaps[i]);
	doctor_bold(out, "\nNot here");
	not_here(out, d);
	mismatches(out, d);
	if (!doctor_mismatches(d))
		fprintf(out, "\nAll that is promised was seen when it was tried; %.1f s\n",
			(double)d->took_ns / 1e9);
}

void doctor_without(FILE *out, const struct doctor *d)
{
	doctor_wrap(out, 0, d->machine);
	places(out, d);
	fprintf(out,
		"\nWithout pinlease: a fixed buffer of io_uring, the operation, then a read into it\n"
		"that reports success. What it read is found in:\n"
		"same: the memory of the program    file: the file only    LOST: nowhere\n"
		"pin: the kernel refuses the pin    err: the device gets an error\n"
		"(blank) not for this memory\n\n");
	head(out);
	for (unsigned i = 0; i < d->n; i++) {
		char cells[PINL_OP_NR][CELL], label[DOCTOR_LABEL];

		if (d->rows[i].memory->why[0])
			continue;
		for (int op = 0; op < PINL_OP_NR; op++)
			doctor_bare_text(&d->rows[i].bare[op], cells[op], CELL);
		snprintf(label, sizeof(label), "%s", d->rows[i].memory->name);
		line(out, label, cells);
	}
	doctor_bold(out, "\nNot here");
	not_here(out, d);
}
