/* SPDX-License-Identifier: GPL-2.0-or-later */
/* pinlease doctor: options, the order of things, the exit status. */
#include "doctor.h"

#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "command.h"
#include "given.h"

#define LIMIT_S 120 /* for one memory with one device; longer means that something hangs */

enum {
	KEY_JSON = 0x100,
	KEY_WITHOUT,
	KEY_MARKDOWN,
	KEY_DIR,
	KEY_VFIO,
	KEY_IOMMUFD
}; /* no short forms */

struct options {
	int as; /* KEY_JSON, KEY_WITHOUT, KEY_MARKDOWN; 0: the table */
	const char *dirs[DOCTOR_MAX_DIRS];
	unsigned n_dirs;
	struct doctor_groups groups;
};

static void add_group(struct doctor_groups *groups, bool iommufd, const char *arg,
		      struct argp_state *state)
{
	uint64_t number;

	if (groups->n == DOCTOR_MAX_GROUPS)
		argp_error(state, "at most %d groups", DOCTOR_MAX_GROUPS);
	if (tool_number(arg, 1u << 30, &number))
		argp_error(state, "\"%s\" is no number of an IOMMU group: ls /sys/kernel/iommu_groups",
			   arg);
	for (unsigned i = 0; i < groups->n; i++)
		if (groups->all[i].number == number)
			argp_error(state,
				   "group %s is given twice, and can be taken once: leave one out", arg);
	groups->all[groups->n].number = (unsigned)number;
	groups->all[groups->n++].iommufd = iommufd;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case KEY_JSON:
	case KEY_WITHOUT:
	case KEY_MARKDOWN:
		if (o->as && o->as != key)
			argp_error(state, "--json, --without and --markdown exclude each other");
		o->as = key;
		return 0;
	case KEY_DIR:
		if (o->n_dirs == DOCTOR_MAX_DIRS)
			argp_error(state, "at most %d directories", DOCTOR_MAX_DIRS);
		o->dirs[o->n_dirs++] = arg;
		return 0;
	case KEY_VFIO:
	case KEY_IOMMUFD:
		add_group(&o->groups, key == KEY_IOMMUFD, arg, state);
		return 0;
	case ARGP_KEY_END:
		if (o->groups.n && o->as && o->as != KEY_JSON)
			argp_error(state, "--without and --markdown lease nothing: leave out --vfio "
					  "and --iommufd");
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "what is \"%s\"? directories are given by --dir", arg);
		return 0;
	}
	return ARGP_ERR_UNKNOWN;
}

static const struct argp argp = {
	.options =
		(const struct argp_option[]){
			{"json", KEY_JSON, NULL, 0, "Print everything that was found, as JSON", 0},
			{"without", KEY_WITHOUT, NULL, 0, "Print what happens without pinlease instead",
			 0},
			{"markdown", KEY_MARKDOWN, NULL, 0,
			 "Print what --without prints, as a table for a document", 0},
			{"dir", KEY_DIR, "DIR", 0,
			 "Also look at files in DIR; may be given several times", 0},
			{"vfio", KEY_VFIO, "GROUP", 0,
			 "Also lease to devices of this IOMMU group, bound to vfio-pci; resets them", 0},
			{"iommufd", KEY_IOMMUFD, "GROUP", 0,
			 "As --vfio, by /dev/iommu instead of a VFIO container", 0},
			{0},
		},
	.parser = parse,
	.doc = "Try what this machine can promise: which changes of which memory are told, held and "
	       "refused, on which devices, and why not more.",
};

/* Files have no names and everything else ends with the process, so there is nothing to clean up. */
static void on_alarm(int sig)
{
	static const char stuck[] = "\npinlease doctor: stuck for two minutes, given up\n";

	if (write(STDERR_FILENO, stuck, sizeof(stuck) - 1) < 0)
		_exit(EXIT_CANT_START);
	_exit(EXIT_FAILED_PROMISE);
}

static void progress(const struct doctor *d, unsigned row, const char *what)
{
	alarm(LIMIT_S);
	if (!isatty(STDERR_FILENO))
		return;
	if (row < d->n)
		fprintf(stderr, "\r%u/%u %s, %s\033[K", row + 1, d->n, d->rows[row].memory->name, what);
	else
		fprintf(stderr, "\r\033[K");
	fflush(stderr);
}

/* ---------------------------------------------------------------------------------- what is here -- */

static void describe_machine(struct doctor *d)
{
	struct utsname u;

	uname(&u);
	snprintf(d->kernel, sizeof(d->kernel), "%s", u.release);
	snprintf(d->machine, sizeof(d->machine), "%s %s, %s, %s", u.sysname, u.release, u.machine,
		 geteuid() ? "as an ordinary user" : "as root");
}

static bool can_see_callers(void)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", gettid());
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

/* -------------------------------------------------------------------------------------- the order -- */

/* Without pinlease first: nothing of it is in the process yet. */
static void without(struct doctor *d)
{
	for (unsigned i = 0; i < d->n; i++) {
		progress(d, i, "without pinlease");
		if (!d->rows[i].memory->why[0])
			doctor_bare(&d->rows[i]);
	}
}

static int with_leases(struct doctor *d)
{
	struct pinl_opts opts = {.size = sizeof(opts), .summary_fd = -1, .ceiling_ms = 60000};
	int err = pinl_open(&opts, &d->ctx);

	if (err) {
		fprintf(stderr, "pinlease doctor: %s\n", pinl_error());
		return err;
	}
	given_sources(d->ctx, d->sources, sizeof(d->sources));
	d->sees_callers = can_see_callers();
	doctor_kernel(d);
	doctor_counts(d);
	doctor_pins(d);
	doctor_hardware(d);
	doctor_devices_open(d);
	for (unsigned i = 0; i < d->n; i++)
		for (unsigned k = 0; k < d->n_devices && !d->rows[i].memory->why[0]; k++) {
			progress(d, i, d->devices[k].name);
			doctor_pair(d, &d->rows[i], k);
		}
	progress(d, 0, "device memory");
	doctor_exports(d);
	doctor_gaps(d);
	return 0;
}

unsigned doctor_mismatches(const struct doctor *d)
{
	unsigned n = 0;

	for (unsigned i = 0; i < d->n; i++)
		for (unsigned k = 0; k < d->n_devices; k++)
			for (int op = 0; op < PINL_OP_NR; op++)
				n += doctor_short(&d->rows[i].pairs[k].cells[op]);
	for (unsigned i = 0; i < d->n_exports; i++)
		for (unsigned k = 0; k < d->n_devices; k++)
			for (int then = 0; then < DOCTOR_IMPORT_NR; then++)
				n += d->exports[i].imports[k][then].stays;
	return n;
}

static int print(const struct doctor *d, int as)
{
	if (as == KEY_JSON)
		doctor_json(stdout, d);
	else if (as == KEY_MARKDOWN)
		doctor_markdown(stdout, d);
	else if (as == KEY_WITHOUT)
		doctor_without(stdout, d);
	else
		doctor_table(stdout, d);
	return tool_flush("pinlease doctor");
}

static int run(struct doctor *d, int as)
{
	uint64_t start = tool_now();
	int err = 0;

	describe_machine(d);
	without(d);
	if (as == 0 || as == KEY_JSON)
		err = with_leases(d);
	progress(d, d->n, "");
	d->took_ns = tool_now() - start;
	if (!err)
		err = print(d, as);
	doctor_devices_close(d);
	pinl_close(d->ctx);
	if (err)
		return EXIT_CANT_START;
	return doctor_mismatches(d) ? EXIT_FAILED_PROMISE : 0;
}

static int start(struct doctor *d, const struct options *o)
{
	int err = doctor_memories(o->dirs, o->n_dirs, d->memories, &d->n), status;

	if (err)
		return EXIT_CANT_START;
	d->rows = calloc(d->n, sizeof(*d->rows));
	if (!d->rows || pipe2(d->actor.pipe, O_CLOEXEC)) {
		fprintf(stderr, "pinlease doctor: %s\n", strerror(errno));
		free(d->rows);
		return EXIT_CANT_START;
	}
	d->groups = o->groups;
	d->pci = -1;
	for (unsigned i = 0; i < d->n; i++)
		d->rows[i].memory = &d->memories[i];
	status = run(d, o->as);
	close(d->actor.pipe[0]);
	close(d->actor.pipe[1]);
	free(d->rows);
	return status;
}

int cmd_doctor(int argc, char **argv)
{
	struct options o = {0};
	struct doctor *d;
	int err, status;
	char why[DOCTOR_WHY];

	argp_parse(&argp, argc, argv, 0, NULL, &o);
	if (doctor_groups_check(&o.groups, why, sizeof(why))) {
		fprintf(stderr, "pinlease doctor: %s\n", why);
		return EXIT_CANT_START;
	}
	d = calloc(1, sizeof(*d));
	err = d ? second_start(&doctor_second_ops, &d->actor.second) : -ENOMEM;
	if (err) {
		fprintf(stderr, "pinlease doctor: can't start a second process: %s\n", strerror(-err));
		free(d);
		return EXIT_CANT_START;
	}
	signal(SIGALRM, on_alarm);
	alarm(LIMIT_S);
	status = start(d, &o);
	second_stop(d->actor.second);
	free(d);
	return status;
}
