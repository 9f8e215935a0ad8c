// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of devices that fail: READ and WRITE of bad blocks, and of a disk that is removed.
 * Each entry must get the error of its own pages, and no page may be lost.
 *
 * EXMAP_TEST_BAD        a null_blk in configfs; the tests set its bad blocks
 * EXMAP_TEST_REMOVABLE  a SCSI disk, which is removed
 */
#include <libgen.h>
#include <stdatomic.h>

#include "io_common.h"

/*
 * Make @nr pages of the null_blk bad, or good again. null_blk fails every request that touches a
 * bad block, including the other pages that the block layer has merged into that request.
 */
static void set_bad(bool bad, uint64_t page, uint64_t nr)
{
	char path[256], line[64];
	int fd, len;

	snprintf(path, sizeof(path), "%s/badblocks", getenv("EXMAP_TEST_BAD"));
	fd = open(path, O_WRONLY);
	assert_ok(fd);
	len = snprintf(line, sizeof(line), "%c%lu-%lu", bad ? '+' : '-', page * 8,
		       (page + nr) * 8 - 1);
	ck_assert_int_eq(write(fd, line, len), len);
	close(fd);
}

/* Open the null_blk as the backing file, without bad blocks and filled with generation 0. */
static int bad_open(bool direct)
{
	char path[256];
	int fd;

	set_bad(false, 0, FILE_PAGES);
	snprintf(path, sizeof(path), "/dev/%s", basename(getenv("EXMAP_TEST_BAD")));
	fd = file_open(path, direct ? O_DIRECT : 0);
	file_fill(fd, FILE_PAGES);
	/* READ of a cached page would not touch the device. */
	assert_ok(fsync(fd));
	ck_assert(!posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
	return fd;
}

#define ON_A_BAD_DEVICE	.needs_env = "EXMAP_TEST_BAD"

/* Two tests with one body: through the page cache and with O_DIRECT. */
#define TEST_BAD(name)							\
	static void name(bool direct);					\
	TEST(name##_buffered, ON_A_BAD_DEVICE) { name(false); }		\
	TEST(name##_direct, ON_A_BAD_DEVICE) { name(true); }		\
	static void name(bool direct)

/* Entries of one page, in several orders: only those of the two bad pages are -EIO. */
TEST_BAD(read_bad_pages)
{
	int fd = bad_open(direct);
	struct exmap *ex = exmap_on(fd, 40);
	enum { APART, UPWARD, DOWNWARD, LAYOUTS };

	for (int layout = 0; layout < LAYOUTS; layout++) {
		int page[20], bad[] = { 5, 12 };

		for (int i = 0; i < 20; i++)
			page[i] = layout == APART ? 2 * i : layout == UPWARD ? i : 19 - i;
		for (int i = 0; i < 2; i++)
			set_bad(true, page[bad[i]], 1);
		for (int i = 0; i < 20; i++)
			entry(ex, 0, i, page[i], 1);
		ck_assert_msg(action(ex->fd, 0, EXMAP_OP_READ, 20, 0) == 2, "layout %d", layout);
		for (int i = 0; i < 20; i++) {
			if (i == bad[0] || i == bad[1]) {
				assert_entry(ex, 0, i, -EIO, 0);
				ck_assert_uint_eq(resident(ex, page[i], 1), 0);
			} else {
				assert_entry(ex, 0, i, 0, 1);
				ck_assert(holds(ex->surface + page[i] * PAGE, page[i], 0));
			}
		}
		assert_mapped(ex, 18);
		assert_pool(ex, 40);
		/* Once the device is good, the same call reads the two pages that are missing. */
		set_bad(false, 0, FILE_PAGES);
		for (int i = 0; i < 20; i++)
			entry(ex, 0, i, page[i], 1);
		ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_READ, 20, 0), 0);
		for (int i = 0; i < 20; i++) {
			assert_entry(ex, 0, i, 0, i == bad[0] || i == bad[1]);
			ck_assert(holds(ex->surface + page[i] * PAGE, page[i], 0));
		}
		ck_assert_int_eq(release(ex, 0, 0, 40), 20);
		ck_assert(!posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
	}
}

/* One bad page in a run: the pages before it are mapped. Those behind it may be. */
TEST_BAD(read_run_with_a_bad_page)
{
	int fd = bad_open(direct);
	struct exmap *ex = exmap_on(fd, 40);

	for (int bad = 10; bad < 20; bad += 3) {
		struct exmap_iov iov;

		set_bad(true, bad, 1);
		entry(ex, 0, 0, 30, 2);
		entry(ex, 0, 1, 10, 10);
		entry(ex, 0, 2, 20, 1);
		entry(ex, 0, 3, 7, 3);
		ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_READ, 4, 0), 1);
		assert_entry(ex, 0, 0, 0, 2);
		assert_entry(ex, 0, 2, 0, 1);
		assert_entry(ex, 0, 3, 0, 3);
		iov = ex->interface[0]->iov[1];
		ck_assert_int_eq(iov.res, -EIO);
		ck_assert_int_ge(iov.pages, bad - 10);
		ck_assert_uint_eq(resident(ex, 10, 10), iov.pages);
		ck_assert_uint_eq(resident(ex, 10, bad - 10 + 1), bad - 10);
		for (int page = 7; page < 32; page++)
			if (resident(ex, page, 1))
				ck_assert(holds(ex->surface + page * PAGE, page, 0));
		assert_mapped(ex, 6 + iov.pages);
		assert_pool(ex, 40);
		set_bad(false, bad, 1);
		ck_assert_int_eq(read_pages(ex, 10, 10), 10 - iov.pages);
		ck_assert_int_eq(release(ex, 0, 0, 40), 16);
		ck_assert(!posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
	}
}

/* preadv returns how many bytes come before the bad page. pread that begins there is EIO. */
TEST_BAD(preadv_of_bad_pages)
{
	struct exmap *ex = exmap_on(bad_open(direct), 40);
	struct iovec iov[3] = {
		{ ex->surface, 2 * PAGE }, { ex->surface + 10 * PAGE, 9 * PAGE },
		{ ex->surface + 30 * PAGE, PAGE },
	};

	set_bad(true, 14, 1);
	ck_assert_int_eq(preadv(ex->fd, iov, 3, 0), 6 * PAGE);
	ck_assert_uint_eq(resident(ex, 10, 5), 4);
	assert_errno(pread(ex->fd, ex->surface + 14 * PAGE, 3 * PAGE, 0), EIO);
	ck_assert_uint_eq(resident(ex, 14, 1), 0);
	for (int page = 0; page < 14; page++)
		if (page < 2 || page >= 10)
			ck_assert(holds(ex->surface + page * PAGE, page, 0));
	assert_pool(ex, 40);
	set_bad(false, 14, 1);
	ck_assert_int_eq(preadv(ex->fd, iov, 3, 0), 12 * PAGE);
	assert_mapped(ex, 12);
}

/*
 * WRITE of runs with bad pages. The answer counts exactly the pages that were written. All pages
 * stay mapped with their contents, and can be written when the device is good again.
 */
TEST(write_bad_pages_direct, ON_A_BAD_DEVICE)
{
	int fd = bad_open(true);
	struct exmap *ex = exmap_on(fd, 40);
	struct iovec iov[2] = {
		{ ex->surface, 2 * PAGE }, { ex->surface + 10 * PAGE, 9 * PAGE },
	};
	struct exmap_iov answer;
	int written = 0;

	ck_assert_int_eq(alloc(ex, 0, 0, 40), 40);
	for (int page = 0; page < 40; page++)
		fill(ex->surface + page * PAGE, page, 1);
	set_bad(true, 14, 1);
	set_bad(true, 21, 1);
	entry(ex, 0, 0, 7, 3);
	entry(ex, 0, 1, 10, 9);
	entry(ex, 0, 2, 19, 2);
	entry(ex, 0, 3, 21, 1);
	entry(ex, 0, 4, 22, 1);
	entry(ex, 0, 5, 6, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_WRITE, 6, 0), 2);
	assert_entry(ex, 0, 0, 0, 3);
	assert_entry(ex, 0, 2, 0, 2);
	assert_entry(ex, 0, 3, -EIO, 0);
	assert_entry(ex, 0, 4, 0, 1);
	assert_entry(ex, 0, 5, 0, 1);
	answer = ex->interface[0]->iov[1];
	ck_assert_int_eq(answer.res, -EIO);
	ck_assert_int_ge(answer.pages, 4);
	set_bad(false, 0, FILE_PAGES);
	for (int page = 10; page < 19; page++)
		written += file_holds(fd, page, 1);
	ck_assert_int_eq(answer.pages, written);
	for (int page = 0; page < 40; page++) {
		if (page < 6 || page == 14 || page == 21 || page > 22)
			ck_assert(file_holds(fd, page, 0));
		else if (page < 14 || page > 18)
			ck_assert(file_holds(fd, page, 1));
		ck_assert(holds(ex->surface + page * PAGE, page, 1));
	}

	set_bad(true, 14, 1);
	ck_assert_int_eq(pwritev(ex->fd, iov, 2, EXMAP_OP_WRITE << 8), 6 * PAGE);
	assert_errno(pwrite(ex->fd, ex->surface + 14 * PAGE, PAGE, EXMAP_OP_WRITE << 8), EIO);
	set_bad(false, 14, 1);
	ck_assert_int_eq(pwritev(ex->fd, iov, 2, EXMAP_OP_WRITE << 8), 11 * PAGE);
	ck_assert(file_holds(fd, 14, 1));
	assert_mapped(ex, 40);
	ck_assert_int_eq(release(ex, 0, 0, 40), 40);
	assert_pool(ex, 40);
}

/* WRITE into the page cache succeeds. fsync reports the bad page. */
TEST(write_bad_pages_buffered, ON_A_BAD_DEVICE)
{
	int fd = bad_open(false);
	struct exmap *ex = exmap_on(fd, 40);

	ck_assert_int_eq(alloc(ex, 0, 10, 10), 10);
	for (int page = 10; page < 20; page++)
		fill(ex->surface + page * PAGE, page, 1);
	set_bad(true, 14, 1);
	ck_assert_int_eq(write_pages(ex, 10, 10), 10);
	assert_errno(fsync(ex->fd), EIO);
	for (int page = 10; page < 20; page++)
		ck_assert(holds(ex->surface + page * PAGE, page, 1));
	set_bad(false, 14, 1);
	ck_assert_int_eq(write_pages(ex, 10, 10), 10);
	assert_ok(fsync(ex->fd));
	ck_assert(!posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
	for (int page = 10; page < 20; page++)
		ck_assert(file_holds(fd, page, 1));
}

struct disk_user {
	struct exmap *ex;
	int id;
	atomic_int rounds;
	char error[128];
	pthread_t thread;
};

enum { DISK_BATCH = 20 };

static uint64_t disk_page(const struct disk_user *u, int i)
{
	return u->id * 100 + 2 * i;
}

/* READ or WRITE a batch of pages. Returns whether an entry failed; all others must be right. */
static bool disk_call_fails(struct disk_user *u, int opcode)
{
	struct exmap_iov *iov = u->ex->interface[u->id]->iov;
	bool failed;

	for (int i = 0; i < DISK_BATCH; i++)
		iov[i].value = 1UL << 52 | disk_page(u, i);
	failed = action(u->ex->fd, u->id, opcode, DISK_BATCH, 0);
	for (int i = 0; i < DISK_BATCH; i++) {
		const uint64_t page = disk_page(u, i);

		if (iov[i].res > 0 || iov[i].pages != !iov[i].res ||
		    (!iov[i].res && !holds(u->ex->surface + page * PAGE, page, 0)))
			note_error(u, "opcode %d, entry %d: res %d, pages %d", opcode, i,
				   iov[i].res, iov[i].pages);
	}
	return failed;
}

/* READ, WRITE and FREE until an entry fails. */
static void *disk_user(void *arg)
{
	struct disk_user *u = arg;
	struct exmap_iov *iov = u->ex->interface[u->id]->iov;
	bool failed = false;

	while (!failed && !u->error[0]) {
		failed = disk_call_fails(u, EXMAP_OP_READ) || disk_call_fails(u, EXMAP_OP_WRITE);
		iov[0].value = (uint64_t)(2 * DISK_BATCH) << 52 | disk_page(u, 0);
		if (action(u->ex->fd, u->id, EXMAP_OP_FREE, 1, 0))
			note_error(u, "FREE failed");
		atomic_fetch_add(&u->rounds, 1);
	}
	return NULL;
}

/*
 * A disk is removed while two threads READ and WRITE. Afterwards every READ and WRITE fails, and no
 * page is lost or changed.
 */
TEST(disk_that_is_removed, .needs_env = "EXMAP_TEST_REMOVABLE")
{
	char path[256], *disk = getenv("EXMAP_TEST_REMOVABLE");
	int fd = file_open(disk, O_DIRECT), sysfs;
	struct disk_user user[2] = { };
	struct exmap *ex;

	file_fill(fd, FILE_PAGES);
	ex = exmap_on(fd, 100);
	snprintf(path, sizeof(path), "/sys/block/%s/device/delete", basename(disk));
	sysfs = open(path, O_WRONLY);
	assert_ok(sysfs);
	for (int i = 0; i < 2; i++) {
		user[i].ex = ex;
		user[i].id = i;
		ck_assert(!pthread_create(&user[i].thread, NULL, disk_user, &user[i]));
	}
	for (int i = 0; i < 2; i++)
		while (atomic_load(&user[i].rounds) < 20)
			sched_yield();
	ck_assert_int_eq(write(sysfs, "1", 1), 1);
	for (int i = 0; i < 2; i++) {
		pthread_join(user[i].thread, NULL);
		ck_assert_msg(!user[i].error[0], "%s", user[i].error);
	}

	assert_mapped(ex, 0);
	ck_assert_int_lt(read_pages(ex, 0, 10), 0);
	ck_assert_int_le(pread(ex->fd, ex->surface, PAGE, 0), 0);
	assert_mapped(ex, 0);
	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	for (int page = 0; page < 10; page++)
		fill(ex->surface + page * PAGE, page, 1);
	ck_assert_int_lt(write_pages(ex, 0, 10), 0);
	ck_assert_int_eq(pwrite(ex->fd, ex->surface, PAGE, EXMAP_OP_WRITE << 8), -1);
	for (int page = 0; page < 10; page++)
		ck_assert(holds(ex->surface + page * PAGE, page, 1));
	assert_pool(ex, 100);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of READ and WRITE on devices that fail.");
}
