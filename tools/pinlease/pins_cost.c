/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What following costs, and what it missed, by the kernel's own statistics. */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <string.h>
#include <sys/resource.h>

#include <live.skel.h>
#include "pins_live.h"

/* A link's struct bpf_link_info, where it is of a kprobe: since Linux 6.6, `missed` since 6.7. */
struct kprobe_link {
	uint32_t link_type, id, prog_id, pad;
	uint32_t type, pad2;
	uint64_t name;
	uint32_t name_len, offset;
	uint64_t addr, missed;
	uint64_t more[8];
};

bool live_knows_missed(const struct live *l)
{
	return !l->nr_kprobes || l->kprobes_say_missed;
}

static uint64_t missed_by_kprobes(const struct live *l)
{
	uint64_t n = 0;

	for (size_t i = 0; i < l->links.n && l->nr_kprobes && l->kprobes_say_missed; i++) {
		int fd = bpf_link__fd(*pins_at(&l->links, struct bpf_link *, i));
		struct kprobe_link info = {0};
		uint32_t len = sizeof info;

		if (!bpf_obj_get_info_by_fd(fd, &info, &len) &&
		    info.link_type == BPF_LINK_TYPE_PERF_EVENT)
			n += info.missed;
	}
	return n;
}

/* By the programs' names: x_ and e_ are of trampolines, k_ and r_ of kprobes, where a pin has one of
 * each. */
void live_read_cost(struct live *l)
{
	struct bpf_program *p;
	struct rusage own;

	getrusage(RUSAGE_SELF, &own);
	l->cost = (struct live_cost){
		.own_ns = (uint64_t)(own.ru_utime.tv_sec + own.ru_stime.tv_sec) * 1000000000 +
			  (uint64_t)(own.ru_utime.tv_usec + own.ru_stime.tv_usec) * 1000};
	bpf_object__for_each_program(p, l->bpf->obj)
	{
		struct bpf_prog_info info = {0};
		uint32_t len = sizeof info;

		const char *name = bpf_program__name(p);
		bool unpin = !strncmp(name + 2, "unpin", 5);

		if (name[1] != '_' || bpf_program__fd(p) < 0 ||
		    bpf_obj_get_info_by_fd(bpf_program__fd(p), &info, &len))
			continue;
		if (*name != 'r')
			l->cost.runs[unpin] += info.run_cnt;
		l->cost.ns[unpin] += info.run_time_ns;
		l->cost.missed += info.recursion_misses;
	}
	l->cost.missed += missed_by_kprobes(l);
	l->cost.missed -= l->before.missed;
	l->cost.own_ns -= l->before.own_ns;
	for (int i = 0; i < 2; i++) {
		l->cost.runs[i] -= l->before.runs[i];
		l->cost.ns[i] -= l->before.ns[i];
	}
}
