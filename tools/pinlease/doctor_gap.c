/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Why something is not promised, and what would close the gap. The reasons come from this machine: what
 * pinl_sources() says of a source that is missing, the sentence with which pinl_map_range() refused,
 * what a call on this very file said. Only what no kernel of today gives is known beforehand, and stands
 * in the table of remedies. Gaps with the same reason are one.
 */
#include "doctor.h"

#include <errno.h>
#include <string.h>

static const char close_mapping[] =
	"pinl_munmap, pinl_mremap and pinl_madvise, which are exact; plain system calls could be "
	"held by seccomp, which pinlease run doesn't do for these";
static const char close_file[] =
	"pinl_ftruncate and pinl_fallocate by those who change the file; PINL_SEAL for truncate and "
	"punch "
	"of a memfd; for plain system calls on files in memory pinlease run with pinleased, which holds "
	"those of the processes that it starts, and pinleased's gate, for REFUSE, and for RECALL those "
	"of all other processes, which the table doesn't show (pinlease status says if it runs)";
static const char close_files_source[] =
	"what the reason says, as far as the file system gives fanotify events before changes (tmpfs, "
	"memfd and hugetlbfs have given none so far); without it pinl_ftruncate and pinl_fallocate";
static const char close_uffd_source[] =
	"what the reason says; without it pinl_munmap, pinl_mremap and pinl_madvise";
static const char close_counts[] =
	"PINL_SOURCE_GENERATION, which runs here for who asks for it in pinl_opts.sources: it tells";
static const char close_pin[] = "a device that maps on demand";

struct finding {
	unsigned ops, missing, device;
	uint32_t row;
	unsigned policies;
	char reason[DOCTOR_WHY * 2];
	const char *remedy;
};

static void add(struct doctor *d, const struct finding *f)
{
	struct doctor_gap *g = d->gaps, *end = d->gaps + d->n_gaps;

	while (g < end && (strcmp(g->reason, f->reason) || strcmp(g->remedy, f->remedy)))
		g++;
	if (g == d->gaps + DOCTOR_MAX_GAPS) {
		d->gaps_dropped++;
		return;
	}
	if (g == end) {
		d->n_gaps++;
		*g = (struct doctor_gap){0};
		snprintf(g->reason, sizeof(g->reason), "%s", f->reason);
		snprintf(g->remedy, sizeof(g->remedy), "%s", f->remedy);
	}
	g->ops |= f->ops;
	g->missing |= f->missing;
	g->policies |= f->policies;
	g->devices |= 1u << f->device;
	g->rows |= f->row;
}

/* What is said of a source that doesn't run; false: it does. */
static bool source_missing(const struct doctor *d, const char *name, char *why, size_t len)
{
	char start[32];
	const char *line, *stop;

	snprintf(start, sizeof(start), "%s: missing: ", name);
	line = strstr(d->sources, start);
	if (!line)
		return false;
	line += strlen(start);
	stop = strchrnul(line, '\n');
	snprintf(why, len, "the %s source is missing: %.*s", name, (int)(stop - line), line);
	return true;
}

/* ------------------------------------------------------------------------------------- operations -- */

static void explain_file(struct doctor *d, const struct doctor_row *row, struct finding *f)
{
	f->remedy = close_file;
	if (source_missing(d, "files", f->reason, sizeof(f->reason)))
		f->remedy = close_files_source;
	else
		snprintf(f->reason, sizeof(f->reason),
			 "this memory gives no fanotify event before its file changes (%s)",
			 row->watch_err ? tool_errno_name(row->watch_err) : "it can't be marked");
	if (f->missing & PINL_CAN_TELL)
		tool_append(f->reason, sizeof(f->reason),
			    "; and what it leaves behind doesn't show which pages it took");
}

static void explain_mapping(struct doctor *d, struct finding *f, const struct doctor_pair *pair)
{
	f->remedy = close_mapping;
	if (f->ops & PINL_OPBIT(PINL_OP_GUARD))
		snprintf(f->reason, sizeof(f->reason),
			 d->counts ? "nothing that runs unasked reports madvise(MADV_GUARD_INSTALL)"
				   : "no kernel facility reports madvise(MADV_GUARD_INSTALL)");
	else if (source_missing(d, "uffd", f->reason, sizeof(f->reason)))
		f->remedy = close_uffd_source;
	else if (f->missing & PINL_CAN_TELL)
		snprintf(f->reason, sizeof(f->reason), "userfaultfd doesn't watch this mapping: %s",
			 pair->verdicts[1].why);
	else if (f->missing & PINL_CAN_HOLD)
		snprintf(f->reason, sizeof(f->reason),
			 "userfaultfd reports, but the callers can't be seen waiting: %s",
			 d->sees_callers ? "the call of a thread that waits was not recognized"
					 : "/proc/self/task/TID/syscall can't be read");
	else if (f->missing & PINL_CAN_BEFORE)
		snprintf(
			f->reason, sizeof(f->reason),
			"userfaultfd reports it when the mapping has changed already; the caller waits, "
			"and the device has the old pages until the recall is over");
	else
		snprintf(f->reason, sizeof(f->reason),
			 "userfaultfd holds a call, but can't make it fail");
	if (d->counts && (f->missing & PINL_CAN_TELL))
		f->remedy = close_counts;
}

static void find_cell(struct doctor *d, unsigned at, unsigned device, enum pinl_op op)
{
	const struct doctor_pair *pair = &d->rows[at].pairs[device];
	const struct doctor_cell *cell = &pair->cells[op];
	unsigned full =
		doctor_revocable(&d->devices[device]) ? DOCTOR_CAN_ALL : PINL_CAN_TELL | PINL_CAN_REFUSE;
	struct finding f = {.ops = PINL_OPBIT(op),
			    .missing = full & ~cell->promised,
			    .device = device,
			    .row = 1u << at};

	if (!cell->here || !cell->detaches || !f.missing)
		return;
	if (PINL_OPS_FILE & PINL_OPBIT(op))
		explain_file(d, &d->rows[at], &f);
	else
		explain_mapping(d, &f, pair);
	add(d, &f);
}

/* --------------------------------------------------------------------------- what is refused -- */

/* A device adds in brackets why it can't do more, to any sentence. That is shown where devices and
 * facilities are listed; without it the same reason is the same gap. */
size_t doctor_sentence_len(const char *why)
{
	const char *added = strstr(why, " (device ");

	return added ? (size_t)(added - why) : strlen(why);
}

static void say(struct finding *f, const char *sentence)
{
	snprintf(f->reason, sizeof(f->reason), "%.*s", (int)doctor_sentence_len(sentence), sentence);
}

/* The sentences name cause and remedy themselves. REFUSE per operation is in the cells. */
static void find_policies(struct doctor *d, unsigned at, unsigned device)
{
	const struct doctor_pair *pair = &d->rows[at].pairs[device];

	for (unsigned i = 1; i < DOCTOR_NR_PLANS - PINL_OP_NR; i++) {
		const struct doctor_verdict *v = &pair->verdicts[i];
		struct finding f = {
			.policies = 1u << i, .device = device, .row = 1u << at, .remedy = ""};

		say(&f, v->why);
		if (doctor_plans[i].policy.kind == PINL_RECALL &&
		    doctor_plans[i].policy.then == PINL_THEN_COPY && d->devices[device].copy)
			f.remedy = d->devices[device].copy;
		if (v->err)
			add(d, &f);
	}
}

static bool leased_on_demand(const struct doctor *d, unsigned at)
{
	for (unsigned i = 0; i < d->n_devices; i++)
		if (!d->devices[i].pinned && d->rows[at].pairs[i].leased)
			return true;
	return false;
}

static void find_pair(struct doctor *d, unsigned at, unsigned device)
{
	const struct doctor_pair *pair = &d->rows[at].pairs[device];
	struct finding f = {.device = device, .row = 1u << at, .remedy = ""};

	if (pair->leased) {
		for (int op = 0; op < PINL_OP_NR; op++)
			find_cell(d, at, device, op);
		find_policies(d, at, device);
		return;
	}
	say(&f, pair->why);
	if (leased_on_demand(d, at))
		f.remedy = close_pin;
	add(d, &f);
}

void doctor_gaps(struct doctor *d)
{
	for (unsigned at = 0; at < d->n; at++)
		for (unsigned device = 0; device < d->n_devices; device++)
			if (!d->rows[at].memory->why[0] && d->devices[device].dev)
				find_pair(d, at, device);
}
