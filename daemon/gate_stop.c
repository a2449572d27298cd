/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Letting threads through that the gate's programs have stopped. */
#include "daemon/gate_stop.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "os/clock.h"
#include "pinlease/device.h"

static uint64_t thread_of(const struct gate_refusal *call)
{
	return (uint64_t)(uint32_t)call->pid << 32 | (uint32_t)call->tid;
}

int gate_stop_pass(const struct gate_stops *s, const struct gate_refusal *call, bool refuse)
{
	struct gate_pass p = {.file = call->file,
			      .start = call->start,
			      .end = call->end,
			      .until_ns = pl_clock_ns() + GATE_PASS_MS * 1000000ull,
			      .op = call->op,
			      .refuse = refuse};
	uint64_t thread = thread_of(call);

	return bpf_map_update_elem(s->passes, &thread, &p, BPF_ANY)
		       ? pinl_set_error(-errno, "the gate can't let %d through: %s", call->tid,
					strerror(errno))
		       : 0;
}

bool gate_stop_may_go(const struct gate_stops *s, const struct gate_refusal *call)
{
	uint64_t thread = thread_of(call);
	struct gate_pass p;

	return !bpf_map_lookup_elem(s->passes, &thread, &p) && !p.going && pl_clock_ns() < p.until_ns;
}

void gate_stop_take_pass(const struct gate_stops *s, const struct gate_refusal *call)
{
	uint64_t thread = thread_of(call);

	bpf_map_delete_elem(s->passes, &thread);
}

void gate_stop_is_over(const struct gate_stops *s, const struct gate_refusal *call)
{
	struct gate_stop_key at = {thread_of(call), call->stopped_ns};

	bpf_map_delete_elem(s->stops, &at);
}

/* The programs don't know either from the other everywhere. */
static uint32_t op_of_asked(uint32_t op)
{
	return op == PINL_OP_REMOVE ? PINL_OP_PUNCH : op;
}

int gate_stop_asked(const struct gate_stops *s, const struct gate_refusal *call)
{
	struct gate_asked a = {.file = call->file,
			       .start = call->start,
			       .end = call->end,
			       .pid = call->pid,
			       .op = op_of_asked(call->op)};
	uint64_t now = pl_clock_ns();
	struct gate_answer w = {now, now + GATE_ASKED_MS * 1000000ull};

	__atomic_store_n(&s->state->asked_until_ns, w.until_ns, __ATOMIC_SEQ_CST);
	return bpf_map_update_elem(s->asked, &a, &w, BPF_ANY)
		       ? pinl_set_error(-errno, "the gate goes on refusing %d: %s", call->pid,
					strerror(errno))
		       : 0;
}

void gate_stop_nobody(struct gate_stops *s, const char *why)
{
	snprintf(s->why_not, sizeof s->why_not, "%s", why);
	__atomic_store_n(&s->state->waits_until_ns, 0, __ATOMIC_SEQ_CST);
}

int gate_stop_never(const struct gate_stops *s, pid_t pid, bool never)
{
	uint32_t key = pid, one = 1;

	if (!never)
		return bpf_map_delete_elem(s->holders, &key) ? -errno : 0;
	return bpf_map_update_elem(s->holders, &key, &one, BPF_ANY)
		       ? pinl_set_error(-errno, "the gate can't remember %d, not to stop it: %s", pid,
					strerror(errno))
		       : 0;
}
