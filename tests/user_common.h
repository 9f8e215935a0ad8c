/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tests of exmap_user.h share. C and C++.
 */
#ifndef TEST_USER_COMMON_H
#define TEST_USER_COMMON_H

#include <dirent.h>

#include "exmap_user.h"
#include "base.h"

/*
 * Pages of most surfaces: more than a table of page tables maps, and more than one batch of the
 * longest entries has.
 */
#define SURFACE ((uint64_t)1 << 22)
#define BATCH EXMAP_USER_INTERFACE_PAGES
#define WIDE ((uint64_t)1 << 52)	/* all page numbers are below this */

/* How many file descriptors and how many mappings of exmaps the process has, in all. */
static inline int held(void)
{
	DIR *directory = opendir("/proc/self/fd");
	char line[4096];
	int sum = -3;	/* without ".", ".." and the descriptor of @directory */
	FILE *maps;

	ck_assert_ptr_nonnull(directory);
	while (readdir(directory))
		sum++;
	closedir(directory);
	maps = fopen("/proc/self/maps", "r");
	ck_assert_ptr_nonnull(maps);
	while (fgets(line, sizeof(line), maps))
		sum += !!strstr(line, "/dev/exmap");
	fclose(maps);
	return sum;
}

static inline void open_one(struct exmap *exmap, uint64_t pool, unsigned int interfaces)
{
	ck_assert_int_eq(exmap_open(exmap, SURFACE, pool, interfaces, -1, 0), 0);
}

/* Open an exmap with one interface, and attach to that. */
static inline void open_attached(struct exmap *exmap, struct exmap_interface *interface,
				 uint64_t pool, int backing)
{
	ck_assert_int_eq(exmap_open(exmap, SURFACE, pool, 1, backing, 0), 0);
	ck_assert_int_eq(exmap_attach(exmap, interface), 0);
}

static inline struct exmap_ioctl_stats stats(const struct exmap *exmap)
{
	struct exmap_ioctl_stats stats;

	ck_assert_int_eq(exmap_stats(exmap, &stats), 0);
	return stats;
}

#define assert_mapped(exmap, n) ck_assert_uint_eq(stats(exmap).alloc_count, n)

/* A new file of @pages pages. Each page is full of one letter: A, B and so on. */
static inline int file_of_letters(unsigned int pages)
{
	char path[] = "/tmp/test-user-XXXXXX", page[EXMAP_PAGE_SIZE];
	int fd = mkstemp(path);

	assert_ok(fd);
	unlink(path);
	for (unsigned int i = 0; i < pages; i++) {
		memset(page, 'A' + i, sizeof(page));
		ck_assert_int_eq(write(fd, page, sizeof(page)), sizeof(page));
	}
	return fd;
}

static inline const char *page_at(const struct exmap *exmap, uint64_t page)
{
	return (const char *)exmap_address(exmap, page);
}

#endif /* TEST_USER_COMMON_H */
