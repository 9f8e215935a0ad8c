/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The resident set of the process: shared memory, as the kernel counts it
 */
#ifndef TEST_RSS_H
#define TEST_RSS_H

#include "base.h"

static inline long rss(void)
{
	return kib_of("/proc/self/status", "RssShmem:");
}

/* The kernel counts on each CPU, and adds up in steps of 32 pages or two per CPU. */
static inline long rss_slack(void)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN), step = cpus > 16 ? 2 * cpus : 32;

	return 4 * cpus * step;
}

#endif /* TEST_RSS_H */
