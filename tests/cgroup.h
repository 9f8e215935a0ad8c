/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A memory cgroup of the test's own
 */
#ifndef TEST_CGROUP_H
#define TEST_CGROUP_H

#include <sys/stat.h>

#include "base.h"

/* Only where there is a memory controller. */
#define MEMCG "/sys/fs/cgroup/memory.stat"

static char cgroup[64];

static inline void cgroup_file(char *path, size_t size, const char *file)
{
	snprintf(path, size, "%s/%s", cgroup, file);
}

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

static inline long cgroup_kib(void)
{
	char path[128];

	cgroup_file(path, sizeof(path), "memory.current");
	return number_in(path) / 1024;
}

static inline long cgroup_events(const char *key)
{
	char path[128];

	cgroup_file(path, sizeof(path), "memory.events");
	return kib_of(path, key);
}

static inline void cgroup_new(const char *max)
{
	strcpy(cgroup, "/sys/fs/cgroup");
	ck_assert(cgroup_write("cgroup.subtree_control", "+memory"));
	snprintf(cgroup, sizeof(cgroup), "/sys/fs/cgroup/exmap-hostile-%d", getpid());
	assert_ok(mkdir(cgroup, 0755));
	ck_assert(cgroup_write("memory.max", max));
	cgroup_write("memory.swap.max", "0");	/* not in every kernel */
}

/* A child in it. */
static inline pid_t cgroup_fork(void)
{
	pid_t pid = fork();

	assert_ok(pid);
	if (!pid)
		ck_assert(cgroup_write("cgroup.procs", "0"));
	return pid;
}

/*
 * What was charged is given back: after a while, and but for what each CPU keeps at
 * hand (64 pages) and for what a process leaves in caches.
 */
static inline void cgroup_settle(void)
{
	long slack_kib = 1024 + 256 * sysconf(_SC_NPROCESSORS_ONLN);

	for (int i = 0; cgroup_kib() > slack_kib && i < 300; i++)
		usleep(100000);
	ck_assert_int_le(cgroup_kib(), slack_kib);
}

#endif /* TEST_CGROUP_H */
