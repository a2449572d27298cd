/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the census trusts, it has seen: a page of our own in a pipe says where the kernel keeps its
 * struct pages, and a page and a huge page that are pinned by us must be found pinned, once. If they
 * aren't, this kernel counts in another way than is known here, and there is no census.
 */
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_xdp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <linux/io_uring.h>

#include <census.skel.h>
#include "pins.h"

#define HUGE (2ul << 20)

int pins_pagemap(int32_t pid)
{
	char path[40];

	snprintf(path, sizeof path, "/proc/%d/pagemap", pid);
	return open(path, O_RDONLY | O_CLOEXEC);
}

uint64_t pins_pfn(int pagemap, uint64_t addr)
{
	uint64_t entry;

	if (pread(pagemap, &entry, sizeof entry, addr / PINS_PAGE * 8) != sizeof entry || !(entry >> 63))
		return 0;
	return entry & ((1ull << 55) - 1);
}

uint64_t pins_pfn_of_page(const struct census *c, uint64_t page)
{
	uint64_t base = c->bpf->bss->vmemmap;

	if (page < base || (page - base) % CENSUS_PAGE_SIZE)
		return 0;
	return (page - base) / CENSUS_PAGE_SIZE;
}

static int by_ring(struct pins_own *own)
{
	struct io_uring_params params = {0};
	struct iovec buffers[2] = {{own->small, PINS_PAGE}, {own->huge, HUGE}};

	own->device = (int)syscall(__NR_io_uring_setup, 1, &params);
	if (own->device < 0)
		return -errno;
	if (!syscall(__NR_io_uring_register, own->device, IORING_REGISTER_BUFFERS, buffers,
		     own->huge ? 2 : 1)) {
		own->ring = true;
		return 0;
	}
	close(own->device);
	return own->device = -1;
}

/* Where io_uring is switched off. */
static int by_socket(struct pins_own *own)
{
	struct xdp_umem_reg area = {
		.addr = (uintptr_t)own->small, .len = PINS_PAGE, .chunk_size = PINS_PAGE};

	own->huge = NULL;
	own->device = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (own->device < 0)
		return -errno;
	return setsockopt(own->device, SOL_XDP, XDP_UMEM_REG, &area, sizeof area) ? -errno : 0;
}

static char *aligned(void)
{
	char *mem = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (mem == MAP_FAILED)
		return NULL;
	mem = (char *)(((uintptr_t)mem + HUGE - 1) &
		       ~(HUGE - 1)); /* what is around it is never touched */
	madvise(mem, HUGE, MADV_HUGEPAGE);
	*mem = 1;
	return mem;
}

static int pin_own(struct pins_own *own)
{
	struct iovec part;

	own->small = mmap(NULL, PINS_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (own->small == MAP_FAILED)
		return -ENOMEM;
	madvise(own->small, PINS_PAGE, MADV_NOHUGEPAGE);
	*own->small = 1;
	own->huge = aligned();
	part = (struct iovec){own->small, PINS_PAGE};
	if (pipe2(own->pipe, O_CLOEXEC) || vmsplice(own->pipe[1], &part, 1, 0) != (ssize_t)PINS_PAGE)
		return -errno;
	return by_ring(own) ? by_socket(own) : 0;
}

void pins_release_own(struct census *c)
{
	if (c->own.device >= 0)
		close(c->own.device);
	if (c->own.pipe[0] >= 0) {
		close(c->own.pipe[0]);
		close(c->own.pipe[1]);
	}
	c->own.device = c->own.pipe[0] = c->own.pipe[1] = -1;
}

int pins_pin_again(struct census *c)
{
	if (by_ring(&c->own))
		return by_socket(&c->own);
	if (syscall(__NR_io_uring_register, c->own.device, IORING_UNREGISTER_BUFFERS, NULL, 0))
		return -errno;
	return 1;
}

/* The struct page in our pipe; its operations are those of every page that comes by vmsplice(). */
static uint64_t page_in_pipe(struct census *c)
{
	struct pins_vec files = {.size = sizeof(struct census_file)};
	uint64_t page = 0, buffers, pipe;
	struct stat st;

	if (fstat(c->own.pipe[0], &st) || pins_iterate(c, PINS_FILES, &files))
		return 0;
	for (size_t i = 0; i < files.n && !page; i++) {
		const struct census_file *f = pins_at(&files, struct census_file, i);

		if (f->pid != getpid() || f->ino != st.st_ino || f->fd != c->own.pipe[0])
			continue;
		pipe = f->private_data;
		buffers = pins_word(c, pipe + pins_offset(c, "pipe_inode_info", "bufs"));
		page = pins_word(c, buffers + pins_offset(c, "pipe_buffer", "page"));
		c->own.ops = pins_word(c, buffers + pins_offset(c, "pipe_buffer", "ops"));
	}
	pins_free(&files);
	return page;
}

static int must_find(struct census *c, uint64_t pfn)
{
	struct pins_vec found = {.size = sizeof(struct census_pin)};
	const struct census_pin *pin;
	int err = pins_scan_range(c, pfn, 1, false, &found);

	if (err)
		return err;
	pin = found.items;
	if (found.n != 1 || pin->pins != 1 || pin->memory != CENSUS_ANON || pin->pfn != pfn) {
		pins_say("a page that was pinned as a test isn't found as such: this kernel counts pins "
			 "in a way that "
			 "isn't known here; it needs a newer pinlease");
		err = -EOPNOTSUPP;
	}
	c->own.huge_seen = c->own.huge_seen || (!err && pin->nr_pages == HUGE / PINS_PAGE);
	pins_free(&found);
	return err;
}

/* The ring has one pin of a huge page, or one of each small one: either is found at the first. */
static int find_own(struct census *c, int pagemap)
{
	uint64_t small = pins_pfn(pagemap, (uintptr_t)c->own.small),
		 huge = c->own.huge ? pins_pfn(pagemap, (uintptr_t)c->own.huge) : 0;
	int err = must_find(c, small);
	struct pins_vec found = {.size = sizeof(struct census_pin)};

	if (err || !huge)
		return err;
	err = pins_scan_range(c, huge, 1, true, &found);
	if (!err && found.n == 1 &&
	    pins_at(&found, struct census_pin, 0)->nr_pages == HUGE / PINS_PAGE) {
		c->own.huge_seen = pins_at(&found, struct census_pin, 0)->pins > 0;
		err = c->own.huge_seen ? 0 : -EOPNOTSUPP;
		if (err)
			pins_say("a huge page that was pinned as a test isn't found as such: this "
				 "kernel counts the "
				 "pins of huge pages in a way that isn't known here; it needs a newer "
				 "pinlease");
	}
	pins_free(&found);
	return err;
}

int pins_calibrate(struct census *c)
{
	int pagemap, err;
	uint64_t page, pfn;

	err = pin_own(&c->own);
	if (err) {
		pins_say("can't pin a page as a test (%s): io_uring and AF_XDP are both switched off "
			 "here, or this "
			 "process may lock no memory; see kernel.io_uring_disabled",
			 strerror(err == -1 ? EPERM : -err));
		return err;
	}
	pagemap = pins_pagemap(getpid());
	pfn = pagemap < 0 ? 0 : pins_pfn(pagemap, (uintptr_t)c->own.small);
	page = page_in_pipe(c);
	if (!pfn || page <= pfn * CENSUS_PAGE_SIZE) {
		pins_say("can't find where the kernel keeps its struct pages: a page of this process "
			 "isn't found in a "
			 "pipe; it needs a newer pinlease");
		err = -EOPNOTSUPP;
	} else {
		c->bpf->bss->vmemmap = page - pfn * CENSUS_PAGE_SIZE;
		err = find_own(c, pagemap);
	}
	if (pagemap >= 0)
		close(pagemap);
	return err;
}
