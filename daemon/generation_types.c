/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which arguments of this kernel's functions are what the programs want to know, by its own account. */
#include <bpf/btf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/generation_load.h"
#include "pinlease/device.h"

#define NONE 99u

static const struct btf_type *proto_of(const struct btf *kernel, const char *function)
{
	int id = btf__find_by_name_kind(kernel, function, BTF_KIND_FUNC);
	const struct btf_type *f = id < 0 ? NULL : btf__type_by_id(kernel, id);

	return f ? btf__type_by_id(kernel, f->type) : NULL;
}

/* The first that has one of these names, which are "one", or "one|another". */
static unsigned argument(const struct btf *kernel, const struct btf_type *proto, const char *names)
{
	const struct btf_param *p = btf_params(proto);
	const char *name, *at;
	size_t len;

	for (unsigned i = 0; i < btf_vlen(proto); i++) {
		name = btf__name_by_offset(kernel, p[i].name_off);
		len = name ? strlen(name) : 0;
		for (at = names; len && at; at = strchr(at, '|') ? strchr(at, '|') + 1 : NULL)
			if (!strncmp(at, name, len) && (!at[len] || at[len] == '|'))
				return i;
	}
	return NONE;
}

struct wanted {
	const char *names;
	unsigned *at;
};

static int look_at(const struct btf *kernel, const char *function, const struct wanted *w)
{
	const struct btf_type *proto = proto_of(kernel, function);

	if (!proto)
		return pinl_set_error(
			-EOPNOTSUPP,
			"counting changes needs %s() of the kernel, which this one doesn't "
			"describe: another release of pinlease may know it",
			function);
	for (; w->names; w++) {
		*w->at = argument(kernel, proto, w->names);
		if (*w->at == NONE)
			return pinl_set_error(
				-EOPNOTSUPP,
				"counting changes doesn't know this kernel's %s(): it has no argument "
				"\"%s\"; another release of pinlease may know it",
				function, w->names);
	}
	return 0;
}

static bool has_control(const struct btf *kernel)
{
	return btf__find_by_name_kind(kernel, "pagetable_move_control", BTF_KIND_STRUCT) > 0;
}

static int look_at_all(const struct btf *kernel, struct generation_types *t)
{
	const struct wanted zap[] = {
		{"vma", &t->zap_vma}, {"start|addr", &t->zap_start}, {"end", &t->zap_end}, {0}};
	const struct wanted huge[] = {
		{"vma", &t->huge_vma}, {"start", &t->huge_start}, {"end", &t->huge_end}, {0}};
	const struct wanted move[] = {
		{"vma", &t->move_vma}, {"old_addr", &t->move_start}, {"len", &t->move_len}, {0}};
	const struct wanted control[] = {{"pmc", &t->move_control}, {0}};
	const struct wanted protect[] = {{"vma", &t->protect_vma},
					 {"start|addr", &t->protect_start},
					 {"end", &t->protect_end},
					 {"cp_flags", &t->protect_flags},
					 {0}};
	const struct wanted freed[] = {
		{"addr", &t->free_start}, {"end", &t->free_end}, {"walk", &t->free_walk}, {0}};
	int err;

	t->sees_free = !look_at(kernel, "madvise_free_pte_range", freed);
	t->zap = proto_of(kernel, "__zap_vma_range") ? "__zap_vma_range" : "unmap_page_range";
	err = look_at(kernel, t->zap, zap);
	if (!err)
		err = look_at(kernel, "__unmap_hugepage_range", huge);
	if (!err)
		err = look_at(kernel, "change_protection", protect);
	if (!err)
		err = look_at(kernel, "move_page_tables", has_control(kernel) ? control : move);
	if (!err && !proto_of(kernel, "exit_mmap"))
		err = pinl_set_error(-EOPNOTSUPP,
				     "counting changes needs exit_mmap() of the kernel, which this one "
				     "doesn't describe: another release of pinlease may know it");
	return err;
}

int generation_look_at_types(struct generation_types *t)
{
	struct btf *kernel = btf__load_vmlinux_btf();
	int err;

	*t = (struct generation_types){.move_vma = NONE, .move_control = NONE};
	if (!kernel)
		return pinl_set_error(-EOPNOTSUPP, "counting changes needs a kernel that describes its "
						   "types (CONFIG_DEBUG_INFO_BTF)");
	err = look_at_all(kernel, t);
	btf__free(kernel);
	return err;
}
