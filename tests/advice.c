// SPDX-License-Identifier: GPL-2.0
/*
 * Calls on one range by fadvise64(2), whose arguments and result are in registers.
 *
 * $EXMAP_TEST_DEVICE is a block device, which is overwritten.
 */
#include <fcntl.h>
#include <liburing.h>
#include <linux/fadvise.h>
#include <sys/syscall.h>

#include "io_common.h"

/* Any offset, length and advice. Returns what the system call does: -1 and errno, or a number. */
static long advise(int fd, uint64_t offset, uint64_t length, int advice)
{
	return syscall(SYS_fadvise64, fd, offset, length, advice);
}

static long advise_pages(struct exmap *ex, int opcode, uint64_t page, uint64_t pages, int flags)
{
	return advise(ex->fd, page * PAGE, pages * PAGE, EXMAP_ADVICE(opcode, 0, flags));
}

TEST(advice_maps_and_unmaps_runs)
{
	const uint64_t lengths[] = { 1, 2, 511, 513, 4095 };
	struct exmap *ex = exmap_new(32 * MIB, 5000, 2);

	for (int i = 0; i < 5; i++) {
		/* Across the end of a page table. */
		uint64_t page = 513 - lengths[i] / 8, nr = lengths[i];

		ck_assert_int_eq(advise_pages(ex, EXMAP_OP_ALLOC, page, nr, 0), nr);
		ck_assert_uint_eq(resident(ex, page, nr), nr);
		ck_assert_uint_eq(stats(ex).alloc_count, nr);
		memset(ex->surface + page * PAGE, 'x', nr * PAGE);
		ck_assert_int_eq(advise_pages(ex, EXMAP_OP_FREE, page, nr, 0), nr);
		ck_assert_uint_eq(resident(ex, page, nr), 0);
		assert_pages_add_up(ex->fd);
	}
}

TEST(advice_counts_only_what_it_changed)
{
	struct exmap *ex = exmap_new(MIB, 100, 1);

	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_FREE, 3, 1, 0), 0);
	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_ALLOC, 3, 1, 0), 1);
	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_ALLOC, 3, 1, 0), 0);
	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_ALLOC, 0, 10, 0), 9);
	/* The first page of the range is mapped: EXMAP_ALLOC_PROBE skips all of it. */
	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_ALLOC, 9, 10, EXMAP_ALLOC_PROBE), 0);
	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_FREE, 5, 10, 0), 5);
	ck_assert_uint_eq(resident(ex, 0, 20), 5);
	assert_fdinfo(ex->fd, "allocs", 10);
	assert_fdinfo(ex->fd, "frees", 5);
	assert_pages_add_up(ex->fd);
}

TEST(advice_without_memory_is_enomem)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	assert_errno(advise_pages(ex, EXMAP_OP_ALLOC, 0, 11, 0), ENOMEM);
	ck_assert_uint_eq(resident(ex, 0, 11), 0);
	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_ALLOC, 0, 10, 0), 10);
	assert_errno(advise_pages(ex, EXMAP_OP_ALLOC, 20, 1, 0), ENOMEM);
	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_FREE, 4, 1, 0), 1);
	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_ALLOC, 20, 1, 0), 1);
	assert_pages_add_up(ex->fd);
}

TEST(advice_defers_flushes)
{
	struct exmap *ex = exmap_new(MIB, 100, 2);
	long flushes;

	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_ALLOC, 0, 100, 0), 100);
	flushes = fdinfo(ex->fd, "flushes");
	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_FREE, 0, 1, EXMAP_FREE_DEFER), 1);
	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_FREE, 0, 10, EXMAP_FREE_DEFER), 9);
	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_FREE, 0, 1, EXMAP_FREE_DEFER), 0);
	assert_fdinfo(ex->fd, "pages-deferred", 10);
	assert_fdinfo(ex->fd, "flushes", flushes);
	/* A page may come to one of these addresses only after the flush. */
	ck_assert_int_eq(advise(ex->fd, 0, PAGE, EXMAP_ADVICE(EXMAP_OP_ALLOC, 1, 0)), 1);
	assert_fdinfo(ex->fd, "pages-deferred", 0);
	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_ALLOC, 0, 10, 0), 9);
	assert_pages_add_up(ex->fd);
}

TEST(advice_of_posix_is_einval)
{
	struct exmap *ex = exmap_new(MIB, 100, 1);
	const int alloc_pages = EXMAP_ADVICE(EXMAP_OP_ALLOC, 0, 0);
	const int advice[] = {
		POSIX_FADV_NORMAL, POSIX_FADV_RANDOM, POSIX_FADV_SEQUENTIAL, POSIX_FADV_WILLNEED,
		POSIX_FADV_DONTNEED, POSIX_FADV_NOREUSE,
	};

	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	for (int i = 0; i < 6; i++) {
		assert_errno(advise(ex->fd, 0, PAGE, advice[i]), EINVAL);
		ck_assert_int_eq(posix_fadvise(ex->fd, 0, 0, advice[i]), EINVAL);
	}
	ck_assert_uint_eq(resident(ex, 0, 20), 10);
	/* The C library returns an error or 0, and drops the number. */
	ck_assert_int_eq(posix_fadvise(ex->fd, 0, 20 * PAGE, alloc_pages), 0);
	ck_assert_uint_eq(resident(ex, 0, 20), 20);
}

/* madvise(MADV_WILLNEED) of a file mapping calls the file's fadvise, too. */
TEST(advice_of_posix_makes_no_interface)
{
	int fd = exmap_open();
	long locked;
	char *surface;

	surface = map_surface(fd, MIB);
	assert_ok(surface);
	assert_ok(exmap_setup(fd, 8, 10, 0));
	locked = kib_of("/proc/self/status", "VmPin:");
	madvise(surface, MIB, MADV_WILLNEED);
	for (int i = POSIX_FADV_NORMAL; i <= POSIX_FADV_NOREUSE; i++)
		assert_errno(advise(fd, 0, PAGE, i), EINVAL);
	for (int i = 0; i < 8; i++) {
		char key[32];

		snprintf(key, sizeof(key), "interface-%d", i);
		ck_assert_int_eq(fdinfo(fd, key), -1);
	}
	ck_assert_int_eq(kib_of("/proc/self/status", "VmPin:"), locked);
}

/* A call with bad arguments makes no interface either. */
TEST(bad_advice_makes_no_interface)
{
	const int good = EXMAP_ADVICE(EXMAP_OP_READ, 3, 0);
	int fd = exmap_open();
	long locked;

	assert_ok(map_surface(fd, MIB));
	assert_ok(exmap_setup(fd, 8, 10, 0));
	locked = kib_of("/proc/self/status", "VmPin:");
	assert_errno(advise(fd, 1, PAGE, good), EINVAL);
	assert_errno(advise(fd, 0, PAGE - 1, good), EINVAL);
	assert_errno(advise(fd, -PAGE, PAGE, good), EINVAL);
	assert_errno(advise(fd, 0, EXMAP_PAGE_MAX_PAGES * PAGE, good), EINVAL);
	assert_errno(advise(fd, 0, PAGE, EXMAP_ADVICE(EXMAP_OP_ALLOC, 3, EXMAP_FREE_DEFER)),
		     EINVAL);
	assert_errno(advise(fd, 0, PAGE, EXMAP_ADVICE(EXMAP_OP_WRITE + 1, 3, 0)), EINVAL);
	ck_assert_int_eq(fdinfo(fd, "interface-3"), -1);
	ck_assert_int_eq(kib_of("/proc/self/status", "VmPin:"), locked);
}

TEST(advice_with_bad_arguments)
{
	struct exmap *ex = exmap_new(MIB, 100, 2);
	const int good = EXMAP_ADVICE(EXMAP_OP_ALLOC, 0, 0);

	ck_assert_int_eq(alloc(ex, 0, 10, 1), 1);
	assert_errno(advise(ex->fd, 1, PAGE, good), EINVAL);
	assert_errno(advise(ex->fd, 0, PAGE - 1, good), EINVAL);
	assert_errno(advise(ex->fd, 0, PAGE + 1, good), EINVAL);
	assert_errno(advise(ex->fd, 0, 0, good), EINVAL);
	assert_errno(advise(ex->fd, 0, -PAGE, good), EINVAL);
	assert_errno(advise(ex->fd, -PAGE, PAGE, good), EINVAL);
	assert_errno(advise(ex->fd, 1UL << 63, PAGE, good), EINVAL);
	assert_errno(advise(ex->fd, 0, 4096 * PAGE, good), EINVAL);
	assert_errno(advise(ex->fd, 0, 1UL << 62, good), EINVAL);
	/* Beyond the surface. */
	assert_errno(advise(ex->fd, MIB, PAGE, good), EFAULT);
	assert_errno(advise(ex->fd, MIB - PAGE, 2 * PAGE, good), EFAULT);
	assert_errno(advise(ex->fd, (1UL << 63) - PAGE, PAGE, good), EFAULT);
	assert_errno(advise_pages(ex, EXMAP_OP_FREE, 1UL << 40, 1, 0), EFAULT);
	/* Opcodes, flags, interfaces. */
	assert_errno(advise(ex->fd, 0, PAGE, EXMAP_ADVICE(EXMAP_OP_FLUSH, 0, 0)), EINVAL);
	assert_errno(advise(ex->fd, 0, PAGE, EXMAP_ADVICE(5, 0, 0)), EINVAL);
	assert_errno(advise(ex->fd, 0, PAGE, EXMAP_ADVICE(63, 0, 0)), EINVAL);
	assert_errno(advise(ex->fd, 0, PAGE, good | EXMAP_FREE_DEFER << 16), EINVAL);
	assert_errno(advise(ex->fd, 0, PAGE, good | EXMAP_PAGEFAULT_ALLOC << 16), EINVAL);
	assert_errno(advise(ex->fd, 0, PAGE, good | 1 << 29), EINVAL);
	assert_errno(advise(ex->fd, 0, PAGE, (int)(good | 1U << 31)), EINVAL);
	assert_errno(advise(ex->fd, 0, PAGE, good & ~EXMAP_ADVICE_BASE), EINVAL);
	assert_errno(advise(ex->fd, 0, PAGE, EXMAP_ADVICE(EXMAP_OP_ALLOC, 2, 0)), EINVAL);
	assert_errno(advise(ex->fd, 0, PAGE, EXMAP_ADVICE(EXMAP_OP_ALLOC, 1023, 0)), EINVAL);
	assert_errno(advise_pages(ex, EXMAP_OP_READ, 0, 1, 0), EOPNOTSUPP);
	assert_errno(advise_pages(ex, EXMAP_OP_WRITE, 10, 1, 0), EOPNOTSUPP);
	ck_assert_uint_eq(resident(ex, 0, MIB / PAGE), 1);
	assert_pages_add_up(ex->fd);
}

TEST(advice_before_setup_or_without_a_surface)
{
	const int good = EXMAP_ADVICE(EXMAP_OP_ALLOC, 0, 0);
	int fd = exmap_open();

	assert_errno(advise(fd, 0, PAGE, good), EBADF);
	assert_ok(exmap_setup(fd, 1, 10, 0));
	for (int opcode = EXMAP_OP_ALLOC; opcode <= EXMAP_OP_FREE; opcode++) {
		assert_errno(advise(fd, 0, PAGE, EXMAP_ADVICE(opcode, 0, 0)), EPROTO);
		assert_errno(advise(fd, 0, 2 * PAGE, EXMAP_ADVICE(opcode, 0, 0)), EPROTO);
	}
}

TEST(advice_of_another_process_is_eperm)
{
	struct exmap *ex = exmap_new(MIB, 100, 1);
	pid_t pid;

	ck_assert_int_eq(alloc(ex, 0, 0, 2), 2);
	pid = fork();
	assert_ok(pid);
	if (!pid) {
		assert_errno(advise_pages(ex, EXMAP_OP_ALLOC, 5, 1, 0), EPERM);
		assert_errno(advise_pages(ex, EXMAP_OP_FREE, 0, 1, 0), EPERM);
		assert_errno(advise_pages(ex, EXMAP_OP_FREE, 0, 2, EXMAP_FREE_DEFER), EPERM);
		_exit(0);
	}
	wait_child(pid, 0);
	ck_assert_uint_eq(resident(ex, 0, 10), 2);
}

TEST_BOTH(advice_reads_and_writes)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, FILE_PAGES);

	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_READ, 7, 1, 0), 1);
	ck_assert(holds(ex->surface + 7 * PAGE, 7, 0));
	/* A page that is mapped is left as it is. */
	fill(ex->surface + 7 * PAGE, 7, 5);
	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_READ, 7, 1, 0), 0);
	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_READ, 0, 600, 0), 599);
	for (int page = 0; page < 600; page++)
		ck_assert(holds(ex->surface + page * PAGE, page, page == 7 ? 5 : 0));
	for (int page = 0; page < 600; page++)
		fill(ex->surface + page * PAGE, page, 1);
	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_WRITE, 0, 1, 0), 1);
	ck_assert(file_holds(fd, 0, 1));
	ck_assert(file_holds(fd, 1, 0));
	/* What is not mapped is skipped. */
	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_WRITE, 0, 700, 0), 600);
	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_WRITE, 800, 1, 0), 0);
	for (int page = 0; page < 700; page++)
		ck_assert(file_holds(fd, page, page < 600));
	ck_assert_int_eq(advise_pages(ex, EXMAP_OP_FREE, 0, 700, 0), 600);
	assert_pages_add_up(ex->fd);
}

/* POSIX_FADV_DONTNEED if @opcode is -1. */
static int ring_advise(struct io_uring *ring, struct exmap *ex, int opcode, uint64_t page,
		       unsigned int pages, unsigned int flags)
{
	int advice = opcode < 0 ? POSIX_FADV_DONTNEED : EXMAP_ADVICE(opcode, 0, 0);
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	struct io_uring_cqe *cqe;
	int ret;

	io_uring_prep_fadvise(sqe, ex->fd, page * PAGE, pages * PAGE, advice);
	io_uring_sqe_set_flags(sqe, flags);
	/* With SQPOLL, the number also counts entries that the kernel is about to take. */
	ck_assert_int_ge(io_uring_submit(ring), 1);
	ck_assert(!io_uring_wait_cqe(ring, &cqe));
	ret = cqe->res;
	io_uring_cqe_seen(ring, cqe);
	return ret;
}

static void advice_by_io_uring(unsigned int setup, unsigned int flags)
{
	int fd = backing_open(false, O_RDWR);
	struct exmap *ex = exmap_on(fd, 100);
	struct io_uring ring;

	ck_assert(!io_uring_queue_init(8, &ring, setup));
	ck_assert_int_eq(ring_advise(&ring, ex, EXMAP_OP_ALLOC, 0, 1, flags), 1);
	ck_assert_int_eq(ring_advise(&ring, ex, EXMAP_OP_ALLOC, 0, 9, flags), 8);
	ck_assert_int_eq(ring_advise(&ring, ex, EXMAP_OP_FREE, 0, 9, flags), 9);
	ck_assert_int_eq(ring_advise(&ring, ex, EXMAP_OP_READ, 3, 5, flags), 5);
	for (int page = 3; page < 8; page++)
		ck_assert(holds(ex->surface + page * PAGE, page, 0));
	ck_assert_int_eq(ring_advise(&ring, ex, -1, 0, 1, flags), -EINVAL);
	ck_assert_int_eq(ring_advise(&ring, ex, EXMAP_OP_FREE, 1UL << 30, 1, flags), -EFAULT);
	ck_assert_uint_eq(resident(ex, 0, 20), 5);
	assert_pages_add_up(ex->fd);
	io_uring_queue_exit(&ring);
}

TEST(advice_by_uring)
{
	advice_by_io_uring(0, 0);
}

TEST(advice_by_uring_worker)
{
	advice_by_io_uring(0, IOSQE_ASYNC);
}

TEST(advice_by_uring_sqpoll)
{
	advice_by_io_uring(IORING_SETUP_SQPOLL, 0);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv,
			  "Tests of calls by fadvise64(2). They overwrite the block device\n"
			  "$EXMAP_TEST_DEVICE.");
}
