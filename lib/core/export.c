/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Exporters: what they have, and whose a mapping or a descriptor is. export_revoke.c takes it back.
 *
 * Invariants: no attach is accepted while `revoked` or `gone` is set, which is looked at under ctx->lock
 * when the lease is visible already, so the revocation that set it finds every lease of before, and
 * waits for it. `ops` are called, and handle and mapping used, only while `calls` counts
 * it, and none begins once `gone` is set.
 */
#include "core/export.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE	   4096ul
#define ANON_INODE 0x09041934

static int none_known(void *arg, uint64_t dev, uint64_t ino)
{
	return -1;
}

/* What is mapped there; no descriptor is kept. */
static int look_at(struct pinl_ctx *ctx, uintptr_t start, uintptr_t end, struct pinl_memory *m,
		   struct pl_vma_whose *whose)
{
	struct pl_vma_how how = {
		.maps = ctx->maps, .aside = ctx->aside, .known = none_known, .whose = whose};
	int real, err = pl_vma_query(&how, start, end, m, &real);

	if (err)
		return err;
	if (m->fd >= 0)
		close(m->fd);
	if (real >= 0)
		pl_aside_close(ctx->aside, real);
	m->fd = -1;
	return 0;
}

/* ------------------------------------------------------------------------------------- register -- */

static int check_export(const struct pinl_export *x)
{
	if (!x || x->size < sizeof *x)
		return pinl_set_error(-EINVAL, "pinl_export.size must be sizeof(struct pinl_export)");
	if (x->flags & ~PINL_EXPORT_PAGES)
		return pinl_set_error(-EINVAL, "pinl_export.flags has unknown bits %#x",
				      x->flags & ~PINL_EXPORT_PAGES);
	if (!x->addr && x->fd < 0)
		return pinl_set_error(
			-EINVAL, "an exporter has an address, a descriptor, or both; this has none");
	if (!x->length || (x->length | x->offset | (uintptr_t)x->addr) & (PAGE - 1) ||
	    x->length > INT64_MAX || x->offset > INT64_MAX)
		return pinl_set_error(
			-EINVAL, "device memory is exported in whole pages of %lu bytes, at least one",
			PAGE);
	return 0;
}

static int check_addr(struct pinl_exporter *e)
{
	struct pl_vma_whose whose;
	struct pinl_memory m;
	int err = look_at(e->ctx, e->addr, e->addr + e->length, &m, &whose);

	if (err)
		return err;
	if (m.kind != PINL_MEM_DEVICE)
		return pinl_set_error(-EINVAL,
				      "what is mapped at %#lx is no device memory but %s: lease it "
				      "by pinl_map_range(), without an exporter",
				      e->addr, pinl_memory_name(m.kind));
	e->kind = whose.kind;
	e->writable = m.writable;
	if (!e->name[0])
		memcpy(e->name, whose.name, sizeof e->name);
	return 0;
}

/* A descriptor of something that has no pages of the page cache's. */
static int check_fd(struct pinl_exporter *e)
{
	char path[32], name[sizeof e->name] = "";
	struct statfs fs;
	struct stat st;

	if (fstat(e->fd, &st) || fstatfs(e->fd, &fs))
		return pinl_set_error(-errno, "the exporter's descriptor %d: %s", e->fd,
				      strerror(errno));
	snprintf(path, sizeof path, "/proc/self/fd/%d", e->fd);
	if (readlink(path, name, sizeof name - 1) < 0)
		name[0] = 0;
	e->kind = pl_exporter_kind_of(name, fs.f_type);
	if ((S_ISREG(st.st_mode) && e->kind == PINL_EXPORTER_OTHER) || S_ISDIR(st.st_mode) ||
	    S_ISBLK(st.st_mode) || S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode))
		return pinl_set_error(
			-EINVAL,
			"descriptor %d (%s) is no handle of device memory; map it and lease "
			"it by pinl_map_range()",
			e->fd, name);
	e->dev = st.st_dev;
	e->ino = st.st_ino;
	e->crowd = fs.f_type == ANON_INODE;
	if (!e->name[0])
		memcpy(e->name, name, sizeof e->name);
	return 0;
}

/* Is fd, with these numbers, the exporter's file? No file system is asked: ctx->lock may be held. */
static bool is_its_fd(const struct pinl_exporter *e, int fd, uint64_t dev, uint64_t ino)
{
	if (dev != e->dev || ino != e->ino)
		return false;
	if (!e->crowd || fd == e->fd)
		return true; /* where kcmp isn't allowed, only the very number is known to be it */
	return syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, fd, e->fd) == 0;
}

int pl_exporter_check_fd(const struct pinl_exporter *e)
{
	struct stat st;

	if (e->fd < 0)
		return 0;
	if (fstat(e->fd, &st))
		return pinl_set_error(-errno, "the descriptor %d that %s was exported with: %s", e->fd,
				      e->name, strerror(errno));
	if (st.st_dev == e->dev && st.st_ino == e->ino)
		return 0;
	return pinl_set_error(
		-EBADF,
		"the descriptor %d that %s was exported with has become another file; it has "
		"to stay until pinl_exporter_unregister()",
		e->fd, e->name);
}

static bool collides(const struct pinl_exporter *a, const struct pinl_exporter *b)
{
	if (a->addr && b->addr && a->addr < b->addr + b->length && b->addr < a->addr + a->length)
		return true;
	return a->fd >= 0 && b->fd >= 0 && a->offset < b->offset + b->length &&
	       b->offset < a->offset + a->length && is_its_fd(b, a->fd, a->dev, a->ino);
}

static int insert(struct pinl_exporter *e)
{
	struct pinl_ctx *ctx = e->ctx;
	const struct pinl_exporter *other;

	pthread_mutex_lock(&ctx->lock);
	for (other = ctx->exporters; other && !collides(e, other); other = other->next)
		;
	if (!other) {
		e->id = ++ctx->next_id;
		e->base = PL_EXPORT_BASE + ctx->exported;
		ctx->exported += e->length + PAGE;
		e->next = ctx->exporters;
		ctx->exporters = e;
	}
	pthread_mutex_unlock(&ctx->lock);
	return other ? pinl_set_error(-EEXIST, "this memory is exported already, as %s", other->name)
		     : 0;
}

static void copy_ops(struct pinl_exporter *e, const struct pinl_exporter_ops *ops)
{
	if (ops)
		memcpy(&e->ops, ops, ops->size < sizeof e->ops ? ops->size : sizeof e->ops);
}

int pinl_exporter_register(struct pinl_ctx *ctx, const struct pinl_export *x,
			   const struct pinl_exporter_ops *ops, void *arg, struct pinl_exporter **out)
{
	PL_CALL(call);
	struct pinl_exporter *e;
	int err;

	if (!ctx || !out)
		return pinl_set_error(-EINVAL, "a context and a place for the exporter are needed");
	if (!pl_alive(ctx))
		return pl_stale();
	err = check_export(x);
	if (err)
		return err;
	e = calloc(1, sizeof *e);
	if (!e)
		return pinl_set_error(-ENOMEM, "out of memory for an exporter");
	*e = (struct pinl_exporter){.ctx = ctx,
				    .arg = arg,
				    .addr = (uintptr_t)x->addr,
				    .fd = x->fd,
				    .offset = x->offset,
				    .length = x->length,
				    .flags = x->flags,
				    .refs = 1};
	strncpy(e->name, x->name ? x->name : "", sizeof e->name - 1);
	copy_ops(e, ops);
	err = e->addr ? check_addr(e) : 0;
	if (!err && e->fd >= 0)
		err = check_fd(e);
	if (e->kind == PINL_EXPORTER_DAX)
		e->flags |= PINL_EXPORT_PAGES;
	if (!err)
		err = insert(e);
	if (err)
		free(e);
	else
		*out = e;
	return err;
}

/* ----------------------------------------------------------------------------------------- find -- */

void pl_exporter_get(struct pinl_exporter *e)
{
	pthread_mutex_lock(&e->ctx->lock);
	e->refs++;
	pthread_mutex_unlock(&e->ctx->lock);
}

void pl_exporter_put(struct pinl_exporter *e)
{
	struct pinl_ctx *ctx = e->ctx;
	bool last;

	pthread_mutex_lock(&ctx->lock);
	last = --e->refs == 0;
	pthread_mutex_unlock(&ctx->lock);
	if (last)
		free(e);
}

/* Where it was registered, or a mapping of the same file. */
static bool has_range(const struct pinl_exporter *e, const struct pinl_memory *m, uint64_t *offset)
{
	uint64_t len = m->end - m->start;

	*offset = m->start - e->addr;
	if (e->addr && m->start >= e->addr && m->end <= e->addr + e->length)
		return true;
	*offset = m->offset - e->offset;
	return e->fd >= 0 && !e->crowd && m->map_dev == e->dev && m->ino == e->ino &&
	       m->offset >= e->offset && *offset <= e->length && len <= e->length - *offset;
}

struct pinl_exporter *pl_exporter_find_range(struct pinl_ctx *ctx, const struct pinl_memory *m,
					     uint64_t *offset)
{
	struct pinl_exporter *e;

	pthread_mutex_lock(&ctx->lock);
	for (e = ctx->exporters; e && !has_range(e, m, offset); e = e->next)
		;
	if (e)
		e->refs++;
	pthread_mutex_unlock(&ctx->lock);
	return e;
}

bool pl_exporter_any(struct pinl_ctx *ctx)
{
	bool any;

	pthread_mutex_lock(&ctx->lock);
	any = ctx->exporters;
	pthread_mutex_unlock(&ctx->lock);
	return any;
}

static int say_no_exporter(struct pinl_ctx *ctx, int fd)
{
	char path[32], name[128] = "";
	struct statfs fs;
	struct stat st;

	if (fstat(fd, &st) || fstatfs(fd, &fs))
		return pinl_set_error(-errno, "descriptor %d: %s", fd, strerror(errno));
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	if (readlink(path, name, sizeof name - 1) < 0)
		name[0] = 0;
	if (S_ISREG(st.st_mode) && pl_exporter_kind_of(name, fs.f_type) == PINL_EXPORTER_OTHER)
		return pinl_set_error(-EINVAL,
				      "descriptor %d (%s) is an ordinary file; map it and lease it by "
				      "pinl_map_range()",
				      fd, name);
	if (pl_exporter_any(ctx))
		return pinl_set_error(
			-ENOENT,
			"no exporter that is registered has this part of descriptor %d (%s) "
			"as its handle: if one stands for the same memory, as that of "
			"pinl_export_vfio() has a dma-buf of its own, lease by "
			"pinl_map_exporter(); else register it, too (pinl_export_dmabuf() "
			"or pinl_exporter_register())",
			fd, name);
	return pinl_set_error(-ENOENT,
			      "no exporter has this part of descriptor %d (%s): register it "
			      "(pinl_export_dmabuf(), pinl_export_vfio() or pinl_exporter_register())",
			      fd, name);
}

int pl_exporter_find_fd(struct pinl_ctx *ctx, int fd, uint64_t offset, uint64_t length,
			struct pinl_exporter **out, uint64_t *at)
{
	struct pinl_exporter *e;
	struct stat st;

	if (fstat(fd, &st))
		return pinl_set_error(-errno, "descriptor %d: %s", fd, strerror(errno));
	pthread_mutex_lock(&ctx->lock);
	for (e = ctx->exporters; e; e = e->next)
		if (e->fd >= 0 && offset >= e->offset && offset - e->offset < e->length &&
		    length <= e->length - (offset - e->offset) && is_its_fd(e, fd, st.st_dev, st.st_ino))
			break;
	if (e)
		e->refs++;
	pthread_mutex_unlock(&ctx->lock);
	if (!e)
		return say_no_exporter(ctx, fd);
	*at = offset - e->offset;
	*out = e;
	return 0;
}

int pinl_mapped(struct pinl_ctx *ctx, uintptr_t start, uintptr_t end, struct pinl_mapped *out)
{
	PL_CALL(call);
	struct pinl_policy any = {.size = sizeof any};
	struct pl_vma_whose whose = {0};
	struct pinl_mapped found = {0};
	struct pinl_memory m;
	size_t size = out->size;
	int err;

	if (!pl_alive(ctx))
		return pl_stale();
	if (size < 2 * sizeof(size_t))
		return pinl_set_error(-EINVAL, "pinl_mapped.size must be sizeof(struct pinl_mapped)");
	err = pl_lease_args(start, end, 0, &any);
	if (!err)
		err = look_at(ctx, start, end, &m, &whose);
	if (err)
		return err;
	found.size = size;
	found.memory = m.kind;
	found.kind = whose.kind;
	memcpy(found.name, whose.name, sizeof found.name);
	if (m.kind == PINL_MEM_DEVICE)
		found.exporter = pl_exporter_find_range(ctx, &m, &found.offset);
	if (found.exporter) {
		memcpy(found.name, found.exporter->name, sizeof found.name);
		pl_exporter_put(found.exporter); /* it is the caller's, and there until he ends it */
	} else {
		found.offset = 0;
	}
	memcpy(out, &found, size < sizeof found ? size : sizeof found);
	return 0;
}
