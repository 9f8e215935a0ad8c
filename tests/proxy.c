// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of pread(), pwrite(), preadv() and pwritev() on the exmap's own file, which do the
 * same as READ, ALLOC and WRITE.
 */
#include "io_common.h"

/* pread of single pages, as vmcache does it: the offset is the number of the interface. */
TEST_BOTH(pread_is_as_vmcache_does_it)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), 100);

	for (int page = 0; page < 50; page += 7) {
		ck_assert_int_eq(pread(ex->fd, ex->surface + page * PAGE, PAGE, page % 2), PAGE);
		ck_assert(holds(ex->surface + page * PAGE, page, 0));
	}
	assert_mapped(ex, 8);
	/* A page that is mapped already counts as read, and stays as it is. */
	fill(ex->surface, 0, 9);
	ck_assert_int_eq(pread(ex->fd, ex->surface, 2 * PAGE, 0), 2 * PAGE);
	ck_assert(holds(ex->surface, 0, 9));
	ck_assert(holds(ex->surface + PAGE, 1, 0));
}

/* With the opcode of ALLOC in the offset, preadv maps pages without reading the file. */
TEST_BOTH(pread_that_only_allocates)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), 100);
	struct iovec iov[3] = {
		{ ex->surface + 8, 0 }, { ex->surface, 2 * PAGE }, { ex->surface + 9 * PAGE, PAGE },
	};

	ck_assert_int_eq(preadv(ex->fd, iov, 3, EXMAP_OP_ALLOC << 8), 3 * PAGE);
	ck_assert_uint_eq(resident(ex, 0, 20), 3);
	ck_assert(all_bytes(ex->surface + PAGE, 0));
	assert_mapped(ex, 3);
}

/* 100 ranges in one call are read, and written to their places in the file. */
TEST_BOTH(preadv_and_pwritev)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, 1000);
	struct iovec iov[100];

	for (int i = 0; i < 100; i++)
		iov[i] = (struct iovec){ ex->surface + i * 9 * PAGE, (i % 4 + 1) * PAGE };
	ck_assert_int_eq(preadv(ex->fd, iov, 100, 1), 250 * PAGE);
	assert_mapped(ex, 250);
	for (int i = 0; i < 100; i++)
		for (int j = 0; j <= i % 4; j++) {
			ck_assert(holds(ex->surface + (i * 9 + j) * PAGE, i * 9 + j, 0));
			fill(ex->surface + (i * 9 + j) * PAGE, i * 9 + j, 3);
		}
	ck_assert_int_eq(pwritev(ex->fd, iov, 100, EXMAP_OP_WRITE << 8 | 1), 250 * PAGE);
	for (int i = 0; i < 100; i++)
		for (int j = 0; j < 8; j++)
			ck_assert(file_holds(fd, i * 9 + j, j <= i % 4 ? 3 : 0));
}

/*
 * Refused: an interface that does not exist, an offset that is not a valid opcode and interface, a
 * range that is not of whole pages or not on the surface, a write of a page that is not mapped, and
 * any call without a surface.
 */
TEST_BOTH(proxy_refusals)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), 100);
	char *s = ex->surface, elsewhere[PAGE];

	assert_errno(pread(ex->fd, s, PAGE, 2), EINVAL);
	assert_errno(pread(ex->fd, s, PAGE, 255), EINVAL);
	assert_errno(pread(ex->fd, s, PAGE, EXMAP_OP_FREE << 8), EINVAL);
	assert_errno(pread(ex->fd, s, PAGE, 1 << 16), EINVAL);
	assert_errno(pread(ex->fd, s, 100, 0), EINVAL);
	assert_errno(pread(ex->fd, s + 8, PAGE, 0), EINVAL);
	assert_errno(pread(ex->fd, s + ex->size, PAGE, 0), EFAULT);
	assert_errno(pread(ex->fd, s + ex->size - PAGE, 2 * PAGE, 0), EFAULT);
	assert_errno(pread(ex->fd, (void *)((uintptr_t)elsewhere & -PAGE), PAGE, 0), EFAULT);
	assert_errno(pwrite(ex->fd, s, PAGE, EXMAP_OP_WRITE << 8), EFAULT);
	assert_errno(pwrite(ex->fd, s, PAGE, 0), EINVAL);
	assert_mapped(ex, 0);
	assert_ok(munmap(s, ex->size));
	assert_errno(pread(ex->fd, s, PAGE, 0), EPROTO);
}

/* Addresses that are not on the surface, alone or beside good ones, are EFAULT. */
TEST(proxy_with_bad_addresses)
{
	struct exmap *ex = exmap_on(backing_open(false, O_RDWR), 100);
	struct iovec iov[2] = { { ex->surface, PAGE } };
	void *bad[] = {
		NULL, (void *)-PAGE, (void *)(1UL << 63), (void *)0x7ffffffff000,
		ex->surface - PAGE, ex->surface + ex->size, ex->interface[0],
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		iov[1] = (struct iovec){ bad[i], PAGE };
		assert_errno(pread(ex->fd, bad[i], PAGE, 0), EFAULT);
		assert_errno(pwrite(ex->fd, bad[i], PAGE, EXMAP_OP_WRITE << 8), EFAULT);
		/* One bad range is enough: the good one is not read either. */
		assert_errno(preadv(ex->fd, iov, 2, 0), EFAULT);
		assert_mapped(ex, 0);
	}
	assert_errno(preadv(ex->fd, (struct iovec *)ex->surface, 1, 0), EFAULT);
	assert_errno(pread(ex->fd, ex->surface, ex->size + PAGE, 0), EFAULT);
	assert_errno(pread(ex->fd, ex->surface, PAGE, -1), EINVAL);
	iov[1] = (struct iovec){ ex->surface + PAGE, PAGE + 1 };
	assert_errno(preadv(ex->fd, iov, 2, 0), EINVAL);
	entry(ex, 0, 0, (1UL << 52) - 1, 1);
	entry(ex, 0, 1, (1UL << 52) - 1, 4095);
	entry(ex, 0, 2, 2 * FILE_PAGES - 1, 2);
	entry(ex, 0, 3, 1, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_READ, 4, 0), 3);
	for (int i = 0; i < 3; i++)
		assert_entry(ex, 0, i, -EFAULT, 0);
	assert_entry(ex, 0, 3, 0, 1);
	assert_mapped(ex, 1);
}

/* Calls return a short count if they run out of pages, out of file, or out of mapped pages. */
TEST(proxy_ends_early)
{
	int fd = backing_open(false, O_RDWR);
	struct exmap *ex = exmap_on(fd, 20);
	struct iovec iov[3] = {
		{ ex->surface + 100 * PAGE, 8 * PAGE },
		{ ex->surface + 300 * PAGE, 13 * PAGE },
		{ ex->surface + 400 * PAGE, PAGE },
	};

	/* The pool has no pages for the second range. */
	ck_assert_int_eq(preadv(ex->fd, iov, 3, 0), 8 * PAGE);
	assert_mapped(ex, 8);
	assert_errno(pread(ex->fd, iov[1].iov_base, 13 * PAGE, 0), ENOMEM);
	/* The end of the file. */
	assert_ok(ftruncate(fd, 410 * PAGE));
	ck_assert_int_eq(pread(ex->fd, ex->surface + 408 * PAGE, 5 * PAGE, 0), 2 * PAGE);
	ck_assert_int_eq(pread(ex->fd, ex->surface + 411 * PAGE, PAGE, 0), 0);
	/* A page that is not mapped ends the write. */
	ck_assert_int_eq(pwrite(ex->fd, ex->surface + 408 * PAGE, 5 * PAGE, EXMAP_OP_WRITE << 8),
			 2 * PAGE);
}

/*
 * Before SETUP every call is EBADF. Without a backing file, reads and fsync are EOPNOTSUPP, but
 * pages can be allocated.
 */
TEST(proxy_before_setup_or_without_a_file)
{
	int fd = exmap_open();
	char *surface = map_surface(fd, MIB);

	assert_errno(pread(fd, surface, PAGE, 0), EBADF);
	assert_errno(fsync(fd), EBADF);
	assert_ok(exmap_setup(fd, 1, 10, 0));
	assert_errno(pread(fd, surface, PAGE, 0), EOPNOTSUPP);
	assert_errno(fsync(fd), EOPNOTSUPP);
	ck_assert_int_eq(pread(fd, surface, PAGE, EXMAP_OP_ALLOC << 8), PAGE);
}

/* A child that has inherited the file can neither read, write nor sync by it. */
TEST(proxy_of_another_process_is_eperm)
{
	struct exmap *ex = exmap_on(backing_open(false, O_RDWR), 20);
	pid_t pid = fork();

	if (!pid) {
		assert_errno(pread(ex->fd, ex->surface, PAGE, 0), EPERM);
		assert_errno(pwrite(ex->fd, ex->surface, PAGE, EXMAP_OP_WRITE << 8), EPERM);
		assert_errno(fsync(ex->fd), EPERM);
		_exit(0);
	}
	wait_child(pid, 0);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv,
			  "Tests of pread, pwrite, preadv and pwritev on the exmap's file.");
}
