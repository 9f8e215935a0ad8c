/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What all test programs share: assertions, numbers from /proc, limits, children. The tests of
 * exmap_user.h include this as C and as C++.
 */
#ifndef TEST_BASE_H
#define TEST_BASE_H

#include <grp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include "check_main.h"

#define PAGE 4096UL
#define MIB (1UL << 20)
#define GIB (1UL << 30)
#define TIB (1UL << 40)

/*
 * Set in a child that its test kills while the child works. Each assertion that holds writes a
 * note to a file that the child shares with its parent. If the signal cut such a write short at
 * the end of a page, the check library would end the whole program with "Bad message type". So
 * the assertions of a doomed child write no notes.
 */
static bool doomed;
#define _mark_point(file, line) (doomed ? (void)0 : (_mark_point)(file, line))

/* Assert that @call returns -1 and sets errno to @err. */
#define assert_errno(call, err) do {						\
	errno = 0;								\
	long ret_ = (long)(call);						\
	int errno_ = errno;							\
	ck_assert_msg(ret_ == -1 && errno_ == (err),				\
		      "%s: returned %ld (%s), expected -1 (%s)", #call, ret_,	\
		      strerror(errno_), strerror(err));				\
} while (0)

#define assert_ok(call) do {							\
	long ret_ = (long)(call);						\
	ck_assert_msg(ret_ != -1, "%s: %s", #call, strerror(errno));		\
} while (0)

/*
 * How many rounds to run instead of @rounds. vm/init sets $EXMAP_TEST_SLOWDOWN for the debug
 * kernels: each round takes that many times longer, so the test runs that many times fewer.
 */
static inline int scaled(int rounds)
{
	const char *slowdown = getenv("EXMAP_TEST_SLOWDOWN");
	int times = slowdown ? atoi(slowdown) : 1;

	return times > 1 ? (rounds + times - 1) / times : rounds;
}

/* The number after @key, which starts a line of @file in /proc. */
static inline long kib_of(const char *file, const char *key)
{
	char line[256];
	long kib = -1;
	FILE *f = fopen(file, "r");

	ck_assert_ptr_nonnull(f);
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, key, strlen(key)))
			kib = atol(line + strlen(key) + 1);
	fclose(f);
	ck_assert_int_ge(kib, 0);
	return kib;
}

/* The number in a file that holds nothing else. */
static inline long number_in(const char *path)
{
	FILE *f = fopen(path, "r");
	long number;

	ck_assert_msg(f && fscanf(f, "%ld", &number) == 1, "no number in %s", path);
	fclose(f);
	return number;
}

/* The number after exmap-@key in /proc/self/fdinfo; -1 if fdinfo has no such line. */
static inline long fdinfo(int fd, const char *key)
{
	char path[64], line[256];
	size_t len = strlen(key);
	long number = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	f = fopen(path, "r");
	ck_assert_ptr_nonnull(f);
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, "exmap-", 6) && !strncmp(line + 6, key, len) &&
		    line[6 + len] == ':')
			number = atol(line + 6 + len + 1);
	fclose(f);
	return number;
}

#define assert_fdinfo(fd, key, want) ck_assert_int_eq(fdinfo(fd, key), want)

/*
 * Available memory, in KiB. The kernel's own figure leaves out the pages on the lists of each
 * CPU, which are tens of MiB since Linux 6.7. They are added here.
 */
static inline long available_kib(void)
{
	int refresh = open("/proc/sys/vm/stat_refresh", O_WRONLY | O_CLOEXEC);
	long pages = 0, count;
	char line[256];
	FILE *f;

	/* The kernel adds up the counters of all CPUs; only root may ask for that. */
	if (refresh >= 0) {
		(void)!write(refresh, "1", 1);
		close(refresh);
	}
	f = fopen("/proc/zoneinfo", "r");
	ck_assert_ptr_nonnull(f);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, " count: %ld", &count) == 1)
			pages += count;
	fclose(f);
	return kib_of("/proc/meminfo", "MemAvailable:") + pages * (long)(PAGE / 1024);
}

/*
 * Assert that less than @slack KiB of memory is missing compared with @before. RCU frees some of
 * it late, so this waits up to 10 seconds.
 */
static inline void assert_available(long before, long slack)
{
	for (int i = 0; i < 100 && before - available_kib() >= slack; i++)
		usleep(100000);
	before -= available_kib();
	ck_assert_msg(before < slack, "%ld KiB less memory than before", before);
}

/* Become a user without capabilities. */
static inline void drop_privileges(void)
{
	assert_ok(setgroups(0, NULL));
	assert_ok(setresgid(65534, 65534, 65534));
	assert_ok(setresuid(65534, 65534, 65534));
	/* As for a user who has logged in: the process may read its own files in /proc. */
	assert_ok(prctl(PR_SET_DUMPABLE, 1));
}

static inline void set_memlock(size_t bytes)
{
	struct rlimit limit = { bytes, bytes };

	assert_ok(setrlimit(RLIMIT_MEMLOCK, &limit));
}

static inline bool all_bytes(const char *page, char byte)
{
	return page[0] == byte && !memcmp(page, page + 1, PAGE - 1);
}

/* Wait for a child. It must exit with status @want, or end by signal @want. */
static inline void wait_child(pid_t pid, int want)
{
	int status;

	assert_ok(waitpid(pid, &status, 0));
	ck_assert_msg(WIFEXITED(status) ? WEXITSTATUS(status) == want
					: WTERMSIG(status) == want,
		      "child: status %#x, expected %d", status, want);
}

/* Does the machine run at least this version of Linux? */
static inline bool kernel_is_since(int major, int minor)
{
	struct utsname name;
	int its_major, its_minor;

	assert_ok(uname(&name));
	ck_assert_int_eq(sscanf(name.release, "%d.%d", &its_major, &its_minor), 2);
	return its_major > major || (its_major == major && its_minor >= minor);
}

#endif /* TEST_BASE_H */
