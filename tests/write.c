// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of WRITE by ACTION: which mapped pages it writes to the backing file, and which
 * files it must leave alone.
 */
#include <linux/fs.h>
#include <sys/inotify.h>

#include "io_common.h"

/*
 * WRITE writes the mapped pages of each entry, skips the others, and leaves all of them where they
 * are. fdinfo counts pages that are read, written and allocated.
 */
TEST_BOTH(write_what_is_mapped)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, 1000);

	for (int page = 0; page < 100; page++) {
		if (page % 3 == 2)
			continue;
		ck_assert_int_eq(alloc(ex, 0, page, 1), 1);
		fill(ex->surface + page * PAGE, page, 5);
	}
	entry(ex, 0, 0, 0, 50);
	entry(ex, 0, 1, 2, 1);
	entry(ex, 0, 2, 60, 3);
	entry(ex, 0, 3, 3 * FILE_PAGES, 3);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_WRITE, 4, 0), 1);
	assert_entry(ex, 0, 0, 0, 34);
	assert_entry(ex, 0, 1, 0, 0);
	assert_entry(ex, 0, 2, 0, 2);
	assert_entry(ex, 0, 3, -EFAULT, 0);
	assert_ok(fsync(ex->fd));
	for (int page = 0; page < 100; page++)
		ck_assert(file_holds(fd, page, (page < 50 || (page >= 60 && page < 63)) &&
				     page % 3 != 2 ? 5 : 0));
	assert_fdinfo(ex->fd, "writes", 36);
	/* The pages stay mapped. After FREE, READ gets what WRITE has written. */
	assert_mapped(ex, 67);
	ck_assert_int_eq(release(ex, 0, 0, 50), 34);
	ck_assert_int_eq(read_pages(ex, 0, 50), 50);
	ck_assert_int_eq(pread(ex->fd, ex->surface + 70 * PAGE, PAGE, 0), PAGE);
	ck_assert_int_eq(pread(ex->fd, ex->surface + 71 * PAGE, PAGE, EXMAP_OP_ALLOC << 8), PAGE);
	assert_fdinfo(ex->fd, "reads", 50);
	assert_fdinfo(ex->fd, "allocs", 68);
	assert_pages_add_up(ex->fd);
	for (int page = 0; page < 50; page++)
		ck_assert(holds(ex->surface + page * PAGE, page, page % 3 != 2 ? 5 : 0));
}

/* The inotify events since the last call. */
static uint32_t watched(int watch)
{
	char buffer[4096] __attribute__((aligned(8)));
	uint32_t seen = 0;
	ssize_t len;

	while ((len = read(watch, buffer, sizeof(buffer))) > 0)
		for (char *at = buffer; at < buffer + len;) {
			const struct inotify_event *event = (void *)at;

			seen |= event->mask;
			at += sizeof(*event) + event->len;
		}
	ck_assert_int_eq(errno, EAGAIN);
	return seen;
}

/* A kernel without inotify has no such file. */
#define INOTIFY "/proc/sys/fs/inotify/max_user_watches"

/* inotify reports READ as an access and WRITE as a change, also if exmap queues the I/O. */
static void watchers_see_it(bool device);
TEST(watchers_see_it_file, .needs = INOTIFY) { watchers_see_it(false); }
TEST(watchers_see_it_device, .needs = INOTIFY, ON_A_DEVICE) { watchers_see_it(true); }
static void watchers_see_it(bool device)
{
	int fd = backing_open(device, O_RDWR), watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
	struct exmap *ex = exmap_on(fd, 100);
	char path[32];

	assert_ok(watch);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	assert_ok(inotify_add_watch(watch, path, IN_ACCESS | IN_MODIFY));
	for (int pages = 1; pages <= 3; pages++) {
		ck_assert_int_eq(read_pages(ex, 10, pages), pages);
		ck_assert_uint_eq(watched(watch), IN_ACCESS);
		ck_assert_int_eq(run(ex, 0, EXMAP_OP_WRITE, 10, pages), pages);
		ck_assert_uint_eq(watched(watch), IN_MODIFY);
		ck_assert_int_eq(release(ex, 0, 10, pages), pages);
	}
}

/* A backing file that is open only for reading: READ works. */
TEST_BOTH(write_to_a_read_only_file_is_ebadf)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDONLY), 100);

	ck_assert_int_eq(read_pages(ex, 0, 1), 1);
	ck_assert_int_eq(write_pages(ex, 0, 1), -EBADF);
	assert_mapped(ex, 1);
}

/*
 * LeanStore has a header of its own with other opcodes. SHADOW is 3; its flags are the page to
 * which it maps the entries. RM_SD is 4, and ends that. WRITE is 5. A program that is compiled with
 * that header must not damage the backing file.
 */
TEST(aliases_of_leanstore_leave_the_file_alone)
{
	enum { SHADOW = 3, RM_SD = 4, THEIR_WRITE = 5 };
	static const uint64_t targets[] = { 2, 4, 8, 50, FILE_PAGES, FILE_PAGES + 1, 1UL << 40 };
	int fd = backing_open(false, O_RDWR);
	struct exmap *ex = exmap_on(fd, 100);

	ck_assert_int_eq(read_pages(ex, 0, 10), 10);
	for (int page = 0; page < 10; page++)
		fill(ex->surface + page * PAGE, page, 1);
	entry(ex, 0, 0, 0, 10);
	for (size_t i = 0; i < sizeof(targets) / sizeof(*targets); i++)
		assert_errno(action(ex->fd, 0, SHADOW, 1, targets[i]), EINVAL);
	assert_errno(action(ex->fd, 0, RM_SD, 1, 0), EINVAL);
	assert_errno(action(ex->fd, 0, THEIR_WRITE, 1, 0), EINVAL);
	ck_assert_int_eq(action(ex->fd, 0, RM_SD, 0, 0), 0);
	ck_assert_uint_eq(ex->interface[0]->iov[0].value, 10UL << 52);
	assert_mapped(ex, 10);
	for (int page = 0; page < 10; page++)
		ck_assert(file_holds(fd, page, 0));

	/* 0 and 1 are valid flags of WRITE: it writes each mapped page to its own place. */
	for (uint64_t target = 0; target < 2; target++) {
		entry(ex, 0, 0, target, 2);
		ck_assert_int_eq(action(ex->fd, 0, SHADOW, 1, target), 0);
		assert_entry(ex, 0, 0, 0, 2);
	}
	for (int page = 0; page < 10; page++)
		ck_assert(file_holds(fd, page, page < 3));
}

/*
 * WRITE across the end of a device writes the pages before the end, and is -ENOSPC. READ there maps
 * the pages before the end; READ of a page past it is -ENODATA.
 */
TEST(write_past_the_end_of_the_device_is_enospc, ON_A_DEVICE)
{
	int fd = backing_open(true, O_RDWR);
	off_t pages = lseek(fd, 0, SEEK_END) / PAGE;
	struct exmap *ex = exmap_new_file((pages + 100) * PAGE, 100, 1, 0, fd);

	ck_assert_int_eq(alloc(ex, 0, pages - 2, 4), 4);
	entry(ex, 0, 0, pages - 2, 4);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_WRITE, 1, 0), 1);
	assert_entry(ex, 0, 0, -ENOSPC, 2);
	ck_assert_int_eq(release(ex, 0, pages - 2, 4), 4);
	entry(ex, 0, 0, pages - 2, 4);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_READ, 1, 0), 0);
	assert_entry(ex, 0, 0, 0, 2);
	ck_assert_int_eq(run(ex, 0, EXMAP_OP_READ, pages, 1), -ENODATA);
}

/*
 * A write keeps its file system from being frozen until the write is done. WRITE must end that
 * also for a device whose node is on the file system.
 */
TEST(write_lets_the_file_system_freeze, .needs_env = "EXMAP_TEST_DIRECTORY")
{
	int directory = open(getenv("EXMAP_TEST_DIRECTORY"), O_RDONLY | O_DIRECTORY);
	struct stat device;
	struct exmap *ex;
	int fd;

	assert_ok(stat(getenv("EXMAP_TEST_DEVICE"), &device));
	assert_ok(mknodat(directory, "device", S_IFBLK | 0600, device.st_rdev));
	fd = openat(directory, "device", O_RDWR | O_DIRECT);
	assert_ok(fd);
	assert_ok(unlinkat(directory, "device", 0));
	ex = exmap_on(fd, 10);
	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	ck_assert_int_eq(write_pages(ex, 0, 10), 10);
	assert_ok(ioctl(directory, FIFREEZE, 0));
	assert_ok(ioctl(directory, FITHAW, 0));
}

/*
 * The file system is full. WRITE writes the pages that have blocks. The others are -ENOSPC, and
 * stay on the surface as they are. When there is space again, WRITE writes them, too.
 */
TEST(write_without_space_directory, .needs_env = "EXMAP_TEST_DIRECTORY")
{
	const char *directory = getenv("EXMAP_TEST_DIRECTORY");
	int fd = file_open(directory, direct_flag()), filler = file_open(directory, 0);
	struct exmap *ex = exmap_on(fd, 100);
	off_t end = 0, piece = GIB;

	file_fill(fd, 8);
	assert_ok(fsync(fd));
	assert_ok(ftruncate(fd, FILE_PAGES * PAGE));
	while (piece >= (off_t)PAGE) {
		if (!fallocate(filler, 0, end, piece))
			end += piece;
		else
			piece /= 2;
	}
	ck_assert_int_eq(errno, ENOSPC);

	ck_assert_int_eq(alloc(ex, 0, 0, 30), 30);
	for (int page = 0; page < 30; page++)
		fill(ex->surface + page * PAGE, page, 1);
	entry(ex, 0, 0, 0, 16);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_WRITE, 1, 0), 1);
	assert_entry(ex, 0, 0, -ENOSPC, 8);
	entry(ex, 0, 0, 20, 2);
	entry(ex, 0, 1, 5, 3);
	entry(ex, 0, 2, 8, 1);
	entry(ex, 0, 3, 2, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_WRITE, 4, 0), 2);
	assert_entry(ex, 0, 0, -ENOSPC, 0);
	assert_entry(ex, 0, 1, 0, 3);
	assert_entry(ex, 0, 2, -ENOSPC, 0);
	assert_entry(ex, 0, 3, 0, 1);
	ck_assert_int_eq(pwrite(ex->fd, ex->surface, 10 * PAGE, EXMAP_OP_WRITE << 8), 8 * PAGE);
	assert_errno(pwrite(ex->fd, ex->surface + 8 * PAGE, PAGE, EXMAP_OP_WRITE << 8), ENOSPC);
	assert_mapped(ex, 30);
	for (int page = 0; page < 30; page++)
		ck_assert(holds(ex->surface + page * PAGE, page, 1));

	assert_ok(ftruncate(filler, 0));
	ck_assert_int_eq(write_pages(ex, 0, 30), 30);
	assert_ok(fsync(ex->fd));
	for (int page = 0; page < 30; page++)
		ck_assert(file_holds(fd, page, 1));
	assert_pool(ex, 100);
}

/* O_APPEND would send each page to the end of the file instead of its place. */
TEST(write_to_an_appending_file_is_einval)
{
	int fd = backing_open(false, O_RDWR);
	struct exmap *ex = exmap_on(fd, 100);

	ck_assert_int_eq(alloc(ex, 0, 3, 1), 1);
	assert_ok(fcntl(fd, F_SETFL, O_APPEND));
	ck_assert_int_eq(write_pages(ex, 3, 1), -EINVAL);
	ck_assert_int_eq(lseek(fd, 0, SEEK_END), FILE_PAGES * PAGE);
}

/*
 * Pages of the surface can be the buffer of direct I/O on the backing file itself. Some programs
 * write back that way, with a descriptor of the device.
 */
TEST_BOTH(surface_pages_are_good_for_direct_io)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, 100);
	struct iovec iov[20];

	ck_assert_int_eq(alloc(ex, 0, 0, 20), 20);
	for (int page = 0; page < 10; page++)
		fill(ex->surface + page * PAGE, 50 + page, 8);
	ck_assert_int_eq(pwrite(fd, ex->surface, 10 * PAGE, 50 * PAGE), 10 * PAGE);
	ck_assert_int_eq(pread(fd, ex->surface + 10 * PAGE, 10 * PAGE, 50 * PAGE), 10 * PAGE);
	for (int page = 0; page < 10; page++)
		ck_assert(holds(ex->surface + (10 + page) * PAGE, 50 + page, 8));
	ck_assert_int_eq(release(ex, 0, 0, 20), 20);

	/* Pages all over the surface, in no order. */
	for (int i = 0; i < 20; i++) {
		int page = i * 7 % 20 * 50;

		ck_assert_int_eq(alloc(ex, 0, page, 2), 2);
		iov[i] = (struct iovec){ ex->surface + page * PAGE, (i % 2 + 1) * PAGE };
		fill(ex->surface + page * PAGE, i + i / 2, 9);
		if (i % 2)
			fill(ex->surface + (page + 1) * PAGE, i + i / 2 + 1, 9);
	}
	ck_assert_int_eq(pwritev(fd, iov, 20, 0), 30 * PAGE);
	for (int page = 0; page < 30; page++)
		ck_assert(file_holds(fd, page, 9));
	for (int i = 0; i < 20; i++)
		memset(iov[i].iov_base, 0xff, iov[i].iov_len);
	ck_assert_int_eq(preadv(fd, iov, 20, 0), 30 * PAGE);
	for (int i = 0; i < 20; i++) {
		ck_assert(holds(iov[i].iov_base, i + i / 2, 9));
		ck_assert(i % 2 == 0 || holds(iov[i].iov_base + PAGE, i + i / 2 + 1, 9));
	}
	/* A page that is not mapped ends the write. */
	ck_assert_int_eq(release(ex, 0, 7 * 50, 1), 1);
	ck_assert_int_lt(pwritev(fd, iov, 20, 0), 30 * PAGE);
	assert_mapped(ex, 39);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of WRITE by ACTION.");
}
