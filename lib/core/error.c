/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The sentence for a thread's last failed call. */
#include <pinlease/device.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/sentence.h"

/* There from a thread's start, also if the library was opened late: the worker may not allocate, and on
 * the first use of a place made on demand the C library does. */
static _Thread_local char sentence[sizeof((struct pl_sentence *)0)->text]
	__attribute__((tls_model("initial-exec")));

int pinl_set_error(int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(sentence, sizeof sentence, fmt, ap);
	va_end(ap);
	return err;
}

void pl_sentence_keep(struct pl_sentence *kept)
{
	memcpy(kept->text, sentence, sizeof kept->text);
}

void pl_sentence_again(const struct pl_sentence *kept)
{
	memcpy(sentence, kept->text, sizeof kept->text);
}

const char *pinl_error(void)
{
	return sentence;
}
