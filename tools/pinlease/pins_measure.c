/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What following takes from those who pin, measured here and now: calls of our own that pin a page, with
 * no program attached, and again when they are followed like anybody's.
 */
#include <linux/io_uring.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <live.skel.h>
#include "common.h"
#include "pins_live.h"

#define SAMPLES 31
#define READS	256 /* a sample: one in LIVE_SAMPLE is followed */

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static uint64_t median(uint64_t *all)
{
	qsort(all, SAMPLES, sizeof *all, by_size);
	return all[SAMPLES / 2];
}

/* A ring's buffer; 0: there are no rings here. */
static uint64_t longterm(char *page)
{
	struct io_uring_params params = {0};
	struct iovec buffer = {page, PINS_PAGE};
	int ring = (int)syscall(__NR_io_uring_setup, 1, &params);
	uint64_t all[SAMPLES];
	bool failed = ring < 0;

	for (int i = 0; i < SAMPLES && !failed; i++) {
		uint64_t t = tool_now();

		failed = syscall(__NR_io_uring_register, ring, IORING_REGISTER_BUFFERS, &buffer, 1);
		all[i] = tool_now() - t;
		failed = failed ||
			 syscall(__NR_io_uring_register, ring, IORING_UNREGISTER_BUFFERS, NULL, 0);
	}
	if (ring >= 0)
		close(ring);
	return failed ? 0 : median(all);
}

/* A page that is read as another process' is pinned as long as it is copied. */
static uint64_t transient(char *page)
{
	struct iovec there = {page, 64}, here = {page + PINS_PAGE / 2, 64};
	uint64_t all[SAMPLES];

	for (int i = 0; i < SAMPLES; i++) {
		uint64_t t = tool_now();

		for (int j = 0; j < READS; j++)
			if (process_vm_readv(getpid(), &here, 1, &there, 1, 0) != 64)
				return 0;
		all[i] = (tool_now() - t) / READS;
	}
	return median(all);
}

void live_measure(struct live *l, bool followed)
{
	char *page = aligned_alloc(PINS_PAGE, PINS_PAGE);

	if (!page)
		return;
	*page = 0;
	if (l->bpf)
		l->bpf->bss->follow_self = followed;
	l->longterm_ns[followed] = longterm(page);
	l->transient_ns[followed] = transient(page);
	if (l->bpf)
		l->bpf->bss->follow_self = 0;
	free(page);
}
