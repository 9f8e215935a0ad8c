// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of pages that are freed while a request holds them: those of a WRITE in flight, and surface
 * pages that are buffers of the program's own requests to the device.
 *
 * EXMAP_TEST_DEVICE	a fast block device with memory behind it, 64 MiB or more; is overwritten
 */
#include "request.h"

/* Pages are freed during a WRITE: the device gets their data, and no other page is changed. */
static void free_and_reuse_in_flight(enum kind kind)
{
	struct request r;

	request_in_flight(&r, kind);
	ck_assert_int_eq(release(r.ex, 0, FIRST, PAGES), PAGES);
	ck_assert_int_eq(alloc(r.ex, 0, 100, POOL), POOL);
	memset(where(r.ex, 100), 0x5a, POOL * PAGE);
	ck_assert(request_pending(&r));
	device_go();
	assert_result(&r, PAGES * PAGE);
	assert_request_done(&r);
	for (int page = 100; page < 100 + POOL; page++)
		ck_assert(all_bytes(where(r.ex, page), 0x5a));
	assert_nothing_lost(r.ex);
}
FOR_WRITES(TEST_OF_KIND, free_and_reuse_in_flight)

/* The program may read and write the device by requests of its own, with surface pages. */
TEST(own_requests_with_surface_pages, ON_A_DEVICE)
{
	int fd = device_open("EXMAP_TEST_DEVICE", FILE_PAGES);
	struct exmap *ex = exmap_on(fd, POOL);
	io_context_t aio = NULL;
	struct io_uring ring;
	struct iocb iocb;

	ring_init(&ring, 8);
	ck_assert_int_eq(io_setup(8, &aio), 0);
	ck_assert_int_eq(alloc(ex, 0, 0, 20), 20);
	for (int page = 0; page < 10; page++)
		fill(where(ex, page), 50 + page, 8);
	prep_rw(&ring, IORING_OP_WRITE, fd, ex->surface, 10 * PAGE, 50 * PAGE);
	ck_assert_int_eq(ring_result(&ring), 10 * PAGE);
	io_prep_pread(&iocb, fd, where(ex, 10), 10 * PAGE, 50 * PAGE);
	ck_assert_int_eq(libaio_result(aio, &iocb), 10 * PAGE);
	for (int page = 0; page < 10; page++)
		ck_assert(holds(where(ex, 10 + page), 50 + page, 8));
	for (int page = 0; page < 10; page++)
		fill(where(ex, page), 70 + page, 8);
	io_prep_pwrite(&iocb, fd, ex->surface, 10 * PAGE, 70 * PAGE);
	ck_assert_int_eq(libaio_result(aio, &iocb), 10 * PAGE);
	prep_rw(&ring, IORING_OP_READ, fd, where(ex, 10), 10 * PAGE, 70 * PAGE);
	ck_assert_int_eq(ring_result(&ring), 10 * PAGE);
	for (int page = 0; page < 10; page++)
		ck_assert(holds(where(ex, 10 + page), 70 + page, 8));
	assert_nothing_lost(ex);
}

/* A page into which the device will write is freed: nobody gets it before that is over. */
static void free_under_own_read(bool libaio)
{
	int fd = device_open("EXMAP_TEST_DEVICE", 20);
	struct exmap *ex = exmap_on(fd, POOL);
	struct iocb iocb, *iocbs = &iocb;
	struct io_event event;
	io_context_t aio = NULL;
	struct io_uring ring;

	ring_init(&ring, 8);
	ck_assert_int_eq(io_setup(8, &aio), 0);
	ck_assert_int_eq(alloc(ex, 0, FIRST, PAGES), PAGES);
	device_stop(fd);
	if (libaio) {
		io_prep_pread(&iocb, fd, where(ex, FIRST), PAGES * PAGE, 0);
		ck_assert_int_eq(io_submit(aio, 1, &iocbs), 1);
	} else {
		prep_rw(&ring, IORING_OP_READ, fd, where(ex, FIRST), PAGES * PAGE, 0);
		ring_submit(&ring, 1);
	}
	ck_assert_int_eq(release(ex, 0, FIRST, PAGES), PAGES);
	ck_assert_int_eq(alloc(ex, 0, 100, POOL), POOL);
	memset(where(ex, 100), 0x5a, POOL * PAGE);
	device_go();
	if (libaio) {
		ck_assert_int_eq(io_getevents(aio, 1, 1, &event, NULL), 1);
		ck_assert_int_eq((long)event.res, PAGES * PAGE);
	} else {
		ck_assert_int_eq(ring_wait(&ring), PAGES * PAGE);
	}
	for (int page = 100; page < 100 + POOL; page++)
		ck_assert(all_bytes(where(ex, page), 0x5a));
	assert_nothing_lost(ex);
}

TEST(free_under_own_read_by_libaio, ON_A_DEVICE)
{
	free_under_own_read(true);
}

TEST(free_under_own_read_by_io_uring, ON_A_DEVICE)
{
	free_under_own_read(false);
}

/* Surface pages may be a registered buffer, and stay the ring's when they are freed. */
TEST(surface_pages_as_registered_buffer, ON_A_DEVICE)
{
	int fd = device_open("EXMAP_TEST_DEVICE", FILE_PAGES);
	struct exmap *ex = exmap_on(fd, POOL);
	struct iovec iov = { where(ex, FIRST), PAGES * PAGE };
	struct io_uring ring;
	int ret;

	ring_init(&ring, 8);
	/* This fails as long as the pages are not mapped. */
	ck_assert_int_lt(io_uring_register_buffers(&ring, &iov, 1), 0);
	ck_assert_int_eq(alloc(ex, 0, FIRST, PAGES), PAGES);
	ret = io_uring_register_buffers(&ring, &iov, 1);
	/* Before 6.5, io_uring refused to register memory that is mapped from a file. */
	if (!kernel_is_since(6, 5)) {
		ck_assert_int_eq(ret, -EOPNOTSUPP);
		assert_nothing_lost(ex);
		return;
	}
	ck_assert_msg(!ret, "io_uring_register_buffers: %s", strerror(-ret));
	prep_rw(&ring, IORING_OP_READ_FIXED, fd, iov.iov_base, PAGES * PAGE, 30 * PAGE);
	ck_assert_int_eq(ring_result(&ring), PAGES * PAGE);
	for (int page = 0; page < PAGES; page++)
		ck_assert(holds(where(ex, FIRST + page), 30 + page, 0));
	for (int page = 0; page < PAGES; page++)
		fill(where(ex, FIRST + page), 30 + page, 3);
	prep_rw(&ring, IORING_OP_WRITE_FIXED, fd, iov.iov_base, PAGES * PAGE, 30 * PAGE);
	ck_assert_int_eq(ring_result(&ring), PAGES * PAGE);
	for (int page = 0; page < PAGES; page++)
		ck_assert(file_holds(fd, 30 + page, 3));
	/* The ring still holds the pages when they are freed, so nobody else may get them. */
	ck_assert_int_eq(release(ex, 0, FIRST, PAGES), PAGES);
	ck_assert_int_eq(alloc(ex, 0, 100, POOL), POOL);
	memset(where(ex, 100), 0x5a, POOL * PAGE);
	prep_rw(&ring, IORING_OP_READ_FIXED, fd, iov.iov_base, PAGES * PAGE, 0);
	ck_assert_int_eq(ring_result(&ring), PAGES * PAGE);
	for (int page = 100; page < 100 + POOL; page++)
		ck_assert(all_bytes(where(ex, page), 0x5a));
	ck_assert_int_eq(io_uring_unregister_buffers(&ring), 0);
	assert_nothing_lost(ex);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv,
			  "Tests of pages that requests in flight hold. They overwrite the block device\n"
			  "$EXMAP_TEST_DEVICE.");
}
