/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The list of facilities, and how it is printed. */
#include "doctor.h"

#include <stdarg.h>
#include <string.h>

static struct doctor_facility *add(struct doctor *d, const char *group, const char *name)
{
	struct doctor_facility *f = &d->facilities[d->n_facilities];

	if (d->n_facilities == DOCTOR_MAX_FACILITIES)
		return NULL;
	d->n_facilities++;
	*f = (struct doctor_facility){.group = group};
	snprintf(f->name, sizeof(f->name), "%s", name);
	return f;
}

void doctor_here(struct doctor *d, const char *group, const char *name, const char *found, ...)
{
	struct doctor_facility *f = add(d, group, name);
	va_list ap;

	if (!f)
		return;
	f->here = true;
	va_start(ap, found);
	vsnprintf(f->found, sizeof(f->found), found, ap);
	va_end(ap);
}

void doctor_missing(struct doctor *d, const char *group, const char *name, const char *why, ...)
{
	struct doctor_facility *f = add(d, group, name);
	va_list ap;

	if (!f)
		return;
	va_start(ap, why);
	vsnprintf(f->why, sizeof(f->why), why, ap);
	va_end(ap);
}

const char *doctor_facility_why(const struct doctor *d, const char *name)
{
	for (unsigned i = 0; i < d->n_facilities; i++)
		if (!strcmp(d->facilities[i].name, name) && !d->facilities[i].here)
			return d->facilities[i].why;
	return NULL;
}

static bool begins_group(const struct doctor *d, unsigned at)
{
	return !at || strcmp(d->facilities[at].group, d->facilities[at - 1].group);
}

/* What is here in one paragraph per group; each that isn't in one of its own. */
static void group(FILE *out, const struct doctor *d, unsigned first)
{
	char text[4000] = "";
	unsigned i = first;

	for (; i < d->n_facilities && (i == first || !begins_group(d, i)); i++) {
		const struct doctor_facility *f = &d->facilities[i];

		if (f->here)
			tool_append(text, sizeof(text), "%s%s%s%s%s", *text ? ", " : "", f->name,
				    *f->found ? " (" : "", f->found, *f->found ? ")" : "");
	}
	if (*text)
		doctor_wrap(out, 2, text);
	for (unsigned k = first; k < i; k++) {
		if (d->facilities[k].here)
			continue;
		snprintf(text, sizeof(text), "- %s", d->facilities[k].why);
		doctor_wrap(out, 2, text);
	}
}

void doctor_facilities(FILE *out, const struct doctor *d)
{
	char title[80];

	for (unsigned i = 0; i < d->n_facilities; i++) {
		if (!begins_group(d, i))
			continue;
		snprintf(title, sizeof(title), "\nHere, of %s", d->facilities[i].group);
		doctor_bold(out, title);
		group(out, d, i);
	}
}
