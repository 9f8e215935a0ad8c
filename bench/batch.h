/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The exmap of a benchmark: its interfaces, the batches of the threads on its surface, and calls
 * for a batch.
 */
#ifndef BENCH_BATCH_H
#define BENCH_BATCH_H

#include "bench_common.h"

/* Entries of a batch. */
static inline unsigned int bench_entries(void)
{
	return bench.batch / bench.run;
}

/*
 * Set bench.part so that each thread has room for @batches batches. Returns how many pages all
 * parts need. Each part starts with a page table of its own, so threads share none.
 */
static inline uint64_t bench_pages(unsigned int batches)
{
	bench.part = (uint64_t)batches * bench_entries() * bench.stride;
	bench.part = (bench.part + BENCH_TABLE_PAGES - 1) / BENCH_TABLE_PAGES * BENCH_TABLE_PAGES;
	return bench.threads * bench.part + BENCH_TABLE_PAGES;
}

/* Place the parts at the first page table that begins at @start or after it. */
static inline void bench_place(char *start)
{
	uint64_t address = (uintptr_t)start / BENCH_PAGE_SIZE;

	bench.first = -address % BENCH_TABLE_PAGES;
	bench.base = start + bench.first * BENCH_PAGE_SIZE;
}

/* Map anonymous memory of 4 KiB pages instead of an exmap, for comparison. */
static inline void bench_map_anonymous(unsigned int batches)
{
	const size_t size = bench_pages(batches) * BENCH_PAGE_SIZE;
	char *start = mmap(NULL, size, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (start == MAP_FAILED)
		bench_fail("mmap of %lu bytes, for %u threads: %s", size, bench.threads,
			   strerror(errno));
	if (madvise(start, size, MADV_NOHUGEPAGE) &&
	    errno != EINVAL)	/* EINVAL: a kernel without huge pages */
		bench_fail("madvise(MADV_NOHUGEPAGE): %s", strerror(errno));
	bench_place(start);
}

/* Open an exmap with room for @batches batches of each thread. */
static inline void bench_setup(unsigned int interfaces, unsigned int batches)
{
	int err = exmap_open(&bench.exmap, bench_pages(batches), bench.pages, interfaces,
			     bench.backing, 0);

	if (err)
		bench_fail("an exmap with %u interfaces and %lu pages: %s", interfaces,
			   bench.pages, exmap_strerror(err));
	bench_place(bench.exmap.surface);
}

/* Attach to an interface. All threads that use this share one fd. */
static inline void bench_attach_shared(struct exmap_interface *interface, unsigned int nr)
{
	int err = exmap_attach_to(&bench.exmap, interface, nr);

	if (err)
		bench_fail("interface %u: %s", nr, exmap_strerror(err));
}

/* Attach to an interface with an fd of its own, so that threads do not share a struct file. */
static inline void bench_attach(struct exmap_interface *interface, unsigned int nr)
{
	int err;

	bench_attach_shared(interface, nr);
	err = exmap_own_fd(interface);
	if (err)
		bench_fail("an fd for interface %u: %s", nr, exmap_strerror(err));
}

/* The number of the first page of a thread's batch. */
static inline uint64_t bench_batch_page(unsigned int thread, unsigned int batch)
{
	return bench.first + thread * bench.part +
	       (uint64_t)batch * bench_entries() * bench.stride;
}

/* The address of that page. */
static inline char *bench_batch_address(unsigned int thread, unsigned int batch)
{
	return bench.base + (bench_batch_page(thread, batch) - bench.first) * BENCH_PAGE_SIZE;
}

/*
 * Request the first @nr entries of the batch that starts at @page. This writes the entries
 * directly, because the checks of exmap_batch_add() cost 4 % of an ALLOC and FREE.
 */
static inline void bench_fill(struct exmap_interface *interface, uint64_t page, unsigned int nr)
{
	unsigned int i;

	exmap_batch_clear(interface);
	interface->nr = nr;
	for (i = 0; i < nr; i++) {
		struct exmap_iov request = { .page = page + i * bench.stride, .len = bench.run };

		interface->user->iov[i].value = request.value;
	}
}

/*
 * Run the batch. Returns how many of its entries succeeded, or -1 if the call found no memory
 * for the first one: then all entries are unchanged. Any other error ends the program.
 */
static inline int bench_action(struct exmap_interface *interface, unsigned int opcode)
{
	const char *name = opcode == EXMAP_OP_ALLOC ? "ALLOC" :
			   opcode == EXMAP_OP_READ ? "READ" : "FREE";
	const struct exmap_iov *iov = interface->user->iov;
	unsigned int nr = interface->nr, done = 0, i;
	int failed;

	failed = exmap_batch_run(interface, opcode, exmap_call_flags(interface, opcode));
	if (failed == -ENOMEM && opcode != EXMAP_OP_FREE)
		return -1;
	if (failed < 0)
		bench_fail("%s at interface %u: %s", name, interface->number, strerror(-failed));

	/* After the first entry without memory, all later entries fail, too. */
	while (done < nr && iov[done].res == 0 && iov[done].pages == (int)bench.run)
		done++;
	for (i = done; i < nr && iov[i].res == -ENOMEM && iov[i].pages == 0; i++)
		;
	if (i == nr && done + failed == nr && (done == nr || (done && opcode != EXMAP_OP_FREE)))
		return done;
	i = i < nr ? i : nr - 1;
	bench_fail("%s at interface %u returned %d for %u entries, but entry %u has res %d and "
		   "pages %d: that is a bug in the module%s", name, interface->number, failed, nr,
		   i, iov[i].res, iov[i].pages,
		   opcode == EXMAP_OP_READ ? ", or an error of the device" : "");
}

/*
 * Run a batch of single pages. The program ends unless all entries succeed. Returns how many
 * nanoseconds the call itself took.
 */
static inline uint64_t bench_timed_action(struct exmap_interface *interface, unsigned int opcode)
{
	struct exmap_action_params params = {
		.interface = (uint16_t)interface->number,
		.iov_len = (uint16_t)interface->nr,
		.opcode = (uint16_t)opcode,
		.flags = exmap_call_flags(interface, opcode),
	};
	uint64_t start, spent;
	unsigned int i;
	int failed;

	start = bench_nanoseconds();
	failed = ioctl(interface->fd, EXMAP_IOCTL_ACTION, &params);
	spent = bench_nanoseconds() - start;
	if (failed)
		bench_fail_with("an ACTION", -errno);
	for (i = 0; i < interface->nr; i++)
		if (exmap_batch_answer(interface, i) != 1)
			bench_fail_with("a page", exmap_batch_answer(interface, i));
	return spent;
}

/* Fail if the pool is too small for one batch of each thread. */
static inline void bench_need_pages(void)
{
	unsigned long pages = (unsigned long)bench.threads * bench.batch;

	if (bench.pages < pages)
		bench_fail("%u threads with batches of %u need a pool of --pages %lu or more",
			   bench.threads, bench.batch, pages);
}

/* Fail if pages are left on the surface after the last FREE. */
static inline void bench_check_stats(void)
{
	struct exmap_ioctl_stats stats;

	if (ioctl(bench.exmap.fd, EXMAP_IOCTL_STATS, &stats))
		bench_fail("EXMAP_IOCTL_STATS: %s", strerror(errno));
	if (stats.alloc_count || stats.buffer_size != bench.pages)
		bench_fail("EXMAP_IOCTL_STATS says alloc_count %lu and buffer_size %lu, expected 0 "
			   "and %lu: that is a bug in the module",
			   stats.alloc_count, stats.buffer_size, bench.pages);
}

#endif /* BENCH_BATCH_H */
