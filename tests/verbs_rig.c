/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "verbs_rig.h"
#include "witness.h"

#include <limits.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define MARK 'P'

void assert_all(const char *what, const char *at, char c, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (at[i] != c)
			fail_msg("%s: byte %zu is %#x, not %#x", what, i, at[i] & 255, c & 255);
}

/* -------------------------------------------------------------------------------- leases, events -- */

struct pinl_policy policy(enum pinl_policy_kind kind, enum pinl_then then, unsigned grace_ms)
{
	return (struct pinl_policy){.size = sizeof(struct pinl_policy),
				    .kind = kind,
				    .then = then,
				    .grace_ms = grace_ms,
				    .refuse = kind == PINL_REFUSE ? PINL_OPBIT(PINL_OP_TRUNCATE) |
									    PINL_OPBIT(PINL_OP_PUNCH) |
									    PINL_OPBIT(PINL_OP_REMOVE)
								  : 0};
}

int vrig_try(struct vrig *r, struct pinl_policy p, unsigned flags)
{
	return pinl_map_range(r->dev, (uintptr_t)r->va, (uintptr_t)r->va + LEN,
			      PINL_WRITE | PINL_COOPERATIVE | flags, &p, r->addrs, &r->lease);
}

void vrig_map(struct vrig *r, struct pinl_policy p, unsigned flags)
{
	assert_ok(vrig_try(r, p, flags));
}

void vrig_unmap(struct vrig *r)
{
	pinl_unmap_range(r->lease);
	r->lease = NULL;
}

struct pinl_event vrig_event(struct vrig *r, enum pinl_event_type type)
{
	return event_of(r->ctx, type);
}

/* -------------------------------------------------------------------------------------- the peer -- */

void vrig_connect(struct vrig *r)
{
	struct peer_name here, far;

	peer_get_name(&r->here, &here);
	peer_get_name(&r->far, &far);
	peer_connect(&r->here, &far);
	peer_connect(&r->far, &here);
	r->ended = IBV_WC_SUCCESS;
}

enum ibv_wc_status vrig_move(struct vrig *r, int write, size_t len, uint64_t at, uint32_t rkey)
{
	if (r->ended != IBV_WC_SUCCESS)
		vrig_connect(r);
	r->ended = peer_move(&r->far, write, 0, len, at, rkey);
	return r->ended;
}

static void *fly(void *arg)
{
	struct vrig *r = arg;

	while (r->ended == IBV_WC_SUCCESS && atomic_load(&r->moves) < atomic_load(&r->land)) {
		r->ended = peer_move(&r->far, r->write, 0, r->load, r->addrs[0].addr, r->addrs[0].rkey);
		atomic_fetch_add(&r->moves, 1);
	}
	return NULL;
}

void vrig_take_off(struct vrig *r, int write)
{
	if (r->ended != IBV_WC_SUCCESS)
		vrig_connect(r);
	if (write) {
		memset(r->va, 0, PAGE);
		memset(r->far.buf, 'W', LEN);
	} else {
		memset(r->va, 'R', LEN);
		memset(r->far.buf, 0, LEN);
	}
	r->write = write;
	atomic_store(&r->land, INT_MAX);
	atomic_store(&r->moves, 0);
	assert_int_equal(pthread_create(&r->thread, NULL, fly, r), 0);
	r->flying = true;
	while (*(volatile char *)(write ? r->va : r->far.buf) == 0)
		usleep(50);
}

void vrig_await_moves(struct vrig *r, int more)
{
	int since = atomic_load(&r->moves);

	while (atomic_load(&r->moves) - since < more)
		usleep(200);
}

enum ibv_wc_status vrig_land(struct vrig *r)
{
	atomic_store(&r->land, atomic_load(&r->moves) + 2);
	pthread_join(r->thread, NULL);
	r->flying = false;
	return r->ended;
}

/* --------------------------------------------------------------------------------------- witness -- */

void vrig_witness(struct vrig *r)
{
	witness_open(&r->witness, r->va, LEN);
	r->witnessing = true;
}

static void witness_io(struct vrig *r, char *buf, int write)
{
	witness_move(&r->witness, r->va, LEN, buf, write);
}

void vrig_mark_old(struct vrig *r)
{
	char *buf = malloc(LEN);

	memset(buf, MARK, LEN);
	witness_io(r, buf, 1);
	free(buf);
}

void vrig_assert_old_untouched(struct vrig *r)
{
	char *buf = malloc(LEN);

	witness_io(r, buf, 0);
	assert_all("old pages", buf, MARK, LEN);
	free(buf);
}

/* ---------------------------------------------------------------------------------------- set-up -- */

static void open_all(struct vrig *r)
{
	struct pinl_opts opts = {
		.size = sizeof opts, .ceiling_ms = 100000, .drain_ms = 2000, .summary_fd = -1};
	struct pinl_verbs_arg arg = {
		.size = sizeof arg,
		.access = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ,
		.flags = PINL_VERBS_WHOLE_PAGES,
	};

	peer_open(&r->here, NULL, LEN);
	peer_open(&r->far, peer_far(), LEN);
	vrig_connect(r);
	arg.pd = r->here.pd;
	assert_ok(pinl_open(&opts, &r->ctx));
	assert_ok(pinl_device_open(r->ctx, "verbs", &arg, &r->dev));
}

int vrig_up(void **state)
{
	struct vrig *r = calloc(1, sizeof *r);

	*state = r;
	r->load = LEN;
	if (peer_missing())
		return 0;
	open_all(r);
	r->fd = memfd_create("leased", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(r->fd, LEN), 0);
	r->va = map_alone(LEN, MAP_SHARED | MAP_POPULATE, r->fd);
	r->alias = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	assert_true(r->va != MAP_FAILED && r->alias != MAP_FAILED);
	return 0;
}

int vrig_down(void **state)
{
	struct vrig *r = *state;

	if (r->ctx) {
		if (r->flying)
			vrig_land(r);
		pinl_unmap_range(r->lease);
		if (r->dev)
			pinl_device_close(r->dev);
		pinl_close(r->ctx);
		peer_close(&r->here);
		peer_close(&r->far);
		if (r->witnessing)
			io_uring_queue_exit(&r->witness);
		munmap(r->va, LEN);
		munmap(r->alias, LEN);
		close(r->fd);
	}
	free(r);
	return 0;
}
