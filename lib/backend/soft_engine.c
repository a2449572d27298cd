/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: what the device may touch is decided under `lock`, one page at a time. A page is accessed
 * without the lock, but only while the transfer is `busy`. So whoever takes an entry or a pin away first
 * changes it under the lock, then waits until the transfer that could still use it is not busy (on
 * demand) or over (pinned).
 *
 * `lock` and the lock of the pins (soft_pin.c) are never held together; nothing is allocated, freed or
 * accessed under `lock`.
 */
#include "backend/soft_engine.h"
#include "os/thread.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* ---------------------------------------------------------------------------------- page table -- */

struct pl_soft_map *pl_soft_find(struct pl_soft *s, uint64_t daddr, size_t len)
{
	struct pl_soft_map *map = (struct pl_soft_map *)pl_index_first(&s->maps, daddr, daddr + 1);

	return map && len <= map->node.end - daddr ? map : NULL;
}

void pl_soft_insert(struct pl_soft *s, struct pl_soft_map *map)
{
	pthread_mutex_lock(&s->lock);
	map->daddr = s->next_daddr;
	map->node.start = map->daddr;
	map->node.end = map->daddr + (map->end - map->start);
	/* One page stays free, so that running over the end is an error. */
	s->next_daddr = map->node.end + s->page;
	pl_index_insert(&s->maps, &map->node);
	pthread_mutex_unlock(&s->lock);
}

void pl_soft_remove(struct pl_soft *s, struct pl_soft_map *map)
{
	pl_index_remove(&s->maps, &map->node);
}

/* -------------------------------------------------------------------------------------- engine -- */

static uintptr_t dma_va(struct pl_soft_dma *x)
{
	return x->map->start + (x->daddr + x->pos - x->map->daddr);
}

/* Bytes up to the end of the page at `pos`. */
static size_t dma_chunk(struct pl_soft *s, struct pl_soft_dma *x)
{
	size_t room = s->page - (x->daddr + x->pos) % s->page;

	return x->len - x->pos < room ? x->len - x->pos : room;
}

static int dma_begin(struct pl_soft *s, struct pl_soft_dma *x)
{
	struct pl_soft_map *map = pl_soft_find(s, x->daddr, x->len);

	if (!map || map->stopped || (x->write && !map->writable))
		return -EFAULT;
	x->map = map;
	x->pin = map->pin;
	return 0;
}

/* Until the engine may move the next page. Paused, it still moves the first one of several: so a test
 * can see that the transfer is in flight. */
static int dma_may_go(struct pl_soft *s, struct pl_soft_dma *x)
{
	for (;;) {
		if (s->closing)
			return -ENODEV;
		if (x->cancel)
			return -ECANCELED;
		if (!s->paused || (!x->pos && dma_chunk(s, x) < x->len))
			return 0;
		pthread_cond_wait(&s->changed, &s->lock);
	}
}

/*
 * The memory behind the entry. On demand the access is also the page fault: it goes by address through
 * the process's own page table, as a real device's fault does, and gives EFAULT where a CPU would get
 * a signal.
 */
int pl_soft_access(struct pl_soft *s, const struct pl_pin *pin, uintptr_t va, void *buf, size_t len,
		   int write)
{
	struct iovec local = {buf, len}, remote = {(void *)va, len};
	ssize_t n;

	if (pin)
		return pl_pin_access(s->pins, pin, va - pin->start, buf, len, write);
	n = write ? process_vm_writev(getpid(), &local, 1, &remote, 1, 0)
		  : process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
	if (n < 0)
		return -errno;
	return (size_t)n == len ? 0 : -EFAULT;
}

/* One page: entry (faulted in if it isn't good enough), access, dirty bit. */
static int dma_page(struct pl_soft *s, struct pl_soft_dma *x)
{
	unsigned char *pte = &x->map->pte[pl_soft_index(s, x->map, dma_va(x))];
	size_t len = dma_chunk(s, x);
	uintptr_t va = dma_va(x);
	unsigned char *far;
	int err;

	if (!x->pin && x->map->stopped)
		return -EFAULT;
	/* Before the access, so that an invalidate during it is not undone. */
	*pte |= PL_PTE_VALID | (x->write ? PL_PTE_WRITABLE : 0);
	x->busy = 1;
	if (x->map->far)
		x->far = x->map->far->at;
	far = x->map->far ? x->far + (va - x->map->start) % x->map->far->len : NULL;
	pthread_mutex_unlock(&s->lock);
	err = far ? pl_soft_far_access(s, far, x->buf + x->pos, len, x->write)
		  : pl_soft_access(s, x->pin, va, x->buf + x->pos, len, x->write);
	pthread_mutex_lock(&s->lock);
	x->busy = 0;
	/* After the access: a page found clean has nothing in it that will not be reported later. */
	if (x->write)
		*pte |= PL_PTE_DIRTY;
	if (err)
		*pte &= ~(PL_PTE_VALID | PL_PTE_WRITABLE);
	else
		x->pos += len;
	pthread_cond_broadcast(&s->changed);
	return err;
}

static int dma_run(struct pl_soft *s, struct pl_soft_dma *x)
{
	int err = dma_begin(s, x);

	while (!err && x->pos < x->len) {
		err = dma_may_go(s, x);
		if (!err)
			err = dma_page(s, x);
	}
	x->map = NULL;
	return err;
}

void *pl_soft_engine(void *arg)
{
	struct pl_soft *s = arg;
	struct pl_soft_dma *x;

	pthread_mutex_lock(&s->lock);
	while (s->head || !s->closing) {
		x = s->head;
		if (!x) {
			pthread_cond_wait(&s->changed, &s->lock);
			continue;
		}
		s->head = x->next;
		if (!s->head)
			s->tail = &s->head;
		s->cur = x;
		x->result = s->closing ? -ENODEV : dma_run(s, x);
		s->cur = NULL;
		pthread_cond_broadcast(&s->changed);
		sem_post(&x->ended);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

int pl_soft_submit(struct pl_soft *s, struct pl_soft_dma *x)
{
	struct pl_waiting w;

	pthread_mutex_lock(&s->lock);
	if (s->closing) {
		pthread_mutex_unlock(&s->lock);
		return -ENODEV;
	}
	s->submitters++;
	sem_init(&x->ended, 0, 0);
	*s->tail = x;
	s->tail = &x->next;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	pl_call_wait_begin(&w);
	while (sem_wait(&x->ended))
		;
	pl_call_wait_end(&w);
	sem_destroy(&x->ended);
	pthread_mutex_lock(&s->lock);
	s->submitters--;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	return x->result;
}
