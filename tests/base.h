/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What all tests share: assertions, limits, children. C and C++.
 */
#ifndef TEST_BASE_H
#define TEST_BASE_H

#include <grp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "check_main.h"

#define PAGE 4096UL
#define MIB (1UL << 20)
#define GIB (1UL << 30)
#define TIB (1UL << 40)

/*
 * Set in a child that is to be killed while it works. An assertion that holds leaves a note in
 * a file that is the parent's, too; a write to it that is cut short by the signal, at the end
 * of a page, would be the end of the whole program: "Bad message type".
 */
static bool doomed;
#define _mark_point(file, line) (doomed ? (void)0 : (_mark_point)(file, line))

/* A call that returns -1 and this errno. */
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
 * How many rounds of something random to do: fewer where $EXMAP_TEST_SLOWDOWN says that
 * each takes that many times longer (vm/init sets it for the debug kernels).
 */
static inline int scaled(int rounds)
{
	const char *slowdown = getenv("EXMAP_TEST_SLOWDOWN");
	int times = slowdown ? atoi(slowdown) : 1;

	return times > 1 ? (rounds + times - 1) / times : rounds;
}

/* A number from a file of /proc: what comes after @key at the start of a line. */
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

/* The number that is all of a file. */
static inline long number_in(const char *path)
{
	FILE *f = fopen(path, "r");
	long number;

	ck_assert_msg(f && fscanf(f, "%ld", &number) == 1, "no number in %s", path);
	fclose(f);
	return number;
}

/* What /proc/self/fdinfo says about an exmap; -1 where it says nothing. */
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
 * Memory to be had, in KiB. What CPUs keep at hand of it (tens of MiB, since Linux 6.7)
 * the kernel does not count.
 */
static inline long available_kib(void)
{
	int refresh = open("/proc/sys/vm/stat_refresh", O_WRONLY | O_CLOEXEC);
	long pages = 0, count;
	char line[256];
	FILE *f;

	/* Root may have what CPUs have counted by themselves counted in. */
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

/* It is again as it was but for @slack KiB: soon, since RCU frees what others may look at. */
static inline void assert_available(long before, long slack)
{
	for (int i = 0; i < 100 && before - available_kib() >= slack; i++)
		usleep(100000);
	before -= available_kib();
	ck_assert_msg(before < slack, "%ld KiB less memory than before", before);
}

/* Become a user without any capability. */
static inline void drop_privileges(void)
{
	assert_ok(setgroups(0, NULL));
	assert_ok(setresgid(65534, 65534, 65534));
	assert_ok(setresuid(65534, 65534, 65534));
	/* Like one who has logged in as that user: he may look at himself in /proc. */
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

/* A child's exit status: 0 where all its assertions held. */
static inline void wait_child(pid_t pid, int want)
{
	int status;

	assert_ok(waitpid(pid, &status, 0));
	ck_assert_msg(WIFEXITED(status) ? WEXITSTATUS(status) == want
					: WTERMSIG(status) == want,
		      "child: status %#x, expected %d", status, want);
}

#endif /* TEST_BASE_H */
