/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Leases of device memory (M2-M8). Such a lease is not pinned and not orphaned: it has its memory from
 * an exporter, who is asked when it is made and told when the device is off. It is recalled by its
 * exporter or by an explicit call for the addresses, always as a whole; then the device gets errors, or
 * its table goes to a dummy, and neither is undone.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "core/export.h"

#define DUMMY (2ul << 20) /* so much of it at most, again and again */

static int no(const struct pinl_lease *l, const char *sentence)
{
	return pinl_set_error(-EOPNOTSUPP, "%s (%s, device %s%s%s)", sentence,
			      l->more->import->exporter->name, l->dev->given->name,
			      l->dev->info.why ? ": " : "", l->dev->info.why ? l->dev->info.why : "");
}

static int validate_device(struct pinl_lease *l)
{
	const struct pinl_device_info *info = &l->dev->info;
	const struct pinl_exporter *e = l->more->import->exporter;

	if (info->device_class < PINL_DEV_REVOCABLE)
		return no(l,
			  "device memory is given only to devices that it can be taken from again, and "
			  "this one can't be revoked");
	if (info->caps & PINL_DEVCAP_IMPORT)
		return 0;
	if (!(e->flags & PINL_EXPORT_PAGES) || !e->addr || !(info->caps & PINL_DEVCAP_PIN))
		return no(l, "this device can't map memory of another device");
	l->more->import->as_memory = true;
	return 0;
}

/* Uses up the reference. */
int pl_import_new(struct pinl_lease *l, struct pinl_exporter *e, uint64_t offset, bool by_handle)
{
	struct pinl_memory *mem = &pl_more(l)->ground.mem;
	struct pl_import *im = calloc(1, sizeof *im);

	if (!im) {
		pl_exporter_put(e);
		return pinl_set_error(-ENOMEM, "out of memory for a lease");
	}
	im->exporter = e;
	im->by_handle = by_handle;
	im->attach = (struct pinl_attach){.size = sizeof im->attach,
					  .device = l->dev,
					  .device_kind = l->dev->given->name,
					  .device_class = l->dev->info.device_class,
					  .flags = l->flags & PINL_WRITE,
					  .offset = offset,
					  .length = l->m.end - l->m.start};
	pl_more(l)->import = im;
	l->flags &= ~PINL_PIN; /* never pinned, whoever asks */
	l->dm.flags = pl_lease_access(l);
	mem->dev = mem->map_dev = PL_EXPORT_DEV;
	mem->ino = e->id;
	mem->offset = offset;
	return validate_device(l); /* before it is visible: a revocation can't recall such a lease */
}

int pl_import_by_range(struct pinl_lease *l, const struct pl_vma_whose *whose)
{
	uint64_t offset;
	struct pinl_exporter *e = pl_exporter_find_range(l->ctx, &l->on->mem, &offset);

	if (e)
		return pl_import_new(l, e, offset, false);
	if (pl_exporter_any(l->ctx))
		return pinl_set_error(
			-EOPNOTSUPP,
			"[%#lx, %#lx) is device memory (%s, %s), and no exporter that is registered has "
			"these addresses, or this file mapped: if one stands for the same memory, lease "
			"by pinl_map_exporter(); else register this mapping, too "
			"(pinl_exporter_register() or pinl_export_dmabuf())",
			l->m.start, l->m.end, whose->name, pinl_exporter_kind_name(whose->kind));
	return pinl_set_error(
		-EOPNOTSUPP,
		"[%#lx, %#lx) is device memory (%s, %s), which is never pinned: it is mapped "
		"through its exporter, and none is registered for it "
		"(pinl_exporter_register(); ready ones: pinl_export_vfio(), "
		"pinl_export_dmabuf())",
		l->m.start, l->m.end, whose->name, pinl_exporter_kind_name(whose->kind));
}

/* ------------------------------------------------------------------------------------- validate -- */

static int validate_policy(const struct pinl_lease *l)
{
	if (l->flags & (PINL_STAGE | PINL_SEAL | PINL_KEEP_NAME))
		return no(l, "PINL_STAGE, PINL_SEAL and PINL_KEEP_NAME are for memory, not for device "
			     "memory");
	if (l->policy.kind != PINL_RECALL)
		return no(l, "device memory is leased under RECALL only: its exporter takes it back, "
			     "whatever the importer would rather");
	if (l->policy.then == PINL_THEN_COPY)
		return no(l, "COPY is not for device memory, whose content is its exporter's: use FAIL, "
			     "or SCRATCH for a dummy page");
	if (l->policy.then == PINL_THEN_KILL)
		return no(l, "KILL is for files whose changes pinleased holds: use FAIL or SCRATCH");
	if (l->policy.then == PINL_THEN_SCRATCH &&
	    (l->more->import->as_memory || !(l->dev->info.caps & PINL_DEVCAP_RETARGET)))
		return no(l, "this device can't be given a dummy page for SCRATCH: use FAIL");
	return 0;
}

static int validate_addresses(const struct pinl_lease *l)
{
	unsigned want = PINL_CAN_TELL | (l->flags & PINL_STRICT ? PINL_CAN_HOLD : 0);

	if (l->more->import->by_handle || (l->flags & PINL_COOPERATIVE) ||
	    (l->on->coverage[PINL_OP_UNMAP] & want) == want)
		return 0;
	return no(
		l,
		"nobody tells when this device mapping is unmapped (userfaultfd doesn't watch it): "
		"lease it by its handle (pinl_map_exporter()), or pass PINL_COOPERATIVE and unmap it by "
		"pinl_munmap()");
}

int pl_import_validate(struct pinl_lease *l)
{
	int err = validate_policy(l);

	return err ? err : validate_addresses(l);
}

/* ----------------------------------------------------------------------------- attach and detach -- */

/* Into the exporter's ops: 0, or -ENODEV. */
static int enter(struct pinl_exporter *e, bool attach)
{
	int err;

	pthread_mutex_lock(&e->ctx->lock);
	err = e->gone || (attach && e->revoked) ? -ENODEV : 0;
	e->calls += !err;
	pthread_mutex_unlock(&e->ctx->lock);
	return err;
}

static void leave(struct pl_import *im, bool attached)
{
	struct pinl_ctx *ctx = im->exporter->ctx;

	pthread_mutex_lock(&ctx->lock);
	im->attached = attached;
	im->exporter->calls--;
	pthread_cond_broadcast(&ctx->ended);
	pthread_mutex_unlock(&ctx->lock);
}

static int attach(struct pl_import *im)
{
	struct pinl_exporter *e = im->exporter;
	int err = 0;

	pinl_set_error(0, "%s", "");
	if (e->ops.attach)
		err = e->ops.attach(e->arg, &im->attach);
	if (err > 0)
		err = -EACCES;
	if (err && !*pinl_error())
		return pinl_set_error(err, "the exporter of %s refuses this device: %s", e->name,
				      strerror(-err));
	return err;
}

static void detach(struct pl_import *im)
{
	if (im->exporter->ops.detach)
		im->exporter->ops.detach(im->exporter->arg, &im->attach);
}

void pl_import_detach(struct pinl_lease *l)
{
	struct pl_import *im = l->more->import;

	if (!im || !im->attached || enter(im->exporter, false))
		return;
	detach(im);
	leave(im, false);
}

/* ------------------------------------------------------------------------------------------ map -- */

/* Shared, so that it isn't merged into a mapping of the program's that is watched; a child has no use
 * for it. */
static int make_dummy(struct pl_import *im)
{
	size_t len = im->attach.length < DUMMY ? im->attach.length : DUMMY;
	void *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE,
			 -1, 0);

	if (map == MAP_FAILED)
		return pinl_set_error(-ENOMEM, "out of memory for a dummy");
	madvise(map, len, MADV_DONTFORK);
	im->dummy = map;
	im->dummy_len = len;
	return 0;
}

static int may_write(const struct pinl_lease *l)
{
	const struct pinl_exporter *e = l->more->import->exporter;
	int mode;

	if (!(l->flags & PINL_WRITE) || !l->more->import->by_handle)
		return 0;
	if (e->fd < 0)
		return e->writable
			       ? 0
			       : pinl_set_error(-EACCES,
						"PINL_WRITE was asked for, and %s is mapped read-only",
						e->name);
	mode = fcntl(e->fd, F_GETFL);
	if (mode < 0 || (mode & O_ACCMODE) != O_RDONLY)
		return 0;
	return pinl_set_error(-EACCES,
			      "PINL_WRITE was asked for, and the handle of %s is open for reading only",
			      e->name);
}

static int as_device_memory(struct pinl_lease *l, struct pinl_addr *addrs)
{
	const struct pl_import *im = l->more->import;
	const struct pinl_exporter *e = im->exporter;
	struct pinl_import from = {.size = sizeof from,
				   .fd = e->fd,
				   .offset = e->offset + im->attach.offset,
				   .addr = e->addr ? (void *)(e->addr + im->attach.offset) : NULL,
				   .name = e->name};

	return l->dev->ops.import(l->dev->priv, &l->dm, &from, addrs);
}

static int as_memory(struct pinl_lease *l, struct pinl_addr *addrs)
{
	l->dm.start = l->more->import->exporter->addr + l->more->import->attach.offset;
	l->dm.end = l->dm.start + l->more->import->attach.length;
	l->dm.flags |= PINL_PIN;
	return l->dev->ops.map(l->dev->priv, &l->dm, addrs);
}

/* Between enter and leave. */
static int map(struct pinl_lease *l, struct pinl_addr *addrs)
{
	struct pl_import *im = l->more->import;
	int err = may_write(l);

	if (!err)
		err = pl_exporter_check_fd(im->exporter);
	if (!err)
		err = attach(im);
	if (err)
		return err;
	if (l->policy.then == PINL_THEN_SCRATCH)
		err = make_dummy(im);
	if (!err)
		err = im->as_memory ? as_memory(l, addrs) : as_device_memory(l, addrs);
	if (err) {
		char why[512];

		snprintf(why, sizeof why, "%s", pinl_error());
		detach(im);
		pinl_set_error(err, "%s", why);
	}
	return err;
}

int pl_import_map(struct pinl_lease *l, struct pinl_addr *addrs)
{
	struct pl_import *im = l->more->import;
	int err;

	if (enter(im->exporter, true))
		return pl_exporter_say_closed(im->exporter);
	err = map(l, addrs);
	if (err) {
		leave(im, false);
		return err;
	}
	pthread_mutex_lock(&l->ctx->lock);
	im->attached = im->entered = true;
	pthread_mutex_unlock(&l->ctx->lock);
	return 0;
}

void pl_import_settled(struct pinl_lease *l)
{
	if (!l->more->import || !l->more->import->entered)
		return;
	l->more->import->entered = false;
	l->more->import->exporter->calls--;
	pthread_cond_broadcast(&l->ctx->ended);
}

/* ----------------------------------------------------------------------------------------- take -- */

int pl_import_take(struct pinl_lease *l, bool dummy)
{
	if (!dummy || !l->more->import->dummy)
		return -EOPNOTSUPP;
	return l->dev->ops.dummy(l->dev->priv, &l->dm, l->more->import->dummy,
				 l->more->import->dummy_len);
}

void pl_import_free(struct pinl_lease *l)
{
	struct pl_import *im = l->more->import;

	if (!im)
		return;
	if (im->dummy)
		munmap(im->dummy, im->dummy_len);
	pl_exporter_put(im->exporter);
	free(im);
	pl_more(l)->import = NULL;
}
