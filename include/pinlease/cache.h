/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The registration cache of a device: memory is leased at its first use and stays leased, so that the
 * next use finds it in a few nanoseconds.
 *
 *	const struct pinl_reg *reg;
 *
 *	pinl_get(dev, buf, len, PINL_WRITE, &reg);
 *	... I/O on pinl_reg_addr(reg, buf) with reg->key ...
 *	pinl_put(reg);
 *
 * A lookup never returns a registration of memory that has changed before the lookup began: unmapped,
 * moved, discarded, truncated, by any thread and by raw system calls, also if other memory is at the
 * same addresses by now. What changed is taken out of the cache before the caller of munmap(2) goes on.
 * The limits of that:
 *
 * - The kernel makes an unmapped range free for others a moment (some instructions) before it reports
 *   that; only the explicit calls, pinl_munmap() and the like, close this gap. It is longer where
 *   pinl_sources() says so.
 * - Changes of files that no source holds (pinl_lease_info.coverage has PINL_CAN_TELL without
 *   PINL_CAN_BEFORE or _HOLD) are known when the source `notify` has told of them. On tmpfs, in a memfd
 *   and on hugetlbfs a hole that is filled again by then isn't found at all: a raw FALLOC_FL_PUNCH_HOLE,
 *   and MADV_REMOVE by another mapping of the file or another process. pinl_fallocate() and
 *   pinl_madvise() are exact.
 * - Nobody is told of a raw MADV_GUARD_INSTALL, nor of what pinlease(7) has under LIMITS.
 *   PINL_SOURCE_GENERATION, where it runs, knows of all of these, and of mprotect(2).
 * - With PINL_COOPERATIVE in pinl_cache_opts.flags only the explicit calls are known where no source
 *   tells of more.
 *
 * A registration is a lease (pinl_query() shows it, pinl_reg.lease is its handle), and what happens to
 * one that is in use when its memory changes is its policy's affair: pinl_cache_opts.policy. Nobody else
 * than the cache ends it.
 *
 * Threads: any thread may call anything. A hit takes no lock, makes no system call and writes to no
 * memory that other threads read. pinl_put() may be called by another thread than pinl_get(), which
 * costs an atomic operation. As elsewhere no call is async-signal-safe, and in a forked child pinl_get()
 * returns -ESTALE and pinl_put() does nothing.
 */
#ifndef PINLEASE_CACHE_H
#define PINLEASE_CACHE_H

#include <pinlease/pinlease.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* A registration. Made by the library, which may add members at the end; read it between get and put. */
struct pinl_reg {
	size_t size;
	uintptr_t start, end; /* whole pages; more than was asked for, perhaps */
	uint64_t addr;	      /* `start` as the device has it; the others follow in order */
	uint32_t key, rkey;   /* of struct pinl_addr */
	struct pinl_lease *lease;
};

/* Where the device has `at`, which is inside of the registration. */
#define pinl_reg_addr(reg, at) ((reg)->addr + ((uintptr_t)(at) - (reg)->start))

struct pinl_cache_opts {
	size_t size;
	/*
	 * Of every registration. size 0: KEEP on devices that pin, else FOLLOW. KEEP: nobody waits when
	 * memory is unmapped; a registration that isn't in use is let go, one that is in use goes on,
	 * and its orphaned pages are reported. RECALL: its notice has the registration as cookie
	 * (pinl_event.cookie, a struct pinl_reg *); the answer is pinl_put() by all who have it. Raw
	 * changes of leased memory are slower then by what a recall costs. With SCRATCH or COPY no
	 * registration is made over another that is in use. REFUSE: what isn't in use refuses nothing.
	 */
	struct pinl_policy policy;
	/*
	 * Of pinl_map_range(), but PINL_WRITE; 0: PINL_PIN if the device pins and the policy isn't
	 * FOLLOW. PINL_STAGE: the device has a copy, made at the miss and not again at a hit:
	 * pinl_lease_sync(reg->lease, ...) before and after transfers, as with any such lease.
	 */
	unsigned flags;
	size_t max_regions;   /* 0: no limit but the device's own */
	size_t max_bytes;     /* 0: no limit but RLIMIT_MEMLOCK */
	size_t max_merge;     /* neighbours are merged up to so many bytes; 0: 16 MiB, 1: never */
	unsigned no_huge : 1; /* don't extend to the whole of a huge page */
};

/*
 * pinl_cache_open - make the device's cache with options of one's own, before the first pinl_get(),
 * which makes one with opts NULL: all zero. It ends with the device.
 *
 * The limits bound what the cache keeps: what is longest unused goes first, and registrations in use
 * stay beyond them. Where the device or the kernel has no room for another one (-ENOMEM by
 * RLIMIT_MEMLOCK, -ENOSPC) unused ones are ended, and it is tried again.
 *
 * Errors: -EINVAL opts->size, policy.size, a flag or policy that doesn't exist; -EOPNOTSUPP FOLLOW on a
 * device that only pins, or with PINL_PIN; -EEXIST the device has its cache; -ENOSPC no more than 32
 * caches; -ENOMEM, -EAGAIN no memory or thread; -ESTALE.
 */
int pinl_cache_open(struct pinl_device *dev, const struct pinl_cache_opts *opts);

/*
 * pinl_get - a registration that covers [addr, addr + len) and which the device may write to, if access
 * is PINL_WRITE, or read, if it is 0.
 *
 * On a miss the range is registered in whole pages, huge ones if the memory has those, together with
 * what is registered already where they overlap, and where they touch if that keeps the work per byte
 * constant. Whether memory may be written to is looked at when the first registration in its mapping is
 * made; after mprotect(2) it is the device that finds out (not with PINL_SOURCE_GENERATION: it is looked
 * at anew). The registration stays as it is until the same number of pinl_put(); get as often as you
 * like.
 *
 * Errors: those of pinl_map_range(); -EINVAL len is 0 or the range overflows; -EAGAIN try again: a
 * change of mappings that was told of before the call has been under way for 100 ms (a munmap(2) or
 * madvise(2) held by a recall, of any memory; the explicit calls hold up lookups of their range only),
 * or this is called by what pinl_invalidate() calls, or, if the range isn't registered, there has been
 * no moment without a change for so long, or it changes all the time; -EBUSY another userfaultfd owns
 * the memory, or, with SCRATCH or COPY, part of the range is in use by another registration.
 */
int pinl_get(struct pinl_device *dev, const void *addr, size_t len, unsigned access,
	     const struct pinl_reg **reg);

/* The I/O by this registration is over. Before pinl_device_close(), which ends registrations too: after
 * it `reg` is memory that has been freed. */
void pinl_put(const struct pinl_reg *reg);

/*
 * pinl_cache_drop - let go of what isn't in use in [addr, addr + len), all of it if len is 0, and wait
 * for that. Nobody has to: it is how a program gives memory back to a tight RLIMIT_MEMLOCK.
 */
int pinl_cache_drop(struct pinl_device *dev, const void *addr, size_t len);

/*
 * pinl_cache_stat - a figure by its name; those that there are: pinl_cache_stat_name(0) and so on until
 * NULL. `hits` counts lookups without a lock, `misses` all others; `regions`, `bytes` are of now,
 * `parted` those of them that are out of the cache and still in use. Errors: -ENOENT no such figure;
 * -ESTALE.
 */
int pinl_cache_stat(struct pinl_device *dev, const char *name, uint64_t *value);
const char *pinl_cache_stat_name(unsigned i);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
