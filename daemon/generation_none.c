/* SPDX-License-Identifier: GPL-2.0-or-later */
/* In place of generation.c, where pinleased is built without libbpf. */
#include "daemon/generation.h"

#include <errno.h>
#include <pinlease/device.h>

void generation_start(struct server *s)
{
}

void generation_stop(struct server *s)
{
}

int generation_ask(struct holder *h, const struct pl_count_msg *m)
{
	int err =
		pinl_set_error(-EOPNOTSUPP, "pinleased was built without BPF (libbpf, clang, bpftool)");

	return holder_reply(h, &m->head, err, 0);
}

void generation_answer(struct server *s)
{
}

void generation_forget(struct holder *h)
{
}

void generation_describe(struct server *s, char *text, size_t len)
{
	*text = 0;
}
