/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Letting threads through that the gate's programs have stopped. */
#include "daemon/gate_stop.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <string.h>

#include "os/clock.h"
#include "pinlease/device.h"

static uint64_t thread_of(const struct gate_refusal *call)
{
	return (uint64_t)(uint32_t)call->pid << 32 | (uint32_t)call->tid;
}

int gate_stop_pass(const struct gate_stops *s, const struct gate_refusal *call)
{
	struct gate_pass p = {.file = call->file,
			      .start = call->start,
			      .end = call->end,
			      .until_ns = pl_clock_ns() + GATE_PASS_MS * 1000000ull};
	uint64_t thread = thread_of(call);

	return bpf_map_update_elem(s->passes, &thread, &p, BPF_ANY)
		       ? pinl_set_error(-errno, "the gate can't let %d through: %s", call->tid,
					strerror(errno))
		       : 0;
}

bool gate_stop_passed(const struct gate_stops *s, const struct gate_refusal *call)
{
	uint64_t thread = thread_of(call);
	struct gate_pass p;

	return bpf_map_lookup_elem(s->passes, &thread, &p);
}

void gate_stop_forget(const struct gate_stops *s, const struct gate_refusal *call)
{
	uint64_t thread = thread_of(call);

	bpf_map_delete_elem(s->passes, &thread);
	bpf_map_delete_elem(s->waits, &thread);
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
