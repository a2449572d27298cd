/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which open objects hold which pages, by the lists that the objects themselves keep: registered buffers
 * of rings, memory regions, areas of AF_XDP sockets, udmabufs, pipes. An object that several processes
 * have open is counted once, for the first of them. What is read changes meanwhile; whatever comes of it
 * counts only where it meets a page that is pinned.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <census.skel.h>
#include "pins.h"

#define DMA_BUF_MAGIC  0x444d4142
#define PIPE_MAGIC     0x50495045
#define VFIO_CONTAINER (10u << 20 | 196) /* a misc device's number, as the kernel has it */
#define MAX_SLOTS      (1u << 16) /* of a pipe or a ring: a number that was freed meanwhile may be any */
#define MAX_ARRAY      (1u << 24) /* of anything: more is no number but garbage */

#define FREE 0ull /* in the table of objects, which is open and of a power of two */

static bool enter(uint64_t *table, size_t size, uint64_t object)
{
	size_t at = object * 0x9e3779b97f4a7c15ull >> 20 & (size - 1);

	for (; table[at] != FREE && table[at] != object; at = (at + 1) & (size - 1))
		;
	if (table[at] == object)
		return false;
	table[at] = object;
	return true;
}

static void enlarge(struct census *c)
{
	struct pins_vec old = c->objects;
	size_t size = old.n ? 2 * old.n : 1024;

	c->objects = (struct pins_vec){.size = sizeof(uint64_t)};
	while (c->objects.n < size)
		pins_add(&c->objects, &(uint64_t){FREE});
	for (size_t i = 0; i < old.n; i++)
		if (*pins_at(&old, uint64_t, i) != FREE)
			enter(c->objects.items, size, *pins_at(&old, uint64_t, i));
	pins_free(&old);
}

bool pins_seen(struct census *c, uint64_t object)
{
	if (2 * (c->nr_objects + 1) > c->objects.n)
		enlarge(c);
	if (!object || !enter(c->objects.items, c->objects.n, object))
		return true;
	c->nr_objects++;
	return false;
}

uint32_t pins_hold(struct census *c, const struct pins_hold *hold)
{
	pins_add(&c->holds, hold);
	return (uint32_t)c->holds.n - 1;
}

void pins_piece(struct census *c, uint32_t hold, uint64_t page, uint64_t offset, uint64_t len,
		uint64_t at)
{
	uint64_t first = pins_pfn_of_page(c, page);

	if (!first || !len)
		return;
	pins_add(&c->pieces,
		 &(struct pins_piece){.pfn = first + offset / PINS_PAGE,
				      .nr = (offset % PINS_PAGE + len + PINS_PAGE - 1) / PINS_PAGE,
				      .offset = at,
				      .hold = hold});
}

/* `n` items of `size` bytes from the kernel; to be freed; NULL. */
static void *array(struct census *c, uint64_t addr, uint64_t n, size_t size)
{
	void *items = n && n <= MAX_ARRAY && addr ? malloc(n * size) : NULL;

	if (items && pins_read(c, addr, items, n * size)) {
		free(items);
		items = NULL;
	}
	return items;
}

/* --------------------------------------------------------------------------------------- io_uring -- */

static uint64_t buffer_length(struct census *c, uint64_t buffer, uint64_t start)
{
	long end = pins_offset(c, "io_mapped_ubuf", "ubuf_end"),
	     len = pins_offset(c, "io_mapped_ubuf", "len");

	if (end >= 0) /* Linux 6.1 */
		return pins_word(c, buffer + end) - start;
	return pins_size(c, "io_mapped_ubuf", "len") == 8 ? pins_word(c, buffer + len)
							  : pins_half(c, buffer + len);
}

static void hold_buffer(struct census *c, int32_t pid, int fd, uint64_t buffer)
{
	struct bio_vec {
		uint64_t page;
		uint32_t len, offset;
	} * parts;
	uint64_t start = pins_word(c, buffer + pins_offset(c, "io_mapped_ubuf", "ubuf")), at = 0,
		 len = buffer_length(c, buffer, start);
	uint32_t n = pins_half(c, buffer + pins_offset(c, "io_mapped_ubuf", "nr_bvecs")), hold;

	if (!len)
		return;
	pins_have(c, buffer, pid);
	if (pins_seen(c, buffer))
		return;
	parts = array(c, buffer + pins_offset(c, "io_mapped_ubuf", "bvec"), n, sizeof *parts);
	if (!parts)
		return;
	hold = pins_hold(c, &(struct pins_hold){.device = PINS_URING,
						.pid = pid,
						.fd = fd,
						.addr = start,
						.object = buffer,
						.counted = true});
	for (uint32_t i = 0; i < n && at < len; at += parts[i++].len)
		pins_piece(c, hold, parts[i].page, parts[i].offset, parts[i].len, at);
	free(parts);
}

void pins_hold_ring(struct census *c, int32_t pid, int fd, uint64_t ring)
{
	long nodes = pins_offset(c, "io_ring_ctx", "buf_table.nodes"),
	     old = pins_offset(c, "io_ring_ctx", "user_bufs"),
	     to = nodes >= 0 ? pins_offset(c, "io_rsrc_node", "buf") : 0;
	uint32_t n =
		pins_half(c, ring + pins_offset_of(c, "io_ring_ctx", "buf_table.nr", "nr_user_bufs"));
	uint64_t *buffers = array(c, pins_word(c, ring + (nodes >= 0 ? nodes : old)), n, 8);

	if (!buffers || (nodes < 0 && old < 0) || to < 0 || n > MAX_SLOTS)
		n = 0;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t buffer = buffers[i] && nodes >= 0 ? pins_word(c, buffers[i] + to) : buffers[i];

		if (buffer)
			hold_buffer(c, pid, fd, buffer);
	}
	free(buffers);
}

/* Rings that a task has registered with itself may have no descriptor any more. */
static void hold_registered(struct census *c, const struct census_task *t)
{
	long at = pins_offset(c, "io_uring_task", "registered_rings"),
	     size = pins_size(c, "io_uring_task", "registered_rings"),
	     data = pins_offset(c, "file", "private_data");
	uint64_t *rings = at < 0 || size <= 0 ? NULL : array(c, t->uring + at, size / 8, 8);

	for (long i = 0; rings && i < size / 8; i++)
		if (rings[i])
			pins_hold_ring(c, t->pid, -1, pins_word(c, rings[i] + data));
	free(rings);
}

/* ------------------------------------------------------------------------------- sockets, dma-bufs,
 * pipes -- */

/* Addresses of struct pages; those that follow each other are one piece. */
static void hold_pages(struct census *c, const struct pins_hold *hold, const uint64_t *pages, uint64_t n)
{
	uint32_t number = pins_hold(c, hold);

	for (uint64_t i = 0, last; i < n; i = last) {
		for (last = i + 1; last < n && pages[last] == pages[i] + (last - i) * CENSUS_PAGE_SIZE;)
			last++;
		pins_piece(c, number, pages[i], 0, (last - i) * PINS_PAGE, i * PINS_PAGE);
	}
}

void pins_hold_xdp(struct census *c, const struct census_file *f)
{
	uint64_t area = pins_word(c, f->private_data + pins_offset(c, "xdp_sock", "umem")), *pages;
	uint32_t n = pins_half(c, area + pins_offset(c, "xdp_umem", "npgs"));
	struct pins_hold hold = {.device = PINS_XDP,
				 .pid = f->pid,
				 .fd = f->fd,
				 .object = area,
				 .counted = true,
				 .each_page = true};

	pins_have(c, area, f->pid);
	if (pins_offset(c, "xdp_umem", "pgs") < 0 || pins_seen(c, area))
		return;
	pages = array(c, pins_word(c, area + pins_offset(c, "xdp_umem", "pgs")), n, 8);
	if (pages)
		hold_pages(c, &hold, pages, n);
	free(pages);
}

/* Its pages; or (6.12 to 7.1) their folios, and where in them they are. To be freed; NULL. */
static uint64_t *pages_of_udmabuf(struct census *c, uint64_t udmabuf, uint64_t n)
{
	long folios = pins_offset(c, "udmabuf", "folios"), where = pins_offset(c, "udmabuf", "offsets"),
	     pages = pins_offset(c, "udmabuf", "pages");
	uint64_t *all = array(c, pins_word(c, udmabuf + (folios < 0 ? pages : folios)), n, 8), *offsets;

	if (!all || folios < 0 || where < 0)
		return all;
	offsets = array(c, pins_word(c, udmabuf + where), n, 8);
	for (uint64_t i = 0; offsets && i < n; i++)
		all[i] += offsets[i] / PINS_PAGE * CENSUS_PAGE_SIZE;
	free(offsets);
	return all;
}

/* It has its memory by memfd_pin_folios() from 6.12 on, one pin for each folio; before by plain
 * references. */
void pins_hold_dmabuf(struct census *c, const struct census_file *f)
{
	long name = pins_offset(c, "dma_buf", "exp_name"),
	     count = pins_offset(c, "udmabuf", "pagecount");
	uint64_t buffer = f->private_data,
		 udmabuf = pins_word(c, buffer + pins_offset(c, "dma_buf", "priv")), *pages;
	struct pins_hold hold = {.device = PINS_DMABUF, .pid = f->pid, .fd = f->fd, .object = buffer};
	char exporter[16] = "";

	pins_have(c, buffer, f->pid);
	if (name < 0 || count < 0 ||
	    pins_string(c, pins_word(c, buffer + name), exporter, sizeof exporter) ||
	    strcmp(exporter, "udmabuf") || pins_seen(c, buffer))
		return;
	hold.counted = pins_offset_of(c, "udmabuf", "pinned_folios", "unpin_list") >= 0;
	pages = pages_of_udmabuf(c, udmabuf, pins_word(c, udmabuf + count));
	if (pages)
		hold_pages(c, &hold, pages, pins_word(c, udmabuf + count));
	free(pages);
}

void pins_hold_pipe(struct census *c, const struct census_file *f)
{
	uint64_t pipe = f->private_data,
		 buffers = pins_word(c, pipe + pins_offset(c, "pipe_inode_info", "bufs"));
	uint32_t head = pins_half(c, pipe + pins_offset(c, "pipe_inode_info", "head")),
		 tail = pins_half(c, pipe + pins_offset(c, "pipe_inode_info", "tail")),
		 room = pins_half(c, pipe + pins_offset(c, "pipe_inode_info", "ring_size"));
	long size = pins_size(c, "pipe_buffer", "");

	pins_have(c, pipe, f->pid);
	if (head == tail || room > MAX_SLOTS || room & (room - 1) || head - tail > room ||
	    pins_seen(c, pipe))
		return;
	for (; tail != head; tail++) {
		uint64_t buffer = buffers + (uint64_t)(tail & (room - 1)) * size,
			 ops = pins_word(c, buffer + pins_offset(c, "pipe_buffer", "ops"));
		uint32_t hold;

		if (!ops) /* it has gone */
			return;
		if (ops != c->own.ops)
			continue;
		hold = pins_hold(
			c, &(struct pins_hold){
				   .device = PINS_VMSPLICE, .pid = f->pid, .fd = f->fd, .object = pipe});
		pins_piece(c, hold, pins_word(c, buffer + pins_offset(c, "pipe_buffer", "page")),
			   pins_half(c, buffer + pins_offset(c, "pipe_buffer", "offset")),
			   pins_half(c, buffer + pins_offset(c, "pipe_buffer", "len")), 0);
	}
}

/* --------------------------------------------------------------------------------------- all -- */

/* These keep no list that can be read here, or none of pages: what their processes map and nothing else
 * explains is theirs. */
int pins_device_of(const struct census_file *f)
{
	static const struct {
		const char *name;
		int device;
	} names[] = {{"vfio", PINS_VFIO}, {"iommu", PINS_IOMMUFD}};

	if (!S_ISCHR(f->mode))
		return -1;
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (!strcmp(f->name, names[i].name))
			return names[i].device;
	return strncmp(f->name, "uverbs", 6) ? -1 : PINS_RDMA;
}

static void hold_file(struct census *c, const struct census_file *f)
{
	if (f->magic == DMA_BUF_MAGIC)
		pins_hold_dmabuf(c, f);
	else if (f->magic == PIPE_MAGIC)
		pins_hold_pipe(c, f);
	else if (f->family == AF_XDP)
		pins_hold_xdp(c, f);
	else if (!strcmp(f->name, "[io_uring]"))
		pins_hold_ring(c, f->pid, f->fd, f->private_data);
	else if (S_ISCHR(f->mode) && !strncmp(f->name, "uverbs", 6))
		pins_hold_rdma(c, f);
	else if (S_ISCHR(f->mode) && f->rdev == VFIO_CONTAINER)
		pins_hold_vfio(c, f);
}

/* First for those that made them: a child has a ring, but of its pages only copies. */
static void hold_own_rings(struct census *c)
{
	long mm = pins_offset(c, "io_ring_ctx", "mm_account");

	for (size_t i = 0; i < c->files.n && mm >= 0; i++) {
		const struct census_file *f = pins_at(&c->files, struct census_file, i);

		if (!strcmp(f->name, "[io_uring]") && f->mm &&
		    pins_word(c, f->private_data + mm) == f->mm)
			pins_hold_ring(c, f->pid, f->fd, f->private_data);
	}
}

/* What has plain references is no pin and was passed over, unless it looked suspicious. */
static int add_referenced(struct census *c)
{
	size_t known = c->pins.n;
	int err = 0;

	for (size_t i = 0; i < c->pieces.n && !err; i++) {
		const struct pins_piece *piece = pins_at(&c->pieces, struct pins_piece, i);

		if (pins_at(&c->holds, struct pins_hold, piece->hold)->counted)
			continue;
		for (uint64_t at = 0; at < piece->nr && !err; at++) {
			uint64_t head = pins_head(c, piece->pfn + at);

			if (pins_find(c, head, known) || !head || pins_seen(c, head))
				continue; /* numbers of pages are no addresses of objects */
			err = pins_scan_range(c, head, 1, true, &c->pins);
		}
	}
	pins_sort(c);
	return err;
}

int pins_list_holds(struct census *c)
{
	int err = pins_iterate(c, PINS_FILES, &c->files);

	if (!err)
		err = pins_iterate(c, PINS_VMAS, &c->vmas);
	if (!err)
		err = pins_iterate(c, PINS_TASKS, &c->tasks);
	if (err)
		return err;
	hold_own_rings(c);
	for (size_t i = 0; i < c->files.n; i++)
		hold_file(c, pins_at(&c->files, struct census_file, i));
	for (size_t i = 0; i < c->tasks.n; i++)
		hold_registered(c, pins_at(&c->tasks, struct census_task, i));
	for (size_t i = 0; i < c->vmas.n; i++) { /* a ring may live by its mapping alone */
		const struct census_vma *v = pins_at(&c->vmas, struct census_vma, i);

		if (v->private_data)
			pins_hold_ring(c, v->pid, -1, v->private_data);
	}
	pins_group_holds(c);
	return add_referenced(c);
}
