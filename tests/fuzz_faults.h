/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef FUZZ_FAULTS_H
#define FUZZ_FAULTS_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#endif
