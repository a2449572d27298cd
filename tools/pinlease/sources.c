/* SPDX-License-Identifier: GPL-2.0-or-later */
/* pinlease sources: which sources of changes run here, why the others don't, and what that means. */
#include <argp.h>
#include <errno.h>
#include <pinlease/pinlease.h>
#include <stdio.h>
#include <string.h>

#include "command.h"
#include "common.h"
#include "given.h"

static const struct {
	const char *name;
	const char *running, *missing;
} meanings[] = {
	{"uffd", "munmap, mremap, MAP_FIXED and madvise of leased memory are seen and held",
	 "plain munmap, mremap and madvise are not seen; the pinl_ calls of the same names are"},
	{"arbiter", "pinleased watches files for all programs, and forces holders that don't answer",
	 "each program needs the privileges itself, and one that is stopped isn't forced"},
	{"files",
	 "changes of files on ext4, XFS and btrfs are seen before they happen, held and refused",
	 "changes of files by others can't be held or refused; at best they are told afterwards"},
	{"gate",
	 "what leases with REFUSE refuse is refused also on tmpfs, hugetlbfs, of memfds, and by "
	 "descriptors "
	 "that fanotify doesn't see",
	 "changes of files on tmpfs, hugetlbfs and of memfds can't be refused"},
	{"notify",
	 "truncations and holes in files that can't be held (tmpfs, memfd) are told afterwards",
	 "changes of files that can't be held are not told; a lease ends with a look at the file"},
	{"faults",
	 "transfers that an IOMMU has stopped are told, as far as the kernel's log has them (it leaves "
	 "out "
	 "many)",
	 "nobody is told of transfers that an IOMMU has stopped; they are stopped all the same"},
};

/* `line` is "name: running", "name: by pinleased", "name: missing: reason", or says it all. */
static const char *meaning_of(const char *line)
{
	if (strstr(line, ", weaker: ") || strstr(line, ": left: "))
		return NULL;
	for (size_t i = 0; i < sizeof(meanings) / sizeof(*meanings); i++) {
		size_t len = strlen(meanings[i].name);

		if (!strncmp(line, meanings[i].name, len) && line[len] == ':')
			return strstr(line, ": missing") ? meanings[i].missing : meanings[i].running;
	}
	return NULL;
}

static int show(struct pinl_ctx *ctx)
{
	char text[4096], *rest = text, *line;

	if (given_sources(ctx, text, sizeof(text)) < 0) {
		fprintf(stderr, "pinlease: %s\n", pinl_error());
		return EXIT_CANT_START;
	}
	while ((line = strsep(&rest, "\n"))) {
		const char *meaning = meaning_of(line);

		if (*line)
			printf(meaning ? "%s: %s\n" : "%s\n", line, meaning);
	}
	return tool_flush("pinlease sources") ? EXIT_CANT_START : 0;
}

int cmd_sources(int argc, char **argv)
{
	static const struct argp argp = {
		.doc = "Show which sources of changes run here, and why the others don't."};
	struct pinl_ctx *ctx;
	int status, err;

	argp_parse(&argp, argc, argv, 0, NULL, NULL);
	err = pinl_open(NULL, &ctx);
	if (err) {
		fprintf(stderr, "pinlease: %s\n", pinl_error());
		return EXIT_CANT_START;
	}
	status = show(ctx);
	pinl_close(ctx);
	return status;
}
