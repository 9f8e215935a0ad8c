/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tests of the backing file share: the file, the contents of its pages, and the tests
 * that run both on a buffered file in /tmp and on what these variables name:
 *
 * EXMAP_TEST_DEVICE     a block device, which is overwritten, or a directory in which a file is
 *                       made; opened with O_DIRECT, unless EXMAP_TEST_BUFFERED is set
 * EXMAP_TEST_DIRECTORY  a directory on a file system that the tests fill up; the same
 */
#ifndef TEST_IO_COMMON_H
#define TEST_IO_COMMON_H

#include <pthread.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "arch.h"
#include "common.h"

#define FILE_PAGES 1024		/* pages of the file or device that the tests use */
#define PAGE_WORDS (PAGE / sizeof(uint64_t))

static inline CRC32C_TARGET uint64_t crc32c(const uint64_t *word, size_t nr)
{
	uint64_t crc = ~0U;

	while (nr--)
		crc = CRC32C_STEP(crc, *word++);
	return crc;
}

/*
 * fill() writes the contents of a page of the file: its number, a generation, words that follow
 * from both, and a checksum. holds() checks number, generation and checksum.
 */
static inline uint64_t mix(uint64_t page, uint64_t generation)
{
	uint64_t x = page * 0x9e3779b97f4a7c15 + generation * 0xbf58476d1ce4e5b9;

	return (x ^ x >> 29) * 0x94d049bb133111eb;
}

static inline void fill(void *where, uint64_t page, uint64_t generation)
{
	uint64_t seed = mix(page, generation), *word = where;

	word[0] = page;
	word[1] = generation;
	for (size_t i = 2; i < PAGE_WORDS - 1; i++)
		word[i] = seed + i;
	word[PAGE_WORDS - 1] = crc32c(word, PAGE_WORDS - 1);
}

static inline bool holds(const void *where, uint64_t page, uint64_t generation)
{
	const uint64_t *word = where;

	return word[0] == page && word[1] == generation &&
	       word[PAGE_WORDS - 1] == crc32c(word, PAGE_WORDS - 1);
}

/* O_DIRECT, unless EXMAP_TEST_BUFFERED is set. */
static inline int direct_flag(void)
{
	return getenv("EXMAP_TEST_BUFFERED") ? 0 : O_DIRECT;
}

/* Open @path, or, if it is a directory, a new file there that has no name. */
static inline int file_open(const char *path, int flags)
{
	struct stat stat_buffer;
	int fd;

	assert_ok(stat(path, &stat_buffer));
	if (S_ISDIR(stat_buffer.st_mode))
		flags |= O_TMPFILE;
	fd = open(path, O_RDWR | flags, 0600);
	assert_ok(fd);
	return fd;
}

/* Fill pages from 0 on with generation 0. The device may be slow, so one call writes all. */
static inline void file_fill(int fd, uint64_t pages)
{
	char *buffer = aligned_alloc(PAGE, pages * PAGE);

	for (uint64_t page = 0; page < pages; page++)
		fill(buffer + page * PAGE, page, 0);
	ck_assert_int_eq(pwrite(fd, buffer, pages * PAGE, 0), pages * PAGE);
	free(buffer);
}

/* Open the backing file in this mode, filled with generation 0. */
static inline int backing_open(bool device, int mode)
{
	int flags = device ? direct_flag() : 0;
	int fd = file_open(device ? getenv("EXMAP_TEST_DEVICE") : "/tmp", flags);
	char path[32];

	file_fill(fd, FILE_PAGES);
	if (mode == O_RDWR)
		return fd;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	fd = open(path, mode | flags);
	assert_ok(fd);
	return fd;
}

/* Like holds(), for a page of the file itself. */
static inline bool file_holds(int fd, uint64_t page, uint64_t generation)
{
	static char buffer[PAGE] __attribute__((aligned(4096)));

	ck_assert_int_eq(pread(fd, buffer, PAGE, page * PAGE), PAGE);
	return holds(buffer, page, generation);
}

/* An exmap with a backing file: a pool of @pages, and a surface twice as large as the file. */
static inline struct exmap *exmap_on(int file, size_t pages)
{
	return exmap_new_file(2 * FILE_PAGES * PAGE, pages, 2, 0, file);
}

#define read_pages(ex, page, len) run(ex, 0, EXMAP_OP_READ, page, len)
#define write_pages(ex, page, len) run(ex, 0, EXMAP_OP_WRITE, page, len)

/* No page of a pool of @pages is lost: all that are not mapped can be allocated, and no more. */
static inline void assert_pool(struct exmap *ex, int pages)
{
	int rest = pages - stats(ex).alloc_count;

	ck_assert_uint_eq(resident(ex, 0, 2 * FILE_PAGES), pages - rest);
	ck_assert_int_eq(alloc(ex, 0, FILE_PAGES, rest), rest);
	ck_assert_int_eq(alloc(ex, 0, rest < FILE_PAGES ? FILE_PAGES + rest : 0, 1), -ENOMEM);
	ck_assert_int_eq(release(ex, 0, FILE_PAGES, rest), rest);
}

/*
 * A thread notes in its struct what went wrong. The test asserts after pthread_join() that the
 * note is empty.
 */
#define note_error(who, ...) snprintf((who)->error, sizeof((who)->error), __VA_ARGS__)

/*
 * Two tests with one body: name_one runs it with the variable @other false, name_other with @other
 * true. What follows the third argument is passed to the TEST() of name_other.
 */
#define TEST_TWICE(name, one, other, ...)					\
	static void name(bool other);						\
	TEST(name##_##one) { name(false); }					\
	TEST(name##_##other, __VA_ARGS__) { name(true); }			\
	static void name(bool other)

#define ON_A_DEVICE	.needs_env = "EXMAP_TEST_DEVICE"

/* Two tests with one body: on a file, and on the block device if the variable @device is true. */
#define TEST_BOTH(name) TEST_TWICE(name, file, device, ON_A_DEVICE)

#endif /* TEST_IO_COMMON_H */
