/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Write a setting to a file in /proc, sysfs, configfs, debugfs or a cgroup.
 */
#ifndef TEST_WRITE_FILE_H
#define TEST_WRITE_FILE_H

#include "base.h"

static inline void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	ck_assert_msg(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text),
		      "cannot write \"%s\" to %s: %s", text, path, strerror(errno));
	close(fd);
}

#endif /* TEST_WRITE_FILE_H */
