/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What keeps changes being counted when pinleased is killed: a folder beside the gate's (gate_pin.c). */
#ifndef PL_DAEMON_GENERATION_PIN_H
#define PL_DAEMON_GENERATION_PIN_H

#include "daemon/gate_load.h"
#include "daemon/generation_load.h"

/* dir: the gate's. The folder of this process; 0, or -errno and a sentence. */
int generation_pin_begin(const char *dir, char *own, unsigned long size);
void generation_pin_end(const char *own);

/* What processes that have ended have left is over: whose changes they counted is told. How many folders
 * are left. */
unsigned generation_take_over(const char *dir, const char *own);
bool generation_is_left(const char *dir, const char *own); /* anything to take over? */

#endif
