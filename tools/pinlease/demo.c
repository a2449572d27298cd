/* SPDX-License-Identifier: GPL-2.0-or-later */
/* pinlease demo: options, the order of things, the exit status. */
#include "demo.h"

#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command.h"

#define LIMIT_S 60 /* for all of it; longer means that something hangs */

enum { KEY_HTML = 0x100, KEY_DIR, KEY_TMPFS }; /* no short forms */

struct options {
	const char *html, *dir, *tmpfs;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case KEY_HTML:
		o->html = arg;
		return 0;
	case KEY_DIR:
		o->dir = arg;
		return 0;
	case KEY_TMPFS:
		o->tmpfs = arg;
		return 0;
	case ARGP_KEY_ARG:
		argp_usage(state);
		return 0;
	}
	return ARGP_ERR_UNKNOWN;
}

static const struct argp argp = {
	.options =
		(const struct argp_option[]){
			{"html", KEY_HTML, "FILE", 0,
			 "Also write the result to FILE, a page with timelines", 0},
			{"dir", KEY_DIR, "DIR", 0, "Make the files on ext4, XFS or btrfs in DIR", 0},
			{"tmpfs", KEY_TMPFS, "DIR", 0, "Make the files on tmpfs in DIR", 0},
			{0},
		},
	.parser = parse,
	.doc = "Let a second process truncate files that an io_uring ring writes to: without "
	       "pinlease, then under every policy.",
};

/* What was in the file stays until there is something new to write. */
static FILE *open_page(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
	FILE *page = fd < 0 ? NULL : fdopen(fd, "w");

	if (!page)
		fprintf(stderr, "pinlease demo: can't write %s: %s\n", path, strerror(errno));
	return page;
}

static int write_page(FILE *page, const char *path, const struct demo_results *all)
{
	int err = ftruncate(fileno(page), 0) && errno != EINVAL; /* EINVAL: a pipe or a terminal */

	if (!err)
		demo_html(page, all);
	err |= ferror(page);
	if (fclose(page) || err) {
		fprintf(stderr, "pinlease demo: can't write %s: %s\n", path, strerror(errno));
		return -1;
	}
	printf("The timelines: %s\n", path);
	return 0;
}

static int ask_sources(struct demo_results *all)
{
	struct pinl_ctx *ctx;
	int err = pinl_open(NULL, &ctx);

	if (err) {
		fprintf(stderr, "pinlease demo: %s\n", pinl_error());
		return err;
	}
	pinl_sources(ctx, all->sources, sizeof(all->sources));
	pinl_close(ctx);
	return 0;
}

static int run(struct demo_results *all)
{
	uint64_t start = tool_now();

	if (ask_sources(all))
		return -1;
	for (; all->n < demo_nr_plans; all->n++) {
		demo_progress(all->n, all->env, &demo_plans[all->n]);
		demo_run_case(all->env, &demo_plans[all->n], &all->rows[all->n]);
		demo_progress_end(&all->rows[all->n]);
	}
	all->took_ns = tool_now() - start;
	demo_table(stdout, all);
	return 0;
}

static int demo(const struct demo_env *env, const struct options *o, FILE *page)
{
	struct demo_results all = {.env = env, .rows = calloc(demo_nr_plans, sizeof(*all.rows))};
	int status = EXIT_CANT_START;

	if (all.rows && !run(&all)) {
		status = demo_count(&all, FAILED) ? EXIT_FAILED_PROMISE : 0;
		if (!status && !demo_count(&all, WENT_WELL)) /* nothing was shown */
			status = EXIT_CANT_START;
		if (!page)
			printf("The timeline of each row, drawn: pinlease demo --html FILE\n");
		else if (write_page(page, o->html, &all))
			status = EXIT_CANT_START;
		if (tool_flush("pinlease demo"))
			status = EXIT_CANT_START;
	}
	free(all.rows);
	return status;
}

int cmd_demo(int argc, char **argv)
{
	struct options o = {0};
	struct demo_env env = {0};
	FILE *page = NULL;
	int err, status;

	argp_parse(&argp, argc, argv, 0, NULL, &o);
	err = second_start(&demo_second_ops, &env.second);
	if (err) {
		fprintf(stderr, "pinlease demo: can't start a second process: %s\n", strerror(-err));
		return EXIT_CANT_START;
	}
	status = EXIT_CANT_START;
	alarm(LIMIT_S);
	if (!demo_find_dirs(&env, o.tmpfs, o.dir) && (!o.html || (page = open_page(o.html))))
		status = demo(&env, &o, page);
	second_stop(env.second);
	return status;
}
