/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Calls by which the kernel has passed the gate's programs, by its own account. Those that do
 * the same have names that differ in the last letter. */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <string.h>

#include "daemon/gate_load.h"

static uint64_t passed(const struct bpf_program *p)
{
	struct bpf_prog_info info = {0};
	__u32 len = sizeof info;

	return bpf_program__fd(p) >= 0 && !bpf_obj_get_info_by_fd(bpf_program__fd(p), &info, &len)
		       ? info.recursion_misses
		       : 0;
}

static bool is_one_of_three(const struct bpf_program *p, char letter)
{
	const char *name = bpf_program__name(p);
	size_t len = strlen(name);

	return len > 2 && name[len - 2] == '_' && name[len - 1] == letter;
}

/* Where only a note would have been dropped, or that a change is over not said, no call has gone on by
 * that. And what an answer wasn't asked for the programs count themselves. */
static bool is_no_loss(const struct bpf_program *p)
{
	return !strncmp(bpf_program__name(p), "end_", 4) || strstr(bpf_program__name(p), "_answer");
}

/* All that do the same have been: no oftener than the one that was least often. */
static uint64_t passed_all(const struct bpf_object *o, const struct bpf_program *a)
{
	size_t len = strlen(bpf_program__name(a)) - 1;
	uint64_t least = passed(a), n;
	struct bpf_program *p;

	bpf_object__for_each_program(p, o)
	{
		n = passed(p);
		if (bpf_program__fd(p) >= 0 && n < least &&
		    !strncmp(bpf_program__name(p), bpf_program__name(a), len))
			least = n;
	}
	return least;
}

uint64_t gate_passed_by(const struct bpf_object *o)
{
	struct bpf_program *p;
	uint64_t n = 0;

	bpf_object__for_each_program(p, o)
	{
		if (is_no_loss(p) || is_one_of_three(p, 'b') || is_one_of_three(p, 'c'))
			continue;
		n += is_one_of_three(p, 'a') ? passed_all(o, p) : passed(p);
	}
	return n;
}
