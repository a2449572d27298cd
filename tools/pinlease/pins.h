/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Inside of pinlease pins. The census is taken in this order, each step by the ones before:
 *
 *   pins_kernel.c   load the programs, learn this kernel's layout from its BTF, read its memory
 *   pins_own.c      pin memory of our own, which must be found again; where struct pages are
 *   pins_scan.c     all pinned pages of the machine; the kernel's own counters before and after
 *   pins_hold.c     which open objects (rings, regions, sockets ...) hold which pages
 *   pins_have.c     which processes have those objects
 *   pins_map.c      which processes map them, and where
 *   pins_again.c    a second look at what nobody maps: pins of a process that was ending have gone
 *   pins_row.c      pages become uses, uses become rows: by process, file, device, lease
 *   pins_class.c    what can be done about a pin, by its device and who took it
 *   pins_print.c    a table, or JSON
 *
 * Pins as they come and go are followed by what pins_live.h names.
 */
#ifndef PINLEASE_PINS_H
#define PINLEASE_PINS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "bpf/census.h"

#define PINS_PAGE    4096ul
#define PINS_MODULES 8

enum pins_device {
	PINS_URING,
	PINS_RDMA,
	PINS_VFIO,
	PINS_IOMMUFD,
	PINS_XDP,
	PINS_DMABUF,
	PINS_VMSPLICE,
	PINS_DIRECT, /* I/O: only seen live, as it is over soon */
	PINS_OTHER,
	PINS_NR_DEVICES,
};

/* What can be done about a pin. */
enum pins_can {
	PINS_UNKNOWN,
	PINS_NOTIFIED,	/* its device's driver hears of changes, and lets go */
	PINS_REVOCABLE, /* by pinlease, where it is leased */
	PINS_TRANSIENT, /* it ends by itself, soon */
	PINS_NEVER,
	PINS_NR_CANS,
};

extern const char *const pins_cans[PINS_NR_CANS];

struct pins_fit {
	enum pins_can can;
	const char *policy; /* the one of pinlease's that fits */
};

struct pins_class {
	const char *name; /* as options and JSON have it */
	struct pins_fit fit;
};

extern const struct pins_class pins_classes[PINS_NR_DEVICES];

/* A function of the kernel that pins for this device. */
struct pins_user {
	const char *begin;
	enum pins_device device;
	const struct pins_fit *fit; /* NULL: its device's */
};

/* Whether pinlease takes back a lease of this policy (enum pinl_policy_kind) when it is asked to, as by
 * pinlease recall without --force. */
bool pins_takes_back(uint32_t policy);

/* Whether programs tell pinleased of leases of this memory (enum census_memory). Else none is no proof.
 */
bool pins_leases_are_told(uint32_t memory);

const struct pins_user *pins_user_of(const char *function); /* NULL: it is everybody's, or not known */
const struct pins_fit *pins_fit_of(enum pins_device device, const struct pins_user *user, bool longterm);

/* Grows; items are plain memory of `size` bytes each. */
struct pins_vec {
	void *items;
	size_t n, room, size;
};

/* An object of a process that holds pages: a registered buffer, a memory region, a pipe's page. */
struct pins_hold {
	enum pins_device device;
	int32_t pid, fd;
	uint64_t addr, object; /* addr: in the process, 0: unknown; object: in the kernel, held once
				  however many have it */
	uint32_t group;	       /* of the processes that have it; 0: this one alone */
	bool counted;	       /* by pins, else by plain references */
	bool each_page;	       /* has a pin of its own, else each piece has */
};

/* Pages that follow each other. */
struct pins_piece {
	uint64_t pfn, nr;
	uint64_t offset; /* of its begin from the hold's addr */
	uint32_t hold, pad;
};

/* Addresses of a process whose pages an object holds, a pin for each. */
struct pins_region {
	enum pins_device device;
	int32_t pid;
	uint64_t start, end, reach; /* reach: the largest end from the process' first on */
	uint64_t object;	    /* and the group, as a hold has them */
	uint32_t group, pad;
};

/* A page that a process maps. What it has pinned itself it has touched; who maps a file sees of it
 * whatever he touches next. */
struct pins_map {
	uint32_t pin;
	int32_t pid;
	bool touched;
	uint64_t addr; /* of the page */
	uint64_t page; /* number in the pin's folio */
};

struct pins_row {
	int32_t pid; /* 0: unknown */
	enum pins_device device;
	uint32_t group; /* of processes that have the object, too; 0: none others, or not known */
	bool sure;	/* found among the device's own; else concluded */
	bool mapped;	/* in that process; for an unknown one: in any */
	bool physical;	/* the ranges are the machine's addresses, no process' */
	uint32_t memory, dev;
	uint64_t ino, inode;
	const char *lease; /* policy; NULL: not leased, or not known */
	bool taken_back;   /* by that policy, when pinlease is asked to */
	bool lease_known;  /* whether there is one */
	uint64_t bytes, pins, refs;
	struct pins_vec ranges; /* struct pins_range: of the file, of the process, else `physical` */
	char *path;
	char program[16]; /* empty: it has gone */
};

struct pins_range {
	uint64_t start, end;
};

struct pins_lease {
	int32_t pid;
	uint64_t start, end, reach; /* reach: the largest end from the process' first lease on */
	const char *policy;
	bool taken_back; /* when pinlease is asked to */
};

struct pins_place { /* of a member */
	const char *type, *path;
	long offset, size;
};

struct census_bpf;
struct btf;

struct pins_own { /* what we pin ourselves */
	char *small, *huge;
	int device; /* a ring, or a socket */
	int pipe[2];
	bool ring, huge_seen;
	uint64_t ops; /* of a page that vmsplice() gave a pipe */
};

struct pins_counters {
	uint64_t acquired, released;
};

struct census {
	struct census_bpf *bpf;
	struct btf *btf, *modules[PINS_MODULES];
	int nr_modules;
	struct census_pin *window;
	struct pins_own own;
	struct pins_vec pins, files, vmas, tasks, holds, pieces, regions, maps, rows, leases, memories,
		places, objects, haves, groups;
	struct pins_counters before, after; /* without ours */
	uint64_t found;			    /* pins of others */
	uint64_t shown_bytes;		    /* memory of all rows, each page once */
	uint64_t gone;			    /* pins that a second look didn't find, in no row */
	uint64_t unexplained;		    /* plain references that nothing explains */
	uint64_t scan_ns, who_ns, total_ns;
	uint64_t pages, unreadable;
	size_t nr_objects;
	bool have_leases;
};

struct pins_filter {
	int32_t pid;
	int device; /* -1: any */
	bool by_file;
	uint64_t file_dev, file_ino;
};

/* As a pin has it: dev is the kernel's own number. */
struct pins_memory {
	uint64_t ino;
	uint32_t dev, kind;
};

/* Nothing of this process. */
bool pins_wanted(const struct pins_filter *f, int32_t pid, enum pins_device device,
		 const struct pins_memory *m);

void *pins_add(struct pins_vec *v, const void *item);
void pins_order(struct pins_vec *v, int (*compare)(const void *, const void *));
/* Of those that compare as the same, the first stays; of an ordered one. */
void pins_drop_doubles(struct pins_vec *v, int (*compare)(const void *, const void *));
void pins_free(struct pins_vec *v);
#define pins_at(v, type, i) (&((type *)(v)->items)[i])

/* A census from begin to end; `pins_end` in any case. */
void pins_start(struct census *c);
int pins_take(struct census *c, const struct pins_filter *filter);
void pins_end(struct census *c);

/* Each 0 or -errno after a sentence on standard error. */
int pins_load(struct census *c);
int pins_calibrate(struct census *c);
int pins_scan(struct census *c);
int pins_list_holds(struct census *c);
int pins_list_maps(struct census *c);
int pins_look_again(struct census *c);
int pins_make_rows(struct census *c, const struct pins_filter *filter);
int pins_counters(struct pins_counters *counters);
void pins_unload(struct census *c);
void pins_release_own(struct census *c);

/* What was released, once more: 1 it is released again, 0 it is until pins_release_own(); -errno. */
int pins_pin_again(struct census *c);

/* A sentence on standard error; or into `buf`, until NULL is given. */
void pins_hear(char *buf, size_t len);
void pins_say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Of this kernel: the place of a member ("a.b"), its size; -ENOENT. The first of two names that is
 * there. */
long pins_offset(struct census *c, const char *type, const char *path);
long pins_offset_of(struct census *c, const char *type, const char *path, const char *other);
long pins_size(struct census *c, const char *type, const char *path);
void pins_module(struct census *c,
		 const char *name); /* from now on its types are known, too, if it is loaded */
bool pins_has_function(const struct census *c, const char *name);

/* The head of a folio that this page is of. */
uint64_t pins_head(struct census *c, uint64_t pfn);

/* The kernel's memory. */
int pins_read(struct census *c, uint64_t addr, void *buf, size_t len);
uint64_t pins_word(struct census *c, uint64_t addr); /* 0: can't be read, too */
uint32_t pins_half(struct census *c, uint64_t addr);
int pins_string(struct census *c, uint64_t addr, char *buf, size_t len);

/* What an iterator has to say, appended. */
enum pins_iterator { PINS_FILES, PINS_VMAS, PINS_TASKS };
int pins_iterate(struct census *c, enum pins_iterator which, struct pins_vec *to);

/* One run over these; records are appended. */
int pins_scan_range(struct census *c, uint64_t pfn, uint64_t nr, bool everything, struct pins_vec *to);
uint64_t pins_pfn_of_page(const struct census *c, uint64_t page);
int pins_pagemap(int32_t pid);
uint64_t pins_pfn(int pagemap, uint64_t addr); /* 0: none */

/* False the first time that it is asked of an object. */
bool pins_seen(struct census *c, uint64_t object);

/* Pins are sorted by page; this one is there, of the first `n`. */
void pins_sort(struct census *c);
const struct census_pin *pins_find(const struct census *c, uint64_t pfn, size_t n);

/* Those of now, as pinleased tells them; `have_leases`: it did. */
void pins_list_leases(struct census *c);

/* The lease at `addr`, NULL: none; and how many bytes from there have the same answer. */
const struct pins_lease *pins_lease_at(const struct census *c, int32_t pid, uint64_t addr,
				       uint64_t *len);

/* Of a record's pages one, by this process; 0: by anybody. */
bool pins_is_mapped(const struct census *c, uint32_t pin, int32_t pid);

/* A hold, and its pages from the address of a struct page. */
uint32_t pins_hold(struct census *c, const struct pins_hold *hold);
void pins_piece(struct census *c, uint32_t hold, uint64_t page, uint64_t offset, uint64_t len,
		uint64_t at);

/* This process has the object. When all are known: the groups of those that several have. */
void pins_have(struct census *c, uint64_t object, int32_t pid);
void pins_group_holds(struct census *c);

/* Of group 0: 1, and none. `i`: from the lowest number on. */
size_t pins_group_size(const struct census *c, uint32_t group);
int32_t pins_group_pid(const struct census *c, uint32_t group, size_t i);
bool pins_group_has(const struct census *c, uint32_t group, int32_t pid);

void pins_hold_ring(struct census *c, int32_t pid, int fd, uint64_t ring);
void pins_hold_xdp(struct census *c, const struct census_file *f);
void pins_hold_dmabuf(struct census *c, const struct census_file *f);
void pins_hold_pipe(struct census *c, const struct census_file *f);
void pins_hold_rdma(struct census *c, const struct census_file *f);
void pins_hold_vfio(struct census *c, const struct census_file *f);

/* Regions by process and begin, and how many are of processes before this one, or of it and begin before
 * `addr`. */
void pins_sort_regions(struct census *c);
size_t pins_regions_before(const struct census *c, int32_t pid, uint64_t addr);

/* What device a file like this one stands for whose list of what it holds may be none or not to be read;
 * -1: none. */
int pins_device_of(const struct census_file *f);

char *pins_path(struct census *c, uint64_t inode, uint32_t dev, uint64_t ino); /* to be freed; NULL */

void pins_print_table(const struct census *c, bool exact, bool filtered);
void pins_print_json(const struct census *c);

/* How far what was found is off the kernel's count, and by how much that may be: pins that came and
 * went. */
uint64_t pins_counted(const struct census *c);
uint64_t pins_off(const struct census *c);
uint64_t pins_meanwhile(const struct census *c);

#endif
