/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef FUZZ_WIRE_H
#define FUZZ_WIRE_H

#include <stddef.h>
#include <stdint.h>

/* libFuzzer's name for it. Aborts where the decoder is wrong. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#endif
