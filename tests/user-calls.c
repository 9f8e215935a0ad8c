// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of exmap_user.h: calls for a page, a run, a list and a batch. The Makefile builds this as C
 * and as C++.
 */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>

#include "user_common.h"

/*
 * exmap_page()
 */
TEST(page_is_allocated_and_freed)
{
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 2, -1);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 7), 1);
	memset(exmap_address(&exmap, 7), 'x', EXMAP_PAGE_SIZE);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 7), 0);
	ck_assert_int_eq(*page_at(&exmap, 7), 'x');
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, SURFACE - 1), 1);
	assert_mapped(&exmap, 2);

	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 8), -ENOMEM);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, SURFACE), -EFAULT);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, WIDE), -EINVAL);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_READ, 8), -EOPNOTSUPP);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_WRITE, 7), -EOPNOTSUPP);
	ck_assert_int_eq(exmap_page(&interface, 4, 7), -EINVAL);
	assert_mapped(&exmap, 2);

	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_FREE, 7), 1);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_FREE, 7), 0);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_FREE, SURFACE - 1), 1);
	assert_mapped(&exmap, 0);
}

/* Make fadvise64(2) fail with ENOSYS, as on a kernel without it, for this process. */
static void take_fadvise_away(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fadvise64, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(filter) / sizeof(*filter), filter };

	assert_ok(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	assert_ok(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

/* Without fadvise64(2), calls on one range go by ACTION. */
TEST(page_and_run_without_fadvise,
	.needs = "/proc/sys/kernel/seccomp/actions_logged", .needs_module = true)
{
	struct exmap_interface interface;
	int file = file_of_letters(3);
	struct exmap exmap;

	take_fadvise_away();
	open_attached(&exmap, &interface, 10, file);
	ck_assert_int_eq(exmap.has_advice, 0);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_READ, 2), 1);
	ck_assert(all_bytes(page_at(&exmap, 2), 'C'));
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_WRITE, 2), 1);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, 100, 5), 5);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, SURFACE), -EFAULT);
	assert_mapped(&exmap, 6);
	exmap_defer(&interface, 1);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_FREE, 0, 200), 6);
	ck_assert_int_eq(exmap_flush(&interface), 0);
	assert_mapped(&exmap, 0);
}

TEST(page_is_read_and_written)
{
	struct exmap_interface interface;
	int file = file_of_letters(3);
	char byte;
	struct exmap exmap;

	open_attached(&exmap, &interface, 10, file);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_READ, 2), 1);
	ck_assert(all_bytes(page_at(&exmap, 2), 'C'));
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_READ, 2), 0);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_READ, 3), -ENODATA);

	memset(exmap_address(&exmap, 2), 'x', EXMAP_PAGE_SIZE);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_WRITE, 2), 1);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_WRITE, 1), 0);
	ck_assert_int_eq(pread(file, &byte, 1, 3 * EXMAP_PAGE_SIZE - 1), 1);
	ck_assert_int_eq(byte, 'x');
	ck_assert_int_eq(pread(file, &byte, 1, 2 * EXMAP_PAGE_SIZE - 1), 1);
	ck_assert_int_eq(byte, 'B');
	assert_mapped(&exmap, 1);
}

/*
 * exmap_run()
 */
TEST(run_longer_than_an_entry)
{
	const uint64_t pages = 2 * EXMAP_MAX_RUN + 1;
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 10000, -1);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, 100, 0), 0);
	/* The result counts only pages that were not mapped before. */
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 100 + EXMAP_MAX_RUN), 1);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, 100, pages), (long)pages - 1);
	assert_mapped(&exmap, pages);
	for (uint64_t page = 100; page < 100 + pages; page++)
		*(uint64_t *)exmap_address(&exmap, page) = page;
	for (uint64_t page = 100; page < 100 + pages; page++)
		ck_assert_uint_eq(*(uint64_t *)exmap_address(&exmap, page), page);

	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_FREE, 99, 1), 0);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_FREE, 100 + pages, 1), 0);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_FREE, 100, pages), (long)pages);
	assert_mapped(&exmap, 0);
}

/* exmap_run() of several batches. Only the pages at the ends of the batches are mapped. */
TEST(run_longer_than_a_batch)
{
	const uint64_t batch = BATCH * EXMAP_MAX_RUN;
	const uint64_t there[] = { 1, batch - 1, batch, batch + 1, SURFACE - 1 };
	struct exmap_interface interface;
	struct exmap exmap;

	ck_assert_uint_gt(SURFACE, batch + EXMAP_MAX_RUN);
	open_attached(&exmap, &interface, 10, -1);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_ALLOC, there, 5), 5);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_FREE, 1, SURFACE - 2), 4);
	assert_mapped(&exmap, 1);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_FREE, SURFACE - 1), 1);
}

TEST(run_that_leaves_the_surface)
{
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 10000, -1);
	/* The first entry is within the surface, so its pages are mapped. */
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, SURFACE - EXMAP_MAX_RUN,
				   EXMAP_MAX_RUN + 1), -EFAULT);
	assert_mapped(&exmap, EXMAP_MAX_RUN);
	/* These map no page. A page number that wraps around must not reach page 0. */
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, UINT64_MAX - 10, 20), -EINVAL);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, UINT64_MAX - EXMAP_MAX_RUN + 1,
				   EXMAP_MAX_RUN + 1), -EINVAL);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, WIDE, 1), -EINVAL);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, 0, UINT64_MAX), -EINVAL);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, WIDE - 1, 2), -EFAULT);
	assert_mapped(&exmap, EXMAP_MAX_RUN);
}

TEST(run_is_read_and_written)
{
	struct exmap_interface interface;
	int file = file_of_letters(26);
	struct exmap exmap;
	char byte;

	open_attached(&exmap, &interface, 100, file);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_READ, 3, 20), 20);
	for (int page = 3; page < 23; page++) {
		ck_assert(all_bytes(page_at(&exmap, page), 'A' + page));
		memset(exmap_address(&exmap, page), 'a' + page, EXMAP_PAGE_SIZE);
	}
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_WRITE, 0, 26), 20);
	for (int page = 0; page < 26; page++) {
		ck_assert_int_eq(pread(file, &byte, 1, page * EXMAP_PAGE_SIZE), 1);
		ck_assert_int_eq(byte, (page < 3 || page >= 23 ? 'A' : 'a') + page);
	}
}

/*
 * exmap_run_done()
 */
#define DONE (2 * BATCH + 100)

/* Assert that of @pages bits exactly those are set that are not multiples of @step. */
static void assert_done(const uint64_t *done, uint64_t pages, uint64_t step)
{
	for (uint64_t i = 0; i < pages; i++)
		ck_assert_msg((done[i / 64] >> i % 64 & 1) == (i % step != 0), "page %d", (int)i);
}

TEST(run_done_says_which)
{
	uint64_t done[DONE / 64 + 2], there[DONE / 7 + 1];
	struct exmap_interface interface;
	size_t nr = 0;
	struct exmap exmap;

	for (uint64_t i = 0; i < DONE; i += 7)
		there[nr++] = 1000 + i;
	open_attached(&exmap, &interface, DONE, -1);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_ALLOC, there, nr), nr);
	memset(done, 0xa5, sizeof(done));
	ck_assert_int_eq(exmap_run_done(&interface, EXMAP_OP_ALLOC, 1000, DONE, done), DONE - nr);
	assert_done(done, DONE, 7);
	/* The bits behind the last page are clear, and the next word is untouched. */
	ck_assert_uint_eq(done[DONE / 64] >> DONE % 64, 0);
	ck_assert_uint_eq(done[DONE / 64 + 1], 0xa5a5a5a5a5a5a5a5);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_FREE, there, nr), nr);
	ck_assert_int_eq(exmap_run_done(&interface, EXMAP_OP_FREE, 1000, DONE, done), DONE - nr);
	assert_done(done, DONE, 7);
	assert_mapped(&exmap, 0);
	ck_assert_int_eq(exmap_run_done(&interface, EXMAP_OP_ALLOC, 5, 0, done), 0);
}

TEST(run_done_is_right_after_an_error)
{
	struct exmap_interface interface;
	int file = file_of_letters(4);
	struct exmap exmap;
	uint64_t done;

	open_attached(&exmap, &interface, 4, file);
	ck_assert_int_eq(exmap_run_done(&interface, EXMAP_OP_READ, 2, 4, &done), -ENODATA);
	ck_assert_uint_eq(done, 3);
	ck_assert(all_bytes(page_at(&exmap, 3), 'D'));
	ck_assert_int_eq(exmap_run_done(&interface, EXMAP_OP_ALLOC, 2, 5, &done), -ENOMEM);
	ck_assert_uint_eq(done, 0xc);
	ck_assert_int_eq(exmap_run_done(&interface, EXMAP_OP_FREE, SURFACE - 1, 3, &done), -EFAULT);
	ck_assert_uint_eq(done, 0);
	ck_assert_int_eq(exmap_run_done(&interface, EXMAP_OP_FREE, WIDE - 1, 3, &done), -EFAULT);
	ck_assert_int_eq(exmap_run_done(&interface, EXMAP_OP_FREE, WIDE, 1, &done), -EINVAL);
	ck_assert_int_eq(exmap_run_done(&interface, EXMAP_OP_FREE, 0, 64, &done), 4);
	ck_assert_uint_eq(done, 0x3c);
	ck_assert_int_eq(exmap_run_done(&interface, 4, 0, 1, &done), -EINVAL);
}

/*
 * exmap_list()
 */
#define LIST (2 * BATCH + 100)

/* Fill a list with every other page: no two of them are adjacent. */
static void fill_list(uint64_t *page)
{
	for (unsigned int i = 0; i < LIST; i++)
		page[i] = 1000 + 2 * i;
}

TEST(list_longer_than_a_batch)
{
	struct exmap_interface interface;
	uint64_t page[LIST];
	struct exmap exmap;

	fill_list(page);
	open_attached(&exmap, &interface, LIST, -1);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_ALLOC, NULL, 0), 0);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_ALLOC, page, BATCH), BATCH);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_ALLOC, page, LIST), LIST - BATCH);
	assert_mapped(&exmap, LIST);
	for (unsigned int i = 0; i < LIST; i++)
		*(uint64_t *)exmap_address(&exmap, page[i]) = i;
	for (unsigned int i = 0; i < LIST; i++)
		ck_assert_uint_eq(*(uint64_t *)exmap_address(&exmap, page[i]), i);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_FREE, page, LIST), LIST);
	assert_mapped(&exmap, 0);
}

/* exmap_list() with @number as element @where returns -@err, and does all other pages. */
static void list_with(unsigned int where, uint64_t number, int err)
{
	struct exmap_interface interface;
	uint64_t page[LIST], good;
	struct exmap exmap;

	fill_list(page);
	good = page[where];
	page[where] = number;
	open_attached(&exmap, &interface, LIST, -1);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_ALLOC, page, LIST), -err);
	/* All other pages are mapped. */
	assert_mapped(&exmap, LIST - 1);
	page[where] = good;
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_FREE, page, LIST), LIST - 1);
	exmap_detach(&interface);
	exmap_close(&exmap);
}

TEST(list_with_one_that_fails)
{
	static const unsigned int where[] = { 0, 100, BATCH - 1, BATCH, BATCH + 100, LIST - 1 };

	for (size_t i = 0; i < sizeof(where) / sizeof(*where); i++) {
		list_with(where[i], SURFACE, EFAULT);
		list_with(where[i], WIDE, EINVAL);
		list_with(where[i], UINT64_MAX, EINVAL);
	}
}

TEST(list_without_a_free_page)
{
	struct exmap_interface interface;
	uint64_t page[LIST];
	struct exmap exmap;

	fill_list(page);
	open_attached(&exmap, &interface, BATCH + 50, -1);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_ALLOC, page, LIST), -ENOMEM);
	assert_mapped(&exmap, BATCH + 50);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_FREE, page, LIST), BATCH + 50);
}

TEST(list_is_read)
{
	const uint64_t page[] = { 20, 3, 25, 4 };
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 10, file_of_letters(26));
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_READ, page, 4), 4);
	for (int i = 0; i < 4; i++)
		ck_assert(all_bytes(page_at(&exmap, page[i]), 'A' + page[i]));
	assert_mapped(&exmap, 4);
}

/* If the module refuses a whole call, the functions return its error. */
TEST(refusals_reach_the_caller)
{
	const uint64_t page[] = { 1, 3 };
	struct exmap_interface interface;
	struct exmap exmap;
	pid_t child;

	open_attached(&exmap, &interface, 10, -1);
	child = fork();
	if (!child) {
		/* The child has not inherited the entries, so it gets a page for them. */
		interface.user = (struct exmap_user_interface *)calloc(1, EXMAP_PAGE_SIZE);
		_exit(exmap_page(&interface, EXMAP_OP_ALLOC, 1) != -EPERM ||
		      exmap_run(&interface, EXMAP_OP_ALLOC, 1, 10000) != -EPERM ||
		      exmap_list(&interface, EXMAP_OP_ALLOC, page, 2) != -EPERM);
	}
	wait_child(child, 0);
	assert_mapped(&exmap, 0);
}

TEST(refusals_after_munmap, .needs_module = true)
{
	const uint64_t page[] = { 1, 3 };
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 10, -1);
	assert_ok(munmap(exmap.surface, SURFACE * EXMAP_PAGE_SIZE));
	exmap.surface = NULL;
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 1), -EPROTO);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, 1, 10000), -EPROTO);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_ALLOC, page, 2), -EPROTO);
}

/*
 * The batch
 */
TEST(batch_has_512_entries)
{
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 2 * BATCH, -1);
	for (int i = 0; i < BATCH; i++)
		ck_assert_int_eq(exmap_batch_add(&interface, 3 * i, 2), 0);
	ck_assert_int_eq(exmap_batch_add(&interface, 3 * BATCH, 2), -ENOSPC);
	ck_assert_uint_eq(interface.nr, BATCH);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_ALLOC, 0), 0);
	for (int i = 0; i < BATCH; i++)
		ck_assert_int_eq(exmap_batch_answer(&interface, i), 2);
	assert_mapped(&exmap, 2 * BATCH);

	/* The next exmap_batch_add() starts a new batch. */
	ck_assert_int_eq(exmap_batch_add(&interface, 0, 2), 0);
	ck_assert_uint_eq(interface.nr, 1);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_FREE, 0), 0);
	ck_assert_int_eq(exmap_batch_answer(&interface, 0), 2);
	assert_mapped(&exmap, 2 * BATCH - 2);
}

TEST(batch_refuses_what_does_not_fit)
{
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 5000, -1);
	ck_assert_int_eq(exmap_batch_add(&interface, 0, EXMAP_MAX_RUN + 1), -EINVAL);
	ck_assert_int_eq(exmap_batch_add(&interface, 0, UINT64_MAX), -EINVAL);
	ck_assert_int_eq(exmap_batch_add(&interface, WIDE, 1), -EINVAL);
	ck_assert_uint_eq(interface.nr, 0);
	ck_assert_int_eq(exmap_batch_add(&interface, WIDE - 1, 1), 0);
	ck_assert_int_eq(exmap_batch_add(&interface, 0, EXMAP_MAX_RUN), 0);
	ck_assert_int_eq(exmap_batch_add(&interface, 5, 0), 0);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_ALLOC, 0), 1);
	ck_assert_int_eq(exmap_batch_answer(&interface, 0), -EFAULT);
	ck_assert_int_eq(exmap_batch_answer(&interface, 1), EXMAP_MAX_RUN);
	ck_assert_int_eq(exmap_batch_answer(&interface, 2), 0);
}

TEST(batch_answers_in_order)
{
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 100, -1);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 12), 1);
	ck_assert_int_eq(exmap_batch_add(&interface, 10, 5), 0);
	ck_assert_int_eq(exmap_batch_add(&interface, SURFACE, 1), 0);
	ck_assert_int_eq(exmap_batch_add(&interface, 20, 3), 0);
	ck_assert_int_eq(exmap_batch_add(&interface, SURFACE - 1, 2), 0);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_ALLOC, 0), 2);
	ck_assert_int_eq(exmap_batch_answer(&interface, 0), 4);
	ck_assert_int_eq(exmap_batch_answer(&interface, 1), -EFAULT);
	ck_assert_uint_eq(exmap_batch_pages(&interface, 1), 0);
	ck_assert_int_eq(exmap_batch_answer(&interface, 2), 3);
	ck_assert_uint_eq(exmap_batch_pages(&interface, 2), 3);
	ck_assert_int_eq(exmap_batch_answer(&interface, 3), -EFAULT);
	assert_mapped(&exmap, 8);

	/* The entries hold answers now. They must not be run as requests. */
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_FREE, 0), -EINVAL);
	ck_assert_int_eq(exmap_batch_answer(&interface, 0), 4);
	assert_mapped(&exmap, 8);
}

/* If WRITE fails after some pages of an entry, the answer is the error. */
TEST(batch_answer_is_the_error)
{
	struct rlimit two_pages = { 2 * EXMAP_PAGE_SIZE, 2 * EXMAP_PAGE_SIZE };
	struct exmap_interface interface;
	int file = file_of_letters(4);
	struct exmap exmap;

	open_attached(&exmap, &interface, 10, file);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_READ, 0, 4), 4);
	signal(SIGXFSZ, SIG_IGN);
	assert_ok(setrlimit(RLIMIT_FSIZE, &two_pages));
	ck_assert_int_eq(exmap_batch_add(&interface, 0, 4), 0);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_WRITE, 0), 1);
	ck_assert_uint_eq(exmap_batch_pages(&interface, 0), 2);
	ck_assert_int_eq(exmap_batch_answer(&interface, 0), -EFBIG);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_WRITE, 0, 4), -EFBIG);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_WRITE, 0, 2), 2);
}

/* exmap_batch_clear() forgets the batch, and so does each simple call. */
TEST(batch_is_forgotten)
{
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 100, -1);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_ALLOC, 0), 0);
	exmap_batch_clear(&interface);
	ck_assert_int_eq(exmap_batch_add(&interface, 10, 5), 0);
	exmap_batch_clear(&interface);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_ALLOC, 0), 0);
	assert_mapped(&exmap, 0);
	/* A simple call must not run the entries that were added before it. */
	exmap_batch_clear(&interface);
	ck_assert_int_eq(exmap_batch_add(&interface, 10, 5), 0);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 1), 1);
	ck_assert_int_eq(exmap_batch_add(&interface, 10, 5), 0);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, 2, 2), 2);
	ck_assert_int_eq(exmap_batch_add(&interface, 10, 5), 0);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_ALLOC, (const uint64_t[]){ 5 }, 1), 1);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_ALLOC, 0), 0);
	assert_mapped(&exmap, 4);
}

TEST(batch_flags)
{
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 100, -1);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 10), 1);
	ck_assert_int_eq(exmap_batch_add(&interface, 10, 5), 0);
	ck_assert_int_eq(exmap_batch_add(&interface, 9, 5), 0);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_ALLOC, 2), -EINVAL);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_ALLOC, (uint64_t)1 << 32), -EINVAL);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_ALLOC, EXMAP_ALLOC_PROBE), 0);
	ck_assert_int_eq(exmap_batch_answer(&interface, 0), 0);
	ck_assert_int_eq(exmap_batch_answer(&interface, 1), 4);
}

#define assert_deferred(exmap, n) assert_fdinfo((exmap)->fd, "pages-deferred", n)

/* exmap_defer() puts off the flush of each simple FREE, and exmap_flush() flushes. */
TEST(flush_can_be_put_off, .needs_module = true)
{
	const uint64_t list[] = { 50, 60 };
	struct exmap_interface interface;
	struct exmap exmap;

	open_attached(&exmap, &interface, 100, -1);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, 0, 100), 100);
	exmap_defer(&interface, 1);
	ck_assert_int_eq(exmap_quarantine(&exmap, 0), -EINVAL);
	ck_assert_int_eq(exmap_quarantine(&exmap, 20), 0);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_FREE, 10), 1);
	ck_assert_int_eq(exmap_quarantine(&exmap, 20), -EBUSY);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_FREE, 20, 10), 10);
	ck_assert_int_eq(exmap_list(&interface, EXMAP_OP_FREE, list, 2), 2);
	assert_deferred(&exmap, 13);
	/* EXMAP_FREE_DEFER is no flag of ALLOC; exmap_defer() does not affect ALLOC. */
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 1000), 1);
	exmap_defer(&interface, 0);
	ck_assert_int_eq(exmap_flush(&interface), 0);
	assert_deferred(&exmap, 0);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_FREE, 11), 1);
	assert_deferred(&exmap, 0);
	ck_assert_int_eq(exmap_batch_add(&interface, 0, 5), 0);
	ck_assert_int_eq(exmap_batch_run(&interface, EXMAP_OP_FREE, EXMAP_FREE_DEFER), 0);
	assert_deferred(&exmap, 5);
	munmap(exmap.surface, exmap.surface_pages * EXMAP_PAGE_SIZE);
	ck_assert_int_eq(exmap_flush(&interface), -EPROTO);
}

/* ENOMEM leaves the batch as it is: it can be run again, and take more entries. */
TEST(batch_can_be_run_again_after_enomem)
{
	struct exmap_interface one, other;
	struct exmap exmap;

	open_one(&exmap, 100, 2);
	ck_assert_int_eq(exmap_attach(&exmap, &one), 0);
	ck_assert_int_eq(exmap_attach(&exmap, &other), 0);
	ck_assert_int_eq(exmap_run(&other, EXMAP_OP_ALLOC, 1000, 100), 100);
	ck_assert_int_eq(exmap_batch_add(&one, 10, 5), 0);
	ck_assert_int_eq(exmap_batch_add(&one, 20, 1), 0);
	for (int i = 0; i < 3; i++)
		ck_assert_int_eq(exmap_batch_run(&one, EXMAP_OP_ALLOC, 0), -ENOMEM);
	ck_assert_uint_eq(one.nr, 2);
	assert_mapped(&exmap, 100);
	/* More entries can be added to it. */
	ck_assert_int_eq(exmap_batch_add(&one, 30, 1), 0);
	ck_assert_int_eq(exmap_run(&other, EXMAP_OP_FREE, 1000, 100), 100);
	ck_assert_int_eq(exmap_batch_run(&one, EXMAP_OP_ALLOC, 0), 0);
	ck_assert_int_eq(exmap_batch_answer(&one, 0), 5);
	ck_assert_int_eq(exmap_batch_answer(&one, 1), 1);
	ck_assert_int_eq(exmap_batch_answer(&one, 2), 1);
	assert_mapped(&exmap, 7);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of exmap_user.h: page, run, list, batch, flush.");
}
