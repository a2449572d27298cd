/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whether this kernel's functions are those that the gate's programs expect, by its own account. */
#include <bpf/btf.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "daemon/gate_load.h"
#include "pinlease/device.h"

/* Its arguments; NULL: there is no such function. */
static const struct btf_type *proto_of(const struct btf *kernel, const char *function)
{
	int id = btf__find_by_name_kind(kernel, function, BTF_KIND_FUNC);
	const struct btf_type *f = id < 0 ? NULL : btf__type_by_id(kernel, id);

	return f ? btf__type_by_id(kernel, f->type) : NULL;
}

/* What the programs take for these arguments has to be that: read as something else it is 0, and open.
 */
struct argument {
	const char *function;
	unsigned of, at;
	const char *type; /* struct */
};

static const struct argument arguments[] = {
	{"vfs_fallocate", 4, 0, "file"},
	{"vfs_clone_file_range", 6, 0, "file"},
	{"vfs_clone_file_range", 6, 2, "file"},
	{"vfs_dedupe_file_range_one", 6, 0, "file"},
	{"vfs_dedupe_file_range_one", 6, 2, "file"},
	{"vfs_copy_file_range", 6, 0, "file"},
	{"vfs_copy_file_range", 6, 2, "file"},
};

static bool is_argument(const struct btf *kernel, const struct argument *a)
{
	const struct btf_type *t = proto_of(kernel, a->function);

	if (!t || btf_vlen(t) != a->of)
		return false;
	t = btf__type_by_id(kernel, btf_params(t)[a->at].type);
	if (!t || !btf_is_ptr(t))
		return false;
	t = btf__type_by_id(kernel, t->type);
	while (t && btf_is_mod(t))
		t = btf__type_by_id(kernel, t->type);
	return t && btf_is_struct(t) && !strcmp(btf__name_by_offset(kernel, t->name_off), a->type);
}

static int check_one(const struct btf *kernel, const struct argument *a)
{
	return is_argument(kernel, a)
		       ? 0
		       : pinl_set_error(-EOPNOTSUPP,
					"the gate doesn't know this kernel's %s(): argument %u of %u "
					"isn't a struct %s",
					a->function, a->at + 1, a->of, a->type);
}

static int check_all(const struct btf *kernel, const char *setattr, const char *permission, unsigned n)
{
	const struct argument own[] = {
		{setattr, n, n - 2, "dentry"},
		{setattr, n, n - 1, "iattr"},
		{permission, 2, 0, "file"},
	};
	int err = 0;

	for (size_t i = 0; !err && i < sizeof arguments / sizeof *arguments; i++)
		err = check_one(kernel, &arguments[i]);
	for (size_t i = 0; !err && i < sizeof own / sizeof *own; i++)
		err = check_one(kernel, &own[i]);
	return err;
}

int gate_look_at_types(const char *setattr, const char *permission, unsigned *n_setattr)
{
	struct btf *kernel = btf__load_vmlinux_btf();
	const struct btf_type *proto = kernel ? proto_of(kernel, setattr) : NULL;
	unsigned n = proto ? btf_vlen(proto) : 0;
	int err;

	if (!kernel)
		return pinl_set_error(-EOPNOTSUPP, "the gate needs a kernel that describes its types "
						   "(CONFIG_DEBUG_INFO_BTF)");
	if (n < 2)
		err = pinl_set_error(-EOPNOTSUPP, "the gate finds no %s() in this kernel", setattr);
	else
		err = check_all(kernel, setattr, permission, n);
	btf__free(kernel);
	if (!err)
		*n_setattr = n;
	return err;
}

int gate_look_at_name_types(bool lsm)
{
	static const struct argument all[][3] = {
		{{"security_inode_unlink", 2, 1, "dentry"},
		 {"security_inode_rename", 5, 1, "dentry"},
		 {"security_inode_rename", 5, 3, "dentry"}},
		{{"bpf_lsm_inode_unlink", 2, 1, "dentry"},
		 {"bpf_lsm_inode_rename", 4, 1, "dentry"},
		 {"bpf_lsm_inode_rename", 4, 3, "dentry"}},
	};
	struct btf *kernel = btf__load_vmlinux_btf();
	int err = 0;

	for (size_t i = 0; !err && i < sizeof all[lsm] / sizeof *all[lsm]; i++)
		err = check_one(kernel, &all[lsm][i]);
	btf__free(kernel);
	return err;
}

bool gate_has_task_work(void)
{
	struct btf *kernel = btf__load_vmlinux_btf();
	const struct btf_type *p = kernel ? proto_of(kernel, "bpf_task_work_schedule_signal") : NULL;
	bool has = p && btf_vlen(p) == 4;

	btf__free(kernel);
	return has;
}
