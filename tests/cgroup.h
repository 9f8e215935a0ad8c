/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A memory cgroup that a test makes for itself.
 */
#ifndef TEST_CGROUP_H
#define TEST_CGROUP_H

#include <sys/stat.h>

#include "base.h"

/* A file that exists only if the kernel has a memory controller: for .needs of a test. */
#define MEMCG "/sys/fs/cgroup/memory.stat"

/* The directory of the cgroup. */
static char cgroup[64];

static inline void cgroup_file(char *path, size_t size, const char *file)
{
	snprintf(path, size, "%s/%s", cgroup, file);
}

/* Write to a file of the cgroup. Returns whether that succeeded. */
static inline bool cgroup_write(const char *file, const char *text)
{
	char path[128];
	int fd;
	bool ok;

	cgroup_file(path, sizeof(path), file);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return ok;
}

/* How much memory is charged to the cgroup, in KiB. */
static inline long cgroup_kib(void)
{
	char path[128];

	cgroup_file(path, sizeof(path), "memory.current");
	return number_in(path) / 1024;
}

/* A number from the file memory.events. */
static inline long cgroup_events(const char *key)
{
	char path[128];

	cgroup_file(path, sizeof(path), "memory.events");
	return kib_of(path, key);
}

/* Make the cgroup. @max is its limit as memory.max wants it: bytes, "16M" or "max". */
static inline void cgroup_new(const char *max)
{
	strcpy(cgroup, "/sys/fs/cgroup");
	ck_assert(cgroup_write("cgroup.subtree_control", "+memory"));
	snprintf(cgroup, sizeof(cgroup), "/sys/fs/cgroup/exmap-hostile-%d", getpid());
	assert_ok(mkdir(cgroup, 0755));
	ck_assert(cgroup_write("memory.max", max));
	cgroup_write("memory.swap.max", "0");	/* some kernels have no such file */
}

/* Fork a child into the cgroup. */
static inline pid_t cgroup_fork(void)
{
	pid_t pid = fork();

	assert_ok(pid);
	if (!pid)
		ck_assert(cgroup_write("cgroup.procs", "0"));
	return pid;
}

/*
 * Wait until what was charged is given back. Two things may remain: 64 pages that each CPU
 * keeps charged in advance, and what a process leaves in caches.
 */
static inline void cgroup_settle(void)
{
	long slack_kib = 1024 + 256 * sysconf(_SC_NPROCESSORS_ONLN);

	for (int i = 0; cgroup_kib() > slack_kib && i < 300; i++)
		usleep(100000);
	ck_assert_int_le(cgroup_kib(), slack_kib);
}

#endif /* TEST_CGROUP_H */
