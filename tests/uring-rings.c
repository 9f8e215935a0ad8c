// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of rings: each setup (SQPOLL, worker threads, deferred completions, IOPOLL) and shape,
 * registered files, and requests that are linked.
 *
 * EXMAP_TEST_DEVICE	a fast block device with memory behind it, 64 MiB or more; is overwritten
 */
#include <sched.h>

#include "request.h"

/* With SQPOLL a kernel thread submits, and does not wait for the device either. */
static void with_sqpoll(enum kind kind)
{
	int fd = device_open("EXMAP_TEST_DEVICE", FIRST + PAGES);
	struct request r;

	device_stop(fd);
	request_prepare(&r, kind, fd, IORING_SETUP_SQPOLL);
	request_start(&r, FIRST, PAGES);
	/* Wait until that thread has taken the request from the queue. */
	while (io_uring_sq_ready(&r.ring))
		sched_yield();
	ck_assert(request_pending(&r));
	assert_request_succeeds(&r);
	assert_threads(2);
	assert_nothing_lost(r.ex);
}

/* With DEFER_TASKRUN a completion is carried out when the program asks for it. */
static void with_deferred_completions(enum kind kind)
{
	struct request r;

	request_in_flight_flags(&r, kind, IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SINGLE_ISSUER);
	assert_request_succeeds(&r);
	assert_nothing_lost(r.ex);
}

/* With IOSQE_ASYNC a worker thread carries out the request, and may wait for the device. */
static void with_worker_threads(enum kind kind)
{
	int fd = device_open("EXMAP_TEST_DEVICE", FIRST + PAGES);
	struct request r;

	request_prepare(&r, kind, fd, 0);
	for (int i = 0; i < 100; i++) {
		request_prep(&r, FIRST, PAGES)->flags |= IOSQE_ASYNC;
		ring_submit(&r.ring, 1);
		assert_result(&r, PAGES * PAGE);
		assert_request_done(&r);
		if (!is_write(kind))
			ck_assert_int_eq(release(r.ex, 0, FIRST, PAGES), PAGES);
	}
	assert_nothing_lost(r.ex);
}

FOR_RINGS(TEST_OF_KIND, with_sqpoll)
FOR_RINGS(TEST_OF_KIND, with_deferred_completions)
FOR_RINGS(TEST_OF_KIND, with_worker_threads)

/*
 * READ is refused, because the exmap cannot be polled. The kernel decides on commands: 7.3 lets
 * them complete.
 */
TEST(iopoll_is_refused, ON_A_DEVICE)
{
	int fd = device_open("EXMAP_TEST_DEVICE", 20);
	struct exmap *ex = exmap_on(fd, POOL);
	struct io_uring ring;
	int res;

	ring_init_flags(&ring, 8, IORING_SETUP_IOPOLL);
	prep_rw(&ring, IORING_OP_READ, ex->fd, where(ex, 1), PAGE, 0);
	ck_assert_int_eq(ring_result(&ring), -EOPNOTSUPP);
	assert_mapped(ex, 0);
	res = cmd_pages(&ring, ex, EXMAP_OP_READ, 2, 1);
	ck_assert_msg(res == -EOPNOTSUPP || res == PAGE, "READ command: result %d", res);
	ck_assert(res < 0 || holds(where(ex, 2), 2, 0));
	assert_nothing_lost(ex);
}

/* Each shape of ring carries commands and reads. */
TEST(rings_of_all_shapes, ON_A_DEVICE)
{
	static const unsigned int flags[] = {
		0, IORING_SETUP_SQE128, IORING_SETUP_CQE32,
		IORING_SETUP_SQE128 | IORING_SETUP_CQE32, IORING_SETUP_COOP_TASKRUN,
		IORING_SETUP_SINGLE_ISSUER,
		IORING_SETUP_SQPOLL | IORING_SETUP_SQE128,
		IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_CQE32,
	};
	int fd = device_open("EXMAP_TEST_DEVICE", 20);
	struct exmap *ex = exmap_on(fd, POOL);

	for (size_t i = 0; i < sizeof(flags) / sizeof(*flags); i++) {
		struct io_uring ring;

		ring_init_flags(&ring, 8, flags[i]);
		ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_READ, 3, 2), 2 * PAGE);
		ck_assert(holds(where(ex, 4), 4, 0));
		ck_assert_int_eq(cmd_pages(&ring, ex, EXMAP_OP_FREE, 3, 2), 2 * PAGE);
		prep_rw(&ring, IORING_OP_READ, ex->fd, where(ex, 1), PAGE, 0);
		ck_assert_int_eq(ring_result(&ring), PAGE);
		ck_assert(holds(where(ex, 1), 1, 0));
		ck_assert_int_eq(release(ex, 0, 1, 1), 1);
		io_uring_queue_exit(&ring);
	}
	assert_nothing_lost(ex);
}

/* The exmap may be a registered file of the ring. */
TEST(registered_file, ON_A_DEVICE)
{
	int fd = device_open("EXMAP_TEST_DEVICE", 20);
	struct exmap *ex = exmap_on(fd, POOL);
	struct io_uring ring;

	ring_init(&ring, 8);
	ck_assert_int_eq(io_uring_register_files(&ring, &ex->fd, 1), 0);
	prep_rw(&ring, IORING_OP_READ, 0, where(ex, 1), PAGE, 0)->flags |= IOSQE_FIXED_FILE;
	ck_assert_int_eq(ring_result(&ring), PAGE);
	prep_cmd(&ring, 0, place(1, EXMAP_OP_READ), where(ex, 2), PAGE)->flags |= IOSQE_FIXED_FILE;
	ck_assert_int_eq(ring_result(&ring), PAGE);
	ck_assert(holds(where(ex, 1), 1, 0) && holds(where(ex, 2), 2, 0));
	assert_nothing_lost(ex);
}

/* A positive result is a success, after which the linked request runs. */
TEST_BOTH(links_go_on_after_success)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, POOL);
	static const int op[] = {
		EXMAP_OP_ALLOC, EXMAP_OP_WRITE, EXMAP_OP_FREE, EXMAP_OP_READ, EXMAP_OP_FREE,
	};
	struct io_uring_sqe *sqe;
	struct exmap_iov *iov;
	struct io_uring ring;
	uint64_t data;

	ring_init(&ring, 16);
	iov = ring_entries(&ring);
	for (int i = 0; i < 5; i++) {
		sqe = prep_cmd(&ring, ex->fd, place(0, op[i]), where(ex, 5), 2 * PAGE);
		sqe->flags |= IOSQE_IO_LINK;
		sqe->user_data = i;
	}
	/* Entries that fail do not break the chain. */
	iov[0] = entry_of(2 * FILE_PAGES, 1);
	sqe = prep_fixed(&ring, ex->fd, place(0, EXMAP_OP_READ), iov, 8);
	sqe->flags |= IOSQE_IO_LINK;
	sqe->user_data = 5;
	prep_rw(&ring, IORING_OP_READ, ex->fd, where(ex, 5), PAGE, 0)->user_data = 6;
	ring_submit(&ring, 7);
	for (uint64_t i = 0; i < 7; i++) {
		int want = i < 5 ? 2 * PAGE : i == 5 ? 1 : PAGE, res = ring_wait_data(&ring, &data);

		ck_assert_msg(data == i && res == want, "request %lu: %d, expected %lu: %d", data,
			      res, i, want);
	}
	/* WRITE has written the zeros that ALLOC maps, and READ has read them. */
	ck_assert(all_bytes(where(ex, 5), 0));
	assert_mapped(ex, 1);
	assert_nothing_lost(ex);
}

/* A request that fails cancels the one that is linked to it. */
TEST_BOTH(links_end_with_a_failure)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), POOL);
	struct io_uring_sqe *sqe;
	struct io_uring ring;
	uint64_t data;

	ring_init(&ring, 8);
	sqe = prep_cmd(&ring, ex->fd, place(0, EXMAP_OP_WRITE), where(ex, 5), PAGE);
	sqe->flags |= IOSQE_IO_LINK;
	prep_cmd(&ring, ex->fd, place(0, EXMAP_OP_ALLOC), where(ex, 5), PAGE)->user_data = 1;
	ring_submit(&ring, 2);
	ck_assert_int_eq(ring_wait_data(&ring, &data), -EFAULT);
	ck_assert_int_eq(ring_wait_data(&ring, &data), -ECANCELED);
	assert_mapped(ex, 0);
	assert_nothing_lost(ex);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv,
			  "Tests of rings of each setup. They overwrite the block device $EXMAP_TEST_DEVICE.");
}
