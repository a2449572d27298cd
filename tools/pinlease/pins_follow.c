/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which programs are attached to which functions. Each is tried: a function that this kernel doesn't
 * have is left out; one that no trampoline can be put on is followed by a kprobe; one that can't be
 * followed at all is named.
 */
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <census.skel.h>
#include <live.skel.h>
#include "command.h"
#include "common.h"
#include "pins_live.h"

#define EXACT_FOLIOS	  (1u << 18)
#define FOLL_LONGTERM_6_1 0x10000 /* before it was an enumerator, which BTF has */

/* Of a function; else the command runs it. */
static bool is_follower(const struct bpf_program *p)
{
	return strchr(bpf_program__section_name(p), '/');
}

static const char *function_of(const struct bpf_program *p)
{
	return strchr(bpf_program__section_name(p), '/') + 1;
}

static bool is_kprobe(const struct bpf_program *p)
{
	const char *section = bpf_program__section_name(p);

	return !strncmp(section + (*section == '?'), "k", 1);
}

static bool is_unpin(const struct bpf_program *p)
{
	return is_follower(p) && !strncmp(function_of(p), "unpin", 5);
}

/* FOLL_ flags are constants that moved. */
static uint32_t longterm_flag(const struct btf *btf)
{
	for (uint32_t i = 1; i < btf__type_cnt(btf); i++) {
		const struct btf_type *t = btf__type_by_id(btf, i);

		if (!btf_is_enum(t))
			continue;
		for (int j = 0; j < btf_vlen(t); j++)
			if (!strcmp(btf__name_by_offset(btf, btf_enum(t)[j].name_off), "FOLL_LONGTERM"))
				return (uint32_t)btf_enum(t)[j].val;
	}
	return FOLL_LONGTERM_6_1;
}

static void set_up(struct live *l)
{
	struct live_bpf *b = l->bpf;

	b->rodata->off_tail = l->c->bpf->rodata->off_tail;
	b->rodata->off_mapcount = l->c->bpf->rodata->off_mapcount;
	b->rodata->off_refcount = l->c->bpf->rodata->off_refcount;
	b->rodata->off_pincount = l->c->bpf->rodata->off_pincount;
	b->rodata->off_nr_pages = l->c->bpf->rodata->off_nr_pages;
	b->rodata->bit_head = l->c->bpf->rodata->bit_head;
	b->rodata->huge_index = pins_has_function(l->c, "hugetlb_basepage_index");
	b->rodata->foll_longterm = longterm_flag(l->c->btf);
	b->rodata->sample = l->o->followed ? 1 : LIVE_SAMPLE;
	b->rodata->exact = l->o->followed;
	b->rodata->only = (uint32_t)l->o->filter.pid;
	b->rodata->events = l->o->mode == PINS_TRACE;
	b->rodata->self = getpid();
	bpf_map__set_max_entries(b->maps.ring, l->o->buffer);
	if (l->o->followed)
		bpf_map__set_max_entries(b->maps.folios, EXACT_FOLIOS);
}

static bool have_kprobes(void)
{
	return !access("/sys/bus/event_source/devices/kprobe/type", R_OK);
}

/* Functions have numbers, in the order of the programs for trampolines. Of none: the number behind them.
 */
static uint32_t bit_of(const struct live *l, const char *function)
{
	struct bpf_program *p;
	uint32_t bit = 1;

	bpf_object__for_each_program(p, l->bpf->obj)
	{
		if (!is_follower(p) || is_kprobe(p))
			continue;
		if (!strcmp(function_of(p), function))
			break;
		bit <<= 1;
	}
	return bit;
}

/* One bit for each function: those that nothing can follow; of the others those that kprobes do. */
struct plan {
	uint32_t none, kprobes;
};

static bool is_planned(const struct live *l, const struct bpf_program *p, struct plan plan)
{
	uint32_t bit = bit_of(l, function_of(p));

	return !(plan.none & bit) && is_kprobe(p) == ((plan.kprobes & bit) != 0) &&
	       pins_has_function(l->c, function_of(p));
}

/* `only`: this function alone, to see whether the kernel takes its program; with small tables. */
static int load(struct live *l, struct plan plan, uint32_t only)
{
	struct bpf_program *p;
	struct bpf_map *map;

	l->bpf = live_bpf__open();
	if (!l->bpf)
		return -errno;
	set_up(l);
	l->functions = bit_of(l, "") - 1;
	if (only)
		bpf_object__for_each_map(map, l->bpf->obj) if (bpf_map__max_entries(map) > PINS_PAGE)
			bpf_map__set_max_entries(map, PINS_PAGE); /* which a buffer can have, too */
	bpf_object__for_each_program(p, l->bpf->obj) if (is_follower(p)) bpf_program__set_autoload(
		p, is_planned(l, p, plan) && (!only || only == bit_of(l, function_of(p))));
	return live_bpf__load(l->bpf);
}

static int attach(struct live *l, struct bpf_program *p)
{
	struct bpf_link *link = bpf_program__attach(p);

	if (!link)
		return -errno;
	pins_add(&l->links, &link);
	return 0;
}

/* What ends a thing is followed before what begins it, so that nothing seems to last for ever. */
static int rank(const struct bpf_program *p)
{
	return is_unpin(p) ? 0 : *bpf_program__name(p) == 'r' ? 1 : 2;
}

static int attach_all(struct live *l, uint32_t *failed)
{
	struct bpf_program *p;
	int first = 0;

	for (int now = 0; now < 3; now++)
		bpf_object__for_each_program(p, l->bpf->obj)
		{
			int err = is_follower(p) && bpf_program__autoload(p) && rank(p) == now
					  ? attach(l, p)
					  : 0;

			if (err)
				*failed |= bit_of(l, function_of(p));
			first = first ? first : err;
		}
	return first;
}

static void detach(struct live *l)
{
	for (size_t i = 0; i < l->links.n; i++)
		bpf_link__destroy(*pins_at(&l->links, struct bpf_link *, i));
	l->links.n = 0;
	live_bpf__destroy(l->bpf);
	l->bpf = NULL;
}

/* Not every machine has programs for kprobes. */
static bool has_program(const struct live *l, const char *function, bool kprobe)
{
	struct bpf_program *p;

	bpf_object__for_each_program(p, l->bpf->obj) if (is_follower(p) && is_kprobe(p) == kprobe &&
							 !strcmp(function_of(p), function)) return true;
	return false;
}

/* What comes of it, by function. */
static void count(struct live *l, struct plan plan)
{
	struct bpf_program *p;

	bpf_object__for_each_program(p, l->bpf->obj)
	{
		uint32_t bit;

		if (!is_follower(p) || is_kprobe(p) || !pins_has_function(l->c, function_of(p)))
			continue;
		bit = bit_of(l, function_of(p));
		if (plan.none & bit || !has_program(l, function_of(p), plan.kprobes & bit))
			tool_append(l->unfollowed, sizeof l->unfollowed, "%s%s",
				    *l->unfollowed ? ", " : "", function_of(p));
		else if (plan.kprobes & bit)
			l->nr_kprobes++;
		else
			l->nr_trampolines++;
	}
}

static int no_room(struct live *l, int err)
{
	pins_say("no memory for the tables of pins and a buffer of %u KiB (%s); try a smaller --buffer, "
		 "or without --exact",
		 l->o->buffer / 1024, strerror(-err));
	return -ENOSPC;
}

/* What a trampoline can't do a kprobe may; what it can't, either, nothing can. */
static void demote(struct live *l, struct plan *plan, uint32_t failed)
{
	bool kprobes = l->by != LIVE_TRAMPOLINES && have_kprobes();

	plan->none |= failed & (kprobes ? plan->kprobes : l->functions);
	plan->kprobes |= failed;
}

/* The functions whose programs are refused, each tried alone: one refusal fails the load of all. */
static uint32_t refused(struct live *l, struct plan plan)
{
	uint32_t failed = 0;

	for (uint32_t bit = 1; bit & l->functions; bit <<= 1) {
		if (plan.none & bit)
			continue;
		if (load(l, plan, bit))
			failed |= bit;
		detach(l);
	}
	return failed;
}

/* Each round has less to try than the one before. */
static int try_all(struct live *l)
{
	struct plan plan = {.kprobes = l->by == LIVE_KPROBES ? ~0u : 0};
	int err = 0, first = 0;

	if (l->by == LIVE_KPROBES && !have_kprobes())
		return -EOPNOTSUPP;
	while (!l->functions || plan.none != l->functions) {
		uint32_t failed = 0;

		err = load(l, plan, 0);
		if (err == -ENOMEM || err == -E2BIG)
			return no_room(l, err);
		if (!err)
			err = attach_all(l, &failed);
		if (!err)
			break;
		first = first ? first : err;
		detach(l);
		if (!failed)
			failed = refused(l, plan);
		if (!failed) /* none alone, but all together */
			break;
		demote(l, &plan, failed);
	}
	if (err || !l->bpf)
		return first ? first : -EOPNOTSUPP;
	count(l, plan);
	return l->nr_trampolines + l->nr_kprobes ? 0 : first ? first : -EOPNOTSUPP;
}

/* From here on the kernel's counters are compared. */
static int begin(struct live *l)
{
	int err;

	l->have_kernel = !pins_counters(&l->kernel);
	err = live_read_counts(l);
	l->seen = live_seen(l);
	l->kprobes_say_missed = pins_offset(l->c, "bpf_link_info", "perf_event.kprobe.missed") >= 0;
	return err;
}

int live_follow(struct live *l)
{
	int err;

	l->links.size = sizeof(struct bpf_link *);
	l->stats = bpf_enable_stats(BPF_STATS_RUN_TIME); /* without, the cost isn't known */
	err = try_all(l);
	return err ? err : live_test(l);
}

int live_follow_any(struct live *l)
{
	char said[512] = "";
	int err;

	l->by = getenv("PINLEASE_BPF_KPROBES") ? LIVE_KPROBES : LIVE_ANY;
	pins_hear(said, sizeof said);
	live_measure(l, false);
	err = live_follow(l);
	if (!err)
		live_measure(l, true);
	if (!err)
		err = begin(l);
	pins_hear(NULL, 0);
	if (!err)
		live_load_symbols(); /* sites have no names without; all else goes on */
	if (*said)
		pins_say("%s", said);
	else if (err)
		pins_say("this kernel lets no program follow its functions (trampolines: %s; kprobes: "
			 "%s), "
			 "which takes CONFIG_FUNCTION_TRACER or CONFIG_KPROBE_EVENTS, so pins can't be "
			 "watched as "
			 "they come (PINLEASE_BPF_LOG=1 shows what it says of each program); pinlease "
			 "pins, "
			 "without --watch or --trace, shows those that there are",
			 strerror(-err), have_kprobes() ? "refused, too" : "it has none");
	return err;
}

void live_unfollow(struct live *l)
{
	detach(l);
	pins_free(&l->links);
	if (l->stats >= 0)
		close(l->stats);
}
