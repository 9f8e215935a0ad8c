/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How a benchmark tells a plugin of QEMU what to measure: it stores to address MARK_ADDRESS + n. If
 * n is not 0, measurement n begins, and if it is 0, the measurement ends.
 */
#ifndef BENCH_MARK_H
#define BENCH_MARK_H

#include <errno.h>
#include <stdbool.h>
#include <sys/mman.h>

#define MARK_ADDRESS 0x6c696e657000UL
#define MARK_SIZE 4096UL	/* n is less than this */

/* Map the address for marks, before the first mark. Returns 0 or a negative errno. */
static inline int mark_map(void)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_POPULATE;

	return mmap((void *)MARK_ADDRESS, MARK_SIZE, PROT_READ | PROT_WRITE, flags, -1, 0) !=
	       (void *)MARK_ADDRESS ? -errno : 0;
}

static inline void mark_begin(unsigned int measurement)
{
	*(volatile char *)(MARK_ADDRESS + measurement) = 1;
}

static inline void mark_end(void)
{
	*(volatile char *)MARK_ADDRESS = 1;
}

#endif /* BENCH_MARK_H */
