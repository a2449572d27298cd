/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The gate's programs in the kernel (bpf/gate.bpf.c): loaded, tried, kept beyond this process, and told
 * what they guard. Which bytes those are, and whose, is gate.c's. What changes something is called by
 * one thread at a time.
 */
#ifndef PL_DAEMON_GATE_LOAD_H
#define PL_DAEMON_GATE_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "bpf/gate.h"

struct gate_programs;
struct gate_stops;

#define GATE_DIR "/sys/fs/bpf/pinlease"

/*
 * dir: where programs are pinned, so that they outlive this process; NULL: nowhere; it is used till the
 * end. What is guarded is
 * so for that long from now on, see gate_renew(). -errno and a sentence.
 */
int gate_load(const char *dir, unsigned keep_ms, struct gate_programs **out);

void gate_unload(struct gate_programs *g); /* nothing is guarded any more */

/* The process is about to end: what is pinned guards so long, if there is anything to guard. */
void gate_leave(struct gate_programs *g, unsigned ms);

const char *gate_means(const struct gate_programs *g);	  /* "lsm", "fmod_ret" */
const char *gate_unpinned(const struct gate_programs *g); /* why nothing is pinned; NULL: it is */
const char *gate_own(const struct gate_programs *g);	  /* where it is; NULL: nowhere */
const char *gate_unnamed(const struct gate_programs *g);  /* why no names are kept; NULL: they can be */
const char *gate_unwaited(const struct gate_programs *g); /* why nobody waits; NULL: they do */
const char *gate_unpaged(const struct gate_programs *g);  /* why they are stopped; NULL: they aren't */
struct gate_stops *gate_stops(struct gate_programs *g);

/* -errno and a sentence. Nothing waits for the kernel here, but when the first range comes. */
int gate_identify(struct gate_programs *g, int fd, struct gate_file *file);

/* place: the file's first free one, see struct gate_key. */
int gate_guard(struct gate_programs *g, const struct gate_file *file, unsigned place,
	       const struct gate_range *range);

/* The range of the file's last place takes that of the one that goes. -errno: nothing has changed, or
 * that is in both. */
int gate_unguard(struct gate_programs *g, const struct gate_file *file, unsigned place, unsigned last,
		 const struct gate_range *of_last);

/* Said of each range with GATE_NAME that isn't guarded any more. */
void gate_range_gone(struct gate_programs *g, const struct gate_range *range);

/* The program in the way of every read and write is there only while bytes are guarded, those in the way
 * of unlink and rename only while names are, and for one more call of gate_renew(), as they take long to
 * come and go. */
void gate_renew(struct gate_programs *g);

/* Calls that weren't looked at, of which few will have taken guarded bytes; by the kernel's account. */
uint64_t gate_missed(const struct gate_programs *g);

/* Calls that were to be refused, or to wait, and went on; by the programs' own account. */
uint64_t gate_unrefused(const struct gate_programs *g);

/* So long it let all pass, for want of gate_renew(): ns, ever. By who calls that. */
uint64_t gate_was_open(const struct gate_programs *g);

/* Refusals that aren't read, as they came faster than that. */
uint64_t gate_untold(const struct gate_programs *g);

/* Some refusals; as long as there are more, the descriptor can be read. */
int gate_fd(const struct gate_programs *g);
void gate_read(struct gate_programs *g, void (*told)(const struct gate_refusal *r, void *arg),
	       void *arg);

/* gate_try.c: it refuses. -errno and a sentence. */
int gate_try(struct gate_programs *g);

/* Modes of fallocate(2) that neither tmpfs nor hugetlbfs has, here. */
unsigned gate_memory_lacks(void);

/* gate_passed.c: calls that the programs haven't seen. */
struct bpf_object;
uint64_t gate_passed_by(const struct bpf_object *programs);

/* gate_types.c: 0, or -errno and a sentence. The functions that are asked about attributes, with how
 * many arguments, and about reads and writes. */
int gate_look_at_types(const char *setattr, const char *permission, unsigned *n_setattr);
bool gate_has_task_work(void);
int gate_look_at_name_types(bool lsm); /* and what takes names of files */

/* gate_pin.c */
struct bpf_link;
struct bpf_map;
int gate_pin_begin(const char *dir, char *own, unsigned long size); /* the folder of this process */
bool gate_pin_is_there(const char *own);			    /* and nobody has removed it */
int gate_pin_link(const char *own, const char *name, struct bpf_link *link);
int gate_pin_remove(const char *own, const char *name);
int gate_pin_map(const char *own, const char *name, struct bpf_map *map);
void gate_pin_end(const char *own);

/* Folders of other processes go that are over. How many are left. */
unsigned gate_pin_sweep(const char *dir, const char *own,
			bool (*over)(const char *folder, bool lives, uint64_t until), uint64_t until);

/* Those of others that are dead end then (CLOCK_MONOTONIC), and go when they have; whom they have
 * stopped goes on now. How many are left. */
unsigned gate_take_over(const char *dir, const char *own, uint64_t until_ns);

#endif
