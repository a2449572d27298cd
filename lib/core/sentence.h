/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* This thread's sentence for a failed call, kept over what is done to undo the call, which may fail,
 * too. */
#ifndef PL_CORE_SENTENCE_H
#define PL_CORE_SENTENCE_H

struct pl_sentence {
	char text[512];
};

void pl_sentence_keep(struct pl_sentence *kept);
void pl_sentence_again(const struct pl_sentence *kept);

#endif
