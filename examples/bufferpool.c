// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The buffer manager of bufferpool.h at work: threads read and update pages of a file, and no
 * update may be lost.
 * To compile: gcc -O2 -D_GNU_SOURCE -pthread bufferpool.c -o bufferpool
 */
#include <argp.h>
#include <pthread.h>
#include <stdio.h>
#include <time.h>

#include "bufferpool.h"

#define MOST_KIB 64		/* of a page */
#define SCAN 8			/* pages */

enum { CHECKSUM, ID, UPDATES, DATA };	/* the words of a page; all from DATA on are data */

static unsigned long threads = 2, pool_mib = 64, data_mib = 512, ops = 500000, percent = 20;
static unsigned long page_kib = 4;
static const char *path, *only;		/* FILE and --backend */
static bool overwrite;

/* The checksum changes if any word changes, and is never 0. */
static uint64_t checksum(_Atomic uint64_t *page)
{
	uint64_t sum = 1;

	for (size_t i = ID; i < size / sizeof(*page); i++)
		sum = (sum ^ page[i]) * 0x100000001b3;
	return sum;
}

static bool is_good(_Atomic uint64_t *page, uint64_t nr)
{
	uint64_t sum = page[CHECKSUM];

	if (nr % 8 == 0)	/* let other threads interfere, if they can */
		sched_yield();
	return page[ID] == nr && sum == checksum(page);
}

/* A thread: carries out its operations. Returns how many of them were updates. */
static void *work(void *seed)
{
	uint64_t random = (uintptr_t)seed, updates = 0, nr, end, i;
	_Atomic uint64_t *page;
	bool good;

	attach();
	for (i = 0; i < ops; i++) {
		random = random * 6364136223846793005 + 1442695040888963407;
		nr = (random >> 32) % (i % 4 ? pages : 8);	/* 8 pages are hot */
		if ((random >> 24) % 100 < percent) {
			page = fix_exclusive(nr);
			good = is_good(page, nr);
			page[DATA + (random >> 8) % (size / sizeof(*page) - DATA)] = random;
			page[UPDATES]++;
			page[CHECKSUM] = checksum(page);
			unfix_exclusive(nr, UNLOCKED);
			updates++;
		} else if (i % 15 == 1) {	/* a scan: one batch of reads instead of many */
			prefetch(nr, SCAN);
			good = true;
			for (end = nr + SCAN; good && nr < end && nr < pages; nr++)
				good = read_page(nr, is_good);
		} else if (i % 15) {
			good = read_page(nr, is_good);
		} else {
			page = fix_shared(nr);	/* its neighbor is read meanwhile */
			good = read_page(nr ^ 1, is_good) && is_good(page, nr);
			unfix_shared(nr);
		}
		if (!good)
			errx(1, "page %lu or its neighbor is damaged in memory", nr);
	}
	detach();
	return (void *)updates;
}

/* Fill the file, let threads work on it, and check that every update is in the file. */
static void run(const char *backend)
{
	static _Alignas(EXMAP_PAGE_SIZE) _Atomic uint64_t page[MOST_KIB * 1024 / 8];
	pthread_t thread[EXMAP_MAX_INTERFACES];
	struct timespec start, end;
	long missing = 0;
	void *updates;
	uint64_t nr;

	with_exmap = !strcmp(backend, "exmap");
	open_memory(threads);
	page[UPDATES] = 0;
	for (nr = 0; nr < pages; nr++) {
		page[ID] = nr;
		page[CHECKSUM] = checksum(page);
		if (pwrite(file, page, size, nr * size) != (ssize_t)size)
			err(1, "%s, page %lu of %lu", path, nr, pages);
	}
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (nr = 0; nr < threads; nr++)
		if (pthread_create(&thread[nr], NULL, work, (void *)nr))
			errx(1, "thread %lu cannot be created: try fewer --threads", nr);
	for (nr = 0; nr < threads; nr++) {
		pthread_join(thread[nr], &updates);
		missing += (intptr_t)updates;
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	attach();
	close_memory();
	for (nr = 0; nr < pages; nr++) {
		if (pread(file, page, size, nr * size) != (ssize_t)size || !is_good(page, nr))
			errx(1, "page %lu is damaged in %s", nr, path);
		missing -= page[UPDATES];
	}
	if (missing)
		errx(1, "%ld updates are missing in %s", missing, path);
	printf("%s,%lu,%.0f\n", backend, threads, threads * ops /
	       (end.tv_sec - start.tv_sec + (end.tv_nsec - start.tv_nsec) / 1e9));
}

static const struct argp_option options[] = {
	{ "backend", 'b', "exmap|madvise", .doc = "run only this one (default: both in turn)" },
	{ "threads", 1, "N", .doc = "number of threads (default 2)" },
	{ "pool", 2, "MIB", .doc = "size of the pool (default 64)" },
	{ "data", 3, "MIB", .doc = "size of FILE, or of the used part of a device (default 512)" },
	{ "ops", 4, "N", .doc = "operations by each thread (default 500000)" },
	{ "updates", 5, "PERCENT", .doc = "share of the operations that are updates (default 20)" },
	{ "page", 6, "KIB", .doc = "size of a page: 4, 8, 16, 32 or 64 (default 4)" },
	{ "overwrite", 7, .doc = "FILE exists or is a device; its contents are lost" },
	{ }
};

static error_t option(int key, char *text, struct argp_state *state)
{
	unsigned long *const number[] = {
		&threads, &pool_mib, &data_mib, &ops, &percent, &page_kib
	};
	char rest;

	if (key == ARGP_KEY_ARG && !path)
		path = text;
	else if (key == 'b')
		only = text;
	else if (key == 7)
		overwrite = true;
	else if (key < 1 || key > 6)
		return ARGP_ERR_UNKNOWN;
	else if (strchr(text, '-') || sscanf(text, "%9lu%c", number[key - 1], &rest) != 1)
		errx(1, "'%s' is not a number of up to 9 digits: see --help", text);
	return 0;
}

int main(int argc, char **argv)
{
	const struct sigaction segv = { .sa_sigaction = on_segv, .sa_flags = SA_SIGINFO | SA_NODEFER };
	const struct argp argp = { options, option, "FILE", .doc = "A small buffer manager at work." };

	argp_err_exit_status = 1;
	argp_parse(&argp, argc, argv, 0, NULL, NULL);
	if (!path || !threads || threads >= EXMAP_MAX_INTERFACES || !pool_mib || !data_mib ||
	    percent > 100 || page_kib < 4 || page_kib > MOST_KIB || page_kib & (page_kib - 1) ||
	    (only && strcmp(only, "exmap") && strcmp(only, "madvise")))
		errx(1, "FILE is missing, or an option is out of range: see --help");
	size = page_kib * 1024;
	pool = pool_mib * 1024 / page_kib;
	pages = data_mib * 1024 / page_kib;
	must((!only || *only == 'e') && access("/dev/exmap", F_OK) ? -errno : 0);
	file = open(path, O_RDWR | O_EXCL | (overwrite ? 0 : O_CREAT), 0600);
	if (file < 0 || sigaction(SIGSEGV, &segv, NULL))
		err(1, "%s, %s --overwrite", path, overwrite ? "with" : "without");
	fcntl(file, F_SETFL, O_DIRECT);		/* some file systems refuse: no harm */
	puts("backend,threads,operations_per_second");
	if (!only || *only == 'e')
		run("exmap");
	if (!only || *only == 'm')
		run("madvise");
	return 0;
}
