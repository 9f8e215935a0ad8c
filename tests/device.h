/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The block devices of the tests: opened and filled, stopped and let go.
 *
 * A test stops a device to see what happens while a request is in flight. It enters a cgroup
 * that may do almost no I/O on the device, and lifts the limit when it has seen what it wants.
 * (EXMAP_TEST_SLOW_DEVICE cannot be used for that: it takes the data at once, and only its
 * answer is late.)
 */
#ifndef TEST_DEVICE_H
#define TEST_DEVICE_H

#include <poll.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "io_common.h"
#include "write_file.h"

#define CGROUPS "/sys/fs/cgroup"

static dev_t stopped_device;

static inline void group_limit(int group, const char *limit)
{
	char path[128], text[128];

	snprintf(path, sizeof(path), CGROUPS "/exmap-test-%d/io.max", group);
	snprintf(text, sizeof(text), "%u:%u rbps=%s wbps=%s", major(stopped_device),
		 minor(stopped_device), limit, limit);
	write_file(path, text);
}

/* Let through what was stopped in a group. */
static inline void device_go_group(int group)
{
	group_limit(group, "max");
}

static inline void device_go(void)
{
	device_go_group(0);
}

/* A process that waits for the device cannot even be killed: see that it ends. */
static inline void start_watchdog(void)
{
	int alive[2];
	pid_t pid;

	assert_ok(pipe2(alive, O_CLOEXEC));
	pid = fork();
	assert_ok(pid);
	if (pid)
		return;
	setsid();
	dup2(alive[0], 0);
	close_range(3, ~0U, 0);
	/* Where the test has ended the device may be another's. */
	if (!poll(&(struct pollfd){ .fd = 0, .events = POLLIN }, 1, 40000)) {
		device_go_group(0);
		device_go_group(1);
	}
	_exit(0);
}

/* From now on what this process asks of the device waits, in group 0 or 1. */
static inline void device_stop_group(int fd, int group)
{
	static bool watched;
	struct stat st;
	char path[128];

	assert_ok(fstat(fd, &st));
	stopped_device = st.st_rdev;
	if (!watched) {
		write_file(CGROUPS "/cgroup.subtree_control", "+io");
		for (int i = 0; i < 2; i++) {
			snprintf(path, sizeof(path), CGROUPS "/exmap-test-%d", i);
			ck_assert(!mkdir(path, 0755) || errno == EEXIST);
			device_go_group(i);
		}
		start_watchdog();
		watched = true;
	}
	/*
	 * Two bytes per second, the least there is: what was saved up in the time for which
	 * earlier tests have stopped it may count (6.12), and must not do for a page.
	 */
	group_limit(group, "2");
	snprintf(path, sizeof(path), CGROUPS "/exmap-test-%d/cgroup.procs", group);
	write_file(path, "0");
}

static inline void device_stop(int fd)
{
	device_stop_group(fd, 0);
}

/* Open a block device; fill so many pages with generation 0. */
static inline int device_open(const char *variable, size_t pages)
{
	int fd = open(getenv(variable), O_RDWR | O_DIRECT | O_CLOEXEC);

	assert_ok(fd);
	file_fill(fd, pages);
	return fd;
}

#endif /* TEST_DEVICE_H */
