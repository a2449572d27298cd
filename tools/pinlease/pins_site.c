/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who called: the stack of a site has, above the functions that everybody pins by, one that says what
 * for.
 */
#include <bpf/bpf.h>
#include <errno.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <live.skel.h>
#include "pins_live.h"

/* Functions that all are called by, and the programs themselves. */
static bool is_common(const char *name)
{
	static const char *const begins[] = {"pin_user_pages",	"bpf_",	      "__bpf_",	    "iov_iter_",
					     "bio_iov_",	"__bio_iov_", "memfd_pin_", "__x64_sys_",
					     "do_syscall_64",	"x64_sys_",   "entry_",	    "arch_",
					     "kprobe_",		"kretprobe_", "ftrace_",    "optimized_",
					     "opt_pre_handler", "__ia32_sys_"};

	for (size_t i = 0; i < sizeof begins / sizeof *begins; i++)
		if (!strncmp(name, begins[i], strlen(begins[i])))
			return true;
	return false;
}

/* The first that says what for; else the first that isn't everybody's. */
static void name_site(struct live *l, struct live_known *k)
{
	uint64_t stack[LIVE_DEPTH] = {0};
	uint32_t id = (uint32_t)k->now.key.stack;
	bool longterm = k->now.key.longterm;
	const struct pins_user *user;

	k->device = PINS_OTHER;
	k->fit = pins_fit_of(PINS_OTHER, NULL, longterm);
	snprintf(k->name, sizeof k->name, "?");
	if (k->now.key.stack < 0 || bpf_map_lookup_elem(bpf_map__fd(l->bpf->maps.stacks), &id, stack))
		return;
	for (int i = 0; i < LIVE_DEPTH && stack[i]; i++) {
		const char *name = live_symbol(stack[i]);

		if (!name)
			continue;
		if (!strcmp(k->name, "?") && !is_common(name))
			snprintf(k->name, sizeof k->name, "%.*s", (int)strcspn(name, "."), name);
		user = pins_user_of(name);
		if (!user)
			continue;
		k->device = user->device;
		k->fit = pins_fit_of(user->device, user, longterm);
		return;
	}
}

static int by_id(const void *a, const void *b)
{
	const struct live_known *x = a, *y = b;

	return x->id != y->id ? (x->id < y->id ? -1 : 1) : 0;
}

/* NULL: the programs don't know it, either. */
struct live_known *live_known(struct live *l, uint64_t id)
{
	struct live_known key = {.id = id}, *new;
	void *found = tfind(&key, &l->known, by_id);

	if (found)
		return *(struct live_known **)found;
	new = calloc(1, sizeof *new);
	if (!new)
		return NULL;
	new->id = id;
	if (bpf_map_lookup_elem(bpf_map__fd(l->bpf->maps.sites), &id, &new->now) || !new->now.first_ns ||
	    !tsearch(new, &l->known, by_id)) {
		free(new);
		return NULL;
	}
	name_site(l, new);
	if (new->now.key.memory == CENSUS_FILE)
		new->path = pins_path(l->c, new->now.key.inode, new->now.key.dev, new->now.key.ino);
	pins_add(&l->order, &new);
	return new;
}

void live_drop(struct live *l, struct live_known *k)
{
	tdelete(k, &l->known, by_id);
	free(k->path);
	free(k);
}

void live_forget(struct live *l)
{
	for (size_t i = 0; i < l->order.n; i++)
		live_drop(l, *pins_at(&l->order, struct live_known *, i));
	pins_free(&l->order);
	live_free_symbols();
}

/* Of a process, whose name may have anything in it. */
static const char *after_name(const char *path, char *text, size_t len)
{
	FILE *f = fopen(path, "re");
	const char *end;
	size_t n;

	if (!f)
		return NULL;
	n = fread(text, 1, len - 1, f);
	fclose(f);
	for (size_t i = 0; i < n; i++)
		text[i] = text[i] ? text[i] : '?';
	text[n] = 0;
	errno = 0;
	end = strrchr(text, ')');
	return end && end[1] == ' ' ? end + 2 : NULL;
}

/* The number may be another process' by now. What can't be read isn't known, and so not gone. */
bool live_is_gone(const struct live_site *site)
{
	unsigned long long started = 0, ticks = (unsigned long long)sysconf(_SC_CLK_TCK);
	char path[40], text[1024];
	const char *after;
	int threads = 0;

	snprintf(path, sizeof path, "/proc/%u/stat", site->key.tgid);
	after = after_name(path, text, sizeof text);
	if (!after)
		return errno == ENOENT || errno == ESRCH;
	if (sscanf(after,
		   "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %d %*d %llu",
		   &threads, &started) != 2)
		return false;
	if ((*after == 'Z' && threads <= 1) || *after == 'X')
		return true;
	return started != site->key.started_ns / (1000000000 / ticks);
}

bool live_wanted(const struct live *l, const struct live_known *k)
{
	const struct live_key *key = &k->now.key;

	return pins_wanted(&l->o->filter, (int32_t)key->tgid, k->device,
			   &(struct pins_memory){key->ino, key->dev, key->memory});
}
