/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Rows as a table that fits the terminal, or as JSON. */
#include <inttypes.h>
#include <json-c/json.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "common.h"
#include "pins.h"

#define BESIDE 30 /* columns: after more than these a sentence begins a new line */

static const char *const memories[] = {"none", "anonymous", "file", "ksm"};

/* What it is, without where. */
static void memory_words(const struct pins_row *r, char *buf, size_t len)
{
	*buf = 0;
	if (r->memory == CENSUS_ANON || r->memory == CENSUS_KSM)
		tool_append(buf, len, "private memory");
	else if (r->memory == CENSUS_NONE)
		tool_append(buf, len, "of no file any more");
	else if (r->path)
		tool_append(buf, len, "%s", r->path);
	else
		tool_append(buf, len, "inode %u:%u:%" PRIu64, r->dev >> 20, r->dev & 0xfffff, r->ino);
}

/* From where to where; in how many parts. */
static void range_words(const struct pins_row *r, char *buf, size_t len)
{
	const struct pins_range *first = r->ranges.items, *last = first + r->ranges.n - 1;
	char start[24], end[24];

	*buf = 0;
	if (!r->ranges.n)
		return;
	if (r->memory == CENSUS_FILE) {
		tool_size_words(first->start, false, start, sizeof start);
		tool_size_words(last->end, false, end, sizeof end);
		tool_append(buf, len, "%s-%s", first->start ? start : "0", end);
	} else
		tool_append(buf, len, "%s%" PRIx64 "-%" PRIx64, r->physical ? "physical " : "",
			    first->start, last->end);
	if (r->ranges.n > 1)
		tool_append(buf, len, "/%zu", r->ranges.n);
}

/* What several have is freed by none of them alone. */
static void program_words(const struct census *c, const struct pins_row *r, char *buf, size_t len)
{
	char more[16] = "", name[24];

	if (r->group)
		snprintf(more, sizeof more, " +%zu", pins_group_size(c, r->group) - 1);
	tool_path_words(*r->program ? r->program : "?", 16, name, sizeof name);
	snprintf(buf, len, "%.*s%s", 10 - (int)strlen(more), name, more);
}

static void print_row(const struct census *c, const struct pins_row *r, bool exact, int width)
{
	char size[24], device[16], range[80], memory[4200], pid[12], program[24];
	int room;

	tool_size_words(r->bytes, exact, size, sizeof size);
	snprintf(device, sizeof device, "%s%s", pins_classes[r->device].name,
		 r->sure || r->device == PINS_OTHER ? "" : "?");
	snprintf(pid, sizeof pid, "%d", r->pid);
	program_words(c, r, program, sizeof program);
	range_words(r, range, sizeof range);
	memory_words(r, memory, sizeof memory);
	room = width - printf("%7s %-10s %-9s %*s %6" PRIu64 " %-6s %-7s ", r->pid ? pid : "?", program,
			      device, exact ? 13 : 4, size, r->pins + r->refs, r->mapped ? "yes" : "NO",
			      r->lease	       ? r->lease
			      : r->lease_known ? "-"
					       : "?");
	if (room - (int)strlen(range) - 1 < 12 && r->memory != CENSUS_FILE) {
		tool_put_path(memory, room - printf("... "));
		return;
	}
	room -= printf("%s ", range);
	tool_put_path(memory, room);
}

static void print_devices(const struct census *c, bool exact)
{
	int wide = exact ? 13 : 4;

	printf("\n%-9s %*s %*s %6s %-10s %s\n", "DEVICE", wide, exact ? "BYTES" : "SIZE", exact ? 13 : 6,
	       "LEASED", "PINS", "IS", "POLICY THAT FITS");
	for (int d = 0; d < PINS_NR_DEVICES; d++) {
		uint64_t bytes = 0, leased = 0, pins = 0;
		char size[24], some[24] = "?";

		for (size_t i = 0; i < c->rows.n; i++) {
			const struct pins_row *r = pins_at(&c->rows, struct pins_row, i);

			if (r->device != (unsigned)d)
				continue;
			bytes += r->bytes;
			leased += r->lease ? r->bytes : 0;
			pins += r->pins + r->refs;
		}
		tool_size_words(bytes, exact, size, sizeof size);
		if (c->have_leases)
			tool_size_words(leased, exact, some, sizeof some);
		if (pins)
			printf("%-9s %*s %*s %6" PRIu64 " %-10s %s\n", pins_classes[d].name, wide, size,
			       exact ? 13 : 6, some, pins, pins_cans[pins_classes[d].fit.can],
			       pins_classes[d].fit.policy);
	}
}

static const char *off_words(const struct census *c)
{
	if (!pins_off(c))
		return "";
	return pins_off(c) <= pins_meanwhile(c) ? ", while others came and went"
						: ", WHICH IS NOT EQUAL";
}

struct leases {					  /* bytes */
	uint64_t taken_back, kept, none, unknown; /* the last two: of a kind that could be leased */
};

static void add_lease(struct leases *l, const struct pins_row *r)
{
	if (r->lease)
		*(r->taken_back ? &l->taken_back : &l->kept) += r->bytes;
	else if (pins_classes[r->device].fit.can == PINS_REVOCABLE)
		*(r->lease_known ? &l->none : &l->unknown) += r->bytes;
}

static void print_leases(const struct census *c, bool exact, const struct leases *l)
{
	char words[24];

	if (!c->have_leases) {
		printf("Leases are not known, as pinleased doesn't answer.\n");
		return;
	}
	tool_size_words(l->taken_back, exact, words, sizeof words);
	printf("Leased, so pinlease can take it back now: %s;\n", words);
	if (l->kept) {
		tool_size_words(l->kept, exact, words, sizeof words);
		printf("leased, but kept by policy: %s; ", words);
	}
	tool_size_words(l->none, exact, words, sizeof words);
	printf("not leased, but of a kind that could be: %s.\n", words);
	if (l->unknown) {
		tool_size_words(l->unknown, exact, words, sizeof words);
		printf("Private memory of such kinds, whose leases pinleased isn't told of: %s.\n",
		       words);
	}
}

static void print_sums(const struct census *c, bool exact, bool filtered)
{
	struct leases l = {0};
	uint64_t bytes = 0, pins = 0, refs = 0;
	int len;
	char all[24], memory[24], plain[48] = "", doubled[64] = "";

	for (size_t i = 0; i < c->rows.n; i++) {
		const struct pins_row *r = pins_at(&c->rows, struct pins_row, i);

		bytes += r->bytes;
		pins += r->pins;
		refs += r->refs;
		add_lease(&l, r);
	}
	tool_size_words(c->shown_bytes, exact, all, sizeof all);
	if (bytes > c->shown_bytes) {
		tool_size_words(bytes, exact, memory, sizeof memory);
		snprintf(doubled, sizeof doubled, " (by lines %s: some is in several)", memory);
	}
	tool_size_words(c->pages * PINS_PAGE, false, memory, sizeof memory);
	if (refs)
		snprintf(plain, sizeof plain, " and %" PRIu64 " plain reference%s", refs, tool_s(refs));
	len = printf("\n%s%" PRIu64 " pin%s%s, %s%s%s.", filtered ? "Shown: " : "", pins, tool_s(pins),
		     plain, all, exact ? " bytes" : "", doubled);
	putchar(len > BESIDE ? '\n' : ' '); /* what follows fits a line of 80 with it */
	print_leases(c, exact, &l);
	printf("The kernel counts %" PRIu64 " pin%s; found: %" PRIu64 "%s.\n", pins_counted(c),
	       tool_s(pins_counted(c)), c->found, off_words(c));
	if (c->gone)
		printf("%" PRIu64 " pin%s that nobody maps ha%s gone in the meantime.\n", c->gone,
		       tool_s(c->gone), c->gone == 1 ? "s" : "ve");
	if (c->unexplained)
		printf("%" PRIu64 " page%s of private memory ha%s references that nothing explains.\n",
		       c->unexplained, tool_s(c->unexplained), c->unexplained == 1 ? "s" : "ve");
	printf("Looked at %s of memory in %" PRIu64 " ms, at processes in %" PRIu64 " ms; %" PRIu64
	       " ms in all.\n",
	       memory, c->scan_ns / 1000000, c->who_ns / 1000000, c->total_ns / 1000000);
}

void pins_print_table(const struct census *c, bool exact, bool filtered)
{
	int width = isatty(STDOUT_FILENO) ? tool_width(stdout, 120) : INT_MAX;

	printf("%7s %-10s %-9s %*s %6s %-6s %-7s %s\n", "PID", "PROGRAM", "DEVICE", exact ? 13 : 4,
	       exact ? "BYTES" : "SIZE", "PINS", "MAPPED", "LEASE", "RANGE, FILE");
	for (size_t i = 0; i < c->rows.n; i++)
		print_row(c, pins_at(&c->rows, struct pins_row, i), exact, width);
	if (c->rows.n)
		print_devices(c, exact);
	print_sums(c, exact, filtered);
}

/* ------------------------------------------------------------------------------------------- JSON -- */

static void add_truth(struct json_object *o, const char *key, bool truth)
{
	json_object_object_add(o, key, json_object_new_boolean(truth));
}

static struct json_object *ranges(const struct pins_row *r)
{
	struct json_object *all = json_object_new_array();

	for (size_t i = 0; i < r->ranges.n; i++) {
		struct json_object *o = json_object_new_object();

		tool_add_number(o, "start", pins_at(&r->ranges, struct pins_range, i)->start);
		tool_add_number(o, "end", pins_at(&r->ranges, struct pins_range, i)->end);
		json_object_array_add(all, o);
	}
	return all;
}

/* Where an object is known: all that have it. */
static struct json_object *open_in(const struct census *c, const struct pins_row *r)
{
	struct json_object *all = json_object_new_array();

	if (!r->group)
		json_object_array_add(all, json_object_new_int(r->pid));
	for (size_t i = 0; r->group && i < pins_group_size(c, r->group); i++)
		json_object_array_add(all, json_object_new_int(pins_group_pid(c, r->group, i)));
	return all;
}

static struct json_object *to_json(const struct census *c, const struct pins_row *r)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "pid", r->pid ? json_object_new_int(r->pid) : NULL);
	tool_add_text(o, "program", r->pid && *r->program ? r->program : NULL);
	json_object_object_add(o, "open_in", r->sure ? open_in(c, r) : NULL);
	tool_add_text(o, "device", pins_classes[r->device].name);
	add_truth(o, "listed", r->sure);
	tool_add_text(o, "memory", memories[r->memory]);
	if (r->memory == CENSUS_FILE) {
		tool_add_text(o, "path", r->path);
		tool_add_number(o, "file_dev", makedev(r->dev >> 20, r->dev & 0xfffff));
		tool_add_number(o, "file_ino", r->ino);
	}
	add_truth(o, "mapped", r->mapped);
	tool_add_number(o, "bytes", r->bytes);
	tool_add_number(o, "pins", r->pins);
	tool_add_number(o, "references", r->refs);
	json_object_object_add(o, "ranges", ranges(r));
	tool_add_text(o, "ranges_of",
		      r->memory == CENSUS_FILE ? "file"
		      : r->physical	       ? "machine"
					       : "process");
	tool_add_text(o, "lease", r->lease);
	add_truth(o, "lease_known", r->lease_known);
	json_object_object_add(o, "can_take_back",
			       r->lease ? json_object_new_boolean(r->taken_back) : NULL);
	tool_add_text(o, "class", pins_cans[pins_classes[r->device].fit.can]);
	tool_add_text(o, "fitting_policy", pins_classes[r->device].fit.policy);
	return o;
}

static struct json_object *machine(const struct census *c)
{
	struct json_object *o = json_object_new_object();

	tool_add_number(o, "pins", c->found);
	tool_add_number(o, "shown_bytes", c->shown_bytes);
	tool_add_number(o, "kernel_pins", pins_counted(c));
	tool_add_number(o, "kernel_acquired", c->after.acquired);
	tool_add_number(o, "kernel_released", c->after.released);
	tool_add_number(o, "acquired_and_released_meanwhile", pins_meanwhile(c));
	add_truth(o, "equal", !pins_off(c));
	tool_add_number(o, "gone_meanwhile", c->gone);
	tool_add_number(o, "unexplained_references", c->unexplained);
	tool_add_number(o, "pages", c->pages);
	tool_add_number(o, "unreadable_pages", c->unreadable);
	add_truth(o, "huge_pages_tried", c->own.huge_seen);
	add_truth(o, "leases_known", c->have_leases);
	tool_add_number(o, "scan_ns", c->scan_ns);
	tool_add_number(o, "processes_ns", c->who_ns);
	tool_add_number(o, "total_ns", c->total_ns);
	return o;
}

void pins_print_json(const struct census *c)
{
	struct json_object *all = json_object_new_object(), *rows = json_object_new_array();

	for (size_t i = 0; i < c->rows.n; i++)
		json_object_array_add(rows, to_json(c, pins_at(&c->rows, struct pins_row, i)));
	json_object_object_add(all, "pins", rows);
	json_object_object_add(all, "machine", machine(c));
	tool_put_json(all, JSON_C_TO_STRING_PRETTY);
}
