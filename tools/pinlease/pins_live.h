/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Inside of pinlease pins --watch and --trace:
 *
 *   pins_live.c     goes round until it is told to end
 *   pins_follow.c   the programs: which this kernel lets follow which of its functions; what they cost
 *   pins_measure.c  what a pin takes, alone and followed
 *   pins_cost.c     what the programs cost, and missed
 *   pins_test.c     a pin of its own must be seen
 *   pins_symbol.c   the names of the kernel's functions
 *   pins_site.c     a stack becomes the name of who called, and a kind of device; a process, a file
 *   pins_look.c     what the programs have counted becomes a picture
 *   pins_leak.c     what is held by nobody: suspected here, confirmed by a census
 *   pins_callers.c  sites by the kernel's function, and those by what can be done
 *   pins_picture.c  the picture as a table, or JSON
 *   pins_missing.c  what isn't in it: pinned before, lost, or found by a census only
 *   pins_event.c    one line for each event
 */
#ifndef PINLEASE_PINS_LIVE_H
#define PINLEASE_PINS_LIVE_H

#include "bpf/live.h"
#include "pins.h"
#include "pins_options.h"

#define LIVE_WIDE    110	   /* columns that all of a line needs */
#define LIVE_LEAK_NS 2000000000ull /* after its process, what a ring has is given back in this time */
#define LIVE_SAMPLE  64		   /* of so many transient calls one is followed, unless all are */

#define TEXT(x)	   #x
#define TEXT_OF(x) TEXT(x)

struct live_bpf;
struct bpf_link;
struct json_object;

/* Of bytes that are held long-term: those that pinlease can take back, those that their lease's policy
 * keeps, those of which it isn't known. The others aren't leased. */
struct live_leased {
	uint64_t back, kept, unknown;
};

/* A site as the command knows it. */
struct live_known {
	uint64_t id;
	struct live_site now; /* the last that was read */
	enum pins_device device;
	const struct pins_fit *fit;
	char name[64]; /* the kernel's function that it was for */
	char *path;    /* NULL: no file */
	int64_t held,
		held_pages; /* now: calls (exact: runs of pages of a folio) that are not released */
	uint64_t oldest_ns;
	struct live_leased leased;
	uint64_t gone_ns; /* when its process was first seen to have ended; 0: it hasn't */
	int64_t checked;  /* what it held when a census looked for leaks */
};

struct live_group {
	uint64_t calls, pages, released, untimed, oldest_ns;
	struct live_leased leased;
	int64_t held, held_pages;
	uint64_t histogram[LIVE_BUCKETS];
};

/* All sites of a function, long-term or transient. */
struct live_caller {
	const char *name; /* the site's */
	enum pins_device device;
	const struct pins_fit *fit;
	bool longterm;
	uint64_t calls, pages, held_bytes, oldest_ns;
	struct live_leased leased;
};

enum live_leaked { LIVE_HOLDER_GONE, LIVE_UNMAPPED };

struct live_leak {
	uint64_t site, since_ns, pages;
	uint64_t confirmed;			   /* of these pages: so many has the census found */
	uint64_t addr, addr_end, index, index_end; /* from the first to the last */
	enum live_leaked how;
	int32_t has;   /* a process that has it open, says the census; 0: none known */
	size_t others; /* that have it open, too */
};

/* By what functions are followed. */
enum live_by { LIVE_ANY, LIVE_TRAMPOLINES, LIVE_KPROBES };

struct live_cost {
	uint64_t runs[2], ns[2], missed; /* of the programs: [0] at pins, [1] at releases */
	uint64_t own_ns;		 /* processor time of this command */
};

/* Of what is asked for. */
struct live_sum {
	uint64_t pins, bytes;
};

/* Pins that the programs have seen, of this command, too. */
struct live_seen {
	uint64_t pinned, unpinned;
};

struct live {
	const struct pins_options *o;
	struct census *c;
	struct live_bpf *bpf;
	struct pins_vec links; /* struct bpf_link * */
	enum live_by by;
	uint32_t functions;	 /* a bit for each */
	bool kprobes_say_missed; /* the kernel counts what they miss */
	int nr_trampolines, nr_kprobes, stats;
	char unfollowed[256]; /* functions that nothing can follow here */
	uint64_t began_ns, mended_ns;
	struct pins_counters kernel, kernel_now; /* kernel: at the beginning */
	struct live_seen seen;			 /* at the beginning */
	bool have_kernel;
	void *known;	       /* a tree of struct live_known by id */
	struct pins_vec order; /* struct live_known *: all of them */
	struct live_group groups[PINS_NR_DEVICES][2], folded[PINS_NR_DEVICES][2]; /* [1]: long-term */
	uint64_t counts[LIVE_NR_COUNTS];
	struct live_cost cost, before;		  /* before: there was anything to follow */
	uint64_t longterm_ns[2], transient_ns[2]; /* a call of ours, alone and followed; 0: not known */
	struct pins_vec leaks;			  /* struct live_leak */
	uint64_t confirmed, unseen; /* of what is held: found by the last census, not found */
	struct live_sum already;    /* pinned before anything was followed */
	struct live_sum at_end;	    /* pinned, by the last census */
};

extern const char *const live_terms[2];

/* Each 0 or -errno after a sentence. */
int live_follow(struct live *l); /* as l->by says; without a sentence: the kernel refuses it */
int live_follow_any(struct live *l);
void live_unfollow(struct live *l);
void live_read_cost(struct live *l);
int live_test(struct live *l);
void live_measure(struct live *l, bool followed);

/* What a program didn't see because it interrupted another is counted here, kprobes' too. */
bool live_knows_missed(const struct live *l);

/* 0; -EPERM after a sentence: the kernel shows no addresses. NULL: none that is known. */
int live_load_symbols(void);
const char *live_symbol(uint64_t addr);
void live_free_symbols(void);

struct live_known *live_known(struct live *l, uint64_t id);
void live_drop(struct live *l, struct live_known *k); /* not out of `order` */
void live_forget(struct live *l);
bool live_is_gone(const struct live_site *site);
bool live_wanted(const struct live *l, const struct live_known *k);

int live_look(struct live *l);
void live_add_leased(struct live_leased *sum, const struct live_leased *more);

/* False: of nothing of what is held. */
bool live_knows_leased(const struct live *l, const struct live_leased *leased, uint64_t held);
int live_read_counts(struct live *l);
struct live_seen live_seen(const struct live *l);
int live_each_folio(struct live *l, void (*each)(uint64_t folio, const struct live_folio *f, void *arg),
		    void *arg);

/* Those whose holder has gone; `all`: whatever is held. */
int live_find_leaks(struct live *l, bool all);

/* What is pinned already, when all is followed. */
int live_find_already(struct live *l);
struct live_sum live_sum_of(const struct census *c);
bool live_is_filtered(const struct live *l);

/* Each by lines of its own, or none. */
void live_print_already(const struct live *l);
void live_print_census(const struct live *l);
void live_print_lost(const struct live *l);
void live_add_missing(struct json_object *o, const struct live *l, bool last);

int live_print_callers(const struct live *l, int room); /* in lines; how many it took */
void live_put_leased(struct json_object *o, const struct live_leased *leased, bool known);
struct json_object *live_callers_json(const struct live *l);

void live_print_picture(struct live *l, bool last);
struct json_object *live_picture_json(struct live *l, bool last);
void live_print_start(const struct live *l);
void live_print_event(struct live *l, const struct live_event *e);
void live_print_gap(const struct live *l, uint64_t ns, uint64_t events);
void live_print_leak(struct live *l, const struct live_leak *leak);
void live_leak_words(struct live *l, const struct live_leak *leak, char *buf, size_t len);
struct json_object *live_leak_json(struct live *l, const struct live_leak *leak);
const char *live_file_words(const struct live_known *k, char *buf, size_t len);
void live_add_site(struct json_object *o, const struct live_known *k);
void live_put(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* in lines that fit */
void live_put_line(struct json_object *o);

int pins_live(struct census *c, const struct pins_options *o);

#endif
