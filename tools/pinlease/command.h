/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The subcommands of pinlease: each gets its own name as argv[0] and returns the exit status. */
#ifndef PINLEASE_COMMAND_H
#define PINLEASE_COMMAND_H

#define EXIT_FAILED_PROMISE 1
#define EXIT_CANT_START	    2 /* also a wrong command line */

int cmd_demo(int argc, char **argv);
int cmd_doctor(int argc, char **argv);
int cmd_p2p(int argc, char **argv);
int cmd_pins(int argc, char **argv);
int cmd_ps(int argc, char **argv);
int cmd_recall(int argc, char **argv);
int cmd_run(int argc, char **argv);
int cmd_sources(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_top(int argc, char **argv);
int cmd_trace(int argc, char **argv);

#endif
