/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "vfio_rig.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "witness.h"

int try_open(struct rig *r, int fd, uint64_t first, uint64_t last, unsigned flags,
	     struct pinl_device **dev)
{
	int devices[EDU_MAX];
	union edu_arg arg = edu_arg(&r->edu, r->mode->switched, devices);

	if (r->mode->space == EDU_TYPE1) {
		arg.vfio.container = fd;
		arg.vfio.iova_first = first;
		arg.vfio.iova_last = last;
		arg.vfio.flags = flags;
	} else {
		arg.iommufd.iommufd = fd;
		arg.iommufd.iova_first = first;
		arg.iommufd.iova_last = last;
		arg.iommufd.flags = flags;
	}
	return pinl_device_open(r->ctx, r->mode->kind, &arg, dev);
}

void open_device(struct rig *r, uint64_t first, uint64_t last, unsigned flags)
{
	assert_ok(try_open(r, r->edu.fd, first, last, flags, &r->dev));
}

void reopen(struct rig *r, uint64_t first, uint64_t last, unsigned flags)
{
	pinl_device_close(r->dev);
	open_device(r, first, last, flags);
}

int rig_up(void **state)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};
	struct rig *r = calloc(1, sizeof *r);

	r->mode = *state;
	r->fd = -1;
	edu_open(&r->edu, r->mode->space);
	assert_ok(pinl_open(&opts, &r->ctx));
	open_device(r, EDU_IOVA_FIRST, EDU_IOVA_LAST, 0);
	*state = r;
	return 0;
}

void forget_memory(struct rig *r)
{
	if (r->witnessing)
		io_uring_queue_exit(&r->witness);
	if (r->va)
		munmap(r->va, SIZE);
	if (r->fd >= 0)
		close(r->fd);
	r->va = NULL;
	r->fd = -1;
	r->witnessing = false;
}

int rig_down(void **state)
{
	struct rig *r = *state;

	pinl_unmap_range(r->lease);
	pinl_close(r->ctx);
	edu_close(&r->edu);
	forget_memory(r);
	free(r);
	return 0;
}

void make_memory(struct rig *r, enum memory memory)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;

	if (memory == FILE_MEMORY) {
		r->fd = memfd_create("leased", MFD_CLOEXEC);
		assert_int_equal(ftruncate(r->fd, SIZE), 0);
		flags = MAP_SHARED;
	}
	r->va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, flags, r->fd, 0);
	assert_ptr_not_equal(r->va, MAP_FAILED);
	memset(r->va, 'F', SIZE);
}

int try_lease(struct rig *r, const struct pinl_policy *policy, unsigned flags)
{
	uintptr_t start = (uintptr_t)r->va;

	return pinl_map_range(r->dev, start, start + SIZE, flags, policy, r->addrs, &r->lease);
}

struct pinl_policy recall(enum pinl_then then)
{
	return (struct pinl_policy){
		.size = sizeof(struct pinl_policy), .kind = PINL_RECALL, .then = then};
}

struct pinl_policy plain(enum pinl_policy_kind kind)
{
	return (struct pinl_policy){.size = sizeof(struct pinl_policy), .kind = kind};
}

void lease(struct rig *r, struct pinl_policy policy)
{
	assert_ok(try_lease(r, &policy, FLAGS));
}

void unlease(struct rig *r)
{
	pinl_unmap_range(r->lease);
	r->lease = NULL;
}

struct pinl_event await_event(struct rig *r, enum pinl_event_type type)
{
	return event_of(r->ctx, type);
}

void next_round(struct rig *r)
{
	if (r->lease)
		unlease(r);
	forget_memory(r);
}

/* ------------------------------------------------------------------------------- the witness -- */

void witness_start(struct rig *r)
{
	witness_open(&r->witness, r->va, SIZE);
	r->witnessing = true;
}

static void witness_io(struct rig *r, char *buf, bool write)
{
	witness_move(&r->witness, r->va, SIZE, buf, write);
}

void poison(struct rig *r)
{
	char buf[SIZE];

	memset(buf, 'P', sizeof buf);
	witness_io(r, buf, true);
}

void assert_filled(const char *what, const char *buf, char c, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (buf[i] != c)
			fail_msg("%s: byte %zu is %#x, not %#x", what, i, buf[i] & 255, c & 255);
}

void assert_not_hit(struct rig *r)
{
	char buf[SIZE];

	witness_io(r, buf, false);
	assert_filled("old pages", buf, 'P', SIZE);
}

/* --------------------------------------------------------------------------------- transfers -- */

/* One chunk in the middle of each page that there is a device for. */
static int chunks(struct rig *r, struct edu_part parts[PAGES], char *data, char c)
{
	int n = r->edu.n < (int)PAGES ? r->edu.n : (int)PAGES;

	memset(data, c, EDU_CHUNK);
	for (int i = 0; i < n; i++)
		parts[i] = (struct edu_part){r->addrs[i].addr + 1024, data, EDU_CHUNK};
	return n;
}

void take_off(struct rig *r, char c)
{
	struct edu_part parts[PAGES];
	char data[EDU_CHUNK];
	int n = chunks(r, parts, data, c);

	edu_load(&r->edu, parts, n);
	edu_launch(&r->edu, parts, n);
}

int flying(struct rig *r)
{
	return r->edu.n < (int)PAGES ? r->edu.n : (int)PAGES;
}

void assert_landed_in(const char *va, char c, int pages)
{
	for (int i = 0; i < pages; i++)
		assert_filled("where the transfer landed", va + i * PAGE + 1024, c, EDU_CHUNK);
}

/* The device's view of a page's middle. */
void assert_device_reads(struct rig *r, char c)
{
	char data[EDU_CHUNK] = {0};
	struct edu_part part = {r->addrs[0].addr + 1024, data, EDU_CHUNK};

	edu_read(&r->edu, &part, 1);
	assert_filled("device read", data, c, EDU_CHUNK);
}
