/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files with leases: one entry each, found by inode number. It knows the file's leases by file offset
 * and owns the descriptors that all of them use, which also keep the number from being given to another
 * file: one made with O_PATH, which can be closed without harm to the program's locks, and one that is
 * open for real, in the table aside. A lease being made has a reference before it is visible, so refs
 * may exceed the leases indexed.
 *
 * ctx->lock covers everything here but the allocation, the release and the descriptors' closing.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/export.h"

struct pl_inode *pl_inode_find(struct pinl_ctx *ctx, uint64_t dev, uint64_t ino)
{
	struct pl_node *n = ino ? pl_index_first(&ctx->inodes, ino, ino + 1) : NULL;

	for (; n; n = pl_index_next(n, ino, ino + 1))
		if (((struct pl_inode *)n)->dev == dev)
			return (struct pl_inode *)n;
	return NULL;
}

int pl_inode_real(struct pinl_ctx *ctx, const struct pinl_memory *mem)
{
	struct pl_inode *i;
	int real;

	pthread_mutex_lock(&ctx->lock);
	i = pl_inode_find(ctx, mem->dev, mem->ino);
	real = i ? i->real : -1;
	pthread_mutex_unlock(&ctx->lock);
	return real;
}

static int known(void *arg, uint64_t dev, uint64_t ino)
{
	struct pinl_lease *l = arg;
	struct pl_inode *i;
	int fd = -1;

	pthread_mutex_lock(&l->ctx->lock);
	i = pl_inode_find(l->ctx, dev, ino);
	if (i && i->fd >= 0) {
		i->refs++;
		pl_more(l)->inode = i;
		fd = i->fd;
	}
	pthread_mutex_unlock(&l->ctx->lock);
	return fd;
}

static void close_both(struct pinl_ctx *ctx, int fd, int real)
{
	if (fd >= 0)
		close(fd);
	if (real >= 0)
		pl_aside_close(ctx->aside, real);
}

/* The lease's reference. mem.fd and real, if there are, become the inode's. */
static int get(struct pinl_lease *l, int real)
{
	struct pl_inode *fresh, *i;
	int extra = l->on->mem.fd;

	if (l->more->inode || !l->on->mem.ino)
		return 0;
	fresh = calloc(1, sizeof *fresh);
	if (!fresh) {
		close_both(l->ctx, extra, real);
		return pinl_set_error(-ENOMEM, "out of memory for a lease");
	}
	*fresh = (struct pl_inode){.dev = l->on->mem.dev, .ino = l->on->mem.ino, .fd = -1, .real = -1};
	fresh->node.start = fresh->ino;
	fresh->node.end = fresh->ino + 1;
	pthread_mutex_lock(&l->ctx->lock);
	i = pl_inode_find(l->ctx, l->on->mem.dev, l->on->mem.ino);
	if (!i) {
		i = fresh;
		fresh = NULL;
		pl_index_insert(&l->ctx->inodes, &i->node);
	}
	i->refs++;
	if (i->fd < 0) {
		i->fd = l->on->mem.fd;
		i->real = real;
		extra = real = -1;
	} else if (l->on->mem.fd >= 0) {
		pl_more(l)->ground.mem.fd = i->fd;
	}
	pl_more(l)->inode = i;
	pthread_mutex_unlock(&l->ctx->lock);
	free(fresh);
	close_both(l->ctx, extra, real);
	return 0;
}

int pl_inode_of(struct pinl_lease *l)
{
	return get(l, -1);
}

bool pl_inode_known(struct pinl_lease *l)
{
	int fd = known(l, l->on->mem.dev, l->on->mem.ino);

	if (fd >= 0)
		pl_more(l)->ground.mem.fd = fd;
	return fd >= 0;
}

int pl_inode_under(struct pinl_lease *l, uintptr_t start, uintptr_t end)
{
	struct pl_vma_whose whose;
	struct pl_vma_how how = {
		.maps = l->ctx->maps, .aside = l->ctx->aside, .known = known, .arg = l, .whose = &whose};
	int real, err = pl_vma_query(&how, start, end, &pl_more(l)->ground.mem, &real);

	if (!err && l->on->mem.kind == PINL_MEM_DEVICE) /* no descriptor of it has been kept */
		err = pl_import_by_range(l, &whose);
	return err ? err : get(l, real);
}

void pl_inode_put(struct pinl_lease *l)
{
	struct pl_inode *i = l->more->inode;
	bool last;

	if (!i)
		return;
	pthread_mutex_lock(&l->ctx->lock);
	last = --i->refs == 0;
	if (last)
		pl_index_remove(&l->ctx->inodes, &i->node);
	pthread_mutex_unlock(&l->ctx->lock);
	if (!last)
		return;
	close_both(l->ctx, i->fd, i->real);
	free(i);
}
