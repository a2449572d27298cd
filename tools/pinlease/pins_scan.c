/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * All pages of the machine, between two looks at the kernel's own counters. Those are kept per CPU and
 * are right only after all have been folded into one, which reading stat_refresh does. As long as nobody
 * pins or unpins meanwhile, the pins that are found are as many as were acquired and not released; else
 * the scan is done again, a few times.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <census.skel.h>
#include "common.h"
#include "pins.h"

#define TRIES 4

int pins_counters(struct pins_counters *counters)
{
	int fd = open("/proc/sys/vm/stat_refresh", O_RDONLY | O_CLOEXEC), found = 0;
	char line[128], byte;
	FILE *f;

	if (fd >= 0) {
		if (read(fd, &byte, 1) < 0)
			found = 0; /* what it had to say is in the kernel's log */
		close(fd);
	}
	f = fopen("/proc/vmstat", "re");
	if (!f)
		return -errno;
	while (fgets(line, sizeof line, f)) {
		found += sscanf(line, "nr_foll_pin_acquired %lu", &counters->acquired) == 1;
		found += sscanf(line, "nr_foll_pin_released %lu", &counters->released) == 1;
	}
	fclose(f);
	return found == 2 ? 0 : -ENOENT;
}

/* Memory that has struct pages: RAM, and what may be given to programs like it. */
static bool has_pages(const char *name)
{
	return !strncmp(name, "System RAM", 10) || !strncmp(name, "Persistent Memory", 17);
}

static int list_memory(struct census *c)
{
	FILE *f = fopen("/proc/iomem", "re");
	unsigned long start, last;
	uint64_t end = 0;
	char line[256];
	int at;

	while (f && fgets(line, sizeof line, f)) {
		if (sscanf(line, " %lx-%lx : %n", &start, &last, &at) < 2 || !has_pages(line + at) ||
		    start < end)
			continue;
		end = last + 1;
		pins_add(&c->memories,
			 &(struct pins_range){(start + PINS_PAGE - 1) / PINS_PAGE, end / PINS_PAGE});
	}
	if (f)
		fclose(f);
	if (end)
		return 0;
	pins_say("can't read from /proc/iomem where memory is; run it as root, outside of containers");
	return -EPERM;
}

static int scan_once(struct census *c)
{
	int err = pins_counters(&c->before);
	uint64_t began;

	c->pins.n = 0;
	c->bpf->bss->scanned = c->bpf->bss->unreadable = 0;
	began = tool_now();
	for (size_t i = 0; i < c->memories.n && !err; i++) {
		const struct pins_range *r = pins_at(&c->memories, struct pins_range, i);

		err = pins_scan_range(c, r->start, r->end - r->start, false, &c->pins);
	}
	c->scan_ns = tool_now() - began;
	c->pages = c->bpf->bss->scanned;
	c->unreadable = c->bpf->bss->unreadable;
	return err ? err : pins_counters(&c->after);
}

static int by_frame(const void *a, const void *b)
{
	const struct census_pin *x = a, *y = b;

	return x->pfn != y->pfn ? (x->pfn < y->pfn ? -1 : 1) : 0;
}

void pins_sort(struct census *c)
{
	pins_order(&c->pins, by_frame);
}

const struct census_pin *pins_find(const struct census *c, uint64_t pfn, size_t n)
{
	struct census_pin key = {.pfn = pfn};

	return n ? bsearch(&key, c->pins.items, n, sizeof key, by_frame) : NULL;
}

/* A page that isn't the first of its folio says where that is: by its address, or (7.2) by a mask for
 * its own. */
uint64_t pins_head(struct census *c, uint64_t pfn)
{
	uint64_t page = c->bpf->bss->vmemmap + pfn * CENSUS_PAGE_SIZE,
		 word = pins_word(c, page + c->bpf->rodata->off_tail);

	if (!(word & 1))
		return pfn;
	word &= ~1ull;
	if (~word < 1ull << 36)
		return pins_pfn_of_page(c, page & word);
	return pins_pfn_of_page(c, word);
}

/* The two are not folded at the same moment: what came and went between is released only. */
uint64_t pins_counted(const struct census *c)
{
	return c->after.acquired > c->after.released ? c->after.acquired - c->after.released : 0;
}

uint64_t pins_off(const struct census *c)
{
	uint64_t counted = pins_counted(c);

	return counted > c->found ? counted - c->found : c->found - counted;
}

uint64_t pins_meanwhile(const struct census *c)
{
	return c->after.acquired - c->before.acquired + c->after.released - c->before.released;
}

int pins_scan(struct census *c)
{
	int err = list_memory(c);

	for (int i = 0; i < TRIES && !err; i++) {
		err = scan_once(c);
		c->found = 0;
		for (size_t j = 0; j < c->pins.n; j++)
			c->found += pins_at(&c->pins, struct census_pin, j)->pins;
		if (!pins_meanwhile(c) || !pins_off(c))
			break;
	}
	if (err == -ENOENT)
		pins_say("/proc/vmstat has no nr_foll_pin_acquired: this kernel doesn't count pins");
	return err;
}
