// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of io_uring's commands (IORING_OP_URING_CMD): on a range of the surface, and with entries
 * in a registered buffer (IORING_URING_CMD_FIXED).
 *
 * EXMAP_TEST_DEVICE	a fast block device with memory behind it, 64 MiB or more; is overwritten
 * EXMAP_TEST_DIRECTORY	a directory in a file system that takes O_DIRECT
 */
#include "request.h"

/*
 * A command on a range returns bytes. Pages that ALLOC finds mapped count, and so do pages that
 * FREE finds absent. WRITE ends before the first page that is not mapped.
 */
TEST_BOTH(cmd_on_a_range)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, POOL);
	struct io_uring ring;

	ring_init(&ring, 8);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_ALLOC, 10, 3), 3 * PAGE);
	assert_mapped(ex, 3);
	for (int page = 10; page < 13; page++)
		fill(where(ex, page), page, 4);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_ALLOC, 9, 5), 5 * PAGE);
	assert_mapped(ex, 5);
	ck_assert(holds(where(ex, 11), 11, 4));
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_WRITE, 10, 3), 3 * PAGE);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_WRITE, 10, 5), 4 * PAGE);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_FREE, 9, 5), 5 * PAGE);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_FREE, 9, 5), 5 * PAGE);
	assert_mapped(ex, 0);
	ck_assert_int_eq(cmd(&ring, ex->fd, place(1, EXMAP_OP_READ), where(ex, 10), 5 * PAGE),
			 5 * PAGE);
	for (int page = 10; page < 13; page++)
		ck_assert(holds(where(ex, page), page, 4));
	ck_assert(holds(where(ex, 14), 14, 0));
	assert_nothing_lost(ex);
}

/* A range without pages has no entry, and nothing may be looked at in its place. */
TEST_BOTH(cmd_on_an_empty_range)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, 20);
	struct io_uring ring;

	ring_init(&ring, 8);
	for (int op = EXMAP_OP_READ; op <= EXMAP_OP_WRITE; op++)
		for (int i = 0; i < 100; i++)
			ck_assert_int_eq(cmd_pages(&ring, ex, op, i, 0), 0);
	ck_assert_uint_eq(resident(ex, 0, 200), 0);
	assert_pages_add_up(ex->fd);
	io_uring_queue_exit(&ring);
}

/*
 * Commands are refused for an interface, operation, bit of cmd_op, length or address that is
 * wrong, and for a surface that is not mapped any more.
 */
TEST_BOTH(cmd_refusals)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), POOL);
	char *s = ex->surface, *elsewhere = aligned_alloc(PAGE, PAGE);
	struct io_uring ring;

	ring_init(&ring, 8);
	for (int op = EXMAP_OP_READ; op <= EXMAP_OP_WRITE; op++) {
		ck_assert_int_eq(cmd(&ring, ex->fd, place(2, op), s, PAGE), -EINVAL);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(255, op), s, PAGE), -EINVAL);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op) | 1 << 16, s, PAGE), -EINVAL);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op) | 1U << 31, s, PAGE), -EINVAL);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op), s, 100), -EINVAL);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op), s + 8, PAGE), -EINVAL);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op), s - PAGE, PAGE), -EFAULT);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op), s + ex->size, PAGE), -EFAULT);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op), s, ex->size + PAGE), -EFAULT);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op), s + PAGE, -PAGE), -EFAULT);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op), s, 1UL << 63), -EFAULT);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op), elsewhere, PAGE), -EFAULT);
		ck_assert_int_eq(cmd(&ring, ex->fd, place(0, op), NULL, PAGE), -EFAULT);
	}
	ck_assert_int_eq(cmd(&ring, ex->fd, place(0, 4), s, PAGE), -EINVAL);
	ck_assert_int_eq(cmd(&ring, ex->fd, place(0, 255), s, PAGE), -EINVAL);
	ck_assert_int_eq(cmd(&ring, ex->fd, place(0, EXMAP_OP_WRITE), s, PAGE), -EFAULT);
	assert_mapped(ex, 0);
	assert_nothing_lost(ex);
	assert_ok(munmap(s, ex->size));
	for (int op = EXMAP_OP_READ; op <= EXMAP_OP_WRITE; op++)
		ck_assert_msg(cmd(&ring, ex->fd, place(0, op), s, PAGE) == -EPROTO, "op %d", op);
}

/* A command fails with ENOMEM if the pool has too few pages for it. */
TEST_BOTH(cmd_without_memory)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), 10);
	struct io_uring ring;

	ring_init(&ring, 8);
	ck_assert_int_eq(alloc(ex, 1, 0, 10), 10);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_ALLOC, 50, 1), -ENOMEM);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_READ, 50, 1), -ENOMEM);
	assert_mapped(ex, 10);
	ck_assert_int_eq(release(ex, 1, 0, 10), 10);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_READ, 50, 11), -ENOMEM);
	ck_assert(whole_pool(ex, 10));
}

/*
 * A result is an int, so the bytes of a long range may not fit. Then the result is a smaller number
 * of whole pages, or EINVAL.
 */
TEST(cmd_on_a_very_long_range)
{
	struct exmap *ex = exmap_new_file(16 * GIB, POOL, 2, 0, backing_open(false, O_RDWR));
	static const size_t len[] = { 2 * GIB, 4 * GIB, 8 * GIB };
	struct io_uring ring;

	ring_init(&ring, 8);
	for (int i = 0; i < 3; i++) {
		int res = cmd(&ring, ex->fd, place(0, EXMAP_OP_FREE), ex->surface, len[i]);

		ck_assert_msg((res > 0 && res % PAGE == 0) || res == -EINVAL,
			      "FREE of %zu bytes: result %d", len[i], res);
		res = cmd(&ring, ex->fd, place(0, EXMAP_OP_ALLOC), ex->surface, len[i]);
		ck_assert_msg(res == -ENOMEM || res == -EINVAL || res == POOL * PAGE,
			      "ALLOC of %zu bytes: result %d", len[i], res);
		ck_assert_int_ge(release(ex, 0, 0, POOL), 0);
		assert_mapped(ex, 0);
	}
	assert_nothing_lost(ex);
}

/* 512 entries at once, from anywhere in the registered buffer. Nothing behind them is touched. */
TEST_BOTH(fixed_batch)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, 600);
	struct exmap_iov *iov;
	struct io_uring ring;

	ring_init(&ring, 8);
	iov = ring_entries(&ring);
	for (int i = 0; i < 512; i++)
		iov[i] = entry_of((i * 37) % FILE_PAGES, 1);
	prep_fixed(&ring, ex->fd, place(1, EXMAP_OP_READ), iov, 512 * 8);
	ck_assert_int_eq(ring_result(&ring), 0);
	for (int i = 0; i < 512; i++) {
		assert_answer(iov[i], 0, 1);
		ck_assert(holds(where(ex, (i * 37) % FILE_PAGES), i * 37 % FILE_PAGES, 0));
		fill(where(ex, (i * 37) % FILE_PAGES), i * 37 % FILE_PAGES, 6);
	}
	assert_mapped(ex, 512);
	/* These entries lie in both pages of the buffer. */
	iov += 300;
	for (int i = 0; i < 512; i++)
		iov[i] = entry_of((i * 37) % FILE_PAGES, 1);
	iov[512].value = 42;
	prep_fixed(&ring, ex->fd, place(0, EXMAP_OP_WRITE), iov, 512 * 8);
	ck_assert_int_eq(ring_result(&ring), 0);
	for (int i = 0; i < 512; i++) {
		assert_answer(iov[i], 0, 1);
		iov[i] = entry_of((i * 37) % FILE_PAGES, 1);
	}
	prep_fixed(&ring, ex->fd, place(0, EXMAP_OP_FREE), iov, 512 * 8);
	ck_assert_int_eq(ring_result(&ring), 0);
	for (int i = 0; i < 512; i++)
		assert_answer(iov[i], 0, 1);
	ck_assert_uint_eq(iov[512].value, 42);
	assert_mapped(ex, 0);
	for (int i = 0; i < 512; i += 50)
		ck_assert(file_holds(fd, (i * 37) % FILE_PAGES, 6));
	ck_assert(whole_pool(ex, 600));
}

/* The result is the number of entries that failed. The others are carried out. */
TEST_BOTH(fixed_counts_failures)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), POOL);
	struct exmap_iov *iov;
	struct io_uring ring;

	ring_init(&ring, 8);
	iov = ring_entries(&ring);
	for (int op = EXMAP_OP_READ; op <= EXMAP_OP_WRITE; op++) {
		iov[0] = entry_of(10, 2);
		iov[1] = entry_of(2 * FILE_PAGES, 1);
		iov[2] = entry_of(20, 1);
		iov[3] = entry_of(2 * FILE_PAGES - 1, 2);
		iov[4] = entry_of(30, 0);
		prep_fixed(&ring, ex->fd, place(0, op), iov, 5 * 8);
		ck_assert_int_eq(ring_result(&ring), 2);
		/* READ maps them, ALLOC finds them, FREE unmaps them, WRITE finds none. */
		assert_answer(iov[0], 0, op == EXMAP_OP_READ || op == EXMAP_OP_FREE ? 2 : 0);
		assert_answer(iov[1], -EFAULT, 0);
		assert_answer(iov[2], 0, op == EXMAP_OP_READ || op == EXMAP_OP_FREE ? 1 : 0);
		assert_answer(iov[3], -EFAULT, 0);
		assert_answer(iov[4], 0, 0);
	}
	assert_mapped(ex, 0);
	assert_nothing_lost(ex);
}

/*
 * If the first entry finds no memory then the command fails and leaves the entries as they were.
 * If a later one does, it and those after it have ENOMEM.
 */
TEST_BOTH(fixed_without_memory)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), 10);
	struct exmap_iov *iov;
	struct io_uring ring;

	ring_init(&ring, 8);
	iov = ring_entries(&ring);
	for (int op = EXMAP_OP_READ; op <= EXMAP_OP_ALLOC; op++) {
		/* The first entry. */
		iov[0] = entry_of(0, 11);
		iov[1] = entry_of(20, 1);
		prep_fixed(&ring, ex->fd, place(0, op), iov, 2 * 8);
		if (op == EXMAP_OP_READ) {
			ck_assert_int_eq(ring_result(&ring), -ENOMEM);
			assert_mapped(ex, 0);
		} else {
			/* ALLOC keeps the pages that it got, as it does by ACTION. */
			int ret = ring_result(&ring), want = alloc(ex, 1, 100, 11);

			ck_assert_int_eq(ret, want);
			ck_assert_int_ge(release(ex, 0, 0, 200), 0);
		}
		ck_assert_uint_eq(iov[0].value, entry_of(0, 11).value);
		ck_assert_uint_eq(iov[1].value, entry_of(20, 1).value);
		/* A later entry. */
		iov[0] = entry_of(0, 6);
		iov[1] = entry_of(20, 5);
		iov[2] = entry_of(30, 1);
		prep_fixed(&ring, ex->fd, place(0, op), iov, 3 * 8);
		ck_assert_int_eq(ring_result(&ring), 2);
		assert_answer(iov[0], 0, 6);
		ck_assert_int_eq(iov[1].res, -ENOMEM);
		ck_assert_int_eq(iov[2].res, -ENOMEM);
		ck_assert(whole_pool(ex, 10));
	}
}

/*
 * Two entries may ask for the same page when the pool has only one: by ACTION and by a command,
 * the second entry needs no page of its own.
 */
TEST_BOTH(fixed_of_the_same_page_twice)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), 10);
	struct exmap_iov *iov;
	struct io_uring ring;

	ring_init(&ring, 8);
	iov = ring_entries(&ring);
	ck_assert_int_eq(alloc(ex, 1, 100, 9), 9);
	entry(ex, 0, 0, 5, 1);
	entry(ex, 0, 1, 5, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_READ, 2, 0), 0);
	ck_assert_int_eq(release(ex, 0, 5, 1), 1);
	iov[0] = iov[1] = entry_of(5, 1);
	prep_fixed(&ring, ex->fd, place(0, EXMAP_OP_READ), iov, 2 * 8);
	ck_assert_int_eq(ring_result(&ring), 0);
	assert_answer(iov[0], 0, 1);
	assert_answer(iov[1], 0, 0);
	ck_assert(holds(where(ex, 5), 5, 0));
	ck_assert(whole_pool(ex, 10));
}

/* Commands with wrong entries, buffers or flags are refused, and the entries stay untouched. */
TEST(fixed_refusals)
{
	struct exmap *ex = exmap_on(backing_open(false, O_RDWR), POOL);
	char *elsewhere = aligned_alloc(PAGE, PAGE);
	const uint64_t untouched = entry_of(10, 1).value;
	struct io_uring_sqe *sqe;
	struct exmap_iov *iov;
	struct io_uring ring;
	int res;

	ring_init(&ring, 8);
	iov = ring_entries(&ring);
	for (int i = 0; i < 1024; i++)
		iov[i].value = untouched;
	for (int op = EXMAP_OP_READ; op <= EXMAP_OP_WRITE; op++) {
		static const size_t wrong[] = { 0, 4, 12, 513 * 8, 1UL << 63 };
		const struct { void *start; size_t len; } outside[] = {
			{ elsewhere, 8 }, { iov - 1, 16 }, { iov + 1023, 16 }, { iov + 1024, 8 },
			{ NULL, 8 }, { ex->surface, 8 }, { ex->interface[0], 8 },
			{ (void *)-8UL, 16 },
		};

		for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
			prep_fixed(&ring, ex->fd, place(0, op), iov, wrong[i]);
			res = ring_result(&ring);
			ck_assert_msg(res == -EINVAL, "op %d, length %#zx: %d", op, wrong[i], res);
		}
		for (size_t i = 0; i < sizeof(outside) / sizeof(*outside); i++) {
			prep_fixed(&ring, ex->fd, place(0, op), outside[i].start, outside[i].len);
			res = ring_result(&ring);
			ck_assert_msg(res == -EFAULT, "op %d, outside %zu: %d", op, i, res);
		}
		prep_fixed(&ring, ex->fd, place(2, op), iov, 8);
		ck_assert_int_eq(ring_result(&ring), -EINVAL);
		prep_fixed(&ring, ex->fd, place(0, op) | 1 << 16, iov, 8);
		ck_assert_int_eq(ring_result(&ring), -EINVAL);
		/* A buffer that is not registered. */
		sqe = prep_fixed(&ring, ex->fd, place(0, op), iov, 8);
		sqe->buf_index = 1;
		ck_assert_int_eq(ring_result(&ring), -EFAULT);
		/* An unknown flag. */
		sqe = prep_fixed(&ring, ex->fd, place(0, op), iov, 8);
		sqe->uring_cmd_flags = 1U << 20;
		ck_assert_int_eq(ring_result(&ring), -EINVAL);
	}
	prep_fixed(&ring, ex->fd, place(0, 4), iov, 8);
	ck_assert_int_eq(ring_result(&ring), -EINVAL);
	for (int i = 0; i < 1024; i++)
		ck_assert_uint_eq(iov[i].value, untouched);
	assert_mapped(ex, 0);
	/* Without a surface. */
	assert_ok(munmap(ex->surface, ex->size));
	for (int op = EXMAP_OP_READ; op <= EXMAP_OP_WRITE; op++) {
		prep_fixed(&ring, ex->fd, place(0, op), iov, 8);
		ck_assert_int_eq(ring_result(&ring), -EPROTO);
		ck_assert_uint_eq(iov[0].value, untouched);
	}
}

/* A command with entries is refused if no buffer was registered. */
TEST(fixed_without_a_buffer)
{
	struct exmap *ex = exmap_on(backing_open(false, O_RDWR), POOL);
	struct exmap_iov iov = entry_of(1, 1);
	struct io_uring ring;

	ring_init(&ring, 8);
	prep_fixed(&ring, ex->fd, place(0, EXMAP_OP_ALLOC), &iov, 8);
	ck_assert_int_eq(ring_result(&ring), -EFAULT);
	assert_mapped(ex, 0);
}

/*
 * With O_DIRECT a READ across the end of the file comes back short. The worker takes that as the
 * end, and does not read again.
 */
TEST(fixed_across_the_end_of_a_direct_file, .needs_env = "EXMAP_TEST_DIRECTORY")
{
	int fd = file_open(getenv("EXMAP_TEST_DIRECTORY"), O_DIRECT);
	struct exmap *ex = exmap_on(fd, POOL);
	struct exmap_iov *iov;
	struct io_uring ring;

	file_fill(fd, 20);
	assert_ok(ftruncate(fd, 10 * PAGE + 100));
	ring_init(&ring, 8);
	iov = ring_entries(&ring);
	iov[0] = entry_of(8, 5);
	iov[1] = entry_of(15, 2);
	iov[2] = entry_of(2, 1);
	prep_fixed(&ring, ex->fd, place(0, EXMAP_OP_READ), iov, 3 * sizeof(*iov));
	ck_assert_int_eq(ring_result(&ring), 1);
	assert_answer(iov[0], 0, 3);
	assert_answer(iov[1], -ENODATA, 0);
	assert_answer(iov[2], 0, 1);
	ck_assert(holds(where(ex, 2), 2, 0));
	ck_assert(holds(where(ex, 9), 9, 0));
	ck_assert_int_eq(where(ex, 10)[100], 0);
	assert_mapped(ex, 4);
	assert_nothing_lost(ex);
}

/* A command reads its entries at submission. Later writes to them have no effect. */
TEST(fixed_reads_its_entries_once, ON_A_DEVICE)
{
	struct request r;

	request_in_flight(&r, FIXED_READ);
	/* READ has already read the entry. Later it writes its answer there. */
	r.entries[0] = entry_of(100, 50);
	r.entries[1].value = 42;
	device_go();
	assert_result(&r, PAGES * PAGE);
	ck_assert_uint_eq(r.entries[1].value, 42);
	assert_request_done(&r);
	assert_mapped(r.ex, PAGES);
	assert_nothing_lost(r.ex);
}

/* A buffer that is unmapped during a command can still take the answers: the ring holds it. */
TEST(fixed_with_its_buffer_unmapped, ON_A_DEVICE)
{
	struct request r;

	request_in_flight(&r, FIXED_READ);
	assert_ok(munmap(r.entries, 2 * PAGE));
	ck_assert(request_pending(&r));
	device_go();
	ck_assert_int_eq(ring_wait(&r.ring), 0);
	assert_request_done(&r);
	assert_nothing_lost(r.ex);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv,
			  "Tests of io_uring's commands. They overwrite the block device $EXMAP_TEST_DEVICE,\n"
			  "and make a file in $EXMAP_TEST_DIRECTORY.");
}
