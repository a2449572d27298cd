/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Part of gate.bpf.c: nobody takes a name of a file with GATE_NAME. The kernel asks with the entries
 * themselves, whoever wants it and by whatever path: of unlink the one that goes, of rename the one that
 * is replaced, of an exchange both.
 */
#ifndef PINLEASE_GATE_NAME_H
#define PINLEASE_GATE_NAME_H

#define RENAME_EXCHANGE 2

static __always_inline int take_name(struct dentry *dentry)
{
	struct inode *inode = BPF_CORE_READ(dentry, d_inode);
	struct gate_refusal r = {.op = GATE_OP_NAME, .end = GATE_END};

	if (!inode) /* the name is free */
		return 0;
	name_call(inode, &r);
	return judge(&r) == GATE_REFUSED ? refuse(&r, GATE_REFUSED) : 0;
}

#define UNLINK(section, name)                                                                           \
	SEC(section) int name(__u64 *ctx)                                                               \
	{                                                                                               \
		int before = (int)ctx[2];                                                               \
                                                                                                        \
		return before ? before : take_name((void *)ctx[1]);                                     \
	}
UNLINK("?lsm/inode_unlink", lsm_unlink)
UNLINK("?fmod_ret/security_inode_unlink", mod_unlink_a)
UNLINK("?fmod_ret/security_inode_unlink", mod_unlink_b)
UNLINK("?fmod_ret/security_inode_unlink", mod_unlink_c)

/* Of an exchange it is asked twice, once from each side. */
SEC("?lsm/inode_rename") int lsm_rename(__u64 *ctx)
{
	int before = (int)ctx[4];

	return before ? before : take_name((void *)ctx[3]);
}

static __always_inline int rename_begins(const __u64 *ctx)
{
	int err = (int)ctx[5];

	if (!err)
		err = take_name((void *)ctx[3]);
	if (!err && (__u32)ctx[4] & RENAME_EXCHANGE)
		err = take_name((void *)ctx[1]);
	return err;
}

#define RENAME(name)                                                                                    \
	SEC("?fmod_ret/security_inode_rename") int name(__u64 *ctx)                                     \
	{                                                                                               \
		return rename_begins(ctx);                                                              \
	}
RENAME(mod_rename_a)
RENAME(mod_rename_b)
RENAME(mod_rename_c)

#endif
