/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Results in few words: for cells and for lists. */
#include "doctor.h"

#include <string.h>

const char *doctor_class_name(int device_class)
{
	static const char *const names[] = {[PINL_DEV_NONE] = "NONE",
					    [PINL_DEV_QUIESCE_ONLY] = "QUIESCE_ONLY",
					    [PINL_DEV_REVOCABLE] = "REVOCABLE",
					    [PINL_DEV_FAULTING] = "FAULTING"};

	return device_class < 0 ? "not seen" : names[device_class];
}

const char *doctor_outcome_name(enum doctor_outcome outcome)
{
	static const char *const names[BARE_NR] = {
		[BARE_SAME] = "same page",	    [BARE_FILE] = "only in the file",
		[BARE_LOST] = "lost with success",  [BARE_ERROR] = "the device gets an error",
		[BARE_NOT_HERE] = "not applicable", [BARE_NO_PIN] = "the kernel refuses the pin",
	};

	return names[outcome];
}

static void list(char *buf, size_t len, const char *word)
{
	tool_append(buf, len, "%s%s", *buf ? ", " : "", word);
}

void doctor_missing_words(unsigned missing, char *buf, size_t len)
{
	*buf = '\0';
	if (missing & PINL_CAN_TELL) {
		list(buf, len, "not told");
		return;
	}
	if (missing & PINL_CAN_BEFORE)
		list(buf, len, "not told before");
	if (missing & PINL_CAN_HOLD)
		list(buf, len, "not held");
	if (missing & PINL_CAN_REFUSE)
		list(buf, len, "not refused");
}

void doctor_ops_words(unsigned ops, char *buf, size_t len)
{
	*buf = '\0';
	for (int op = 0; op < PINL_OP_NR; op++)
		if (ops & PINL_OPBIT(op))
			list(buf, len, pinl_op_name(op));
}

void doctor_policies_words(unsigned policies, char *buf, size_t len)
{
	*buf = '\0';
	for (int i = 0; i < DOCTOR_NR_PLANS; i++)
		if (policies & 1u << i)
			list(buf, len, doctor_plans[i].name);
}

static uint32_t rows_here(const struct doctor *d)
{
	uint32_t here = 0;

	for (unsigned i = 0; i < d->n; i++)
		if (!d->rows[i].memory->why[0])
			here |= 1u << i;
	return here;
}

/* Of those that can be leased to any of the devices. */
static uint32_t rows_leased(const struct doctor *d)
{
	uint32_t leased = 0;

	for (unsigned i = 0; i < d->n; i++)
		for (unsigned k = 0; k < d->n_devices; k++)
			if (d->rows[i].pairs[k].leased)
				leased |= 1u << i;
	return leased;
}

void doctor_rows_words(const struct doctor *d, uint32_t rows, char *buf, size_t len)
{
	*buf = '\0';
	if (rows == rows_here(d) || rows == rows_leased(d)) {
		list(buf, len, rows == rows_here(d) ? "all memory" : "all memory that can be leased");
		return;
	}
	for (unsigned i = 0; i < d->n; i++)
		if (rows & 1u << i)
			list(buf, len, d->rows[i].memory->name);
}

void doctor_devices_words(const struct doctor *d, unsigned devices, char *buf, size_t len)
{
	unsigned open = 0;

	*buf = '\0';
	for (unsigned i = 0; i < d->n_devices; i++)
		open |= d->devices[i].dev ? 1u << i : 0;
	if (devices == open) {
		list(buf, len, "any device");
		return;
	}
	for (unsigned i = 0; i < d->n_devices; i++)
		if (devices & 1u << i)
			list(buf, len, d->devices[i].name);
}

void doctor_cell_text(const struct doctor_pair *pair, enum pinl_op op, char *buf, size_t len)
{
	const struct doctor_cell *c = &pair->cells[op];
	unsigned can = c->promised;

	*buf = '\0';
	if (!c->here)
		return;
	if (!c->detaches) {
		snprintf(buf, len, c->harmful ? ".!" : ".");
		return;
	}
	if (!(can & PINL_CAN_TELL))
		snprintf(buf, len, "-");
	else
		snprintf(buf, len, "%s%s%s", can & PINL_CAN_BEFORE ? "B" : "T",
			 can & PINL_CAN_HOLD ? "H" : "", can & PINL_CAN_REFUSE ? "R" : "");
	tool_append(buf, len, "%s", doctor_short(c) ? "!" : c->err ? "?" : "");
}

void doctor_bare_text(const struct doctor_bare *bare, char *buf, size_t len)
{
	static const char *const words[BARE_NR] = {"same", "file", "LOST", "err", "", "pin"};

	snprintf(buf, len, "%s", words[bare->outcome]);
}
