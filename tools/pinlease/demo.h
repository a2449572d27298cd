/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the parts of `pinlease demo` share: the plan says what one row does, the stage is what it runs
 * on, the result is what came out; table and page are made from results only.
 *
 *	plan -> case (stage: files, actor, device) -> result -> check -> words -> table
 *	                                                           \-> timeline -> page (svg)
 */
#ifndef PINLEASE_DEMO_H
#define PINLEASE_DEMO_H

#include <liburing.h>
#include <pinlease/pinlease.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "common.h"
#include "second.h"

#define DEMO_PAGE	4096u
#define DEMO_PAGES	16u
#define DEMO_SIZE	(DEMO_PAGE * DEMO_PAGES)
#define DEMO_OLD	'o' /* every byte of the file at the start */
#define DEMO_QUIET_PAGE 3   /* nobody writes to it */
#define DEMO_DRAIN_MS	500

/* ------------------------------------------------------------------------------------- the plan -- */

enum demo_fs { ON_TMPFS, ON_DISK, NR_FS };

enum demo_run {
	RUN_BARE,	/* a fixed buffer without pinlease */
	RUN_SHARED_PIN, /* try to pin MAP_SHARED of a file on disk */
	RUN_URING,	/* a lease for io_uring */
	RUN_SOFT,	/* a lease for the software device, on demand */
};

enum demo_actor { BY_PROCESS, BY_CALL };

struct demo_plan {
	const char *name;
	enum demo_fs fs;
	enum demo_actor actor;
	enum demo_run run;
	enum pinl_policy_kind policy;
	enum pinl_then then;
	unsigned grace_ms;
	bool answers; /* the holder answers the notice */
};

extern const struct demo_plan demo_plans[];
extern const unsigned demo_nr_plans;

/* Rows with the same file system and the same kind of actor stand together. */
bool demo_same_group(const struct demo_plan *a, const struct demo_plan *b);

/* ----------------------------------------------------------------------------------- the result -- */

/* Written by the actor, after its system call. */
struct demo_report {
	uint64_t start_ns, end_ns;
	int err;	 /* 0 or -errno */
	unsigned serial; /* of the second process's orders; 0 from a thread */
};

enum demo_when { BEFORE, DURING, AFTER, NR_WRITES };

enum demo_place { NOT_DONE, IN_FILE, IN_MAPPING, IN_SCRATCH, IN_COPY, IN_ORPHAN, NOWHERE, GOT_ERROR };

struct demo_write {
	enum demo_place place; /* just after it */
	enum demo_place end;   /* when the case was over, the lease still there */
	int res;	       /* what the device said: bytes or -errno */
	uint64_t time_ns;
};

struct demo_event {
	struct pinl_event ev;
	char text[320];
};

struct demo_check {
	bool kept;
	char promise[160];
};

enum demo_verdict {
	WENT_WELL, /* all promises kept */
	FAILED,
	SHOWN,	  /* a row without pinlease: it shows what the kernel does */
	NOT_HERE, /* this machine or these privileges don't give it, and that was said beforehand */
};

struct demo_result {
	const struct demo_plan *plan;
	enum demo_verdict verdict;
	char reason[480];     /* NOT_HERE, SHOWN, FAILED before the run: why */
	int lease_err;	      /* of pinl_map_range() */
	bool held;	      /* the lease promises that this change is held */
	bool told;	      /* ... or is at least told while the lease lives */
	bool afar;	      /* by pinleased, which waits for nobody to hear of KEEP and REFUSE */
	bool timeout;	      /* an awaited event or report did not come */
	bool reported;	      /* `actor` is filled in */
	bool quiet_page_kept; /* at the end the CPU found the old content in the page nobody wrote */
	bool file_emptied; /* at the end no byte of the old content and of the device was in the file */
	bool file_intact;  /* all of the old content was, or what the device wrote on top of it */
	struct demo_report actor; /* of the call that truncates */
	int grow_err;		  /* of the one that gives the size back, when the case is over */
	uint64_t answer_ns;	  /* when the holder called pinl_quiesced() */
	int answer_err;
	struct demo_write writes[NR_WRITES];
	struct demo_event events[40];
	unsigned n_events;
	struct demo_check checks[24];
	unsigned n_checks;
	char weaker[480]; /* why the lease had to be taken with PINL_COOPERATIVE; "": it hadn't */
	char lease[800];
	char summary[1000]; /* what pinl_close() wrote */
};

/* The first event of a type; NULL: none came. */
const struct pinl_event *demo_event(const struct demo_result *r, enum pinl_event_type type);
unsigned demo_count_events(const struct demo_result *r, enum pinl_event_type type);
double demo_ms(const struct demo_result *r, uint64_t time_ns); /* from the start of the actor's call */
double demo_waited_ms(const struct demo_result *r);
void demo_promise(struct demo_result *r, bool kept, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
void demo_fail(struct demo_result *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void demo_not_here(struct demo_result *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void demo_cant(struct demo_result *r, int err, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
void demo_check(struct demo_result *r);

/* ------------------------------------------------------------------------------------ the stage -- */

struct demo_file {
	int fd;
	char path[256];
	char *map;
};

struct demo_env {
	const char *dir[NR_FS];	    /* NULL: there is none, why[] says the reason */
	const char *fs_name[NR_FS]; /* "tmpfs", "ext4" */
	char why[NR_FS][200];
	struct second *second;
};

struct demo_stage {
	const struct demo_env *env;
	const struct demo_plan *plan;
	struct demo_result *r;
	struct demo_file file;
	struct io_uring ring;
	bool has_ring;
	int source; /* what the device "receives", one page per write */
	int probe;  /* to look at memory without taking a signal */
	int summary;
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	struct pinl_addr addrs[DEMO_PAGES];
	pthread_t caller; /* BY_CALL */
	int report_fd;
	unsigned serial; /* BY_PROCESS: of the order given */
};

void demo_run_case(const struct demo_env *env, const struct demo_plan *plan, struct demo_result *r);

/* demo_files.c. Files are removed at exit and on signals. */
int demo_find_dirs(struct demo_env *env, const char *tmpfs, const char *disk);
int demo_file_make(const char *dir, bool shared, struct demo_file *file);
void demo_file_drop(struct demo_file *file);
void demo_remove_files(void);

/* demo_actor.c */
extern const struct second_ops demo_second_ops;
int demo_actor_truncate(struct demo_stage *s);
int demo_actor_grow(struct demo_stage *s);
void demo_actor_end(struct demo_stage *s);

/* demo_device.c. A write is over when the call returns; its outcome is in the result. */
int demo_device_open(struct demo_stage *s);
int demo_device_register(struct demo_stage *s); /* without pinlease: 0 or -errno */
void demo_device_close(struct demo_stage *s);
void demo_device_write(struct demo_stage *s, enum demo_when when);
void demo_device_reap(struct demo_stage *s);
void demo_look_again(struct demo_stage *s);
void demo_look_at_file(struct demo_stage *s);

/* ------------------------------------------------------------------------------------ the words -- */

struct demo_words {
	char verdict[16], actor[80], holder[400], device[160], lost[160];
};

void demo_words(const struct demo_result *r, struct demo_words *words);
const char *demo_place_name(enum demo_place place);
const char *demo_story(const struct demo_plan *plan);
void demo_group_words(const struct demo_env *env, const struct demo_plan *plan, char *buf, size_t len);

struct demo_results {
	const struct demo_env *env;
	struct demo_result *rows;
	unsigned n;
	uint64_t took_ns;
	char sources[1024];
};

const char *demo_group_note(const struct demo_results *all, unsigned first);
unsigned demo_count(const struct demo_results *all, enum demo_verdict verdict);
void demo_table(FILE *out, const struct demo_results *all);
void demo_progress(unsigned at, const struct demo_env *env, const struct demo_plan *plan);
void demo_progress_end(const struct demo_result *r);

/* --------------------------------------------------------------------------------- the timeline -- */

enum demo_lane { LANE_ACTOR, LANE_HOLDER, LANE_DEVICE, LANE_PINLEASE, NR_LANES };

struct demo_moment {
	uint64_t time_ns;
	enum demo_lane lane;
	const char *kind;	       /* a class of demo_style.c */
	char label[2][24], title[400]; /* title: shown while pointed at */
};

#define DEMO_MAX_MOMENTS 40

extern const char demo_style[];

unsigned demo_timeline(const struct demo_result *r, struct demo_moment moments[DEMO_MAX_MOMENTS]);
void demo_html_text(FILE *out, const char *text);
void demo_svg(FILE *out, const struct demo_result *r);
void demo_html(FILE *out, const struct demo_results *all);

#endif
