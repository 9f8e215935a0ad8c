// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of exmap_madvise.h: the functions of exmap_user.h without the module. The tests in the
 * other tests/user-*.c run without it, too, if EXMAP_BACKEND=madvise is set. The Makefile builds
 * this as C and as C++.
 */
#include <pthread.h>

#include "user_common.h"

static void open_madvise(struct exmap *exmap, struct exmap_interface *interface, uint64_t pool,
			 int backing, uint64_t flags)
{
	ck_assert_int_eq(exmap_open(exmap, SURFACE, pool, 2, backing,
				    EXMAP_WITH_MADVISE | flags), 0);
	ck_assert_int_eq(exmap_attach(exmap, interface), 0);
}

TEST(madvise_opens_no_device)
{
	struct exmap_interface interface;
	int before = held(), file = file_of_letters(2);
	struct exmap exmap;

	open_madvise(&exmap, &interface, 10, file, 0);
	ck_assert_int_eq(exmap.fd, -1);
	close(file);
	ck_assert_int_eq(exmap_own_fd(&interface), 0);
	ck_assert_int_eq(exmap_quarantine(&exmap, EXMAP_MAX_QUARANTINE), 0);
	ck_assert_int_eq(exmap_quarantine(&exmap, EXMAP_MAX_QUARANTINE + 1), -EINVAL);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_READ, 1), 1);
	ck_assert(all_bytes(page_at(&exmap, 1), 'B'));
	ck_assert_int_eq(exmap_sync(&exmap), 0);
	ck_assert_int_eq(exmap_flush(&interface), 0);
	exmap_detach(&interface);
	exmap_close(&exmap);
	exmap_detach(&interface);
	exmap_close(&exmap);
	ck_assert_int_eq(held(), before);
	ck_assert_int_eq(exmap_open(&exmap, SURFACE, 10, 1, -1, EXMAP_WITH_MADVISE), 0);
	ck_assert_int_eq(exmap_sync(&exmap), -EOPNOTSUPP);
}

/* FREE gives memory back, and a page that is not mapped reads as zeros. */
TEST(madvise_frees_memory)
{
	const uint64_t pages = 5000;
	struct exmap_interface interface;
	struct exmap exmap;
	long before, with;

	open_madvise(&exmap, &interface, pages, -1, 0);
	before = kib_of("/proc/self/status", "RssAnon:");
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, 77, pages), (long)pages);
	memset(exmap_address(&exmap, 77), 'x', pages * EXMAP_PAGE_SIZE);
	with = kib_of("/proc/self/status", "RssAnon:");
	/* The kernel counts in batches for each CPU, so both counts may be a little off. */
	ck_assert_int_ge(with - before, (long)pages * 4 - 1024);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_FREE, 0, SURFACE), (long)pages);
	ck_assert_int_le(kib_of("/proc/self/status", "RssAnon:"), with - (long)pages * 4 + 1024);
	ck_assert(all_bytes(page_at(&exmap, 77), 0));
	ck_assert(all_bytes(page_at(&exmap, SURFACE - 1), 0));
	assert_mapped(&exmap, 0);
}

/* With EXMAP_PAGEFAULT_ALLOC, pages that a touch has mapped count, are written and are freed. */
TEST(madvise_knows_touched_pages)
{
	struct exmap_interface interface;
	int file = file_of_letters(4);
	struct exmap exmap;
	char byte;

	open_madvise(&exmap, &interface, 2, file, EXMAP_PAGEFAULT_ALLOC);
	memset(exmap_address(&exmap, 1), 'x', EXMAP_PAGE_SIZE);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_WRITE, 0, 4), 1);
	ck_assert_int_eq(pread(file, &byte, 1, EXMAP_PAGE_SIZE), 1);
	ck_assert_int_eq(byte, 'x');
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_READ, 0, 2), 1);
	ck_assert(all_bytes(page_at(&exmap, 0), 'A'));
	ck_assert(all_bytes(page_at(&exmap, 1), 'x'));
	assert_mapped(&exmap, 2);
	/* Touches are not limited by the pool, but what they have mapped is missing from it. */
	*(char *)exmap_address(&exmap, 100) = 1;
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_WRITE, 100), 1);
	assert_mapped(&exmap, 3);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 101), -ENOMEM);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_FREE, 0, 102), 3);
	assert_mapped(&exmap, 0);
}

/* A child has neither surface nor calls, and cannot harm its parent. */
TEST(madvise_in_a_child)
{
	struct exmap_interface interface, other;
	struct exmap exmap;
	pid_t child;

	open_madvise(&exmap, &interface, 10, file_of_letters(1), 0);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_READ, 0), 1);
	child = fork();
	assert_ok(child);
	if (!child) {
		if (exmap_page(&interface, EXMAP_OP_FREE, 0) != -EPERM ||
		    exmap_attach(&exmap, &other) != -EPERM)
			_exit(1);
		exmap_detach(&interface);
		exmap_close(&exmap);
		_exit(madvise(exmap.surface, EXMAP_PAGE_SIZE, MADV_NORMAL) != -1);
	}
	wait_child(child, 0);
	ck_assert(all_bytes(page_at(&exmap, 0), 'A'));
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_FREE, 0), 1);
}

/*
 * Threads count in the pages of one file. Each thread reads the page if it is missing, adds 1 under
 * the page's lock, and writes and frees it now and then.
 */
#define COUNTERS 4
#define COUNTING_THREADS 3

static struct {
	struct exmap exmap;
	pthread_mutex_t lock[COUNTERS];
	int rounds;
} counting;

static void *count_up(void *arg)
{
	struct exmap_interface interface;
	uint64_t page;

	ck_assert_int_eq(exmap_attach(&counting.exmap, &interface), 0);
	for (int i = 0; i < counting.rounds; i++) {
		page = (uint64_t)i % COUNTERS;
		/* Without the lock: a page that this reads must not take the place of one in use. */
		ck_assert_int_ge(exmap_run(&interface, EXMAP_OP_READ, 0, COUNTERS), 0);
		pthread_mutex_lock(&counting.lock[page]);
		ck_assert_int_ge(exmap_page(&interface, EXMAP_OP_READ, page), 0);
		++*(uint64_t *)exmap_address(&counting.exmap, page);
		if (i % 3 == 0) {
			ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_WRITE, page), 1);
			ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_FREE, page), 1);
		}
		pthread_mutex_unlock(&counting.lock[page]);
	}
	exmap_detach(&interface);
	return NULL;
}

TEST(madvise_loses_no_update)
{
	struct exmap_interface interface;
	pthread_t thread[COUNTING_THREADS];
	int file = file_of_letters(COUNTERS);
	uint64_t sum = 0;

	counting.rounds = scaled(3000);
	assert_ok(ftruncate(file, 0));
	assert_ok(ftruncate(file, COUNTERS * EXMAP_PAGE_SIZE));
	/* A READ takes pages from the pool before it knows which ones others are reading. */
	ck_assert_int_eq(exmap_open(&counting.exmap, SURFACE, COUNTERS * (COUNTING_THREADS + 1),
				    COUNTING_THREADS, file, EXMAP_WITH_MADVISE), 0);
	for (int i = 0; i < COUNTERS; i++)
		pthread_mutex_init(&counting.lock[i], NULL);
	for (int i = 0; i < COUNTING_THREADS; i++)
		ck_assert_int_eq(pthread_create(&thread[i], NULL, count_up, NULL), 0);
	for (int i = 0; i < COUNTING_THREADS; i++)
		pthread_join(thread[i], NULL);
	ck_assert_int_eq(exmap_attach(&counting.exmap, &interface), 0);
	ck_assert_int_ge(exmap_run(&interface, EXMAP_OP_READ, 0, COUNTERS), 0);
	for (int i = 0; i < COUNTERS; i++)
		sum += *(uint64_t *)exmap_address(&counting.exmap, i);
	ck_assert_uint_eq(sum, (uint64_t)counting.rounds * COUNTING_THREADS);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_FREE, 0, COUNTERS), COUNTERS);
	assert_mapped(&counting.exmap, 0);
}

/*
 * Both backends give the same answers to the same calls: random batches of one seed, on a file that
 * ends within a page, with a pool that is too small.
 */
#define SAME_PAGES 1500	/* of the file; some runs go beyond */

static uint64_t random_below(uint64_t limit)
{
	return (uint64_t)random() % limit;
}

static void add_random(struct exmap_interface *both, uint64_t page, uint64_t pages)
{
	for (int i = 0; i < 2; i++)
		ck_assert_int_eq(exmap_batch_add(&both[i], page, pages), 0);
}

static void same_answers(struct exmap_interface *both, unsigned int opcode, uint64_t flags)
{
	const unsigned int nr = both[0].nr;
	int failed[2];

	for (int i = 0; i < 2; i++)
		failed[i] = exmap_batch_run(&both[i], opcode, flags);
	for (unsigned int i = 0; failed[0] >= 0 && i < nr; i++)
		ck_assert_msg(both[0].user->iov[i].value == both[1].user->iov[i].value,
			      "opcode %u, entry %u: %d, %u pages and %d, %u pages", opcode, i,
			      both[0].user->iov[i].res, exmap_batch_pages(&both[0], i),
			      both[1].user->iov[i].res, exmap_batch_pages(&both[1], i));
	ck_assert_msg(failed[0] == failed[1], "opcode %u: %d and %d", opcode, failed[0], failed[1]);
	exmap_batch_clear(&both[0]);
	exmap_batch_clear(&both[1]);
}

TEST(madvise_gives_the_same_answers, .needs_module = true)
{
	struct exmap_interface both[2];
	uint64_t page, done[2][32];
	struct exmap exmap[2];
	int file[2];

	for (int i = 0; i < 2; i++) {
		file[i] = file_of_letters(26);
		assert_ok(ftruncate(file[i], (SAME_PAGES - 1) * EXMAP_PAGE_SIZE + 100));
		ck_assert_int_eq(exmap_open(&exmap[i], 2 * SAME_PAGES, SAME_PAGES, 1, file[i],
					    i ? EXMAP_WITH_MADVISE : 0), 0);
		ck_assert_int_eq(exmap_attach(&exmap[i], &both[i]), 0);
	}
	for (int round = scaled(400); round > 0; round--) {
		const unsigned int opcode = (unsigned int)random_below(4);

		for (uint64_t i = random_below(6); i > 0; i--)
			add_random(both, random_below(2 * SAME_PAGES + 10), random_below(600));
		same_answers(both, opcode, random_below(2) * EXMAP_ALLOC_PROBE);
		ck_assert_uint_eq(stats(&exmap[0]).alloc_count, stats(&exmap[1]).alloc_count);
		/* Write something to the mapped pages of a range: those that FREE unmaps. */
		page = random_below(SAME_PAGES);
		for (int i = 0; i < 2; i++)
			exmap_run_done(&both[i], EXMAP_OP_WRITE, page, 64, done[i]);
		ck_assert_mem_eq(done[0], done[1], sizeof(uint64_t));
		for (uint64_t bit = 0; bit < 64; bit++)
			if (done[0][0] >> bit & 1) {
				memset(exmap_address(&exmap[0], page + bit), round,
				       EXMAP_PAGE_SIZE);
				memset(exmap_address(&exmap[1], page + bit), round,
				       EXMAP_PAGE_SIZE);
			}
	}
}

/* Without the module, the pool has no size that can be changed. */
TEST(madvise_has_no_resize)
{
	struct exmap_shortages shortages;
	struct exmap exmap;

	ck_assert_int_eq(exmap_open(&exmap, 10, 10, 1, -1, EXMAP_WITH_MADVISE), 0);
	ck_assert_int_eq(exmap_resize(&exmap, 5, NULL), -EOPNOTSUPP);
	ck_assert_int_eq(exmap_trim(&exmap, 0), -EOPNOTSUPP);
	ck_assert_int_eq(exmap_trim_tables(&exmap, 0, 0), -EOPNOTSUPP);
	ck_assert_int_eq(exmap_shortages(&exmap, &shortages), -EOPNOTSUPP);
	exmap_close(&exmap);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of exmap_user.h without the module: exmap_madvise.h.");
}
