// SPDX-License-Identifier: GPL-2.0
/*
 * Calls of 512 single pages, for QEMU's plugin lines-plugin.c, which lists the cache lines that
 * each call reads and writes. This program prints what the plugin cannot know: which call is which,
 * and which page frames hold entries and page tables.
 */
#include "batch.h"
#include "mark.h"

#define TOTAL 4096U	/* pages of the pool; and per round */
#define BATCH 512U
#define STRIDE 16U

#define KPF_PGTABLE 26	/* from the kernel's kernel-page-flags.h */

static struct exmap exmap;
static struct exmap_interface interface;

/* Calls for all pages of a round, each @stride pages after the one before. */
static void sweep(unsigned int measurement, unsigned int opcode, unsigned int stride)
{
	unsigned int done, i;
	int failed;

	for (done = 0; done < TOTAL; done += BATCH) {
		exmap_batch_clear(&interface);
		for (i = 0; i < BATCH; i++)
			exmap_batch_add(&interface, (uint64_t)(done + i) * stride, 1);
		if (measurement)
			mark_begin(measurement);
		failed = exmap_batch_run(&interface, opcode, 0);
		if (measurement)
			mark_end();
		if (failed)
			bench_fail_with("a call", failed);
	}
}

/* Measure @opcode and then FREE. A round before that gets pages and page tables. */
static void measure(const char *name, unsigned int opcode, unsigned int stride)
{
	static unsigned int number;

	sweep(0, opcode, stride);
	sweep(0, EXMAP_OP_FREE, stride);
	sweep(++number, opcode, stride);
	printf("measurement,%u,%s,%u\n", number, name, stride);
	sweep(++number, EXMAP_OP_FREE, stride);
	printf("measurement,%u,free-%s,%u\n", number, name, stride);
}

/* Word @number of a file of /proc that has one for each page or page frame; 0 after its end. */
static uint64_t word_of(int fd, uint64_t number)
{
	uint64_t word = 0;

	if (pread(fd, &word, sizeof(word), (off_t)(number * sizeof(word))) < 0)
		bench_fail_with("a file of /proc", -errno);
	return word;
}

static int open_file(const char *path)
{
	int fd = open(path, O_RDONLY);

	if (fd < 0 && (errno == EACCES || errno == EPERM))
		bench_exit(BENCH_SKIP, "%s is for root", path);
	if (fd < 0)
		bench_fail_with(path, -errno);
	return fd;
}

/* Print the page frames of the entries and of all page tables. */
static void print_frames(void)
{
	static uint64_t flags[4096];
	int fd = open_file("/proc/self/pagemap");
	uint64_t frame = 0;
	ssize_t got, i;

	printf("frame,entry,%lx,\n", word_of(fd, (uintptr_t)interface.user / EXMAP_PAGE_SIZE) &
	       ((1UL << 55) - 1));
	close(fd);
	fd = open_file("/proc/kpageflags");
	while ((got = read(fd, flags, sizeof(flags))) > 0)
		for (i = 0; i < got / (ssize_t)sizeof(*flags); i++, frame++)
			if (flags[i] >> KPF_PGTABLE & 1)
				printf("frame,table,%lx,\n", frame);
	if (got < 0)
		bench_fail_with("/proc/kpageflags", -errno);
	close(fd);
}

static void usage(void)
{
	puts("usage: bench/bench-lines DEVICE\n"
	     "\n"
	     "Makes calls of 512 single pages for a plugin of QEMU that lists the cache lines they use.\n"
	     "READ is from DEVICE, which has 256 MiB or more. Prints what belongs to that list:\n"
	     "  measurement,NUMBER,CALL,STRIDE\n"
	     "  frame,KIND,NUMBER,   page frames of entries and page tables, in hexadecimal\n"
	     "Without the plugin it measures nothing. make lines makes a table of both.\n"
	     "Exits with 0, 1 on failure, 77 if not root.");
}

int main(int argc, char **argv)
{
	int backing, err;

	if (argc != 2 || argv[1][0] == '-') {
		usage();
		return argc != 2 || strcmp(argv[1], "--help");
	}
	backing = open(argv[1], O_RDONLY | O_DIRECT);
	if (backing < 0)
		bench_fail_with(argv[1], -errno);
	err = mark_map();
	if (err)
		bench_fail_with("the address for marks", err);
	err = exmap_open(&exmap, TOTAL * STRIDE, TOTAL, 1, backing, 0);
	if (!err)
		err = exmap_attach(&exmap, &interface);
	if (err)
		bench_fail_with("an exmap", err);
	mark_end();

	measure("alloc", EXMAP_OP_ALLOC, 1);
	measure("alloc", EXMAP_OP_ALLOC, STRIDE);
	measure("read", EXMAP_OP_READ, STRIDE);
	print_frames();
	exmap_detach(&interface);
	exmap_close(&exmap);
	return 0;
}
