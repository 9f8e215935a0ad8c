// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of io_uring's READ, READV, WRITE and WRITEV on the exmap's file. Their results and errors
 * are those of pread and pwrite. Also the end of the file or device, and a page that is bad.
 *
 * EXMAP_TEST_DEVICE		a fast block device with memory behind it, 64 MiB or more
 * EXMAP_TEST_BAD_DEVICE	a block device whose page 50 (sectors 400 to 407) cannot be read
 * EXMAP_TEST_ODD_DEVICE	a block device whose size is not a multiple of 4 KiB
 *
 * All are overwritten.
 */
#include "request.h"

/*
 * Requests are refused for an interface, operation, length or address that is wrong, and for a
 * surface that is not mapped any more.
 */
TEST_BOTH(uring_refusals)
{
	static const int reads[] = { IORING_OP_READ, IORING_OP_READV };
	static const int writes[] = { IORING_OP_WRITE, IORING_OP_WRITEV };
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), POOL);
	char *s = ex->surface, *elsewhere = aligned_alloc(PAGE, PAGE);
	const uint64_t write = place(0, EXMAP_OP_WRITE);
	struct io_uring ring;

	ring_init(&ring, 8);
	for (int i = 0; i < 2; i++) {
		int op = reads[i];

		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s, PAGE, 2), -EINVAL);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s, PAGE, 255), -EINVAL);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s, PAGE, EXMAP_OP_FREE << 8), -EINVAL);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s, PAGE, write), -EINVAL);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s, PAGE, 1 << 16), -EINVAL);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s, 100, 0), -EINVAL);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s + 8, PAGE, 0), -EINVAL);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s + ex->size, PAGE, 0), -EFAULT);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s + ex->size - PAGE, 2 * PAGE, 0),
				 -EFAULT);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, elsewhere, PAGE, 0), -EFAULT);
		op = writes[i];
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s, PAGE, write), -EFAULT);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s, PAGE, 0), -EINVAL);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, s, PAGE, write | 2), -EINVAL);
		ck_assert_int_eq(uring_rw(&ring, op, ex->fd, elsewhere, PAGE, write), -EFAULT);
	}
	assert_mapped(ex, 0);
	assert_nothing_lost(ex);
	assert_ok(munmap(s, ex->size));
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, ex->fd, s, PAGE, 0), -EPROTO);
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READV, ex->fd, s, PAGE, 0), -EPROTO);
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_WRITE, ex->fd, s, PAGE, write), -EPROTO);
}

/* A request that cannot go on returns the bytes done so far, or the error if there are none. */
TEST_BOTH(uring_ends_early)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, 20);
	struct iovec iov[3] = {
		{ where(ex, 100), 8 * PAGE },
		{ where(ex, 300), 13 * PAGE },
		{ where(ex, 400), PAGE },
	};
	struct io_uring ring;

	ring_init(&ring, 8);
	/* The pool has too few pages for the second range. */
	prep_rw(&ring, IORING_OP_READV, ex->fd, iov, 3, 0);
	ck_assert_int_eq(ring_result(&ring), 8 * PAGE);
	assert_mapped(ex, 8);
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, ex->fd, iov[1].iov_base, 13 * PAGE, 0),
			 -ENOMEM);
	/* Pages that are mapped already count, and keep what they hold. */
	fill(where(ex, 101), 101, 9);
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, ex->fd, where(ex, 99), 10 * PAGE, 0),
			 10 * PAGE);
	ck_assert(holds(where(ex, 99), 99, 0) && holds(where(ex, 101), 101, 9) &&
		  holds(where(ex, 108), 108, 0));
	/* A WRITE ends before the first page that is not mapped. */
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_WRITE, ex->fd, where(ex, 107), 4 * PAGE,
				  place(1, EXMAP_OP_WRITE)), 2 * PAGE);
	/* ALLOC reads nothing. */
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, ex->fd, where(ex, 500), 2 * PAGE,
				  place(1, EXMAP_OP_ALLOC)), 2 * PAGE);
	ck_assert(!holds(where(ex, 500), 500, 0));
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, ex->fd, where(ex, 600), 0, 0), 0);
	assert_mapped(ex, 12);
	ck_assert(whole_pool(ex, 20));
}

/* READ counts the page that straddles the end of the file, and nothing beyond it. */
TEST(uring_at_the_end_of_the_file)
{
	int fd = backing_open(false, O_RDWR);
	struct exmap *ex = exmap_on(fd, POOL);
	struct io_uring ring;

	ring_init(&ring, 8);
	assert_ok(ftruncate(fd, 410 * PAGE + 100));
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, ex->fd, where(ex, 408), 5 * PAGE, 0),
			 3 * PAGE);
	ck_assert(holds(where(ex, 409), 409, 0));
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, ex->fd, where(ex, 411), PAGE, 0), 0);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_READ, 411, 2), 0);
	assert_mapped(ex, 3);
	assert_nothing_lost(ex);
}

/*
 * The same at the end of a device, which the module learns only from the device's answer. WRITE
 * counts the pages before the end, and fails with ENOSPC beyond it.
 */
TEST(uring_at_the_end_of_the_device, ON_A_DEVICE)
{
	int fd = device_open("EXMAP_TEST_DEVICE", 1);
	const size_t pages = lseek(fd, 0, SEEK_END) / PAGE;
	struct exmap *ex = exmap_new_file((pages + 1000) * PAGE, POOL, 2, 0, fd);
	struct io_uring ring;

	ring_init(&ring, 8);
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, ex->fd, where(ex, pages - 2), 5 * PAGE, 0),
			 2 * PAGE);
	ck_assert_int_eq(uring_rw(&ring, IORING_OP_READ, ex->fd, where(ex, pages), PAGE, 0), 0);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_READ, pages, 3), 0);
	ck_assert_int_eq(alloc(ex, 0, pages, 2), 2);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_WRITE, pages - 1, 3), PAGE);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_WRITE, pages, 1), -ENOSPC);
	ck_assert_int_eq(release(ex, 0, pages - 2, 10), 4);
	assert_nothing_lost(ex);
}

/*
 * If a device ends within its last page, a WRITE of that page reaches as far as the device does.
 * It counts as one page, as it does for a READ.
 */
#define FOR_EVERY_WRITE(what, name)			\
	FOR_WRITES(what, name)				\
	what(name, action, BY_ACTION)			\
	what(name, pwrite, BY_PREAD)
#define TEST_OF_KIND_ODD(name, suffix, kind)		\
	TEST(name##_##suffix, .needs_env = "EXMAP_TEST_ODD_DEVICE") { name(kind); }

/* Write by a request of its kind, or by a call that waits. Returns bytes, or a negative errno. */
static long write_by(struct request *r, uint64_t page, unsigned int pages)
{
	struct exmap *ex = r->ex;
	long ret;

	switch (r->kind) {
	case BY_ACTION:
		ret = run(ex, 0, EXMAP_OP_WRITE, page, pages);
		return ret < 0 ? ret : ret * (long)PAGE;
	case BY_PREAD:
		ret = pwrite(ex->fd, where(ex, page), pages * PAGE, place(0, EXMAP_OP_WRITE));
		return ret < 0 ? -errno : ret;
	default:
		request_start(r, page, pages);
		return request_wait(r);
	}
}

static void last_page_on(enum kind kind, int flags)
{
	const bool by_entry = kind == BY_ACTION || is_fixed(kind);
	int fd = open(getenv("EXMAP_TEST_ODD_DEVICE"), O_RDWR | O_CLOEXEC | flags);
	const size_t size = lseek(fd, 0, SEEK_END), last = size / PAGE, tail = size % PAGE;
	struct exmap *ex = exmap_new_file((last + 300) * PAGE, POOL, 2, 0, fd);
	char *buffer = aligned_alloc(PAGE, PAGE);
	struct request r = { .kind = kind, .ex = ex };

	assert_ok(fd);
	ck_assert_uint_ne(tail, 0);
	if (kind != BY_ACTION && kind != BY_PREAD)
		request_init(&r, kind, ex, fd, 0);
	for (unsigned int generation = 1; generation <= 2; generation++) {
		const unsigned int pages = generation == 1 ? 4 : 1;
		const uint64_t first = last + 1 - pages;

		ck_assert_int_eq(alloc(ex, 0, first, pages), pages);
		for (uint64_t page = first; page <= last; page++)
			fill(where(ex, page), page, generation);
		ck_assert_int_eq(write_by(&r, first, pages), pages * PAGE);
		ck_assert_int_eq(pread(fd, buffer, PAGE, last * PAGE), tail);
		ck_assert(!memcmp(buffer, where(ex, last), tail));
		for (uint64_t page = first; page < last; page++)
			ck_assert(file_holds(fd, page, generation));
		ck_assert_int_eq(release(ex, 0, first, pages), pages);
		ck_assert_int_eq(run(ex, 0, EXMAP_OP_READ, first, pages), pages);
		ck_assert(!memcmp(buffer, where(ex, last), tail));
		for (size_t i = tail; i < PAGE; i++)
			ck_assert_int_eq(where(ex, last)[i], 0);
		ck_assert_int_eq(release(ex, 0, first, pages), pages);
	}
	assert_fdinfo(ex->fd, "writes", 5);
	/* Nothing can be written beyond that page. */
	ck_assert_int_eq(alloc(ex, 0, last, 2), 2);
	ck_assert_int_eq(write_by(&r, last, 2), by_entry ? -ENOSPC : (long)PAGE);
	ck_assert_int_eq(write_by(&r, last + 1, 1), -ENOSPC);
	assert_fdinfo(ex->fd, "writes", 6);
	assert_nothing_lost(ex);
}

static void last_page_of_a_device(enum kind kind)
{
	last_page_on(kind, O_DIRECT);
	last_page_on(kind, 0);
}
FOR_EVERY_WRITE(TEST_OF_KIND_ODD, last_page_of_a_device)

/* READ_FIXED and WRITE_FIXED are refused, because a registered buffer is not the surface. */
TEST(read_fixed_on_the_exmap_is_einval)
{
	struct exmap *ex = exmap_on(backing_open(false, O_RDWR), POOL);
	struct exmap_iov *buffer;
	struct io_uring ring;

	ring_init(&ring, 8);
	buffer = ring_entries(&ring);
	prep_rw(&ring, IORING_OP_READ_FIXED, ex->fd, buffer, PAGE, 0);
	ck_assert_int_eq(ring_result(&ring), -EINVAL);
	prep_rw(&ring, IORING_OP_WRITE_FIXED, ex->fd, buffer, PAGE, place(0, EXMAP_OP_WRITE));
	ck_assert_int_eq(ring_result(&ring), -EINVAL);
	assert_nothing_lost(ex);
}

/* A buffer that the kernel picks from a group is refused, because it is not on the surface. */
TEST(provided_buffer_is_refused)
{
	struct exmap *ex = exmap_on(backing_open(false, O_RDWR), POOL);
	char *buffer = aligned_alloc(PAGE, 4 * PAGE);
	struct io_uring_sqe *sqe;
	struct io_uring ring;

	ring_init(&ring, 8);
	sqe = ring_sqe(&ring);
	io_uring_prep_provide_buffers(sqe, buffer, PAGE, 4, 7, 0);
	ck_assert_int_ge(ring_result(&ring), 0);
	sqe = prep_rw(&ring, IORING_OP_READ, ex->fd, NULL, PAGE, 0);
	sqe->flags |= IOSQE_BUFFER_SELECT;
	sqe->buf_group = 7;
	ck_assert_int_eq(ring_result(&ring), -EFAULT);
	assert_nothing_lost(ex);
}

/*
 * If the device cannot read or write a page then that page gets EIO, and other pages of the same
 * call are read.
 */
TEST(bad_page, .needs_env = "EXMAP_TEST_BAD_DEVICE")
{
	int fd = open(getenv("EXMAP_TEST_BAD_DEVICE"), O_RDWR | O_DIRECT);
	struct exmap *ex = exmap_on(fd, POOL);
	const struct iovec vec[3] = {
		{ where(ex, 30), PAGE }, { where(ex, 50), PAGE }, { where(ex, 40), PAGE },
	};
	char *after = aligned_alloc(PAGE, PAGE);
	struct exmap_iov *iov;
	struct io_uring ring;
	uint64_t data;

	assert_ok(fd);
	file_fill(fd, 50);
	fill(after, 51, 0);
	ck_assert_int_eq(pwrite(fd, after, PAGE, 51 * PAGE), PAGE);
	ring_init(&ring, 8);
	iov = ring_entries(&ring);
	/* The pages are not adjacent: the block layer could merge those, and fail them together. */
	for (uint64_t i = 0; i < 3; i++)
		prep_rw(&ring, IORING_OP_READ, ex->fd, where(ex, 40 + 5 * i), PAGE,
			0)->user_data = i;
	ring_submit(&ring, 3);
	for (int i = 0; i < 3; i++) {
		int res = ring_wait_data(&ring, &data);

		ck_assert_int_eq(res, data == 2 ? -EIO : (int)PAGE);
	}
	ck_assert_uint_eq(resident(ex, 0, 100), 2);
	ck_assert(holds(where(ex, 40), 40, 0) && holds(where(ex, 45), 45, 0));
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_READ, 50, 1), -EIO);

	iov[0] = entry_of(10, 2);
	iov[1] = entry_of(50, 1);
	iov[2] = entry_of(20, 1);
	prep_fixed(&ring, ex->fd, place(1, EXMAP_OP_READ), iov, 3 * 8);
	ck_assert_int_eq(ring_result(&ring), 1);
	assert_answer(iov[0], 0, 2);
	assert_answer(iov[1], -EIO, 0);
	assert_answer(iov[2], 0, 1);
	ck_assert(holds(where(ex, 11), 11, 0) && holds(where(ex, 20), 20, 0));

	/* The module reads adjacent pages at once, but only the bad page's entry has the error. */
	for (int i = 0; i < 4; i++)
		iov[i] = entry_of(48 + i, 1);
	prep_fixed(&ring, ex->fd, place(1, EXMAP_OP_READ), iov, 4 * 8);
	ck_assert_int_eq(ring_result(&ring), 1);
	for (int i = 0; i < 4; i++) {
		assert_answer(iov[i], i == 2 ? -EIO : 0, i != 2);
		ck_assert(i == 2 || holds(where(ex, 48 + i), 48 + i, 0));
	}
	ck_assert_uint_eq(resident(ex, 48, 4), 3);

	/* A request for several pages ends before the bad one. */
	prep_rw(&ring, IORING_OP_READV, ex->fd, (void *)vec, 3, 0);
	ck_assert_int_eq(ring_result(&ring), PAGE);
	ck_assert(holds(where(ex, 30), 30, 0));
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_READ, 46, 5), 4 * PAGE);
	ck_assert_uint_eq(resident(ex, 50, 1), 0);

	/* A page whose WRITE has failed stays mapped. */
	ck_assert_int_eq(alloc(ex, 0, 50, 1), 1);
	memset(where(ex, 50), 0x5a, PAGE);
	ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_WRITE, 50, 1), -EIO);
	ck_assert(all_bytes(where(ex, 50), 0x5a));
	assert_nothing_lost(ex);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv,
			  "Tests of io_uring's READ and WRITE. They overwrite the block devices named by\n"
			  "$EXMAP_TEST_DEVICE, $EXMAP_TEST_BAD_DEVICE and $EXMAP_TEST_ODD_DEVICE.");
}
