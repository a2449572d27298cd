/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Does pinleased have changes of mappings counted here? Asked for, as a program would. */
#include <stdio.h>
#include <string.h>

#include "doctor.h"

#define NAME	"counting of changes"
#define MISSING "generation: missing: "

static void say_missing(struct doctor *d, const char *sources)
{
	const char *why = strstr(sources, MISSING);

	why = why ? why + strlen(MISSING) : pinl_error();
	doctor_missing(d, "pinleased", NAME,
		       "%s: %.*s; without it nobody tells of mprotect, guard pages and shmdt, nor of "
		       "truncation by others before the pages go",
		       NAME, (int)strcspn(why, "\n"), why);
}

void doctor_counts(struct doctor *d)
{
	struct pinl_opts opts = {
		.size = sizeof(opts), .summary_fd = -1, .sources = PINL_SOURCE_GENERATION};
	char sources[1024] = "";
	struct pinl_ctx *ctx;

	if (!pinl_open(&opts, &ctx)) {
		pinl_sources(ctx, sources, sizeof(sources));
		pinl_close(ctx);
	}
	d->counts = strstr(sources, "generation: running");
	if (!d->counts)
		say_missing(d, sources);
	else
		doctor_here(d, "pinleased", NAME, "%s",
			    "PINL_SOURCE_GENERATION, to be asked for: the better one for a registration "
			    "cache, as it also sees mprotect, guard pages and shmdt, and truncation by "
			    "others before the pages go");
}
