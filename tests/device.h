/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The block devices of the tests: open and fill one, stop it, let it go on.
 *
 * A test stops a device to see what happens while a request is in flight. It enters a cgroup
 * that may do almost no I/O on the device, and lifts the limit when it has seen what it wants.
 * EXMAP_TEST_SLOW_DEVICE does not do for that, because it moves the data at once and only its
 * answer is late.
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

/* Lift the limit of a group: requests that were stopped go on. */
static inline void device_go_group(int group)
{
	group_limit(group, "max");
}

static inline void device_go(void)
{
	device_go_group(0);
}

/*
 * Start a process that lifts the limits after 40 s, if the test has not ended by then. It is
 * needed because a process that waits for the device cannot be killed.
 */
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
	/* If the test has ended then the pipe is closed, and another test may have the device. */
	if (!poll(&(struct pollfd){ .fd = 0, .events = POLLIN }, 1, 40000)) {
		device_go_group(0);
		device_go_group(1);
	}
	_exit(0);
}

/* Stop the device for this process, which enters group 0 or 1: its requests wait from now on. */
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
	 * Two bytes per second is the lowest limit. On 6.12 a group may use what it has saved up
	 * while earlier tests had stopped the device, and that must be less than a page.
	 */
	group_limit(group, "2");
	snprintf(path, sizeof(path), CGROUPS "/exmap-test-%d/cgroup.procs", group);
	write_file(path, "0");
}

static inline void device_stop(int fd)
{
	device_stop_group(fd, 0);
}

/* Open the block device that @variable names; fill its first @pages pages with generation 0. */
static inline int device_open(const char *variable, size_t pages)
{
	int fd = open(getenv(variable), O_RDWR | O_DIRECT | O_CLOEXEC);

	assert_ok(fd);
	file_fill(fd, pages);
	return fd;
}

#endif /* TEST_DEVICE_H */
