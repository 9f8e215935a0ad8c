// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of SETUP: what it takes, what it refuses, and what its limits are.
 */
#include <sys/socket.h>

#include "common.h"

TEST(setup_reports_in_stats)
{
	struct exmap *ex = exmap_new_flags(MIB, 100, 3, EXMAP_PAGEFAULT_ALLOC);
	struct exmap_ioctl_stats s = stats(ex);

	ck_assert_uint_eq(s.flags, EXMAP_PAGEFAULT_ALLOC);
	ck_assert_uint_eq(s.buffer_size, 100);
	ck_assert_uint_eq(s.alloc_count, 0);
	ck_assert_uint_eq(s.max_interfaces, 3);
}

TEST(setup_twice_is_ebusy)
{
	struct exmap *ex = exmap_new(MIB, 100, 1);

	assert_errno(exmap_setup(ex->fd, 2, 50, 0), EBUSY);
	ck_assert_uint_eq(stats(ex).buffer_size, 100);
	ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
}

/* SETUP with @word as its flags must set @flags. STATS and a touch by the kernel show that. */
static void setup_has_flags(uint64_t word, uint64_t flags)
{
	int fd = exmap_open(), zero = open("/dev/zero", O_RDONLY);
	char *surface = map_surface(fd, MIB);
	struct exmap_ioctl_stats stats;

	assert_ok(surface);
	assert_ok(exmap_setup(fd, 1, 10, word));
	assert_ok(ioctl(fd, EXMAP_IOCTL_STATS, &stats));
	ck_assert_msg(stats.flags == flags, "SETUP with flags %#lx: STATS says %#lx, expected %#lx",
		      word, stats.flags, flags);
	if (flags & EXMAP_PAGEFAULT_ALLOC)
		ck_assert_int_eq(read(zero, surface, 1), 1);
	else
		assert_errno(read(zero, surface, 1), EFAULT);
	assert_ok(munmap(surface, MIB));
	assert_ok(close(zero));
	assert_ok(close(fd));
}

/* Programs for the published module leave the flags uninitialized, so SETUP must not refuse. */
TEST(setup_word_with_an_unknown_flag_counts_as_0)
{
	setup_has_flags(0x383131ffffffdc38, 0);	/* LeanStore's stack had this */
	setup_has_flags(UINT64_MAX, 0);
	setup_has_flags(EXMAP_PAGEFAULT_ALLOC, EXMAP_PAGEFAULT_ALLOC);
	for (int bit = 0; bit < 64; bit++) {
		if (1UL << bit == EXMAP_PAGEFAULT_ALLOC)
			continue;
		setup_has_flags(1UL << bit, 0);
		setup_has_flags(1UL << bit | EXMAP_PAGEFAULT_ALLOC, 0);
	}
}

TEST(setup_interfaces_out_of_range_is_einval)
{
	int fd = exmap_open();

	assert_errno(exmap_setup(fd, 0, 1, 0), EINVAL);
	assert_errno(exmap_setup(fd, -1, 1, 0), EINVAL);
	assert_errno(exmap_setup(fd, EXMAP_MAX_INTERFACES + 1, 1, 0), EINVAL);
	assert_errno(exmap_setup(fd, INT32_MAX, 1, 0), EINVAL);
	assert_ok(exmap_setup(fd, EXMAP_MAX_INTERFACES, 1, 0));
}

TEST(setup_pool_out_of_range_is_einval)
{
	int fd = exmap_open();

	assert_errno(exmap_setup(fd, 1, 0, 0), EINVAL);
	assert_errno(exmap_setup(fd, 1, SIZE_MAX, 0), EINVAL);
	assert_errno(exmap_setup(fd, 1, 1UL << 52, 0), EINVAL);
	assert_ok(exmap_setup(fd, 1, 1, 0));
}

/* A pool may have as many pages as user space has, and no more. */
TEST(setup_pool_as_large_as_the_address_space)
{
	static const unsigned long spaces[] = ARCH_ADDRESS_SPACES;
	unsigned int i, found = 0;

	for (i = 0; i < sizeof(spaces) / sizeof(*spaces); i++)
		found += exmap_setup(exmap_open(), 1, spaces[i] + 1, 0) && errno == EINVAL &&
			!exmap_setup(exmap_open(), 1, spaces[i], 0);
	ck_assert_uint_eq(found, 1);
}

TEST(setup_bad_pointer_is_efault)
{
	assert_errno(ioctl(exmap_open(), EXMAP_IOCTL_SETUP, NULL), EFAULT);
	assert_errno(ioctl(exmap_open(), EXMAP_IOCTL_SETUP, -1L), EFAULT);
}

TEST(setup_fd_that_is_not_open_is_ebadf)
{
	struct exmap_ioctl_setup setup = { .fd = 999, .max_interfaces = 1, .buffer_size = 1 };
	int fd = exmap_open();

	assert_errno(ioctl(fd, EXMAP_IOCTL_SETUP, &setup), EBADF);
	setup.fd = -2;
	assert_errno(ioctl(fd, EXMAP_IOCTL_SETUP, &setup), EBADF);
	assert_ok(exmap_setup(fd, 1, 1, 0));
}

/* SETUP refuses a file that cannot be a backing file, and leaves the exmap as it was. */
TEST(setup_backing_fd_that_cannot_work)
{
	struct exmap_ioctl_setup setup = { .max_interfaces = 1, .buffer_size = 1 };
	int fd = exmap_open(), pipes[2];

	assert_ok(pipe(pipes));
	setup.fd = pipes[0];
	assert_errno(ioctl(fd, EXMAP_IOCTL_SETUP, &setup), ESPIPE);
	setup.fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_errno(ioctl(fd, EXMAP_IOCTL_SETUP, &setup), ESPIPE);
	setup.fd = open("/tmp", O_RDONLY);
	assert_errno(ioctl(fd, EXMAP_IOCTL_SETUP, &setup), EISDIR);
	setup.fd = open("/tmp", O_WRONLY | O_TMPFILE, 0600);
	assert_errno(ioctl(fd, EXMAP_IOCTL_SETUP, &setup), EBADF);
	setup.fd = open("/dev/zero", O_RDWR);
	assert_errno(ioctl(fd, EXMAP_IOCTL_SETUP, &setup), EINVAL);
	setup.fd = fd;
	assert_errno(ioctl(fd, EXMAP_IOCTL_SETUP, &setup), EINVAL);
	assert_ok(exmap_setup(fd, 1, 1, 0));
}

/* Without CAP_IPC_LOCK, RLIMIT_MEMLOCK limits the pools of all exmaps of a user. */
TEST(setup_above_memlock_is_enomem)
{
	int fd = exmap_open(), fd2 = exmap_open();

	/* SETUP charges one page more, for the array of interfaces. */
	set_memlock(100 * PAGE);
	drop_privileges();
	assert_errno(exmap_setup(fd, 1, 101, 0), ENOMEM);
	assert_errno(exmap_setup(fd, 1, 100, 0), ENOMEM);
	assert_ok(exmap_setup(fd, 1, 59, 0));
	/* The limit is the user's: it covers all of the user's exmaps together. */
	assert_errno(exmap_setup(fd2, 1, 40, 0), ENOMEM);
	assert_ok(exmap_setup(fd2, 1, 39, 0));
	/* Closing an exmap uncharges its pages. */
	close(fd);
	assert_ok(exmap_setup(exmap_open(), 1, 59, 0));
}

TEST(setup_with_memlock_of_zero_is_eperm)
{
	int fd = exmap_open();

	set_memlock(0);
	drop_privileges();
	assert_errno(exmap_setup(fd, 1, 1, 0), EPERM);
}

TEST(setup_with_cap_ipc_lock_has_no_limit)
{
	set_memlock(0);
	assert_ok(exmap_setup(exmap_open(), 1, 1000, 0));
}

/* SETUP takes no page of the pool from the system. */
TEST(setup_of_a_large_pool_takes_no_memory)
{
	long before = available_kib();

	exmap_new(TIB, GIB / PAGE, 1);
	assert_available(before, 100 * 1024);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of SETUP: what it takes, refuses and limits.");
}
