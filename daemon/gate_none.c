/* SPDX-License-Identifier: GPL-2.0-or-later */
/* In place of gate.c, where pinleased is built without libbpf. */
#include "daemon/gate.h"

#include <errno.h>
#include <pinlease/device.h>

static int gate_open(struct pinl_ctx *ctx, const void *arg, void **src)
{
	return pinl_set_error(-EOPNOTSUPP, "pinleased was built without BPF (libbpf, clang, bpftool)");
}

void gate_start(struct server *s)
{
}

void gate_drop(struct server *s)
{
}

void gate_stop(struct server *s)
{
}

void gate_hand_over(struct server *s)
{
}

void gate_answer(struct server *s)
{
}

bool gate_has_others_wait(struct server *s, const struct pinl_memory *mem)
{
	return false;
}

bool gate_is_waited_at(struct server *s)
{
	return false;
}

bool gate_stays_closed(struct server *s)
{
	return false;
}

bool gate_keeps_name(struct server *s, const struct pinl_memory *mem)
{
	return false;
}

void gate_hold(struct held_lease *hl)
{
}

void gate_let_go(struct held_lease *hl)
{
}

void gate_was_asked(struct server *s, const struct pinl_change *ch)
{
}

bool gate_under_way(struct server *s, const struct pl_lease_msg *m, const struct stat *st)
{
	return false;
}

uint64_t gate_unread(const struct server *s)
{
	return 0;
}

void gate_describe(struct server *s, char *text, size_t len)
{
}

const struct pinl_source_ops gate_ops = {
	.size = sizeof(struct pinl_source_ops),
	.name = "gate",
	.open = gate_open,
};
