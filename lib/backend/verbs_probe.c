/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Each test registers eight pages of our own and has the device write to itself there. What counts is
 * what is in the memory afterwards, not what a command or a completion says.
 */
#include "backend/verbs_probe.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include <pinlease/device.h>

#include "backend/verbs_cmd.h"
#include "backend/verbs_loop.h"
#include "os/errname.h"

#define PAGE   4096ul
#define LEN    PL_LOOP_LEN
#define EMPTY  0xee
#define RIGHTS (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ)

struct probe {
	struct pl_loop loop;
	struct pl_uverbs uverbs;
	struct ibv_pd *aside; /* nobody's */
	unsigned char *target;
};

static int reg(struct probe *p, unsigned more, struct pl_mr *mr)
{
	return pl_mr_reg(&p->uverbs, p->loop.pd->handle, (uintptr_t)p->target, LEN, RIGHTS | more, mr);
}

static int dereg(struct probe *p, const struct pl_mr *mr)
{
	return pl_mr_dereg(&p->uverbs, mr->handle);
}

static bool all(const unsigned char *at, unsigned char c, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (at[i] != c)
			return false;
	return true;
}

/* A pattern in which no two places look alike. */
static void fill(void *at, unsigned seed)
{
	uint32_t *words = at;

	for (size_t i = 0; i < LEN / sizeof *words; i++)
		words[i] = (i + seed) * 2654435761u;
}

/* What fails on a machine that is very busy isn't the driver's fault. */
static bool moves(struct probe *p, bool write, size_t at, uint32_t rkey, size_t len)
{
	int err = -EACCES;

	for (int i = 0; i < 3 && err; i++)
		err = pl_loop_move(&p->loop, write, (uintptr_t)p->target + at, rkey, len);
	return !err;
}

/* Written to [at, at + len), all of it and nowhere else. */
static bool writes_right(struct probe *p, uint32_t rkey, size_t at, size_t len)
{
	memset(p->target, EMPTY, LEN);
	fill(p->loop.buf, at);
	return moves(p, true, at, rkey, len) && !memcmp(p->target + at, p->loop.buf, len) &&
	       all(p->target, EMPTY, at) && all(p->target + at + len, EMPTY, LEN - at - len);
}

static bool reads_right(struct probe *p, uint32_t rkey, size_t at, size_t len)
{
	memset(p->loop.buf, EMPTY, LEN);
	fill(p->target, at);
	return moves(p, false, at, rkey, len) && !memcmp(p->target + at, p->loop.buf, len);
}

/* 0: a transfer fails, and nothing comes; -EEXIST: it comes; else it couldn't be tried. */
static int is_off(struct probe *p, uint32_t rkey)
{
	int err = -EIO;

	memset(p->target, EMPTY, LEN);
	memset(p->loop.buf, 0x11, LEN);
	for (int i = 0; i < 3 && err && err != -EACCES; i++)
		err = pl_loop_move(&p->loop, true, (uintptr_t)p->target, rkey, PAGE);
	if (!err || !all(p->target, EMPTY, LEN))
		return -EEXIST;
	return err == -EACCES ? 0 : err;
}

/*
 * Of a region with the rights that leases will have: mlx5 (Linux 5.11 on) changes some of them in place,
 * for others, as atomic access, it makes another region with other keys. Then nobody else could find it:
 * pinleased knows the first.
 */
static void probe_rereg(struct probe *p, unsigned access, struct pl_verbs_found *found)
{
	struct pl_mr mr, made;

	if (reg(p, access, &mr))
		return;
	made = mr;
	if (writes_right(p, mr.rkey, 0, PAGE) && !pl_mr_park(&p->uverbs, &mr, p->aside->handle) &&
	    mr.lkey == made.lkey && mr.rkey == made.rkey &&
	    (!found->asks || !pl_mr_is(&p->uverbs, &made, (uintptr_t)p->target, LEN)) &&
	    !is_off(p, made.rkey))
		found->means |= PINL_VERBS_REREG;
	dereg(p, &mr);
}

static int probe_means(struct probe *p, struct pl_verbs_found *found)
{
	struct pl_mr mr, made;
	int err = reg(p, 0, &mr);

	if (err)
		return pinl_set_error(err == -ENOMEM ? err : -EOPNOTSUPP,
				      "can't register memory by the plain REG_MR command, which this "
				      "driver may not have: %s",
				      pl_errname(-err));
	if (!writes_right(p, mr.rkey, 0, PAGE)) {
		dereg(p, &mr);
		return pinl_set_error(
			-EOPNOTSUPP, "memory registered by the plain REG_MR command can't be written by "
				     "this RDMA device: its driver registers in a way of its own");
	}
	made = mr;
	found->asks = !pl_mr_is(&p->uverbs, &mr, (uintptr_t)p->target, LEN);
	err = dereg(p, &mr);
	if (!err)
		err = is_off(p, made.rkey);
	if (!err)
		found->means |= PINL_VERBS_DEREG;
	else if (err != -EEXIST)
		return pinl_set_error(err,
				      "whether this RDMA device leaves memory alone that has been "
				      "deregistered could not be tested (%s); open it again",
				      pl_errname(-err));
	if (err)
		return pinl_set_error(-EOPNOTSUPP, "this RDMA device goes on writing to memory that has "
						   "been deregistered: nothing can be leased to it");
	return 0;
}

/* On the queue pair that answers. */
static int bind(struct probe *p, const struct pl_mr *mr, uint32_t window, uint32_t rkey)
{
	struct ibv_context *ctx = p->loop.ctx;
	struct ibv_mw mw = {
		.context = ctx, .pd = p->loop.pd, .rkey = rkey, .handle = window, .type = IBV_MW_TYPE_2};
	struct ibv_mr bound = {.context = ctx,
			       .pd = p->loop.pd,
			       .addr = p->target,
			       .length = LEN,
			       .handle = mr->handle,
			       .lkey = mr->lkey,
			       .rkey = mr->rkey};
	struct ibv_send_wr wr = {
		.opcode = IBV_WR_BIND_MW,
		.bind_mw = {.mw = &mw,
			    .rkey = ibv_inc_rkey(rkey),
			    .bind_info = {&bound, (uintptr_t)p->target, LEN,
					  IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ}},
	};

	return pl_loop_post(&p->loop, &wr);
}

/* Peers come in by the window, and by nothing else; without it not at all. */
static void probe_windows(struct probe *p, struct pl_verbs_found *found)
{
	uint32_t window, rkey;
	struct pl_mr mr;
	bool works;

	if (pl_mr_reg(&p->uverbs, p->loop.pd->handle, (uintptr_t)p->target, LEN,
		      IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND, &mr))
		return;
	if (pl_mw_alloc(&p->uverbs, p->loop.pd->handle, &window, &rkey)) {
		dereg(p, &mr);
		return;
	}
	works = !bind(p, &mr, window, rkey);
	rkey = ibv_inc_rkey(rkey);
	works = works && writes_right(p, rkey, 0, PAGE);
	if (!pl_mw_dealloc(&p->uverbs, window) && works && !is_off(p, rkey) && !is_off(p, mr.rkey) &&
	    !dereg(p, &mr))
		found->means |= PINL_VERBS_MW;
	else
		dereg(p, &mr);
}

/* Other memory at the same addresses: the device has to go there. */
static bool follows(struct probe *p, uint32_t rkey)
{
	return mmap(p->target, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
		    0) != MAP_FAILED &&
	       writes_right(p, rkey, 0, LEN);
}

static bool right(struct probe *p, uint32_t rkey, size_t at, size_t len)
{
	return writes_right(p, rkey, at, len) && reads_right(p, rkey, at, len);
}

static void probe_odp(struct probe *p, struct pl_verbs_found *found)
{
	static const struct {
		unsigned at, len;
	} odd[] = {{100, 8}, {2048, 64}, {PAGE - 4, 8}, {512, PAGE}, {PAGE, 3 * PAGE + 40}};
	struct pl_mr mr;

	found->why_no_odp = "its driver has no on-demand regions (ODP) here";
	if (reg(p, IBV_ACCESS_ON_DEMAND, &mr))
		return;
	found->odp_bytes = true;
	for (size_t i = 0; i < sizeof odd / sizeof *odd; i++)
		found->odp_bytes &= right(p, mr.rkey, odd[i].at, odd[i].len);
	if (!right(p, mr.rkey, 0, PAGE) || !right(p, mr.rkey, 0, LEN))
		found->why_no_odp = "its on-demand regions (ODP) misplace even whole pages: a self-test "
				    "found it; soft-RoCE needs an interface MTU of 4200 or more";
	else if (!follows(p, mr.rkey))
		found->why_no_odp =
			"its on-demand regions (ODP) don't follow a change of the mapping: a "
			"self-test found it";
	else
		found->odp = true;
	if (found->odp && !found->odp_bytes)
		found->why_no_odp =
			"its on-demand regions (ODP) misplace data that doesn't begin at a "
			"page boundary: a self-test found it; PINL_VERBS_WHOLE_PAGES promises "
			"that yours always does";
	found->odp_bytes &= found->odp;
	dereg(p, &mr);
}

static int probe_all(struct probe *p, unsigned access, struct pl_verbs_found *found)
{
	void *target = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int err;

	if (target == MAP_FAILED)
		return pinl_set_error(-ENOMEM, "out of memory");
	p->target = target;
	p->aside = ibv_alloc_pd(p->loop.ctx);
	err = p->aside ? probe_means(p, found)
		       : pinl_set_error(-ENOMEM, "can't make a protection domain to probe with: %s",
					pl_errname(errno));
	if (!err) {
		probe_rereg(p, access, found);
		probe_windows(p, found);
		probe_odp(p, found);
	}
	if (p->aside)
		ibv_dealloc_pd(p->aside);
	munmap(target, LEN);
	return err;
}

static int find_driver(struct ibv_device *device, struct pl_verbs_found *found)
{
	struct ibv_context *ctx = ibv_open_device(device);
	struct pl_uverbs u = {.fd = ctx ? ctx->cmd_fd : -1};
	int err = ctx ? pl_uverbs_find(&u) : errno ? -errno : -ENODEV;

	found->driver = u.driver;
	if (err)
		pinl_set_error(err, "can't give commands to RDMA device %s: %s",
			       ibv_get_device_name(device), pl_errname(-err));
	if (ctx)
		ibv_close_device(ctx);
	return err;
}

int pl_verbs_probe(struct ibv_device *device, unsigned access, struct pl_verbs_found *found)
{
	struct probe p = {0};
	int err;

	*found = (struct pl_verbs_found){0};
	err = find_driver(device, found);
	if (err)
		return err;
	err = pl_loop_open(&p.loop, device);
	if (err == -ENETDOWN) { /* what deregistering does is in the standard */
		found->means = PINL_VERBS_DEREG;
		found->why_no_odp =
			"no port of it is up and can reach itself, so on-demand regions (ODP) "
			"could not be tested; bring it up and open it again";
		return 0;
	}
	if (err)
		return pinl_set_error(err, "can't open RDMA device %s to try what it can do: %s",
				      ibv_get_device_name(device), pl_errname(-err));
	p.uverbs = (struct pl_uverbs){p.loop.ctx->cmd_fd, found->driver};
	err = probe_all(&p, access, found);
	pl_loop_close(&p.loop);
	return err;
}
