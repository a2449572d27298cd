/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the parts of `pinlease doctor` share. A row is one memory of this machine. For each row: what
 * happens without pinlease (bare), and for each device what the library promises for a lease on it
 * (pinl_lease_info, pinl_map_range) and what was seen when the operation was really done (lease).
 *
 *	memory -> bare  -> row \
 *	      \-> lease -> row --> gaps -> table, markdown, json
 */
#ifndef PINLEASE_DOCTOR_H
#define PINLEASE_DOCTOR_H

#include <liburing.h>
#include <pinlease/device.h>
#include <pinlease/pinlease.h>
#include <pthread.h>
#include <stdbool.h>

#include "common.h"
#include "second.h"

#define DOCTOR_MAX_ROWS	      24
#define DOCTOR_LABEL	      18 /* of a row, with its gap */
#define DOCTOR_MAX_DIRS	      16
#define DOCTOR_MAX_GAPS	      96
#define DOCTOR_MAX_DEVICES    24
#define DOCTOR_MAX_EXPORTS    8
#define DOCTOR_MAX_FACILITIES 40
#define DOCTOR_MAX_GROUPS     4
#define DOCTOR_WHY	      512 /* a whole sentence of the library's */

#define DOCTOR_CAN_ALL (PINL_CAN_TELL | PINL_CAN_BEFORE | PINL_CAN_HOLD | PINL_CAN_REFUSE)

/* ------------------------------------------------------------------------------------ the memory -- */

enum doctor_how { HOW_ANON, HOW_MEMFD, HOW_HUGETLB, HOW_FILE, HOW_DEVICE, HOW_SECRET };

struct doctor_memory {
	char name[DOCTOR_LABEL];
	enum doctor_how how;
	bool shared;
	char dir[200];
	char why[DOCTOR_WHY]; /* not here; "": it is */
};

/* A fresh piece of it; each page has a letter of its own. */
struct doctor_sample {
	const struct doctor_memory *memory;
	int fd;			    /* -1: none */
	size_t unit, size;	    /* of a page; of all */
	char *map;		    /* NULL: nothing of ours is there any more */
	char *reserved, *elsewhere; /* where an mremap puts it */
	int other;		    /* memfd to look through */
	struct io_uring ring;
	bool has_ring;
};

int doctor_memories(const char *const *dirs, unsigned n_dirs, struct doctor_memory *memories,
		    unsigned *n);
int doctor_sample_make(const struct doctor_memory *memory, struct doctor_sample *s);
void doctor_sample_drop(struct doctor_sample *s);
/* One page, without taking a signal. */
bool doctor_sample_reads(const struct doctor_sample *s, const char *at, char letter);
/* True if all of it reads as it was made. */
bool doctor_sample_intact(const struct doctor_sample *s);

/* ------------------------------------------------------------------------------------ the change -- */

/* Written by the actor after its system call. */
struct doctor_report {
	unsigned serial;
	int err;
	uint64_t end_ns;
};

struct doctor_actor {
	struct second *second;
	int pipe[2]; /* reports of threads */
	int fd;	     /* where the report comes */
	unsigned serial;
	pthread_t thread;
	bool has_thread;
	struct doctor_sample *sample; /* the thread only reads it */
	enum pinl_op op;
	int result; /* the thread's, until it is joined */
};

extern const struct second_ops doctor_second_ops;

/* Do it here and now: 0 or -errno. */
int doctor_change(const struct doctor_sample *s, enum pinl_op op);
/* It has been done: what is no longer at its place is not the sample's to unmap. */
void doctor_changed(struct doctor_sample *s, enum pinl_op op);
/* Have it done by somebody else: file operations by the second process, others by a thread. */
int doctor_actor_start(struct doctor_actor *a, struct doctor_sample *s, enum pinl_op op);
/* 0: reported; -EAGAIN: not within the time; -EPIPE: the actor is dead. */
int doctor_actor_wait(struct doctor_actor *a, int timeout_ms, struct doctor_report *report);
void doctor_actor_end(struct doctor_actor *a);

/* -------------------------------------------------------------------------------------- the rows -- */

enum doctor_outcome {
	BARE_SAME,     /* the program sees what the device wrote, at the address or where it was moved */
	BARE_FILE,     /* not in the mapping any more, but in the file */
	BARE_LOST,     /* the device said it went well, and it is nowhere */
	BARE_ERROR,    /* the device got an error */
	BARE_NOT_HERE, /* the operation doesn't exist for this memory */
	BARE_NO_PIN,   /* the kernel refuses the pin */
	BARE_NR,
};

struct doctor_bare {
	enum doctor_outcome outcome;
	int err;
	bool moved; /* BARE_SAME, at the new address */
};

/* One operation under a lease. */
struct doctor_cell {
	bool here;	   /* the operation exists for this memory */
	bool detaches;	   /* it takes pages from the lease */
	unsigned coverage; /* what the sources say: PINL_CAN_* */
	unsigned promised; /* of that, what is of use with this device */
	bool tried;
	unsigned seen; /* when it was done */
	bool late;     /* found when the lease ended */
	int err;       /* it could not be tried */
	bool harmful;  /* it did take pages without pinlease, though `detaches` says no */
};

#define DOCTOR_NR_PLANS (6 + PINL_OP_NR)

struct doctor_verdict {
	int err; /* of pinl_map_range() */
	char why[DOCTOR_WHY];
};

/* A memory with a device. */
struct doctor_pair {
	bool leased; /* at least under KEEP */
	bool staged; /* the device has a copy */
	char why[DOCTOR_WHY];
	char kind[32];
	struct doctor_cell cells[PINL_OP_NR];
	struct doctor_verdict verdicts[DOCTOR_NR_PLANS];
};

/* -------------------------------------------------------------------------------- the devices -- */

struct doctor;

struct doctor_device {
	const char *backend; /* of pinl_device_open() */
	char name[40];
	bool pinned;
	int device_class;	/* enum pinl_device_class; -1: not seen */
	char why[DOCTOR_WHY];	/* not here */
	char found[DOCTOR_WHY]; /* about this one, beyond its class; "": nothing */
	const char *copy;	/* what would give it COPY, if anything would */
	struct pinl_device *dev;
	struct io_uring ring; /* of backend "uring" */
	bool has_ring;
	void *priv; /* of who added it */
	void (*close)(void *priv);
};

/* Adds what is there to d->devices by doctor_device_add(), also with `why` where it can't be used. */
struct doctor_backend {
	const char *name;
	void (*open)(struct doctor *d);
};

extern const struct doctor_backend doctor_soft, doctor_uring, doctor_rdma, doctor_vfio, doctor_iommufd;

/* IOMMU groups that may be taken, by a container or by an iommufd. */
struct doctor_groups {
	struct {
		unsigned number;
		bool iommufd;
	} all[DOCTOR_MAX_GROUPS];
	unsigned n;
};

/* 0: they can be taken now; else the cause and the remedy. */
int doctor_groups_check(const struct doctor_groups *groups, char *why, size_t len);

/* Its first device: the PCI address ("": none), the file in /dev/vfio/devices (false: none), its name
 * after `kind`. */
void doctor_group_device(unsigned number, char *address, size_t len);
bool doctor_group_cdev(unsigned number, char *path, size_t len);
void doctor_group_name(const char *kind, unsigned number, char *name, size_t len);

/* NULL: no room, which is said once. */
struct doctor_device *doctor_device_add(struct doctor *d, const char *backend, bool pinned,
					const char *name);
/* A backend without a device here: why is that of the facility, or if that is here, `untried`. */
void doctor_device_missing(struct doctor *d, const char *backend, const char *facility,
			   const char *untried);
void doctor_devices_open(struct doctor *d);
void doctor_devices_close(struct doctor *d);

/* --------------------------------------------------------------------------- device memory -- */

enum { DOCTOR_IMPORT_FAIL, DOCTOR_IMPORT_SCRATCH, DOCTOR_IMPORT_NR };

/* Under RECALL with this end. */
struct doctor_import {
	bool leased;
	bool stays; /* the device was not off it when its exporter had taken it back */
	char why[DOCTOR_WHY];
};

/* A kind of device memory, from its exporter. */
struct doctor_export {
	char name[40];
	char why[DOCTOR_WHY]; /* not here, or not tried */
	struct doctor_import imports[DOCTOR_MAX_DEVICES][DOCTOR_IMPORT_NR];
};

void doctor_exports(struct doctor *d);
const char *doctor_import_name(int then);

/* ----------------------------------------------------------------------------- the facilities -- */

/* Of the kernel, of the hardware or of a file system: what it brings is seen in the table. */
struct doctor_facility {
	const char *group;
	char name[40];
	bool here;
	char found[DOCTOR_WHY];	  /* how many or which; changes from machine to machine */
	char why[DOCTOR_WHY * 2]; /* not here: cause and remedy, one sentence */
};

/* `found` and `why` as above; "": nothing to add. */
void doctor_here(struct doctor *d, const char *group, const char *name, const char *found, ...)
	__attribute__((format(printf, 4, 5)));
void doctor_missing(struct doctor *d, const char *group, const char *name, const char *why, ...)
	__attribute__((format(printf, 4, 5)));
/* Why it isn't here; NULL: it is, or wasn't asked for. */
const char *doctor_facility_why(const struct doctor *d, const char *name);
void doctor_kernel(struct doctor *d);
void doctor_hardware(struct doctor *d);
void doctor_pins(struct doctor *d);
void doctor_counts(struct doctor *d); /* before the gaps */

/* -------------------------------------------------------------------------------------- all of it -- */

struct doctor_row {
	struct doctor_memory *memory;
	struct doctor_bare bare[PINL_OP_NR];
	int watch_err; /* of pinl_watch_fs() on its file; 0: it can be watched, or there is none */
	struct doctor_pair pairs[DOCTOR_MAX_DEVICES];
};

struct doctor_gap {
	unsigned ops, missing, devices, policies;
	uint32_t rows;
	char reason[DOCTOR_WHY * 2], remedy[DOCTOR_WHY];
};

struct doctor {
	struct pinl_ctx *ctx;
	struct doctor_actor actor;
	char sources[2400];
	struct doctor_groups groups;
	bool counts;	   /* pinleased has changes counted for who asks */
	bool sees_callers; /* /proc/self/task/TID/syscall can be read */
	struct doctor_facility facilities[DOCTOR_MAX_FACILITIES];
	unsigned n_facilities;
	struct doctor_device devices[DOCTOR_MAX_DEVICES];
	unsigned n_devices;
	int pci; /* the first device of the groups, by VFIO; -1: none. Whoever added it closes it */
	struct doctor_export exports[DOCTOR_MAX_EXPORTS];
	unsigned n_exports;
	struct doctor_memory memories[DOCTOR_MAX_ROWS];
	struct doctor_row *rows;
	unsigned n;
	struct doctor_gap gaps[DOCTOR_MAX_GAPS];
	unsigned n_gaps, gaps_dropped;
	uint64_t took_ns;
	char machine[240], kernel[65];
};

/* A policy as it is tried at map time. */
struct doctor_plan {
	const char *name;
	struct pinl_policy policy;
	unsigned flags;
};

extern const struct doctor_plan doctor_plans[DOCTOR_NR_PLANS];
/* What the device adds to a sentence, in brackets, is left out. */
size_t doctor_sentence_len(const char *why);
bool doctor_revocable(const struct doctor_device *device);

void doctor_bare(struct doctor_row *row);
void doctor_pair(struct doctor *d, struct doctor_row *row, unsigned device);
bool doctor_short(const struct doctor_cell *cell); /* less was seen than promised, or worse */
unsigned doctor_mismatches(const struct doctor *d);
void doctor_gaps(struct doctor *d);

/* ------------------------------------------------------------------------------------- the words -- */

const char *doctor_class_name(int device_class);
const char *doctor_outcome_name(enum doctor_outcome outcome);
void doctor_missing_words(unsigned missing, char *buf, size_t len);
void doctor_policies_words(unsigned policies, char *buf, size_t len);
void doctor_devices_words(const struct doctor *d, unsigned devices, char *buf, size_t len);
void doctor_ops_words(unsigned ops, char *buf, size_t len);
void doctor_rows_words(const struct doctor *d, uint32_t rows, char *buf, size_t len);
void doctor_cell_text(const struct doctor_pair *pair, enum pinl_op op, char *buf, size_t len);
void doctor_bare_text(const struct doctor_bare *bare, char *buf, size_t len);

void doctor_wrap(FILE *out, int indent, const char *text);
void doctor_bold(FILE *out, const char *text);
void doctor_facilities(FILE *out, const struct doctor *d);
void doctor_table(FILE *out, const struct doctor *d);
void doctor_without(FILE *out, const struct doctor *d);
void doctor_markdown(FILE *out, const struct doctor *d);
void doctor_json(FILE *out, const struct doctor *d);

#endif
