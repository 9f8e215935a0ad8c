// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * libexmap: the functions and constants of exmap_user.h for languages that cannot include it. A
 * program in C or C++ needs only the header.
 */
#define EXMAP_LIBRARY
#include "exmap_user.h"

/* A symbol with the name of a constant. All of them are 64 bits wide. */
#define CONSTANT(name, value) const uint64_t name##_constant __asm__(#name) = (value)

CONSTANT(EXMAP_PAGE_SIZE, EXMAP_PAGE_SIZE);
CONSTANT(EXMAP_MAX_RUN, EXMAP_MAX_RUN);
CONSTANT(EXMAP_MAX_INTERFACES, EXMAP_MAX_INTERFACES);
CONSTANT(EXMAP_MAX_QUARANTINE, EXMAP_MAX_QUARANTINE);
CONSTANT(EXMAP_USER_INTERFACE_PAGES, EXMAP_USER_INTERFACE_PAGES);
CONSTANT(EXMAP_OP_READ, EXMAP_OP_READ);
CONSTANT(EXMAP_OP_ALLOC, EXMAP_OP_ALLOC);
CONSTANT(EXMAP_OP_FREE, EXMAP_OP_FREE);
CONSTANT(EXMAP_OP_WRITE, EXMAP_OP_WRITE);
CONSTANT(EXMAP_ALLOC_PROBE, EXMAP_ALLOC_PROBE);
CONSTANT(EXMAP_PAGEFAULT_ALLOC, EXMAP_PAGEFAULT_ALLOC);
CONSTANT(EXMAP_FREE_DEFER, EXMAP_FREE_DEFER);
CONSTANT(EXMAP_WITH_MADVISE, EXMAP_WITH_MADVISE);
/* How many bytes a program allocates for struct exmap and struct exmap_interface. */
CONSTANT(EXMAP_SIZE, sizeof(struct exmap));
CONSTANT(EXMAP_INTERFACE_SIZE, sizeof(struct exmap_interface));
