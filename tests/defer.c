// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of EXMAP_FREE_DEFER. The flush is put off, and until then nobody gets the page, and no
 * other page is mapped at its address.
 */
#include "io_common.h"
#include "stale.h"

#define flush(ex, interface) action((ex)->fd, interface, EXMAP_OP_FLUSH, 0, 0)
#define flushes(ex) fdinfo((ex)->fd, "flushes")
#define assert_deferred(ex, n) assert_fdinfo((ex)->fd, "pages-deferred", n)

/* Only FREE takes EXMAP_FREE_DEFER, and FLUSH takes neither entries nor flags. */
TEST(flags_and_opcodes_that_do_not_go_together)
{
	struct exmap *ex = exmap_new(MIB, 10, 2);
	const int others[] = { EXMAP_OP_READ, EXMAP_OP_ALLOC, EXMAP_OP_WRITE, EXMAP_OP_FLUSH };

	for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++)
		assert_errno(action(ex->fd, 0, others[i], 0, EXMAP_FREE_DEFER), EINVAL);
	assert_errno(flush(ex, 2), EINVAL);
	assert_errno(action(ex->fd, 0, EXMAP_OP_FLUSH, 1, 0), EINVAL);
	assert_errno(action(ex->fd, 0, EXMAP_OP_FLUSH, 0, EXMAP_ALLOC_PROBE), EINVAL);
	for (int bit = 0; bit < 64; bit++)
		if (1UL << bit != EXMAP_ALLOC_PROBE && 1UL << bit != EXMAP_FREE_DEFER)
			assert_errno(action(ex->fd, 0, EXMAP_OP_FREE, 0,
					    EXMAP_FREE_DEFER | 1UL << bit), EINVAL);
	ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
	ck_assert_int_eq(run_flags(ex, 0, EXMAP_OP_FREE, 0, 1,
				   EXMAP_FREE_DEFER | EXMAP_ALLOC_PROBE), 1);
	assert_deferred(ex, 1);
}

TEST(flush_when_there_is_nothing_to_flush)
{
	struct exmap *ex = exmap_new(MIB, 10, 2);
	int fd = exmap_open();

	assert_errno(action(fd, 0, EXMAP_OP_FLUSH, 0, 0), EBADF);
	ck_assert_int_eq(flush(ex, 1), 0);
	ck_assert_int_eq(flushes(ex), 0);
	assert_ok(munmap(ex->surface, ex->size));
	assert_errno(flush(ex, 1), EPROTO);
}

/* Deferred pages count as deferred until FLUSH at their interface makes them free. */
TEST(deferred_pages_are_neither_mapped_nor_free)
{
	struct exmap *ex = exmap_new(MIB, 100, 2);
	long free_before;

	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	free_before = fdinfo(ex->fd, "pages-free");
	ck_assert_int_eq(defer(ex, 0, 2, 4), 4);
	assert_mapped(ex, 6);
	ck_assert_uint_eq(resident(ex, 0, 10), 6);
	assert_deferred(ex, 4);
	assert_fdinfo(ex->fd, "pages-free", free_before);
	assert_pages_add_up(ex->fd);
	ck_assert_int_eq(flushes(ex), 0);
	/* For pages that are not mapped, or not on the surface, the answer is that of any FREE. */
	entry(ex, 0, 0, 2, 4);
	entry(ex, 0, 1, 1000, 1);
	entry(ex, 0, 2, 1, 2);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_FREE, 3, EXMAP_FREE_DEFER), 1);
	assert_entry(ex, 0, 0, 0, 0);
	assert_entry(ex, 0, 1, -EFAULT, 0);
	assert_entry(ex, 0, 2, 0, 1);
	/* A FREE that flushes leaves the quarantine as it is. */
	ck_assert_int_eq(release(ex, 0, 0, 10), 5);
	assert_deferred(ex, 5);

	ck_assert_int_eq(flush(ex, 1), 0);
	assert_deferred(ex, 5);
	ck_assert_int_eq(flush(ex, 0), 0);
	assert_deferred(ex, 0);
	assert_fdinfo(ex->fd, "pages-free", free_before + 10);
	assert_pages_add_up(ex->fd);
	ck_assert_int_eq(flushes(ex), 2);
}

/* FREE flushes once for 512 deferred pages, however many of them each call frees. */
TEST(one_flush_for_512_pages)
{
	enum { PAGES = 4096 };
	struct exmap *ex = exmap_new(64 * MIB, PAGES, 1);
	const int batches[] = { 1, 3, 64, 512 };

	for (size_t b = 0; b < sizeof(batches) / sizeof(*batches); b++) {
		long before = flushes(ex);

		ck_assert_int_eq(alloc(ex, 0, 0, 4095) + alloc(ex, 0, 4095, 1), PAGES);
		for (int page = 0, nr; page < PAGES; page += nr) {
			nr = batches[b] < PAGES - page ? batches[b] : PAGES - page;
			for (int i = 0; i < nr; i++)
				entry(ex, 0, i, page + i, 1);
			ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_FREE, nr, EXMAP_FREE_DEFER), 0);
			for (int i = 0; i < nr; i++)
				assert_entry(ex, 0, i, 0, 1);
		}
		assert_mapped(ex, 0);
		ck_assert_int_eq(flush(ex, 0), 0);
		ck_assert_int_eq(flushes(ex) - before, PAGES / 512);
		assert_pages_add_up(ex->fd);
	}
	/* The same if one entry has all of them. */
	ck_assert_int_eq(alloc(ex, 0, 0, 4000), 4000);
	ck_assert_int_eq(defer(ex, 0, 0, 4000), 4000);
	assert_deferred(ex, 4000 % 512);
	assert_pages_add_up(ex->fd);
}

/* The size of quarantines can be set until the first FREE defers its flush. */
TEST(size_of_a_quarantine)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);
	unsigned long bad[] = { 0, EXMAP_MAX_QUARANTINE + 1, 1UL << 32 | 512, -1UL };
	int fd = exmap_open();

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		assert_errno(ioctl(ex->fd, EXMAP_IOCTL_QUARANTINE, bad[i]), EINVAL);
	assert_ok(ioctl(fd, EXMAP_IOCTL_QUARANTINE, 1));
	assert_ok(ioctl(ex->fd, EXMAP_IOCTL_QUARANTINE, EXMAP_MAX_QUARANTINE));
	assert_ok(ioctl(ex->fd, EXMAP_IOCTL_QUARANTINE, 3));
	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	ck_assert_int_eq(defer(ex, 0, 0, 3), 3);
	assert_errno(ioctl(ex->fd, EXMAP_IOCTL_QUARANTINE, 3), EBUSY);
	ck_assert_int_eq(flushes(ex), 0);
	ck_assert_int_eq(defer(ex, 0, 3, 1), 1);
	ck_assert_int_eq(flushes(ex), 1);
	assert_deferred(ex, 1);
}

/* A FREE that fails because there is no surface yet does not decide the size. */
TEST(size_of_a_quarantine_after_free_without_surface)
{
	struct exmap ex = { .fd = exmap_open() };

	assert_ok(exmap_setup(ex.fd, 1, 1000, 0));
	ex.interface[0] = map_interface(ex.fd, 0);
	ck_assert_ptr_ne(ex.interface[0], MAP_FAILED);
	ck_assert_int_eq(defer(&ex, 0, 0, 1), -EPROTO);
	ck_assert_int_eq(defer(&ex, 0, 0, 2), -EPROTO);
	assert_ok(ioctl(ex.fd, EXMAP_IOCTL_QUARANTINE, 1000));
	ex.surface = map_surface(ex.fd, 1000 * PAGE);
	ck_assert_ptr_ne(ex.surface, MAP_FAILED);
	ck_assert_int_eq(alloc(&ex, 0, 0, 1000), 1000);
	ck_assert_int_eq(defer(&ex, 0, 0, 1000), 1000);
	assert_deferred(&ex, 1000);
	ck_assert_int_eq(flushes(&ex), 0);
}

/* Every way to free pages fills a quarantine up to its size, and then flushes it once. */
TEST(one_flush_for_each_quarantine)
{
	const int sizes[] = { 1, 2, 511, 513, 1024, 3000 }, batches[] = { 1, 100, 512, 4000 };
	enum { PAGES = 4000 };

	for (size_t s = 0; s < sizeof(sizes) / sizeof(*sizes); s++) {
		struct exmap *ex = exmap_new(16 * MIB, PAGES, 1);

		assert_ok(ioctl(ex->fd, EXMAP_IOCTL_QUARANTINE, sizes[s]));
		for (size_t b = 0; b < sizeof(batches) / sizeof(*batches); b++) {
			long before = flushes(ex);

			ck_assert_int_eq(alloc(ex, 0, 0, PAGES), PAGES);
			for (int page = 0, nr; page < PAGES; page += nr) {
				nr = batches[b] < PAGES - page ? batches[b] : PAGES - page;
				ck_assert_int_eq(defer(ex, 0, page, nr), nr);
			}
			assert_deferred(ex, (PAGES - 1) % sizes[s] + 1);
			ck_assert_int_eq(flush(ex, 0), 0);
			ck_assert_int_eq(flushes(ex) - before, (PAGES + sizes[s] - 1) / sizes[s]);
			assert_pages_add_up(ex->fd);
		}
		close(ex->fd);
	}
}

/* Returns the content of the page table for a page that is mapped: its frame. */
static uint64_t frame(struct exmap *ex, uint64_t page)
{
	uint64_t entry = 0, at = ((uintptr_t)ex->surface + page * PAGE) / PAGE * sizeof(entry);
	int fd = open("/proc/self/pagemap", O_RDONLY);

	assert_ok(fd);
	ck_assert_int_eq(pread(fd, &entry, sizeof(entry), at), sizeof(entry));
	close(fd);
	return entry & ((1UL << 55) - 1);
}

/* ALLOC of an address in quarantine maps the same page there, and flushes nothing. */
TEST(same_page_is_mapped_again)
{
	enum { PAGES = 2000 };
	struct exmap *ex = exmap_new(64 * MIB, 3 * PAGES, 3);
	static uint64_t was[PAGES];
	unsigned int seed = 1;
	int left = PAGES;

	assert_ok(ioctl(ex->fd, EXMAP_IOCTL_QUARANTINE, PAGES));
	ck_assert_int_eq(alloc(ex, 0, 0, PAGES), PAGES);
	for (int page = 0; page < PAGES; page++)
		was[page] = frame(ex, page);
	/* Interface 1 holds the odd pages. Each has a hash of its own, or shares it. */
	for (int page = 0; page < PAGES; page++)
		ck_assert_int_eq(defer(ex, page & 1, page, 1), 1);
	/* In random order, by the interface that freed them and by others. */
	for (int round = 0; round < PAGES; round++) {
		int page = rand_r(&seed) % PAGES;

		left -= alloc(ex, round % 3, page, 1);
		ck_assert_uint_eq(frame(ex, page), was[page]);
		assert_deferred(ex, left);
		/* Now and then, one comes back to a quarantine whose index has holes. */
		if (round % 5 == 0)
			left += defer(ex, round % 3, page, 1);
	}
	/* The rest in one run. */
	ck_assert_int_eq(alloc(ex, 2, 0, PAGES), left);
	assert_deferred(ex, 0);
	for (int page = 0; page < PAGES; page++)
		ck_assert_uint_eq(frame(ex, page), was[page]);
	ck_assert_int_eq(flushes(ex), 0);
	assert_pages_add_up(ex->fd);
}

/* A page that somebody else holds is not mapped again: its address gets another page. */
TEST(held_page_is_flushed_before_its_address_is_mapped_again)
{
	struct exmap *ex = exmap_new(MIB, 100, 1);
	struct iovec iov = { ex->surface + PAGE, PAGE };
	uint64_t was;
	int ends[2];

	assert_ok(pipe(ends));
	ck_assert_int_eq(alloc(ex, 0, 0, 4), 4);
	was = frame(ex, 1);
	memset(iov.iov_base, 'x', PAGE);
	ck_assert_int_eq(vmsplice(ends[1], &iov, 1, 0), PAGE);
	ck_assert_int_eq(defer(ex, 0, 0, 4), 4);
	ck_assert_int_eq(alloc(ex, 0, 1, 1), 1);
	ck_assert_uint_ne(frame(ex, 1), was);
	ck_assert_int_eq(flushes(ex), 1);
	assert_deferred(ex, 0);
	assert_pages_add_up(ex->fd);
}

/* A pool used in random order, with some pages that come again at once: those cost no flush. */
TEST(pages_that_come_again_flush_nothing)
{
	enum { PAGES = 20000, POOL = 4000, ROUNDS = 20000 };
	static int mapped[POOL];
	struct exmap *ex = exmap_new(PAGES * PAGE, POOL, 1);
	unsigned int seed = 1;
	long frees = 0;

	assert_ok(ioctl(ex->fd, EXMAP_IOCTL_QUARANTINE, POOL / 4));
	for (int i = 0; i < POOL / 2; i++) {
		mapped[i] = i;
		ck_assert_int_eq(alloc(ex, 0, i, 1), 1);
	}
	for (int round = scaled(ROUNDS); round; round--) {
		int victim = rand_r(&seed) % (POOL / 2), page = mapped[victim];

		frees += defer(ex, 0, page, 1);
		if (rand_r(&seed) % 100)
			do
				page = rand_r(&seed) % PAGES;
			while (alloc(ex, 0, page, 1) != 1);
		else
			ck_assert_int_eq(alloc(ex, 0, page, 1), 1);
		mapped[victim] = page;
	}
	ck_assert_int_le(flushes(ex), frees / (POOL / 4));
	assert_pages_add_up(ex->fd);
}

/* An address in quarantine is flushed before another page is mapped there. */
TEST(flushed_before_it_is_mapped_again)
{
	struct exmap *ex = exmap_new_flags(MIB, 100, 3, EXMAP_PAGEFAULT_ALLOC);

	ck_assert_int_eq(alloc(ex, 2, 100, 50), 50);
	ck_assert_int_eq(release(ex, 2, 100, 50), 50);
	for (int how = 0; how < 4; how++) {
		/* ALLOC maps the same page, and a touch by the kernel another one. */
		bool touch = how == 3;
		int left = how == 2 ? 5 : touch ? 4 : 7;
		long before = flushes(ex);

		ck_assert_int_eq(alloc(ex, 0, 0, 4), 4);
		ck_assert_int_eq(alloc(ex, 1, 10, 4), 4);
		ck_assert_int_eq(defer(ex, 0, 0, 4), 4);
		ck_assert_int_eq(defer(ex, 1, 10, 4), 4);
		ck_assert_int_eq(flushes(ex), before);
		switch (how) {
		case 0:	/* a single page, by another interface */
			ck_assert_int_eq(alloc(ex, 2, 1, 1), 1);
			break;
		case 1:	/* a single page, by the interface that freed it */
			ck_assert_int_eq(alloc(ex, 0, 1, 1), 1);
			break;
		case 2:	/* a run with the page in it */
			ck_assert_int_eq(alloc(ex, 2, 1, 5), 5);
			break;
		case 3:	/* a touch by the kernel; this thread might hit a stale TLB entry */
			assert_ok(madvise(ex->surface + PAGE, PAGE, MADV_POPULATE_WRITE));
			break;
		}
		/* Only the quarantine that has the page is flushed. */
		ck_assert_int_eq(flushes(ex) - before, touch);
		assert_deferred(ex, left);
		ck_assert_uint_eq(resident(ex, 1, 1), 1);
		/* ALLOC at another address does not flush. */
		ck_assert_int_eq(alloc(ex, 2, 20, 1), 1);
		assert_deferred(ex, left);
		ck_assert_int_eq(release(ex, 2, 0, 100), how == 2 ? 6 : 2);
		ck_assert_int_eq(flush(ex, 0) + flush(ex, 1), 0);
		assert_deferred(ex, 0);
		assert_pages_add_up(ex->fd);
	}
}

/* READ and pread flush an address in quarantine before they map a page there. */
TEST_BOTH(flushed_before_it_is_read_again)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, 600);
	long before = flushes(ex);

	ck_assert_int_eq(alloc(ex, 0, 0, 20), 20);
	memset(ex->surface, 'x', 20 * PAGE);
	ck_assert_int_eq(defer(ex, 0, 0, 20), 20);
	/* WRITE skips pages in quarantine, because they are not mapped. */
	ck_assert_int_eq(run(ex, 1, EXMAP_OP_WRITE, 0, 20), 0);
	ck_assert_int_eq(run(ex, 1, EXMAP_OP_READ, 5, 10), 10);
	ck_assert_int_eq(flushes(ex) - before, 1);
	for (int page = 5; page < 15; page++)
		ck_assert(holds(ex->surface + page * PAGE, page, 0));

	ck_assert_int_eq(defer(ex, 0, 0, 20), 10);
	ck_assert_int_eq(pread(ex->fd, ex->surface + 7 * PAGE, 2 * PAGE, 1), 2 * PAGE);
	ck_assert_int_eq(flushes(ex) - before, 2);
	ck_assert(holds(ex->surface + 8 * PAGE, 8, 0));
	assert_mapped(ex, 2);
	assert_deferred(ex, 0);
	assert_pages_add_up(ex->fd);
}

/* ALLOC does not return ENOMEM while pages are in quarantine, whichever interface freed them. */
TEST(flushed_when_the_pool_is_empty)
{
	enum { INTERFACES = 20, EACH = 5, POOL = INTERFACES * EACH };
	struct exmap *ex = exmap_new(MIB, POOL, INTERFACES);
	long before;

	ck_assert_int_eq(alloc(ex, 0, 0, POOL), POOL);
	ck_assert_int_eq(defer(ex, 0, 0, POOL), POOL);
	ck_assert_int_eq(alloc(ex, 0, POOL, POOL), POOL);
	ck_assert_int_eq(flushes(ex), 1);
	ck_assert_int_eq(defer(ex, 0, POOL, POOL), POOL);
	ck_assert_int_eq(alloc(ex, 1, 0, POOL), POOL);
	ck_assert_int_eq(flushes(ex), 2);

	for (int i = 0; i < INTERFACES; i++)
		ck_assert_int_eq(defer(ex, i, i * EACH, EACH), EACH);
	before = flushes(ex);
	/* ALLOC flushes no more quarantines than it needs pages from. */
	ck_assert_int_eq(alloc(ex, 3, 200, 1), 1);
	ck_assert_int_eq(flushes(ex) - before, 1);
	ck_assert_int_eq(alloc(ex, 3, 100, POOL - 1), POOL - 1);
	ck_assert_int_eq(flushes(ex) - before, INTERFACES);
	ck_assert_int_eq(alloc(ex, 4, 0, 1), -ENOMEM);
	ck_assert_int_eq(release(ex, 3, 0, 255), POOL);
	assert_pages_add_up(ex->fd);
}

/* A thread of the tests below. */
struct worker {
	struct exmap *ex;
	pthread_t thread;
	int interface;
	int pages;
	int rounds;
	atomic_int wrong;	/* unexpected results */
};

/*
 * A thread that allocates pages, checks that nobody else writes to them, and frees them with the
 * flush put off.
 */
static void *deferring_worker(void *arg)
{
	struct worker *w = arg;
	uint64_t first = w->interface * 100, *word;

	for (int round = 0; round < w->rounds; round++) {
		/* A new address in each round but every eighth, which uses a recent one again. */
		uint64_t page = first + round / 8 * 7 % 90 + round % 8 % 7;

		if (alloc(w->ex, w->interface, page, w->pages) != w->pages)
			atomic_fetch_add(&w->wrong, 1);
		for (int i = 0; i < w->pages; i++) {
			word = (uint64_t *)(w->ex->surface + (page + i) * PAGE);
			word[0] = page + i;
			word[511] = round;
		}
		for (int i = 0; i < w->pages; i++) {
			word = (uint64_t *)(w->ex->surface + (page + i) * PAGE);
			if (word[0] != page + i || word[511] != (uint64_t)round)
				atomic_fetch_add(&w->wrong, 1);
		}
		if (defer(w->ex, w->interface, page, w->pages) != w->pages)
			atomic_fetch_add(&w->wrong, 1);
	}
	return NULL;
}

/* ALLOC does not return ENOMEM, although all pages that the threads need are often deferred. */
TEST(no_false_enomem_while_pages_are_deferred)
{
	enum { THREADS = 4, PAGES = 3 };
	struct exmap *ex = exmap_new(4 * MIB, THREADS * PAGES, THREADS);
	struct worker w[THREADS];

	for (int i = 0; i < THREADS; i++) {
		w[i] = (struct worker){ .ex = ex, .interface = i, .pages = PAGES,
					.rounds = scaled(800) };
		ck_assert(!pthread_create(&w[i].thread, NULL, deferring_worker, &w[i]));
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(w[i].thread, NULL);
		ck_assert_int_eq(atomic_load(&w[i].wrong), 0);
	}
	assert_mapped(ex, 0);
	assert_pages_add_up(ex->fd);
}

/*
 * A thread that maps, frees and flushes random pages of a few addresses, and calls madvise. Other
 * threads do the same at the same addresses.
 */
static void *quarrelling_worker(void *arg)
{
	struct worker *w = arg;
	unsigned int seed = w->interface;

	for (int round = 0; round < w->rounds; round++) {
		uint64_t page = rand_r(&seed) % 64;
		int len = 1 + rand_r(&seed) % 8;

		switch (rand_r(&seed) % 8) {
		case 0:
			release(w->ex, w->interface, page, len);
			break;
		case 1:
			if (flush(w->ex, w->interface))
				atomic_fetch_add(&w->wrong, 1);
			break;
		case 2:
			if (round % 16 == 0)
				madvise(w->ex->surface + page * PAGE, len * PAGE, MADV_DONTNEED);
			break;
		case 3:
		case 4:
			defer(w->ex, w->interface, page, len);
			break;
		default:
			if (alloc(w->ex, w->interface, page, len) < 0)
				atomic_fetch_add(&w->wrong, 1);
		}
	}
	return NULL;
}

/* Threads that use the same addresses get only expected answers, and lose no page or address. */
TEST(same_addresses_by_threads)
{
	enum { THREADS = 4 };
	struct exmap *ex = exmap_new(64 * PAGE + 8 * PAGE, 200, THREADS);
	struct worker w[THREADS];

	for (int i = 0; i < THREADS; i++) {
		w[i] = (struct worker){ .ex = ex, .interface = i, .rounds = scaled(3000) };
		ck_assert(!pthread_create(&w[i].thread, NULL, quarrelling_worker, &w[i]));
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(w[i].thread, NULL);
		ck_assert_int_eq(atomic_load(&w[i].wrong), 0);
	}
	ck_assert_uint_eq(resident(ex, 0, 72), stats(ex).alloc_count);
	assert_pages_add_up(ex->fd);
	/* A page can be mapped at each address: none is left marked as in quarantine. */
	alloc(ex, 0, 0, 72);
	ck_assert_uint_eq(resident(ex, 0, 72), 72);
	assert_mapped(ex, 72);
}

/*
 * Another CPU writes to page 0 all the time. The pool has one page, so ALLOC of page 1 flushes it
 * out of quarantine, if FLUSH has not done so. No write to page 0 may reach it after that.
 */
TEST(stale_tlb_entries_reach_nothing)
{
	struct exmap *ex = exmap_new(MIB, 1, 2);
	volatile uint64_t *ours = (void *)(ex->surface + PAGE);
	struct stale_writer w;

	stale_writer_start(&w, ex->surface);
	for (int round = scaled(500); round; round--) {
		int other = round & 1;

		ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
		stale_writer_wait(&w);
		ck_assert_int_eq(defer(ex, 0, 0, 1), 1);
		if (round & 2)
			ck_assert_int_eq(flush(ex, 0), 0);
		ck_assert_int_eq(alloc(ex, other, 1, 1), 1);
		*ours = round;
		for (int i = 0; i < 200; i++)
			ck_assert_uint_eq(*ours, round);
		ck_assert_int_eq(release(ex, other, 1, 1), 1);
	}
	stale_writer_stop(&w);
}

/*
 * Another CPU writes to page 2 all the time, while FREE with a deferred flush and ALLOC map another
 * page there. Its writes after ALLOC must reach the new page.
 */
TEST(stale_tlb_entries_do_not_survive_alloc)
{
	struct exmap *ex = exmap_new(MIB, 100, 2);
	volatile uint64_t *word = (void *)(ex->surface + 2 * PAGE);
	struct stale_writer w;

	/* Interface 1 has free pages, so its ALLOC does not flush for lack of pages. */
	ck_assert_int_eq(alloc(ex, 1, 100, 50), 50);
	ck_assert_int_eq(release(ex, 1, 100, 50), 50);
	stale_writer_start(&w, ex->surface + 2 * PAGE);
	for (int round = scaled(500); round; round--) {
		ck_assert_int_eq(alloc(ex, 0, 0, 4), 4);
		stale_writer_wait(&w);
		/*
		 * Page 2 is not the last one freed, because the last free page is handed out
		 * first, and the same page would come back. The order also puts neither the
		 * first nor the last address of the range to be flushed at an end of the list.
		 */
		ck_assert_int_eq(defer(ex, 0, 1, 1), 1);
		ck_assert_int_eq(defer(ex, 0, 3, 1), 1);
		ck_assert_int_eq(defer(ex, 0, 2, 1), 1);
		ck_assert_int_eq(defer(ex, 0, 0, 1), 1);
		ck_assert_int_eq(alloc(ex, 1, 2, 1), 1);
		*word = round;
		stale_writer_wait(&w);
		ck_assert_uint_eq(*word, STALE_WORD);
		ck_assert_int_eq(release(ex, 0, 2, 1), 1);
	}
	stale_writer_stop(&w);
}

/*
 * When the kernel works on the surface or a part of it, all quarantines are flushed: no address is
 * in quarantine after that.
 */
TEST(madvise_and_clear_refs_flush)
{
	struct exmap *ex = exmap_new(64 * MIB, 3000, 2);
	int fd = open("/proc/self/clear_refs", O_WRONLY);

	assert_ok(fd);
	for (int round = 0; round < 3; round++) {
		long mapped;

		ck_assert_int_eq(alloc(ex, 0, 0, 2000), 2000);
		ck_assert_int_eq(defer(ex, 0, 100, 200), 200);
		ck_assert_int_eq(defer(ex, 1, 1500, 100), 100);
		/* This page table is empty now, so the kernel may free it. */
		ck_assert_int_eq(release(ex, 0, 512, 512), 512);
		assert_deferred(ex, 300);
		if (round == 0)
			assert_ok(madvise(ex->surface, 512 * PAGE, MADV_DONTNEED));
		else if (round == 1)
			assert_ok(madvise(ex->surface + 2000 * PAGE, PAGE, MADV_DONTNEED));
		else if (write(fd, "4", 1) != 1)	/* no soft-dirty tracking */
			ck_assert_int_eq(flush(ex, 0) + flush(ex, 1), 0);
		assert_deferred(ex, 0);
		mapped = stats(ex).alloc_count;
		ck_assert_int_eq(alloc(ex, 1, 0, 2000), 2000 - mapped);
		ck_assert_int_eq(release(ex, 1, 0, 2000), 2000);
		assert_pages_add_up(ex->fd);
	}
}

TEST(munmap_gives_deferred_pages_back)
{
	struct exmap *ex = exmap_new(64 * MIB, 3000, 2);

	ck_assert_int_eq(alloc(ex, 0, 0, 2000), 2000);
	ck_assert_int_eq(defer(ex, 0, 0, 700), 700);
	ck_assert_int_eq(defer(ex, 1, 1000, 100), 100);
	assert_ok(munmap(ex->surface, ex->size));
	assert_fdinfo(ex->fd, "pages-system", 0);
	assert_deferred(ex, 0);
}

/* No memory is lost if a process is killed while pages are in quarantine. */
TEST(killed_with_deferred_pages)
{
	enum { PAGES = 1000 };
	long before = available_kib();

	for (int round = scaled(100); round; round--) {
		int ready[2];
		char byte;
		pid_t pid;

		assert_ok(pipe(ready));
		pid = fork();
		if (!pid) {
			struct exmap *ex = exmap_new(GIB, PAGES, 1);

			doomed = true;
			for (uint64_t page = 0;; page = (page + PAGES) % 200000) {
				alloc(ex, 0, page, PAGES);
				defer(ex, 0, page, PAGES - page / PAGES % 300);
				if (page == 2 * PAGES && write(ready[1], "x", 1) != 1)
					_exit(1);
			}
		}
		ck_assert_int_eq(read(ready[0], &byte, 1), 1);
		kill(pid, SIGKILL);
		wait_child(pid, SIGKILL);
		close(ready[0]);
		close(ready[1]);
	}
	/* A tenth of the pages of each process. */
	assert_available(before, scaled(100) * PAGES * 4 / 10);
}

TEST(shrinker_takes_deferred_pages)
{
	enum { POOL = 1000, KEPT = 100 };
	struct exmap *ex = exmap_new(64 * MIB, POOL, 2);

	ck_assert_int_eq(alloc(ex, 0, 0, POOL), POOL);
	ck_assert_int_eq(defer(ex, 0, 0, 500), 500);
	ck_assert_int_eq(defer(ex, 1, 500, 400), 400);
	ck_assert(shrink());
	assert_deferred(ex, 0);
	assert_fdinfo(ex->fd, "pages-system", KEPT);
	assert_mapped(ex, KEPT);
	ck_assert_int_eq(alloc(ex, 0, 0, POOL), POOL - KEPT);
}

/* The shrinker takes a large quarantine bundle by bundle, and what it leaves can be used. */
TEST(shrinker_takes_a_large_quarantine)
{
	enum { POOL = 3000 };
	struct exmap *ex = exmap_new(64 * MIB, POOL, 1);

	assert_ok(ioctl(ex->fd, EXMAP_IOCTL_QUARANTINE, POOL));
	ck_assert_int_eq(alloc(ex, 0, 0, POOL), POOL);
	ck_assert_int_eq(defer(ex, 0, 0, POOL), POOL);
	/* Into the index, with one page less. */
	ck_assert_int_eq(alloc(ex, 0, 7, 1), 1);
	for (int calls = 0; fdinfo(ex->fd, "pages-system") > 1; calls++) {
		ck_assert_int_lt(calls, POOL);
		ck_assert(shrink());
		/* An address that is still in quarantine, or not any more. */
		ck_assert_int_eq(alloc(ex, 0, 100 + calls, 1), 1);
		ck_assert_int_eq(release(ex, 0, 100 + calls, 1), 1);
		assert_pages_add_up(ex->fd);
		ck_assert(shrink());
	}
	assert_deferred(ex, 0);
	ck_assert_int_eq(alloc(ex, 0, 0, POOL), POOL - 1);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of EXMAP_FREE_DEFER.");
}
