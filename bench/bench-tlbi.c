// SPDX-License-Identifier: GPL-2.0
/*
 * Calls that FREE pages, for QEMU's plugin tlbi-plugin.c, which counts the TLBI instructions of
 * each. This program prints what the plugin cannot know: which call is which.
 */
#include "batch.h"
#include "mark.h"

#define ROUNDS 5	/* of each measurement, because the kernel may flush for other reasons */

static const unsigned int batches[] = { 1, 8, 64, 65, 100, 512 };
static const unsigned int strides[] = { 1, 2, 3, 16, 512 };

#define MOST_PAGES 512
#define MOST_STRIDE 512

static struct exmap exmap;
static struct exmap_interface interface;

/* Fail unless a call that should return @expected has done so. */
static void check(const char *what, long ret, long expected)
{
	if (ret < 0)
		bench_fail_with(what, (int)ret);
	if (ret != expected)
		bench_fail("%s returned %ld, expected %ld", what, ret, expected);
}

/* Map @nr pages, each @stride pages after the one before. */
static void alloc(unsigned int nr, unsigned int stride)
{
	unsigned int i;

	for (i = 0; i < nr; i++)
		check("ALLOC", exmap_page(&interface, EXMAP_OP_ALLOC, (uint64_t)i * stride), 1);
}

/* FREE of single pages. */
static void free_singles(unsigned int number, unsigned int nr, unsigned int stride, uint64_t flags)
{
	unsigned int i;
	int failed;

	exmap_batch_clear(&interface);
	for (i = 0; i < nr; i++)
		exmap_batch_add(&interface, (uint64_t)i * stride, 1);
	mark_begin(number);
	failed = exmap_batch_run(&interface, EXMAP_OP_FREE, flags);
	if (flags & EXMAP_FREE_DEFER && !failed)
		failed = exmap_flush(&interface);
	mark_end();
	check("FREE", failed, 0);
	for (i = 0; i < nr; i++)
		check("FREE of a page", exmap_batch_answer(&interface, i), 1);
}

static void singles(unsigned int number, unsigned int nr, unsigned int stride)
{
	alloc(nr, stride);
	free_singles(number, nr, stride, 0);
}

static void deferred(unsigned int number, unsigned int nr, unsigned int stride)
{
	alloc(nr, stride);
	free_singles(number, nr, stride, EXMAP_FREE_DEFER);
}

/* FREE of the run from the first page to the last, by fadvise64 if it is not too long. */
static void run(unsigned int number, unsigned int nr, unsigned int stride)
{
	const uint64_t pages = (uint64_t)(nr - 1) * stride + 1;
	long ret;

	alloc(nr, stride);
	mark_begin(number);
	ret = exmap_run(&interface, EXMAP_OP_FREE, 0, pages);
	mark_end();
	check("FREE of a run", ret, nr);
}

/*
 * Fill the batch with entries of 1 to 4 adjacent pages, each @stride pages after the end of the one
 * before. Returns the number of entries.
 */
static unsigned int fill_mixed(unsigned int nr, unsigned int stride)
{
	unsigned int entries = 0, pages;
	uint64_t page = 0;

	exmap_batch_clear(&interface);
	for (; nr; nr -= pages, page += pages - 1 + stride) {
		pages = entries++ % 4 + 1;
		pages = pages < nr ? pages : nr;
		exmap_batch_add(&interface, page, pages);
	}
	return entries;
}

static void mixed(unsigned int number, unsigned int nr, unsigned int stride)
{
	unsigned int entries, freed = 0, i;
	int failed;

	fill_mixed(nr, stride);
	check("ALLOC", exmap_batch_run(&interface, EXMAP_OP_ALLOC, 0), 0);
	entries = fill_mixed(nr, stride);
	mark_begin(number);
	failed = exmap_batch_run(&interface, EXMAP_OP_FREE, 0);
	mark_end();
	check("FREE", failed, 0);
	for (i = 0; i < entries; i++)
		freed += exmap_batch_pages(&interface, i);
	check("FREE of all entries", freed, nr);
}

static void measure(const char *way, void (*call)(unsigned int, unsigned int, unsigned int))
{
	static unsigned int number;
	unsigned int batch, stride, round;

	for (batch = 0; batch < sizeof(batches) / sizeof(*batches); batch++) {
		for (stride = 0; stride < sizeof(strides) / sizeof(*strides); stride++) {
			number++;
			for (round = 0; round < ROUNDS; round++)
				call(number, batches[batch], strides[stride]);
			printf("%u,%s,%u,%u\n", number, way, batches[batch], strides[stride]);
		}
	}
}

static void usage(void)
{
	puts("usage: bench/bench-tlbi\n"
	     "\n"
	     "FREEs pages in calls of several sizes and strides, for a plugin of QEMU that counts the\n"
	     "TLBI instructions of each call. Prints what belongs to these numbers:\n"
	     "  NUMBER,WAY,PAGES,STRIDE\n"
	     "WAY is\n"
	     "  single    entries of one page\n"
	     "  deferred  the same with EXMAP_FREE_DEFER, and then FLUSH\n"
	     "  run       one run from the first page to the last; all pages between are absent\n"
	     "  mixed     entries of 1 to 4 pages\n"
	     "Without the plugin it measures nothing. make tlbi makes a table of both.\n"
	     "Exits with 0, 1 on failure, 77 if there is no /dev/exmap.");
}

int main(int argc, char **argv)
{
	int err;

	if (argc != 1) {
		usage();
		return strcmp(argv[1], "--help") != 0;
	}
	err = mark_map();
	if (err)
		bench_fail_with("the address for marks", err);
	err = exmap_open(&exmap, (MOST_PAGES + 1) * MOST_STRIDE, 2 * MOST_PAGES, 1, -1, 0);
	if (!err)
		err = exmap_attach(&exmap, &interface);
	if (err)
		bench_exit(err == -ENOENT ? BENCH_SKIP : 1, "an exmap: %s", exmap_strerror(err));
	mark_end();

	measure("single", singles);
	measure("deferred", deferred);
	measure("run", run);
	measure("mixed", mixed);
	exmap_detach(&interface);
	exmap_close(&exmap);
	return 0;
}
