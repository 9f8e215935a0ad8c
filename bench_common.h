/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the benchmarks share: the parameters of a measurement, failures, the clock.
 *
 * bench/options.h reads the command line, bench/batch.h opens an exmap and calls it for a batch,
 * bench/run.h runs threads and prints the result. A program includes the one that it needs, before
 * any other header.
 */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "exmap_user.h"

#define BENCH_SKIP 77		/* exit status: this machine cannot run the benchmark */
#define BENCH_PAGE_SIZE EXMAP_PAGE_SIZE
#define BENCH_TABLE_PAGES 512	/* pages that one page table maps */

/*
 * A batch is every other page. As in a buffer pool no two of its pages are adjacent, so nothing
 * can treat a batch as one range.
 */
#define BENCH_STRIDE 2

/**
 * struct bench - the parameters of a measurement
 * @threads: number of threads
 * @batch: pages per batch
 * @run: pages per entry; a batch has @batch / @run entries
 * @stride: pages from the first page of an entry to that of the next
 * @seconds: how long to measure
 * @pages: the exmap's buffer_size
 * @backing: the exmap's backing file; -1 if it has none
 * @header: print a line that names the columns first
 * @threads_given: the command line gives @threads
 * @exmap: the exmap; its fd is -1 if the benchmark uses none
 * @base: address at which the parts of the threads start
 * @first: page number of @base on the surface
 * @part: pages in the part of one thread
 * @start: all threads and bench_run() wait here for each other before the clock runs
 * @stop: set when the time is up
 */
struct bench {
	unsigned int threads;
	unsigned int batch;
	unsigned int run;
	unsigned int stride;
	unsigned int seconds;
	unsigned long pages;
	int backing;
	int header;
	bool threads_given;

	struct exmap exmap;
	char *base;
	uint64_t first;
	uint64_t part;

	pthread_barrier_t start;
	atomic_bool stop;
};

static struct bench bench = {
	.batch = EXMAP_USER_INTERFACE_PAGES,
	.run = 1,
	.stride = BENCH_STRIDE,
	.seconds = 5,
	.pages = (1UL << 30) / BENCH_PAGE_SIZE,
	.backing = -1,
	.exmap.fd = -1,
};

/* Print one line and end the program. Only the first thread that calls this prints. */
static inline void __attribute__((noreturn, format(printf, 2, 3)))
bench_exit(int status, const char *format, ...)
{
	static atomic_flag failed = ATOMIC_FLAG_INIT;
	va_list arguments;

	while (atomic_flag_test_and_set(&failed))
		pause();
	fprintf(stderr, "%s: ", program_invocation_short_name);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	_exit(status);
}

#define bench_fail(...) bench_exit(1, __VA_ARGS__)

/* Fail because call @what has returned @err. */
static inline void __attribute__((noreturn)) bench_fail_with(const char *what, int err)
{
	bench_fail("%s: %s", what, exmap_strerror(err));
}

static inline uint64_t bench_nanoseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000UL + now.tv_nsec;
}

static inline double bench_now(void)
{
	return bench_nanoseconds() / 1e9;
}

#endif /* BENCH_COMMON_H */
