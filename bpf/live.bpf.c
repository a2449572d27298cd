/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Follows the kernel's functions that pin and unpin. A call that pinned is counted for its *site*: who,
 * which memory, from which stack. What it pinned is remembered by the folio of its first page (exact: by
 * each folio), until that has fewer pins than are remembered. So a release of somebody else's pin of the
 * same page, also of one older than this program, ends nothing; and a release that was missed is made up
 * for by the next one.
 *
 * Light: of transient calls one in `sample` is followed, the others are only counted.
 *
 * Each function has a program for trampolines (fexit, fentry) and one for kprobes; the command attaches
 * one of them. Nothing is locked: counts are atomic, and a slot is taken by whoever sets its site.
 */
/* clang-format off: the types come first */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
/* clang-format on */

#include "census.h"
#include "live.h"
#include "live_maps.h"
#include "live_pin.h"
#include "live_release.h"

char LICENSE[] SEC("license") = "GPL";

/* ------------------------------------------------------------------------------------- functions -- */

static __always_inline __u64 argument(void *ctx, __u32 n)
{
	__u64 value = 0;

	bpf_get_func_arg(ctx, n, &value);
	return value;
}

static __always_inline __s64 returned(void *ctx)
{
	__u64 value = 0;

	bpf_get_func_ret(ctx, &value);
	return value;
}

/* What each function has where: (start, nr, flags, array). */
#define PIN_FUNCTIONS(F)                                                                                \
	F(pin_user_pages_fast, 0, 2, 3, int)                                                            \
	F(pin_user_pages, 0, 2, 3, long)                                                                \
	F(pin_user_pages_unlocked, 0, 3, 2, long)                                                       \
	F(pin_user_pages_remote, 1, 3, 4, long)

/* Of folios: pages are the range, which begins and ends in any of them. */
static __always_inline void set_memfd(struct call *c, __u64 start, __u64 end, __u64 array)
{
	c->start = 0;
	c->first = start / CENSUS_MEMORY_PAGE;
	c->nr = end / CENSUS_MEMORY_PAGE - start / CENSUS_MEMORY_PAGE + 1;
	c->pages = array;
	c->flags = foll_longterm | 1;
	c->are_folios = 1;
}

/* The stack costs more than all else: only of a call that is followed. */
static __always_inline int came_back(void *ctx, struct call *c, __s64 nr, __u64 pages)
{
	count_call(c, nr, pages);
	if (nr <= 0 || !is_followed(c))
		return 0;
	c->stack = bpf_get_stackid(ctx, &stacks, 0);
	return pinned(c, nr, pages);
}

#define BY_TRAMPOLINE(name, s, f, p, type)                                                              \
	SEC("?fexit/" #name) int x_##name(void *ctx)                                                    \
	{                                                                                               \
		struct call c = {.start = argument(ctx, s),                                             \
				 .flags = argument(ctx, f),                                             \
				 .pages = argument(ctx, p)};                                            \
		__s64 nr = (type)returned(ctx);                                                         \
                                                                                                        \
		return came_back(ctx, &c, nr, nr > 0 ? nr : 0);                                         \
	}
PIN_FUNCTIONS(BY_TRAMPOLINE)

SEC("?fexit/memfd_pin_folios") int x_memfd_pin_folios(void *ctx)
{
	struct call c = {};

	set_memfd(&c, argument(ctx, 1), argument(ctx, 2), argument(ctx, 3));
	return came_back(ctx, &c, returned(ctx), c.nr);
}

SEC("?fentry/unpin_user_page") int e_unpin_user_page(void *ctx)
{
	return unpin_row(argument(ctx, 0), 1);
}

SEC("?fentry/unpin_user_pages") int e_unpin_user_pages(void *ctx)
{
	return unpin_pages(argument(ctx, 0), argument(ctx, 1), 0);
}

/* Where nothing is to be made dirty it calls the one above. */
SEC("?fentry/unpin_user_pages_dirty_lock") int e_unpin_user_pages_dirty_lock(void *ctx)
{
	return argument(ctx, 2) & 0xff ? unpin_pages(argument(ctx, 0), argument(ctx, 1), 0) : 0;
}

SEC("?fentry/unpin_user_page_range_dirty_lock") int e_unpin_user_page_range_dirty_lock(void *ctx)
{
	return unpin_row(argument(ctx, 0), argument(ctx, 1));
}

SEC("?fentry/unpin_user_folio") int e_unpin_user_folio(void *ctx)
{
	return unpin_one_folio(argument(ctx, 0), argument(ctx, 1));
}

SEC("?fentry/unpin_folio") int e_unpin_folio(void *ctx)
{
	return unpin_one_folio(argument(ctx, 0), 1);
}

SEC("?fentry/unpin_folios") int e_unpin_folios(void *ctx)
{
	return unpin_pages(argument(ctx, 0), argument(ctx, 1), 1);
}

/* --------------------------------------------------------------------------------------- kprobes -- */

#ifdef __TARGET_ARCH_x86
static __always_inline __u64 parameter(const struct pt_regs *regs, int n)
{
	return n == 0 ? regs->di : n == 1 ? regs->si : n == 2 ? regs->dx : n == 3 ? regs->cx : regs->r8;
}

static __always_inline int begin(struct pt_regs *ctx, struct call *c)
{
	__u64 thread = bpf_get_current_pid_tgid();

	c->began = bpf_ktime_get_ns();
	c->followed = is_followed(c);
	if (c->followed)
		c->stack = bpf_get_stackid(ctx, &stacks, 0);
	if (bpf_map_lookup_elem(&calls, &thread)) /* one that is still waited for */
		add(LIVE_LOST_RETURNS, 1);
	if (bpf_map_update_elem(&calls, &thread, c, 0))
		add(LIVE_LOST_RETURNS, 1);
	return 0;
}

static __always_inline int end(__s64 nr)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct call *begun = bpf_map_lookup_elem(&calls, &thread), c;
	__u64 pages;

	if (!begun)
		return 0;
	c = *begun;
	bpf_map_delete_elem(&calls, &thread);
	pages = c.are_folios ? c.nr : nr > 0 ? nr : 0;
	count_call(&c, nr, pages);
	return c.followed ? pinned(&c, nr, pages) : 0;
}

#define BY_KPROBE(name, s, f, p, type)                                                                  \
	SEC("?kprobe/" #name) int k_##name(struct pt_regs *ctx)                                         \
	{                                                                                               \
		struct call c = {.start = parameter(ctx, s),                                            \
				 .flags = parameter(ctx, f),                                            \
				 .pages = parameter(ctx, p)};                                           \
                                                                                                        \
		return begin(ctx, &c);                                                                  \
	}                                                                                               \
	SEC("?kretprobe/" #name) int r_##name(struct pt_regs *ctx)                                      \
	{                                                                                               \
		return end((type)ctx->ax);                                                              \
	}
PIN_FUNCTIONS(BY_KPROBE)

SEC("?kprobe/memfd_pin_folios") int k_memfd_pin_folios(struct pt_regs *ctx)
{
	struct call c = {};

	set_memfd(&c, parameter(ctx, 1), parameter(ctx, 2), parameter(ctx, 3));
	return begin(ctx, &c);
}

SEC("?kretprobe/memfd_pin_folios") int r_memfd_pin_folios(struct pt_regs *ctx)
{
	return end(ctx->ax);
}

SEC("?kprobe/unpin_user_page") int k_unpin_user_page(struct pt_regs *ctx)
{
	return unpin_row(parameter(ctx, 0), 1);
}

SEC("?kprobe/unpin_user_pages") int k_unpin_user_pages(struct pt_regs *ctx)
{
	return unpin_pages(parameter(ctx, 0), parameter(ctx, 1), 0);
}

SEC("?kprobe/unpin_user_pages_dirty_lock") int k_unpin_user_pages_dirty_lock(struct pt_regs *ctx)
{
	return parameter(ctx, 2) & 0xff ? unpin_pages(parameter(ctx, 0), parameter(ctx, 1), 0) : 0;
}

SEC("?kprobe/unpin_user_page_range_dirty_lock")
int k_unpin_user_page_range_dirty_lock(struct pt_regs *ctx)
{
	return unpin_row(parameter(ctx, 0), parameter(ctx, 1));
}

SEC("?kprobe/unpin_user_folio") int k_unpin_user_folio(struct pt_regs *ctx)
{
	return unpin_one_folio(parameter(ctx, 0), parameter(ctx, 1));
}

SEC("?kprobe/unpin_folio") int k_unpin_folio(struct pt_regs *ctx)
{
	return unpin_one_folio(parameter(ctx, 0), 1);
}

SEC("?kprobe/unpin_folios") int k_unpin_folios(struct pt_regs *ctx)
{
	return unpin_pages(parameter(ctx, 0), parameter(ctx, 1), 1);
}
#endif

/* ------------------------------------------------------------------------------------------ mending --
 */

/* The kernel has no room for a return now and then; else the table would fill with such calls. */
static long drop_call(void *map, __u64 *thread, struct call *c, __u64 *now)
{
	__u64 key = *thread;

	if (*now - c->began > LIVE_PATIENCE_NS && !bpf_map_delete_elem(&calls, &key))
		add(LIVE_LOST_RETURNS, 1);
	return 0;
}

static long mend_folio(void *map, __u64 *head, struct live_folio *f, void *unused)
{
	__u64 at = *head;

	mend(f, at, 0);
	if (!noted(f))
		forget_folio(at);
	return 0;
}

/* What the command runs now and then: a release that was missed ends its pins for good. */
SEC("syscall") int mend_all(void *ctx)
{
	__u64 now = bpf_ktime_get_ns();

	bpf_for_each_map_elem(&folios, mend_folio, 0, 0);
	bpf_for_each_map_elem(&calls, drop_call, &now, 0);
	return 0;
}
