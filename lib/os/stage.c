/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The stage: a device that the kernel doesn't let pin a file mapping works in a copy, as with a bounce
 * buffer. Three contents are kept apart, by word: the copy's, the file's, and the shadow, on which both
 * agreed last. A word is taken from the side that changed it, so what others store to the same pages of
 * the file meanwhile isn't undone. If both changed it, the device's is written.
 *
 * Invariants: the library never touches the file's pages by its own loads and stores, which would be
 * SIGBUS where the file has been truncated. Data passes through a memfd by read(2) and write(2) instead,
 * and EFAULT says that the page is gone. No mapping here is private anonymous memory, so none is merged
 * into one of the application's that is watched.
 *
 * bounce->lock covers its memory; a leaf, held while pages of the file are faulted in.
 */
#include "os/stage.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE  4096ul
#define WORD  sizeof(uint64_t)
#define CHUNK (128ul << 10)

struct pl_bounce {
	pthread_mutex_t lock;
	int fd;
	char *in, *out; /* CHUNK each, at offset 0 and CHUNK of the memfd */
};

static void *shared_memory(size_t len)
{
	void *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	return map == MAP_FAILED ? NULL : map;
}

static void *second_mapping(void *of, size_t len)
{
	void *map = mremap(of, 0, len, MREMAP_MAYMOVE);

	return map == MAP_FAILED ? NULL : map;
}

/* A child has no use for it, and would keep it when the lease is over. */
static void keep_from_children(void *map, size_t len)
{
	madvise(map, len, MADV_DONTFORK);
}

static void unmap(void *map, size_t len)
{
	if (map)
		munmap(map, len);
}

/* ------------------------------------------------------------------------------------- bounce -- */

int pl_bounce_new(struct pl_bounce **out)
{
	struct pl_bounce *b = calloc(1, sizeof *b);
	void *map = MAP_FAILED;
	int err;

	if (!b)
		return -ENOMEM;
	b->fd = memfd_create("pinlease-bounce", MFD_CLOEXEC);
	if (b->fd >= 0 && !ftruncate(b->fd, 2 * CHUNK))
		map = mmap(NULL, 2 * CHUNK, PROT_READ | PROT_WRITE, MAP_SHARED, b->fd, 0);
	if (map == MAP_FAILED) {
		err = -errno;
		if (b->fd >= 0)
			close(b->fd);
		free(b);
		return err;
	}
	b->in = map;
	b->out = b->in + CHUNK;
	pthread_mutex_init(&b->lock, NULL);
	*out = b;
	return 0;
}

void pl_bounce_free(struct pl_bounce *b)
{
	if (!b)
		return;
	munmap(b->in, 2 * CHUNK);
	close(b->fd);
	pthread_mutex_destroy(&b->lock);
	free(b);
}

/* From a file mapping into b->in, at `at`. False: there is no page. */
static bool bring_in(struct pl_bounce *b, const char *file, size_t at, size_t len)
{
	ssize_t n;

	do
		n = pwrite(b->fd, file, len, at);
	while (n < 0 && errno == EINTR); /* or a page that is there passes for gone */
	return n == (ssize_t)len;
}

/* Pages that are not there come in page by page; `gone` has one flag per page of the chunk. */
static void file_in(struct pl_bounce *b, const char *file, size_t len, bool *gone)
{
	bool all = bring_in(b, file, 0, len);

	for (size_t at = 0; at < len; at += PAGE)
		gone[at / PAGE] = !all && !bring_in(b, file + at, at, PAGE);
}

/* From b->out into a file mapping. */
static bool out_to_file(struct pl_bounce *b, char *file, size_t at, size_t len)
{
	ssize_t n;

	do
		n = pread(b->fd, file, len, CHUNK + at);
	while (n < 0 && errno == EINTR);
	return n == (ssize_t)len;
}

/* --------------------------------------------------------------------------------------- sync -- */

static bool same(const char *a, const char *b, size_t at)
{
	return !memcmp(a + at, b + at, WORD);
}

static bool is_cut(const struct pl_stage *s, size_t at)
{
	return at >= s->cut_from && at < s->cut_to;
}

/* The words of one page that the device changed, run by run. `at`: the page in the chunk. */
static size_t page_to_file(struct pl_stage *s, size_t base, size_t at)
{
	const char *now = s->bounce->out, *old = s->shadow + base;
	size_t lost = 0, end = at + PAGE, to;

	if (!memcmp(now + at, old + at, PAGE))
		return 0;
	for (; at < end; at = to) {
		bool changed = !same(now, old, at);

		for (to = at + WORD; to < end && changed == !same(now, old, to);)
			to += WORD;
		if (!changed)
			continue;
		if (is_cut(s, base + at) || !out_to_file(s->bounce, s->file + base + at, at, to - at))
			lost += to - at;
		memcpy(s->shadow + base + at, now + at, to - at);
	}
	return lost;
}

size_t pl_stage_to_file(struct pl_stage *s, size_t offset, size_t len)
{
	size_t end = offset + len, lost = 0;

	for (size_t n; offset < end; offset += n) {
		n = end - offset < CHUNK ? end - offset : CHUNK;
		pthread_mutex_lock(&s->bounce->lock);
		memcpy(s->bounce->out, s->copy + offset, n); /* what is compared is what is written */
		for (size_t at = 0; at < n; at += PAGE)
			lost += page_to_file(s, offset, at);
		pthread_mutex_unlock(&s->bounce->lock);
	}
	return lost;
}

static void page_to_copy(struct pl_stage *s, size_t base, size_t at)
{
	const char *now = s->bounce->in;
	char *old = s->shadow + base, *copy = s->copy + base;

	if (!memcmp(now + at, old + at, PAGE))
		return;
	for (size_t end = at + PAGE; at < end; at += WORD) {
		if (same(now, old, at) || !same(copy, old, at))
			continue;
		memcpy(copy + at, now + at, WORD);
		memcpy(old + at, now + at, WORD);
	}
}

void pl_stage_to_copy(struct pl_stage *s, size_t offset, size_t len)
{
	bool gone[CHUNK / PAGE];
	size_t end = offset + len;

	for (size_t n; offset < end; offset += n) {
		n = end - offset < CHUNK ? end - offset : CHUNK;
		pthread_mutex_lock(&s->bounce->lock);
		file_in(s->bounce, s->file + offset, n, gone);
		for (size_t at = 0; at < n; at += PAGE)
			if (!gone[at / PAGE] && !is_cut(s, offset + at))
				page_to_copy(s, offset, at);
		pthread_mutex_unlock(&s->bounce->lock);
	}
}

void pl_stage_cut(struct pl_stage *s, size_t offset, size_t len)
{
	if (s->cut_from == s->cut_to) {
		s->cut_from = offset;
		s->cut_to = offset + len;
		return;
	}
	if (offset < s->cut_from)
		s->cut_from = offset;
	if (offset + len > s->cut_to)
		s->cut_to = offset + len;
}

void pl_stage_content(struct pl_stage *s, size_t offset, size_t len, void *buf)
{
	bool gone[CHUNK / PAGE];

	for (size_t n, done = 0; done < len; done += n) {
		n = len - done < CHUNK ? len - done : CHUNK;
		pthread_mutex_lock(&s->bounce->lock);
		file_in(s->bounce, s->file + offset + done, n, gone);
		for (size_t at = 0; at < n; at += PAGE)
			memcpy((char *)buf + done + at,
			       gone[at / PAGE] || is_cut(s, offset + done + at)
				       ? s->copy + offset + done + at
				       : s->bounce->in + at,
			       PAGE);
		pthread_mutex_unlock(&s->bounce->lock);
	}
}

/* ------------------------------------------------------------------------------------- memory -- */

void pl_stage_free(struct pl_stage *s)
{
	if (!s)
		return;
	unmap(s->copy, s->len);
	unmap(s->shadow, s->len);
	unmap(s->file, s->len);
	free(s);
}

int pl_stage_new(struct pl_bounce *b, uintptr_t start, uintptr_t end, struct pl_stage **out)
{
	struct pl_stage *s = calloc(1, sizeof *s);
	int err = -ENOMEM;

	if (!s)
		return err;
	s->bounce = b;
	s->len = end - start;
	s->copy = shared_memory(s->len);
	s->shadow = shared_memory(s->len);
	if (s->copy && s->shadow) {
		s->file = second_mapping((void *)start, s->len);
		err = s->file ? 0 : -errno;
	}
	if (err) {
		pl_stage_free(s);
		return err;
	}
	keep_from_children(s->copy, s->len);
	keep_from_children(s->shadow, s->len);
	keep_from_children(s->file, s->len);
	pl_stage_to_copy(s, 0, s->len);
	*out = s;
	return 0;
}

int pl_stage_fresh(size_t len, bool writable, void **mine, void **yours)
{
	void *first = shared_memory(len), *second;
	int err;

	if (!first)
		return -ENOMEM;
	second = second_mapping(first, len);
	if (!second || (!writable && mprotect(second, len, PROT_READ))) {
		err = -errno;
		unmap(second, len);
		munmap(first, len);
		return err;
	}
	*mine = first;
	*yours = second;
	return 0;
}

int pl_stage_take(struct pl_stage *s, size_t offset, size_t len, void *mine)
{
	if (mremap(mine, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, s->copy + offset) == MAP_FAILED)
		return -errno;
	keep_from_children(s->copy + offset, len);
	return 0;
}
