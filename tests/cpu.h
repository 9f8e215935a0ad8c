/* SPDX-License-Identifier: GPL-2.0 */
/*
 * On which CPU a thread runs.
 */
#ifndef TEST_CPU_H
#define TEST_CPU_H

#include <sched.h>

#include "base.h"

/* Make the calling thread, and threads that it will create, run on @cpu only. */
static inline void run_on(int cpu)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	assert_ok(sched_setaffinity(0, sizeof(cpus), &cpus));
}

#endif /* TEST_CPU_H */
