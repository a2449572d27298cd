/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The pinlease command: finds the subcommand and runs it. */
#include <argp.h>
#include <stdio.h>
#include <string.h>

#include "command.h"

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *what;
} commands[] = {
	{"demo", cmd_demo, "show a truncated file and a device under every policy"},
	{"doctor", cmd_doctor, "try what this machine can promise, and say why not more"},
	{"p2p", cmd_p2p, "say whether two devices may talk to each other, and why (not)"},
	{"pins", cmd_pins, "show who pins which memory of this machine, also without pinlease"},
	{"ps", cmd_ps, "show whose memory of files is leased to which device"},
	{"recall", cmd_recall, "have leases released, by their holders or by force"},
	{"run", cmd_run, "start a command whose changes of files in memory wait for leases"},
	{"sources", cmd_sources, "show which changes of memory and files are seen here"},
	{"status", cmd_status, "show what pinleased does, and its limits"},
	{"top", cmd_top, "watch who has how much leased, and what is being recalled"},
	{"trace", cmd_trace, "follow what happens to leases"},
};

/* Seen by the C library, which is where it is printed. */
__attribute__((visibility("default"))) const char *argp_program_version = "pinlease " PINLEASE_VERSION;

#define NR_COMMANDS (sizeof(commands) / sizeof(*commands))

struct choice {
	int command; /* -1: none */
	int argc;
	char **argv;
};

static int find_command(const char *name)
{
	for (size_t i = 0; i < NR_COMMANDS; i++)
		if (!strcmp(commands[i].name, name))
			return (int)i;
	return -1;
}

/* The first word is the command; the words after it are not looked at here. */
static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct choice *choice = state->input;

	switch (key) {
	case ARGP_KEY_ARG:
		choice->command = find_command(arg);
		if (choice->command < 0)
			argp_error(state, "no command \"%s\"", arg);
		choice->argc = state->argc - state->next + 1;
		choice->argv = state->argv + state->next - 1;
		state->next = state->argc;
		return 0;
	case ARGP_KEY_NO_ARGS:
		argp_error(state, "no command; pinlease --help lists them");
		return 0;
	}
	return ARGP_ERR_UNKNOWN;
}

static char *list_commands(int key, const char *text, void *input)
{
	char *list = NULL;
	size_t len;
	FILE *f;

	if (key != ARGP_KEY_HELP_POST_DOC)
		return (char *)text;
	f = open_memstream(&list, &len);
	if (!f)
		return (char *)text;
	fprintf(f, "Commands:\n");
	for (size_t i = 0; i < NR_COMMANDS; i++)
		fprintf(f, "  %-10s %s\n", commands[i].name, commands[i].what);
	fprintf(f, "\nSee pinlease(1), or pinlease COMMAND --help.");
	fclose(f);
	return list;
}

int main(int argc, char **argv)
{
	static const struct argp argp = {
		.parser = parse,
		.args_doc = "COMMAND [OPTION...]",
		.doc = "DMA pins that can be taken back.\v",
		.help_filter = list_commands,
	};
	struct choice choice = {.command = -1};
	char name[32];

	argp_err_exit_status = EXIT_CANT_START;
	argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, &choice);
	if (choice.command < 0)
		return EXIT_CANT_START;
	snprintf(name, sizeof name, "pinlease %s", commands[choice.command].name);
	choice.argv[0] = name; /* what its help and its errors call it */
	return commands[choice.command].run(choice.argc, choice.argv);
}
