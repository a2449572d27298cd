/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The table of what happens without pinlease, for a document. */
#include "doctor.h"

#include <string.h>

static void cell(FILE *out, const struct doctor_bare *b)
{
	switch (b->outcome) {
	case BARE_SAME:
		fprintf(out, b->moved ? " moved |" : " same page |");
		return;
	case BARE_FILE:
		fprintf(out, " file |");
		return;
	case BARE_LOST:
		fprintf(out, " **lost** |");
		return;
	case BARE_ERROR:
	case BARE_NO_PIN:
	case BARE_NOT_HERE:
	case BARE_NR:
		break;
	}
	fprintf(out, " %s%s |",
		b->outcome == BARE_NOT_HERE ? "- "
		: b->outcome == BARE_NO_PIN ? "no pin: "
					    : "error: ",
		tool_errno_name(b->err));
}

void doctor_markdown(FILE *out, const struct doctor *d)
{
	fprintf(out, "%s.\n\n| memory |", d->machine);
	for (int op = 0; op < PINL_OP_NR; op++)
		fprintf(out, " %s |", pinl_op_name(op));
	fprintf(out, "\n|---|");
	for (int op = 0; op < PINL_OP_NR; op++)
		fprintf(out, "---|");
	fputc('\n', out);
	for (unsigned i = 0; i < d->n; i++) {
		if (d->rows[i].memory->why[0])
			continue;
		fprintf(out, "| %s |", d->rows[i].memory->name);
		for (int op = 0; op < PINL_OP_NR; op++)
			cell(out, &d->rows[i].bare[op]);
		fputc('\n', out);
	}
}
