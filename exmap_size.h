/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The part of exmap_user.h that changes the size of the pool, gives memory back, and tells where
 * memory was short. Programs include exmap_user.h.
 */
#ifndef EXMAP_SIZE_H
#define EXMAP_SIZE_H

#include <stdio.h>
#include <stdlib.h>

#include "exmap_open.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * exmap_resize - set the size of the pool
 * @exmap: the exmap; other threads may be using it
 * @pool_pages: the new size, at least 1
 * @surplus: set to the number of pages that the pool still has beyond that; or NULL. They go back
 *	to the system as they are freed
 *
 * Return: 0; or a negative errno, with nothing changed. Without the module: -EOPNOTSUPP.
 */
EXMAP_LIBRARY int exmap_resize(struct exmap *exmap, uint64_t pool_pages, uint64_t *surplus)
{
	struct exmap_ioctl_resize resize;

	memset(&resize, 0, sizeof(resize));
	resize.buffer_size = pool_pages;
	if (exmap->madvise)
		return -EOPNOTSUPP;
	if (ioctl(exmap->fd, EXMAP_IOCTL_RESIZE, &resize))
		return -errno;
	if (surplus)
		*surplus = resize.surplus;
	return 0;
}

/**
 * exmap_trim - give free pages back to the system
 * @exmap: the exmap; other threads may be using it
 * @pages: the most pages to give; 0 for all
 *
 * Return: how many pages went back; or a negative errno. Without the module: -EOPNOTSUPP.
 */
EXMAP_LIBRARY long exmap_trim(struct exmap *exmap, uint64_t pages)
{
	struct exmap_ioctl_trim trim;

	if (exmap->madvise)
		return -EOPNOTSUPP;
	memset(&trim, 0, sizeof(trim));
	trim.pages = pages;
	return ioctl(exmap->fd, EXMAP_IOCTL_TRIM, &trim) ? -errno : (long)trim.done;
}

/**
 * exmap_trim_tables - give page tables back in which no page is mapped
 * @exmap: the exmap; other threads may be using it
 * @page: the first page of the range to look at
 * @pages: its length; 0 for the rest of the surface
 *
 * Return: how many page tables went back; or a negative errno. Without the module: -EOPNOTSUPP.
 */
EXMAP_LIBRARY long exmap_trim_tables(struct exmap *exmap, uint64_t page, uint64_t pages)
{
	struct exmap_ioctl_trim trim;

	if (exmap->madvise)
		return -EOPNOTSUPP;
	memset(&trim, 0, sizeof(trim));
	trim.flags = EXMAP_TRIM_TABLES;
	trim.page = page;
	trim.pages = pages;
	return ioctl(exmap->fd, EXMAP_IOCTL_TRIM, &trim) ? -errno : (long)trim.done;
}

/**
 * struct exmap_shortages - how often calls have found no memory, by cause
 * @ceiling: all pages of the pool were in use
 * @memory: the system or the memory cgroup had no page for the pool
 * @tables: the system or the memory cgroup had no page for a page table
 */
struct exmap_shortages {
	uint64_t ceiling;
	uint64_t memory;
	uint64_t tables;
};

/**
 * exmap_shortages - find out why calls fail with -ENOMEM
 * @exmap: the exmap
 * @shortages: set to the numbers since exmap_open(). Those that grow are the causes
 *
 * Reads /proc/self/fdinfo.
 *
 * Return: 0; or a negative errno: that of open(2) or read(2), -ENODATA if the numbers are missing,
 * -EOPNOTSUPP without the module.
 */
EXMAP_LIBRARY int exmap_shortages(const struct exmap *exmap, struct exmap_shortages *shortages)
{
	static const char *const key[] = { "ceiling", "memory", "tables" };
	uint64_t *const number[] = {
		&shortages->ceiling, &shortages->memory, &shortages->tables,
	};
	char path[64], text[4096], want[32];
	unsigned int i;
	const char *at;
	ssize_t len;
	int fd, err;

	if (exmap->madvise)
		return -EOPNOTSUPP;
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", exmap->fd);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return -errno;
	len = read(fd, text, sizeof(text) - 1);
	err = errno;
	close(fd);
	if (len < 0)
		return -err;
	text[len] = 0;
	for (i = 0; i < 3; i++) {
		snprintf(want, sizeof(want), "exmap-enomem-%s:", key[i]);
		at = strstr(text, want);
		if (!at)
			return -ENODATA;
		*number[i] = strtoull(at + strlen(want), NULL, 10);
	}
	return 0;
}

#ifdef __cplusplus
}
#endif

#endif /* EXMAP_SIZE_H */
