/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the programs of live.bpf.c have in common: their tables, and what a page says of itself. */
#ifndef PINLEASE_LIVE_MAPS_H
#define PINLEASE_LIVE_MAPS_H

const volatile __u32 off_tail = 8, off_mapcount = 48, off_refcount = 52, off_pincount, off_nr_pages;
const volatile __u32 bit_head = 6, foll_longterm, sample = 1, exact, events, self;
const volatile __u32 only;	 /* of transient pins those of this process; 0: of all */
const volatile __u32 huge_index; /* of hugetlbfs: it counts huge pages, until Linux 6.6 */

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 16384);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, LIVE_DEPTH * sizeof(__u64));
} stacks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct live_site);
} sites SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct live_folio);
} folios SEC(".maps");

/* How many of them have this hash: most releases are of none, and are over when that is seen. */
#define NOTED_BITS 16
__s32 noted_at[1 << NOTED_BITS];

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LIVE_NR_COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} ring SEC(".maps");

/* Checked by the kernel once, and not again at each place where it is called. */
#define SEPARATE __attribute__((noinline))

/* A call that pins. */
struct call {
	__u64 start, nr, pages; /* pages: the address of the array of what it got */
	__u64 began;		/* by a kprobe */
	__u64 first;		/* of folios: the page of the file that it begins at; nr: pages */
	__u32 flags;
	__s32 stack;
	__u32 are_folios, followed;
};

struct { /* of kprobes: those that have not returned yet, by thread */
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct call);
} calls SEC(".maps");

__u64 lost_events; /* of all processors, so that an event can say how many are missing before it */
__u32 follow_self; /* while what that takes is measured */

/* 0, but the verifier can't know that. So it takes all turns of a loop that counts from it for one. */
volatile __u64 nothing;

static __always_inline void add(__u32 which, __u64 n)
{
	__u64 *count = bpf_map_lookup_elem(&counts, &which);

	if (count)
		__sync_fetch_and_add(count, n);
}

static __always_inline __s32 *noted_of(__u64 head)
{
	return &noted_at[(__u32)(head / CENSUS_PAGE_SIZE * 0x9e3779b97f4a7c15ull >> (64 - NOTED_BITS)) &
			 ((1 << NOTED_BITS) - 1)];
}

static __always_inline int is_noted(__u64 head)
{
	return *noted_of(head) > 0;
}

static __always_inline __u64 word(__u64 addr)
{
	__u64 n = 0;

	bpf_probe_read_kernel(&n, sizeof(n), (void *)addr);
	return n;
}

static __always_inline __u32 half(__u64 addr)
{
	__u32 n = 0;

	bpf_probe_read_kernel(&n, sizeof(n), (void *)addr);
	return n;
}

/* A page that isn't the first says where that is: by its address, or (7.2) by a mask for its own. */
static __always_inline __u64 head_of(__u64 page)
{
	__u64 tail = word(page + off_tail);

	if (!(tail & 1))
		return page;
	tail &= ~1ull;
	return ~tail < 1ull << 36 ? page & tail : tail;
}

static __always_inline int is_large(__u64 head)
{
	return word(head) >> (bit_head & 63) & 1;
}

static __always_inline __u64 pins_of(__u64 head)
{
	int refs = half(head + off_refcount), mapped;

	if (refs <= 0)
		return 0;
	if (is_large(head))
		return half(head + off_pincount);
	mapped = half(head + off_mapcount);
	refs -= mapped < -1 ? 0 : mapped + 1;
	return refs > 0 ? (__u32)refs / CENSUS_PIN_BIAS : 0;
}

/* Pages of an array or of a row, whose folios come one after the other. */
struct walk {
	__u64 at, head, end; /* at: the array or the first page; head to end: the folio */
	__u64 run;	     /* pins of it in a row */
	__u64 site, now, addr, index;
	__u32 are_folios, is_row, longterm, tgid;
	__u32 untimed, first;
};

static __always_inline __u64 next_page(const struct walk *w, __u64 i)
{
	return w->is_row ? w->at + i * CENSUS_PAGE_SIZE : word(w->at + i * 8);
}

static __always_inline void enter(struct walk *w, __u64 page)
{
	w->head = w->are_folios ? page : head_of(page);
	w->end = w->head + CENSUS_PAGE_SIZE;
	if (is_large(w->head))
		w->end = w->head + (__u64)half(w->head + off_nr_pages) * CENSUS_PAGE_SIZE;
	w->run = nothing;
}

#endif
