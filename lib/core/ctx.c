/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The context: opening and closing, sources, counters, and the marks that tell a forked child and the
 * library's own threads apart.
 */
#include "core/export.h"
#include "core/extent.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "core/text.h"
#include "os/thread.h"

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

/* Open contexts of this process, for the summary of a program that exits without closing. */
static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static struct pinl_ctx *open_list;

static const _Atomic(unsigned) no_mark;
static atomic_ulong last_serial;

bool pl_alive(const struct pinl_ctx *ctx)
{
	return __atomic_load_n(ctx->alive, __ATOMIC_RELAXED);
}

int pl_stale(void)
{
	return pinl_set_error(
		-ESTALE,
		"this object belongs to the parent process; a child of fork() inherits no lease, "
		"open a context of its own");
}

static int exempt_add(struct pinl_ctx *ctx, pid_t self)
{
	for (int i = 0; i < PL_MAX_EXEMPT; i++) {
		pid_t empty = 0;

		if (atomic_compare_exchange_strong(&ctx->exempt[i], &empty, self))
			return i;
	}
	return -1; /* its change will be asked about twice, which is harmless */
}

/* A forked child has the thread's variables, but no context that they are of. */
pid_t pl_self_tid(const struct pinl_ctx *ctx)
{
	static _Thread_local struct {
		unsigned long serial;
		pid_t tid;
	} self __attribute__((tls_model("initial-exec")));

	if (self.serial != ctx->serial) {
		self.tid = gettid();
		self.serial = ctx->serial;
	}
	return self.tid;
}

static void exempt_clear(struct pinl_ctx *ctx, int slot)
{
	if (slot >= 0)
		atomic_store(&ctx->exempt[slot], 0);
}

int pl_exempt_enter(struct pinl_ctx *ctx)
{
	return exempt_add(ctx, pl_self_tid(ctx));
}

/* What the thread has changed before has not been asked about: that is heard of first. */
int pl_exempt_enter_call(struct pinl_ctx *ctx)
{
	struct pl_counts_at before = pl_counts_now(ctx);

	pl_counts_wait(ctx);
	return pl_counts_reached(ctx, &before) ? exempt_add(ctx, pl_self_tid(ctx)) : -1;
}

/* What it has made itself is no news, also where that is heard of late. */
void pl_exempt_leave(struct pinl_ctx *ctx, int slot)
{
	pl_counts_wait(ctx);
	exempt_clear(ctx, slot);
}

void pl_inside_begin(struct pinl_ctx *ctx, struct pl_inside *in)
{
	in->slot = exempt_add(ctx, -pl_self_tid(ctx));
}

void pl_inside_end(struct pinl_ctx *ctx, const struct pl_inside *in)
{
	exempt_clear(ctx, in->slot);
}

int pinl_tid_exempt(struct pinl_ctx *ctx, pid_t tid)
{
	int inside = 0;

	for (int i = 0; i < PL_MAX_EXEMPT; i++) {
		pid_t got = atomic_load_explicit(&ctx->exempt[i], memory_order_relaxed);

		if (got == tid)
			return PINL_EXEMPT_ASKED;
		if (got == -tid)
			inside = PINL_EXEMPT_INSIDE;
	}
	return inside;
}

static void raise_sequence(struct pinl_ctx *ctx)
{
	if (atomic_fetch_add(&ctx->changing, 1) == 0)
		atomic_fetch_add(&ctx->sequence, 1);
}

static void lower_sequence(struct pinl_ctx *ctx)
{
	if (atomic_fetch_sub(&ctx->changing, 1) == 1)
		atomic_fetch_add(&ctx->sequence, 1);
}

void pinl_changing_begin(struct pinl_ctx *ctx)
{
	atomic_fetch_add(&ctx->unmarked, 1);
	raise_sequence(ctx);
}

void pinl_changing_end(struct pinl_ctx *ctx)
{
	lower_sequence(ctx);
	atomic_fetch_sub(&ctx->unmarked, 1);
}

void pl_round_begin(struct pinl_ctx *ctx)
{
	raise_sequence(ctx);
	atomic_fetch_add(&ctx->round, 1);
}

void pl_round_step(struct pinl_ctx *ctx)
{
	atomic_fetch_add(&ctx->round, 2);
}

void pl_round_end(struct pinl_ctx *ctx)
{
	atomic_fetch_add(&ctx->round, 1);
	lower_sequence(ctx);
}

void pl_mark_set(struct pinl_ctx *ctx, const _Atomic(unsigned) *word, unsigned bit)
{
	atomic_store(&ctx->mark_bit, bit);
	atomic_store(&ctx->mark, word ? word : &no_mark);
}

void pinl_applying_begin(struct pinl_ctx *ctx)
{
	atomic_fetch_add(&ctx->applying, 1);
}

void pinl_applying_end(struct pinl_ctx *ctx)
{
	atomic_fetch_add(&ctx->applying, 1);
}

/* One source applies at a time (the userfaultfd reader), so odd means under way. */
bool pl_wait_applied(struct pinl_ctx *ctx)
{
	unsigned seen = atomic_load(&ctx->applying);
	struct timespec pause = {0, 20000};
	bool waited = pl_counts_wait(ctx);

	while ((seen & 1) && atomic_load(&ctx->applying) == seen)
		nanosleep(&pause, NULL);
	return waited || (seen & 1);
}

int pinl_wants_hold(struct pinl_ctx *ctx, unsigned ops)
{
	return (atomic_load_explicit(&ctx->wants_hold, memory_order_acquire) & ops) != 0;
}

static int check_opts(const struct pinl_opts *given, struct pinl_opts *opts)
{
	if (given && (given->size < sizeof(size_t) || given->size > 4096))
		return pinl_set_error(-EINVAL, "pinl_opts.size must be sizeof(struct pinl_opts)");
	if (given)
		memcpy(opts, given, given->size < sizeof *opts ? given->size : sizeof *opts);
	if (opts->sources & ~(PINL_SOURCE_ALL | PINL_SOURCE_GENERATION))
		return pinl_set_error(-EINVAL, "pinl_opts.sources has unknown bits %#x", opts->sources);
	if (!opts->sources)
		opts->sources = PINL_SOURCE_ALL;
	if (!opts->ceiling_ms)
		opts->ceiling_ms = 10000;
	if (!opts->drain_ms)
		opts->drain_ms = 1000;
	if (!opts->summary_fd)
		opts->summary_fd = STDERR_FILENO;
	return 0;
}

static int make_alive(struct pinl_ctx *ctx)
{
	uint8_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		return -ENOMEM;
	ctx->alive = page;
	if (madvise(page, 4096, MADV_WIPEONFORK))
		return -errno;
	*page = 1;
	return 0;
}

/* Opened once, so that a force needs no descriptor when there are none left. */
static int open_maps(struct pinl_ctx *ctx)
{
	ctx->maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	return ctx->maps < 0 && (errno == EMFILE || errno == ENFILE) ? -errno : 0;
}

/* Without a table aside no file can be opened, but other memory can be leased all the same. */
static int open_aside(struct pinl_ctx *ctx)
{
	int err = pl_aside_new(&ctx->aside);

	if (!err)
		err = pl_aside_error(ctx->aside);
	return err == -EMFILE || err == -ENFILE || err == -ENOMEM || err == -EAGAIN ? err : 0;
}

static void init_sync(struct pinl_ctx *ctx)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&ctx->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	for (int i = 0; i < PL_SETTLED; i++)
		pthread_cond_init(&ctx->settled[i], &attr);
	pthread_cond_init(&ctx->work, &attr);
	pthread_cond_init(&ctx->ended, &attr);
	pthread_condattr_destroy(&attr);
	ctx->jobs_tail = &ctx->jobs;
	ctx->draining_tail = &ctx->draining;
}

static void ctx_free(struct pinl_ctx *ctx)
{
	if (ctx->worker_started) {
		pthread_mutex_lock(&ctx->lock);
		ctx->stopping = true;
		pthread_cond_signal(&ctx->work);
		pthread_mutex_unlock(&ctx->lock);
		pthread_join(ctx->worker, NULL);
	}
	pl_events_stop(ctx->events); /* a callback may use what is closed now */
	for (int i = ctx->n_sources; i-- > 0;)
		ctx->sources[i].ops->close(ctx->sources[i].priv);
	pl_events_free(ctx->events);
	pl_swap_free(ctx->swap);
	pl_aside_free(ctx->aside);
	pl_bounce_free(ctx->bounce);
	pl_lost_free(&ctx->losses);
	pl_slab_end(&ctx->slab);
	pl_mores_end(&ctx->mores);
	pl_extents_free(ctx);
	if (ctx->alive)
		munmap(ctx->alive, 4096);
	if (ctx->maps >= 0)
		close(ctx->maps);
	for (int i = 0; i < PL_SETTLED; i++)
		pthread_cond_destroy(&ctx->settled[i]);
	pthread_cond_destroy(&ctx->work);
	pthread_cond_destroy(&ctx->ended);
	pthread_mutex_destroy(&ctx->lock);
	free(ctx->summary);
	free(ctx);
}

static void list_add(struct pinl_ctx *ctx)
{
	pthread_mutex_lock(&open_lock);
	ctx->next_open = open_list;
	open_list = ctx;
	pthread_mutex_unlock(&open_lock);
}

static void list_remove(struct pinl_ctx *ctx)
{
	pthread_mutex_lock(&open_lock);
	for (struct pinl_ctx **p = &open_list; *p; p = &(*p)->next_open)
		if (*p == ctx) {
			*p = ctx->next_open;
			break;
		}
	pthread_mutex_unlock(&open_lock);
}

/* A program that exits without pinl_close() still gets its orphans said (I5). */
static void __attribute__((destructor)) summary_at_exit(void)
{
	if (pthread_mutex_trylock(&open_lock))
		return;
	for (struct pinl_ctx *ctx = open_list; ctx; ctx = ctx->next_open)
		if (pl_alive(ctx))
			pl_orphan_summary(ctx);
	pthread_mutex_unlock(&open_lock);
}

int pl_open_core(const struct pinl_opts *given, struct pinl_ctx **out)
{
	struct pinl_ctx *ctx;
	struct pinl_opts opts = {.size = sizeof opts};
	int err = check_opts(given, &opts);

	if (err)
		return err;
	ctx = calloc(1, sizeof *ctx);
	if (!ctx)
		return pinl_set_error(-ENOMEM, "out of memory for a context");
	ctx->opts = opts;
	ctx->mark = &no_mark;
	pl_counts_set(ctx, NULL);
	ctx->serial = atomic_fetch_add(&last_serial, 1) + 1;
	ctx->pid = getpid();
	ctx->maps = -1;
	init_sync(ctx);
	pl_slab_init(&ctx->slab, sizeof(struct pinl_lease));
	pl_mores_init(&ctx->mores);
	ctx->summary = calloc(PL_MAX_SUMMARY, sizeof *ctx->summary);
	err = ctx->summary ? make_alive(ctx) : -ENOMEM;
	if (!err && !pl_lost_new(&ctx->losses))
		err = -ENOMEM;
	if (!err)
		err = open_maps(ctx);
	if (!err)
		err = open_aside(ctx);
	if (!err)
		err = pl_swap_new(&ctx->swap);
	if (!err && !(ctx->events = pl_events_new(&opts)))
		err = errno ? -errno : -ENOMEM;
	if (!err)
		err = pl_thread_start(&ctx->worker, pl_worker, ctx);
	if (err) {
		ctx_free(ctx);
		return pinl_set_error(err, "can't make a context: %s%s", strerror(-err),
				      err == -EMFILE ? "; raise ulimit -n" : "");
	}
	ctx->worker_started = true;
	list_add(ctx);
	*out = ctx;
	return 0;
}

int pinl_source_add(struct pinl_ctx *ctx, const struct pinl_source_ops *ops, const void *arg)
{
	PL_CALL(call);
	size_t used = strlen(ctx->source_notes);
	void *priv = NULL;
	int err;

	if (!pl_alive(ctx))
		return pl_stale();
	if (ctx->n_sources == PL_MAX_SOURCES)
		return pinl_set_error(-ENOSPC, "no more than %d sources", PL_MAX_SOURCES);
	err = ops->open(ctx, arg, &priv);
	if (err) {
		snprintf(ctx->source_notes + used, sizeof ctx->source_notes - used, "%s: missing: %s\n",
			 ops->name, pinl_error());
		return err;
	}
	ctx->sources[ctx->n_sources].ops = ops;
	ctx->sources[ctx->n_sources].priv = priv;
	ctx->n_sources++;
	return 0;
}

void *pl_source_priv(struct pinl_ctx *ctx, const struct pinl_source_ops *ops)
{
	for (int i = 0; i < ctx->n_sources; i++)
		if (ctx->sources[i].ops == ops)
			return ctx->sources[i].priv;
	return NULL;
}

static bool has_source(const struct pinl_ctx *ctx, const char *name)
{
	for (int i = 0; i < ctx->n_sources; i++)
		if (!strcmp(ctx->sources[i].ops->name, name))
			return true;
	return false;
}

static void describe_source(const struct pl_source *s, struct pl_text *t)
{
	const char *why = s->ops->size > offsetof(struct pinl_source_ops, away) && s->ops->away
				  ? s->ops->away(s->priv)
				  : NULL;

	pl_text_add(t, why ? "%s: missing: %s\n" : "%s: running\n", s->ops->name, why);
}

int pinl_sources(struct pinl_ctx *ctx, char *buf, size_t len)
{
	struct pl_text t = {buf, len, 0};

	if (!pl_alive(ctx))
		return pl_stale();
	for (int i = 0; i < ctx->n_sources; i++)
		describe_source(&ctx->sources[i], &t);
	pl_text_add(&t, "%s", ctx->source_notes);
	if (pl_aside_error(ctx->aside))
		pl_text_add(&t,
			    "open: missing: no descriptor table of its own for a thread (%s), so files "
			    "can't be opened to be watched\n",
			    strerror(-pl_aside_error(ctx->aside)));
	if (has_source(ctx, "uffd") && !atomic_load(&ctx->mark_bit))
		pl_text_add(&t,
			    "cache: running, weaker: without an io_uring to poll userfaultfd, a lookup "
			    "of memory that another thread is just unmapping can come before that is "
			    "known, for as long as the reader takes to wake up\n");
	if (!pl_swap_can_fill(ctx->swap))
		pl_text_add(&t, "copy: missing: no userfaultfd, RECALL with COPY is refused\n");
	else if (pl_swap_user_only(ctx->swap))
		pl_text_add(&t, "copy: running, weaker: without CAP_SYS_PTRACE a system call on a range "
				"that is being "
				"copied may fail with EFAULT\n");
	return t.used;
}

int pinl_counters(struct pinl_ctx *ctx, struct pinl_counters *out)
{
	PL_CALL(call);
	struct pinl_counters now;
	size_t size = out->size;

	if (!pl_alive(ctx))
		return pl_stale();
	if (size < 2 * sizeof(size_t))
		return pinl_set_error(-EINVAL,
				      "pinl_counters.size must be sizeof(struct pinl_counters)");
	pthread_mutex_lock(&ctx->lock);
	now = ctx->counters;
	pthread_mutex_unlock(&ctx->lock);
	now.sequence = atomic_load(&ctx->sequence);
	now.size = size;
	memcpy(out, &now, size < sizeof now ? size : sizeof now);
	return 0;
}

void pinl_close(struct pinl_ctx *ctx)
{
	PL_CALL(call);

	if (!ctx || !pl_alive(ctx))
		return;
	while (ctx->devices)
		pinl_device_close(ctx->devices);
	pl_exporters_end(ctx);
	list_remove(ctx);
	pl_orphan_summary(ctx);
	if (ctx->later)
		ctx->later_free(ctx->later);
	ctx_free(ctx);
}
