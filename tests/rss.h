/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The resident set of this process, to which exmap adds its memory.
 */
#ifndef TEST_RSS_H
#define TEST_RSS_H

#include "base.h"

/* Resident shared memory, in KiB. */
static inline long rss(void)
{
	return kib_of("/proc/self/status", "RssShmem:");
}

/*
 * By how many KiB rss() may be wrong. Each CPU counts on its own, and reports steps of 32 pages,
 * or of twice the number of CPUs if that is more.
 */
static inline long rss_slack(void)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN), step = cpus > 16 ? 2 * cpus : 32;

	return 4 * cpus * step;
}

#endif /* TEST_RSS_H */
