/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A CPU on which a real-time task keeps every other task from running
 */
#ifndef TEST_STARVE_H
#define TEST_STARVE_H

#include <sched.h>

#include "cpu.h"

enum {
	KTHREADD = 2,	/* its process ID */
};

/*
 * Let a real-time task use all the time of @cpu. By default the kernel leaves 5 % of it to other
 * tasks: by throttling real-time tasks or, since 6.12, by the fair server.
 */
static inline void allow_starving(int cpu)
{
	char fair_server[64];
	const char *const settings[][2] = {
		{ "/proc/sys/kernel/sched_rt_runtime_us", "-1" },
		{ fair_server, "0" },
	};
	cpu_set_t others;

	snprintf(fair_server, sizeof(fair_server),
		 "/sys/kernel/debug/sched/fair_server/cpu%d/runtime", cpu);
	for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++) {
		int fd = open(settings[i][0], O_WRONLY | O_CLOEXEC);

		if (fd < 0)
			continue;
		/* 6.12 may answer EBUSY if the value is set already. */
		ck_assert(write(fd, settings[i][1], strlen(settings[i][1])) > 0 || errno == EBUSY);
		close(fd);
	}
	/* A new kernel thread must not wait for @cpu. It inherits its affinity from kthreadd. */
	CPU_ZERO(&others);
	for (int other = 0; other < CPU_SETSIZE; other++)
		if (other != cpu)
			CPU_SET(other, &others);
	assert_ok(sched_setaffinity(KTHREADD, sizeof(others), &others));
}

#endif /* TEST_STARVE_H */
