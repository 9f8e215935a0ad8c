// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of the backing file: READ and WRITE by ACTION, and the exmap's file as a
 * proxy. Each runs on a buffered file in /tmp, and on what these name:
 *
 * EXMAP_TEST_DEVICE     a block device, which is overwritten, or a directory to make
 *                       a file in; used with O_DIRECT, unless EXMAP_TEST_BUFFERED is
 *                       there, too
 * EXMAP_TEST_DIRECTORY  a file system that is filled up; the same
 * EXMAP_TEST_BAD        a null_blk in configfs; the tests set its bad blocks
 * EXMAP_TEST_REMOVABLE  a SCSI disk that is removed
 */
#include <libgen.h>
#include <linux/fs.h>
#include <stdatomic.h>
#include <sys/inotify.h>

#include "io_common.h"

#define read_pages(ex, page, len) run(ex, 0, EXMAP_OP_READ, page, len)
#define write_pages(ex, page, len) run(ex, 0, EXMAP_OP_WRITE, page, len)

/* No page of the pool is lost: those that are not mapped can all be had. */
static void assert_pool(struct exmap *ex, int pages)
{
	int rest = pages - stats(ex).alloc_count;

	ck_assert_uint_eq(resident(ex, 0, 2 * FILE_PAGES), pages - rest);
	ck_assert_int_eq(alloc(ex, 0, FILE_PAGES, rest), rest);
	ck_assert_int_eq(alloc(ex, 0, rest < FILE_PAGES ? FILE_PAGES + rest : 0, 1), -ENOMEM);
	ck_assert_int_eq(release(ex, 0, FILE_PAGES, rest), rest);
}

/*
 * READ
 */
TEST_BOTH(read_single_pages)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, 600);

	for (int i = 0; i < 512; i++)
		entry(ex, 0, i, (i * 37) % FILE_PAGES, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_READ, 512, 0), 0);
	for (int i = 0; i < 512; i++) {
		assert_entry(ex, 0, i, 0, 1);
		ck_assert(holds(ex->surface + (i * 37) % FILE_PAGES * PAGE, i * 37 % FILE_PAGES, 0));
	}
	assert_mapped(ex, 512);
	ck_assert_uint_eq(resident(ex, 0, FILE_PAGES), 512);
}

TEST_BOTH(read_runs)
{
	int fd = backing_open(device, O_RDONLY);
	struct exmap *ex = exmap_on(fd, 2000);

	entry(ex, 0, 0, 0, 3);
	entry(ex, 0, 1, 3, 1);
	entry(ex, 0, 2, 100, 900);
	entry(ex, 0, 3, 50, 0);
	entry(ex, 0, 4, 5, 2);
	entry(ex, 0, 5, 2 * FILE_PAGES, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_READ, 6, 0), 1);
	assert_entry(ex, 0, 0, 0, 3);
	assert_entry(ex, 0, 1, 0, 1);
	assert_entry(ex, 0, 2, 0, 900);
	assert_entry(ex, 0, 3, 0, 0);
	assert_entry(ex, 0, 4, 0, 2);
	assert_entry(ex, 0, 5, -EFAULT, 0);
	for (uint64_t page = 0; page < FILE_PAGES; page++)
		if (page < 4 || page == 5 || page == 6 || (page >= 100 && page < 1000))
			ck_assert(holds(ex->surface + page * PAGE, page, 0));
	assert_mapped(ex, 906);
}

TEST_BOTH(read_leaves_what_is_mapped)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), 100);

	ck_assert_int_eq(alloc(ex, 0, 11, 1), 1);
	fill(ex->surface + 11 * PAGE, 11, 7);
	ck_assert_int_eq(read_pages(ex, 10, 3), 2);
	ck_assert(holds(ex->surface + 10 * PAGE, 10, 0));
	ck_assert(holds(ex->surface + 11 * PAGE, 11, 7));
	ck_assert(holds(ex->surface + 12 * PAGE, 12, 0));
	entry(ex, 0, 0, 11, 5);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_READ, 1, EXMAP_ALLOC_PROBE), 0);
	assert_entry(ex, 0, 0, 0, 0);
	assert_mapped(ex, 3);
}

/* Both entries lack the page; one gets it. */
TEST_BOTH(read_of_the_same_page_twice)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), 100);

	entry(ex, 0, 0, 5, 1);
	entry(ex, 0, 1, 4, 3);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_READ, 2, 0), 0);
	assert_entry(ex, 0, 0, 0, 1);
	assert_entry(ex, 0, 1, 0, 2);
	assert_mapped(ex, 3);
	for (int page = 4; page < 7; page++)
		ck_assert(holds(ex->surface + page * PAGE, page, 0));
	ck_assert_int_eq(alloc(ex, 0, 100, 97), 97);
	/* The page that the second lacks is the first one's. */
	ck_assert_int_eq(release(ex, 0, 5, 1), 1);
	entry(ex, 0, 0, 5, 1);
	entry(ex, 0, 1, 5, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_READ, 2, 0), 0);
	assert_entry(ex, 0, 0, 0, 1);
	assert_entry(ex, 0, 1, 0, 0);
}

TEST_BOTH(read_without_memory)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), 10);

	ck_assert_int_eq(read_pages(ex, 0, 11), -ENOMEM);
	assert_mapped(ex, 0);
	entry(ex, 0, 0, 0, 6);
	entry(ex, 0, 1, 20, 5);
	entry(ex, 0, 2, 30, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_READ, 3, 0), 2);
	assert_entry(ex, 0, 0, 0, 6);
	assert_entry(ex, 0, 1, -ENOMEM, 0);
	assert_entry(ex, 0, 2, -ENOMEM, 0);
	ck_assert_uint_eq(resident(ex, 0, 100), 6);
	ck_assert_int_eq(read_pages(ex, 30, 4), 4);
	ck_assert(holds(ex->surface + 33 * PAGE, 33, 0));
}

/* The file is shorter than the surface. */
TEST(read_at_the_end_of_the_file)
{
	int fd = backing_open(false, O_RDWR);
	struct exmap *ex = exmap_on(fd, 100);
	static const char zero[PAGE];

	assert_ok(ftruncate(fd, 20 * PAGE + 100));
	/* Recycled pages, so that zero is not there by chance. */
	ck_assert_int_eq(alloc(ex, 0, 0, 100), 100);
	memset(ex->surface, 0xff, 100 * PAGE);
	ck_assert_int_eq(release(ex, 0, 0, 100), 100);

	ck_assert_int_eq(read_pages(ex, 18, 10), 3);
	ck_assert(holds(ex->surface + 19 * PAGE, 19, 0));
	ck_assert_mem_eq(ex->surface + 20 * PAGE + 100, zero, PAGE - 100);
	ck_assert_uint_eq(resident(ex, 0, 100), 3);
	/* The same again: nothing is missing but what the file does not have. */
	ck_assert_int_eq(read_pages(ex, 18, 10), 0);
	ck_assert_int_eq(read_pages(ex, 30, 2), -ENODATA);
	entry(ex, 0, 0, 40, 1);
	entry(ex, 0, 1, 0, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_READ, 2, 0), 1);
	assert_entry(ex, 0, 0, -ENODATA, 0);
	assert_entry(ex, 0, 1, 0, 1);
	assert_mapped(ex, 4);
	/* The pages of what failed are free again. */
	ck_assert_int_eq(alloc(ex, 0, 100, 96), 96);
}

/* Data, holes, and what is allocated but was never written. */
TEST_TWICE(read_sparse_file, file, directory,
	   .needs_env = "EXMAP_TEST_DIRECTORY")
{
	int fd = directory ? file_open(getenv("EXMAP_TEST_DIRECTORY"), direct_flag()) :
			     file_open("/tmp", 0);
	struct exmap *ex = exmap_on(fd, 100);

	file_fill(fd, 10);
	assert_ok(ftruncate(fd, FILE_PAGES * PAGE));
	assert_ok(fallocate(fd, 0, 20 * PAGE, 10 * PAGE));
	assert_ok(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 3 * PAGE, 4 * PAGE));
	ck_assert_int_eq(alloc(ex, 0, 0, 100), 100);
	memset(ex->surface, 0xff, 100 * PAGE);
	ck_assert_int_eq(release(ex, 0, 0, 100), 100);

	ck_assert_int_eq(read_pages(ex, 0, 50), 50);
	ck_assert_int_eq(read_pages(ex, 500, 50), 50);
	for (int page = 0; page < 50; page++) {
		if (page < 3 || (page >= 7 && page < 10))
			ck_assert(holds(ex->surface + page * PAGE, page, 0));
		else
			ck_assert(all_bytes(ex->surface + page * PAGE, 0));
		ck_assert(all_bytes(ex->surface + (500 + page) * PAGE, 0));
		fill(ex->surface + page * PAGE, page, 1);
	}
	ck_assert_int_eq(write_pages(ex, 0, 50), 50);
	for (int page = 0; page < 50; page++)
		ck_assert(file_holds(fd, page, 1));
}

struct shrinker {
	int fd;
	pthread_t thread;
};

static void *shrinker(void *arg)
{
	struct shrinker *s = arg;

	for (off_t size = FILE_PAGES * PAGE; size > 0; size -= 5000)
		if (ftruncate(s->fd, size))
			return s;
	return ftruncate(s->fd, 0) ? s : NULL;
}

/* Whether a page is what the file holds there, zero from some byte on. */
static bool holds_beginning(const char *page, uint64_t nr)
{
	char want[PAGE];
	size_t same = 0;

	fill(want, nr, 0);
	while (same < PAGE && page[same] == want[same])
		same++;
	while (same < PAGE && !page[same])
		same++;
	return same == PAGE;
}

/* Each page that is read is one that the file had, or has been cut off. */
TEST_TWICE(read_while_the_file_shrinks, file, directory,
	   .needs_env = "EXMAP_TEST_DIRECTORY")
{
	struct shrinker s = {
		.fd = directory ? file_open(getenv("EXMAP_TEST_DIRECTORY"), direct_flag()) :
				  file_open("/tmp", 0),
	};
	enum { RUN = 32 };
	/* Of ext4's page cache any reader may get zeros with data behind them meanwhile. */
	const bool torn = directory && !direct_flag();
	struct exmap *ex = exmap_on(s.fd, FILE_PAGES);
	int nr = FILE_PAGES / RUN, failed;
	void *error;

	for (int round = 0; round < 5; round++) {
		file_fill(s.fd, FILE_PAGES);
		ck_assert(!pthread_create(&s.thread, NULL, shrinker, &s));
		do {
			for (int i = 0; i < nr; i++)
				entry(ex, 0, i, i * RUN, RUN);
			failed = action(ex->fd, 0, EXMAP_OP_READ, nr, 0);
			ck_assert_int_ge(failed, 0);
			for (int i = 0; i < nr; i++) {
				struct exmap_iov iov = ex->interface[0]->iov[i];

				ck_assert_int_eq(iov.res, iov.pages ? 0 : -ENODATA);
				ck_assert_uint_eq(resident(ex, i * RUN, RUN), iov.pages);
				for (int page = i * RUN; page < i * RUN + iov.pages; page++)
					ck_assert(torn ||
						  holds_beginning(ex->surface + page * PAGE, page));
				ck_assert_int_eq(release(ex, 1, i * RUN, RUN), iov.pages);
			}
		} while (failed < nr);
		pthread_join(s.thread, &error);
		ck_assert(!error);
	}
	assert_pool(ex, FILE_PAGES);
}

/*
 * An entry of two page tables, one page of which comes and goes. Where that takes the free
 * page that was meant for the last one, in the other table, there is another: it is its own.
 */
enum { ACROSS = 512 + 1 };

struct taker {
	struct exmap *ex;
	uint64_t page;
	atomic_int left;	/* to be taken */
	pthread_t thread;
};

static void *taker(void *arg)
{
	struct taker *t = arg;

	while (atomic_load(&t->left) > 0)
		if (release(t->ex, 1, t->page, 1) == 1)
			atomic_fetch_sub(&t->left, 1);
	return NULL;
}

static void pages_of_two_tables(int opcode)
{
	struct exmap *ex = exmap_on(backing_open(false, O_RDWR), ACROSS);
	const uint64_t last = -((uintptr_t)ex->surface / PAGE) % 512 + 512;
	struct taker t = { .ex = ex, .page = last - 1, .left = scaled(1000) };
	int all = 0, ret;

	ck_assert(!pthread_create(&t.thread, NULL, taker, &t));
	while (atomic_load(&t.left) > 0) {
		ret = run(ex, 0, opcode, last - ACROSS + 1, ACROSS);
		/* There is none while it is on its way to those that are free. */
		if (ret != -ENOMEM)
			ck_assert_int_ge(ret, 0);
		ck_assert_int_eq(release(ex, 0, last, 1), ret >= 0);
		all += ret >= 0;
	}
	pthread_join(t.thread, NULL);
	ck_assert_int_gt(all, 0);
	release(ex, 0, last - ACROSS + 1, ACROSS);
	assert_pool(ex, ACROSS);
}

TEST(alloc_of_two_tables_while_a_page_goes)
{
	pages_of_two_tables(EXMAP_OP_ALLOC);
}

TEST(read_of_two_tables_while_a_page_goes)
{
	pages_of_two_tables(EXMAP_OP_READ);
}

struct resizer {
	int fd;
	atomic_bool stop;
	pthread_t thread;
};

static void *resizer(void *arg)
{
	struct resizer *r = arg;

	while (!atomic_load(&r->stop))
		if (ftruncate(r->fd, 20 * PAGE + 100) || ftruncate(r->fd, 40 * PAGE))
			return r;
	return NULL;
}

/* The end is in the page or behind it; either way the page can be read. */
TEST(read_while_the_file_grows_and_shrinks)
{
	struct resizer r = { .fd = backing_open(false, O_RDWR) };
	struct exmap *ex = exmap_on(r.fd, 100);
	void *error;

	assert_ok(ftruncate(r.fd, 20 * PAGE + 100));
	ck_assert(!pthread_create(&r.thread, NULL, resizer, &r));
	for (int round = 0; round < 1000; round++) {
		entry(ex, 0, 0, 20, 1);
		entry(ex, 0, 1, 18, 2);
		ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_READ, 2, 0), 0);
		assert_entry(ex, 0, 0, 0, 1);
		assert_entry(ex, 0, 1, 0, 2);
		for (int page = 18; page <= 20; page++)
			ck_assert(holds_beginning(ex->surface + page * PAGE, page));
		ck_assert_int_eq(release(ex, 0, 18, 3), 3);
		ck_assert_int_eq(pread(ex->fd, ex->surface + 20 * PAGE, PAGE, 0), PAGE);
		ck_assert_int_eq(release(ex, 0, 20, 1), 1);
	}
	atomic_store(&r.stop, true);
	pthread_join(r.thread, &error);
	ck_assert(!error);
}

/* A file that the kernel reads for user memory only: this process's own memory. */
TEST(read_a_file_without_read_iter)
{
	char *memory = mmap((void *)0x200000, 8 * PAGE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	const uint64_t page = 0x200000 / PAGE;
	struct exmap *ex;

	assert_ok(memory);
	for (int i = 0; i < 8; i++)
		fill(memory + i * PAGE, page + i, 0);
	ex = exmap_on(open("/proc/self/mem", O_RDONLY), 100);
	entry(ex, 0, 0, page + 2, 3);
	entry(ex, 0, 1, page, 1);
	entry(ex, 0, 2, page + 7, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_READ, 3, 0), 0);
	assert_entry(ex, 0, 0, 0, 3);
	assert_entry(ex, 0, 1, 0, 1);
	assert_entry(ex, 0, 2, 0, 1);
	ck_assert_int_eq(pread(ex->fd, ex->surface + (page + 1) * PAGE, 7 * PAGE, 0), 7 * PAGE);
	for (int i = 0; i < 8; i++)
		ck_assert(holds(ex->surface + (page + i) * PAGE, page + i, 0));
	ck_assert_int_eq(release(ex, 0, page, 8), 8);
	/* It is read once more: nothing is kept. */
	fill(memory, page, 1);
	ck_assert_int_eq(read_pages(ex, page, 1), 1);
	ck_assert(holds(ex->surface + page * PAGE, page, 1));
	ck_assert_int_eq(release(ex, 0, page, 1), 1);

	assert_ok(munmap(memory + 3 * PAGE, PAGE));
	entry(ex, 0, 0, page, 3);
	entry(ex, 0, 1, page + 3, 1);
	entry(ex, 0, 2, page + 4, 2);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_READ, 3, 0), 1);
	assert_entry(ex, 0, 0, 0, 3);
	assert_entry(ex, 0, 1, -EIO, 0);
	assert_entry(ex, 0, 2, 0, 2);
	ck_assert(holds(ex->surface + (page + 5) * PAGE, page + 5, 0));
	ck_assert_int_eq(release(ex, 0, page, 8), 5);
	/* A hole in the middle of a run. */
	ck_assert_int_eq(read_pages(ex, page, 8), -EIO);
	ck_assert_int_ge(ex->interface[0]->iov[0].pages, 3);
	ck_assert_uint_eq(resident(ex, page, 8), ex->interface[0]->iov[0].pages);
	ck_assert_uint_eq(resident(ex, page, 4), 3);
	release(ex, 0, page, 8);
	ck_assert_int_eq(pread(ex->fd, ex->surface + page * PAGE, 8 * PAGE, 0), 3 * PAGE);
	assert_errno(pread(ex->fd, ex->surface + (page + 3) * PAGE, PAGE, 0), EIO);
	ck_assert(holds(ex->surface + (page + 2) * PAGE, page + 2, 0));
	release(ex, 0, page, 8);
	assert_pool(ex, 100);
}

/*
 * WRITE
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
	/* They stay, and are what they were when read again. */
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

/* Who watches the file sees all that is done to it, also what the module queues. */
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

/* Not in every kernel. */
#define INOTIFY "/proc/sys/fs/inotify/max_user_watches"

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

TEST_BOTH(write_to_a_read_only_file_is_ebadf)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDONLY), 100);

	ck_assert_int_eq(read_pages(ex, 0, 1), 1);
	ck_assert_int_eq(write_pages(ex, 0, 1), -EBADF);
	assert_mapped(ex, 1);
}

/*
 * A header that LeanStore brings along has other numbers: 3 SHADOW, with the page to which
 * the entries are to be mapped in place of the flags; 4 RM_SD, which ends that; 5 WRITE.
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

	/* Pages 0 and 1 are flags that WRITE may have: mapped pages go where they belong. */
	for (uint64_t target = 0; target < 2; target++) {
		entry(ex, 0, 0, target, 2);
		ck_assert_int_eq(action(ex->fd, 0, SHADOW, 1, target), 0);
		assert_entry(ex, 0, 0, 0, 2);
	}
	for (int page = 0; page < 10; page++)
		ck_assert(file_holds(fd, page, page < 3));
}

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

/* Writes keep it from being frozen, until they are done: also where it just has the node. */
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

/* What there is room for goes well; the rest stays as it is on the surface. */
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

/* It would go elsewhere. */
TEST(write_to_an_appending_file_is_einval)
{
	int fd = backing_open(false, O_RDWR);
	struct exmap *ex = exmap_on(fd, 100);

	ck_assert_int_eq(alloc(ex, 0, 3, 1), 1);
	assert_ok(fcntl(fd, F_SETFL, O_APPEND));
	ck_assert_int_eq(write_pages(ex, 3, 1), -EINVAL);
	ck_assert_int_eq(lseek(fd, 0, SEEK_END), FILE_PAGES * PAGE);
}

/* The exmap holds the file by itself. */
TEST_BOTH(backing_fd_may_be_closed)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, 100);

	close(fd);
	ck_assert_int_eq(read_pages(ex, 7, 1), 1);
	ck_assert(holds(ex->surface + 7 * PAGE, 7, 0));
}

/*
 * Pages that cannot be read or written: a null_blk fails the whole of each request
 * that touches a bad block, with all that the block layer put into it.
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

static int bad_open(bool direct)
{
	char path[256];
	int fd;

	set_bad(false, 0, FILE_PAGES);
	snprintf(path, sizeof(path), "/dev/%s", basename(getenv("EXMAP_TEST_BAD")));
	fd = file_open(path, direct ? O_DIRECT : 0);
	file_fill(fd, FILE_PAGES);
	/* What is cached would not be read. */
	assert_ok(fsync(fd));
	ck_assert(!posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
	return fd;
}

#define ON_A_BAD_DEVICE	.needs_env = "EXMAP_TEST_BAD"

#define TEST_BAD(name)							\
	static void name(bool direct);					\
	TEST(name##_buffered, ON_A_BAD_DEVICE) { name(false); }		\
	TEST(name##_direct, ON_A_BAD_DEVICE) { name(true); }		\
	static void name(bool direct)

/* Each entry has its own result, wherever the others are. */
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
		/* It was the disk. */
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

/* What is before the bad page is there; behind it, it may be. */
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

/* The pages stay mapped, and what they are. */
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

/* The cache takes all of it; fsync tells. */
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

/* READ, WRITE, FREE until something fails; all that did not must be right. */
static void *disk_user(void *arg)
{
	struct disk_user *u = arg;
	struct exmap_iov *iov = u->ex->interface[u->id]->iov;
	bool failed = false;

	while (!failed && !u->error[0]) {
		const int first = u->id * 100, nr = 20;

		for (int op = EXMAP_OP_READ; !failed; op = EXMAP_OP_WRITE) {
			for (int i = 0; i < nr; i++)
				iov[i].value = 1UL << 52 | (first + 2 * i);
			failed = action(u->ex->fd, u->id, op, nr, 0);
			for (int i = 0; i < nr; i++)
				if (iov[i].res > 0 || iov[i].pages != !iov[i].res ||
				    (!iov[i].res && !holds(u->ex->surface + (first + 2 * i) * PAGE,
							   first + 2 * i, 0)))
					snprintf(u->error, sizeof(u->error),
						 "opcode %d, entry %d: %d, %d pages", op, i,
						 iov[i].res, iov[i].pages);
			if (op == EXMAP_OP_WRITE)
				break;
		}
		iov[0].value = (uint64_t)(2 * nr) << 52 | first;
		if (action(u->ex->fd, u->id, EXMAP_OP_FREE, 1, 0))
			snprintf(u->error, sizeof(u->error), "FREE failed");
		atomic_fetch_add(&u->rounds, 1);
	}
	return NULL;
}

/* A disk is removed while it is in use. */
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

/*
 * The proxy
 */
TEST_BOTH(pread_is_as_vmcache_does_it)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDWR), 100);

	for (int page = 0; page < 50; page += 7) {
		ck_assert_int_eq(pread(ex->fd, ex->surface + page * PAGE, PAGE, page % 2), PAGE);
		ck_assert(holds(ex->surface + page * PAGE, page, 0));
	}
	assert_mapped(ex, 8);
	/* What is there counts, and stays. */
	fill(ex->surface, 0, 9);
	ck_assert_int_eq(pread(ex->fd, ex->surface, 2 * PAGE, 0), 2 * PAGE);
	ck_assert(holds(ex->surface, 0, 9));
	ck_assert(holds(ex->surface + PAGE, 1, 0));
}

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
		/* Nothing is done of what would be good. */
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

TEST(proxy_ends_early)
{
	int fd = backing_open(false, O_RDWR);
	struct exmap *ex = exmap_on(fd, 20);
	struct iovec iov[3] = {
		{ ex->surface + 100 * PAGE, 8 * PAGE },
		{ ex->surface + 300 * PAGE, 13 * PAGE },
		{ ex->surface + 400 * PAGE, PAGE },
	};

	/* No memory for the second: a short count. */
	ck_assert_int_eq(preadv(ex->fd, iov, 3, 0), 8 * PAGE);
	assert_mapped(ex, 8);
	assert_errno(pread(ex->fd, iov[1].iov_base, 13 * PAGE, 0), ENOMEM);
	/* The end of the file. */
	assert_ok(ftruncate(fd, 410 * PAGE));
	ck_assert_int_eq(pread(ex->fd, ex->surface + 408 * PAGE, 5 * PAGE, 0), 2 * PAGE);
	ck_assert_int_eq(pread(ex->fd, ex->surface + 411 * PAGE, PAGE, 0), 0);
	/* A page that is not mapped ends a write. */
	ck_assert_int_eq(pwrite(ex->fd, ex->surface + 408 * PAGE, 5 * PAGE, EXMAP_OP_WRITE << 8),
			 2 * PAGE);
}

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

/* Not -EFAULT in the entries: nothing has been looked at. */
TEST(read_without_a_surface_is_eproto)
{
	struct exmap ex = { .fd = exmap_open() };

	assert_ok(exmap_setup_file(ex.fd, 1, 100, 0, backing_open(false, O_RDWR)));
	ex.interface[0] = map_interface(ex.fd, 0);
	ck_assert_int_eq(read_pages(&ex, 0, 1), -EPROTO);
	ck_assert_int_eq(write_pages(&ex, 0, 1), -EPROTO);
	assert_errno(pread(ex.fd, ex.interface[0], PAGE, 0), EPROTO);
}

struct early_reader {
	struct exmap ex;
	atomic_bool tried;
};

static void *reader_before_mmap(void *arg)
{
	struct early_reader *r = arg;
	int ret;

	for (int i = 0; i < 512; i++)
		entry(&r->ex, 0, i, 1UL << 30, 1);
	do {
		ret = action(r->ex.fd, 0, EXMAP_OP_READ, 512, 0);
		atomic_store(&r->tried, true);
	} while (ret < 0 && errno == EPROTO);
	return (void *)(long)ret;
}

/* The surface comes into being while another thread tries to read to it. */
TEST(read_while_the_surface_is_mapped)
{
	int file = backing_open(false, O_RDWR);

	for (int round = scaled(300); round; round--) {
		struct early_reader r = { .ex.fd = exmap_open(), .ex.size = MIB };
		struct exmap *ex = &r.ex;
		pthread_t thread;
		void *ret;

		assert_ok(exmap_setup_file(ex->fd, 1, 100, 0, file));
		ex->interface[0] = map_interface(ex->fd, 0);
		ck_assert(!pthread_create(&thread, NULL, reader_before_mmap, &r));
		while (!atomic_load(&r.tried))
			;
		ex->surface = map_surface(ex->fd, ex->size);
		assert_ok(ex->surface);
		pthread_join(thread, &ret);
		/* All of them leave the surface. */
		ck_assert_int_eq((long)ret, 512);
		assert_ok(munmap(ex->surface, ex->size));
		assert_ok(munmap(ex->interface[0], PAGE));
		close(ex->fd);
	}
}

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

/* Existing clients write back with O_DIRECT on the device's own descriptor. */
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

	/* Scattered over the surface, in no order. */
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
	/* One that is not there ends it. */
	ck_assert_int_eq(release(ex, 0, 7 * 50, 1), 1);
	ck_assert_int_lt(pwritev(fd, iov, 20, 0), 30 * PAGE);
	assert_mapped(ex, 39);
}

/*
 * Integrity: a file larger than the pool; threads read, change, write back and
 * free random pages of their own, and know what each must hold.
 */
struct worker {
	struct exmap *ex;
	unsigned int id;
	unsigned int seed;
	bool proxy;
	char error[128];
	pthread_t thread;
};

enum { WORKERS = 4, BATCH = 16 };

static bool worker_call(struct worker *w, int opcode, const uint64_t *page)
{
	struct exmap_iov *iov = w->ex->interface[w->id]->iov;
	struct iovec vec[BATCH];
	ssize_t ret;

	if (w->proxy && opcode != EXMAP_OP_FREE) {
		for (int i = 0; i < BATCH; i++)
			vec[i] = (struct iovec){ w->ex->surface + page[i] * PAGE, PAGE };
		ret = opcode == EXMAP_OP_READ ? preadv(w->ex->fd, vec, BATCH, w->id) :
						pwritev(w->ex->fd, vec, BATCH, opcode << 8 | w->id);
		ret -= BATCH * PAGE;
	} else {
		for (int i = 0; i < BATCH; i++)
			iov[i].value = 1UL << 52 | page[i];
		ret = action(w->ex->fd, w->id, opcode, BATCH, 0);
	}
	if (ret && !w->error[0])
		snprintf(w->error, sizeof(w->error), "opcode %d: %ld (errno %d), first entry %d",
			 opcode, ret, errno, iov[0].res);
	return !ret;
}

static void *integrity_worker(void *arg)
{
	static const unsigned int share = FILE_PAGES / WORKERS;
	uint64_t generation[FILE_PAGES / WORKERS] = { }, page[BATCH];
	struct worker *w = arg;

	for (int round = scaled(100); round && !w->error[0]; round--) {
		/* Different pages, in no order, interleaved with the other workers'. */
		unsigned int at = rand_r(&w->seed) % share, step = rand_r(&w->seed) % 8 * 2 + 1;

		for (int i = 0; i < BATCH; i++)
			page[i] = (at + i * step) % share * WORKERS + w->id;
		if (!worker_call(w, EXMAP_OP_READ, page))
			break;
		for (int i = 0; i < BATCH; i++) {
			uint64_t *mine = &generation[page[i] / WORKERS];

			if (!holds(w->ex->surface + page[i] * PAGE, page[i], *mine))
				snprintf(w->error, sizeof(w->error),
					 "page %lu is not generation %lu", page[i], *mine);
			fill(w->ex->surface + page[i] * PAGE, page[i], ++*mine);
		}
		if (!worker_call(w, EXMAP_OP_WRITE, page) || !worker_call(w, EXMAP_OP_FREE, page))
			break;
	}
	return NULL;
}

static void integrity_of(int fd, bool proxy)
{
	struct exmap *ex = exmap_new_file(FILE_PAGES * PAGE, WORKERS * BATCH, WORKERS, 0, fd);
	struct worker w[WORKERS];

	for (int i = 0; i < WORKERS; i++) {
		w[i] = (struct worker){ .ex = ex, .id = i, .seed = i + 1, .proxy = proxy };
		ck_assert(!pthread_create(&w[i].thread, NULL, integrity_worker, &w[i]));
	}
	for (int i = 0; i < WORKERS; i++) {
		pthread_join(w[i].thread, NULL);
		ck_assert_msg(!w[i].error[0], "%s", w[i].error);
	}
	assert_mapped(ex, 0);
}

TEST_BOTH(integrity)
{
	integrity_of(backing_open(device, O_RDWR), false);
}

TEST_BOTH(integrity_by_proxy)
{
	integrity_of(backing_open(device, O_RDWR), true);
}

/*
 * Prefetching without locks: threads READ whatever they like, while others, each with pages of
 * its own, read, change, write and free them. No READ brings back what was replaced.
 */
struct prefetcher {
	struct exmap *ex;
	unsigned int id;
	unsigned int seed;
	atomic_bool *stop;
	char error[128];
	pthread_t thread;
};

enum { PREFETCHERS = 2, OWNERS = 2, PREFETCHED = 64, PREFETCH_AT_ONCE = 64 };

static void *prefetcher(void *arg)
{
	struct prefetcher *p = arg;
	struct exmap_iov *iov = p->ex->interface[p->id]->iov;
	struct iovec vec[PREFETCH_AT_ONCE];
	ssize_t ret;

	while (!atomic_load(p->stop) && !p->error[0]) {
		for (int i = 0; i < PREFETCH_AT_ONCE; i++) {
			unsigned int page = rand_r(&p->seed) % PREFETCHED;

			entry(p->ex, p->id, i, page, 1);
			vec[i] = (struct iovec){ p->ex->surface + page * PAGE, PAGE };
		}
		if (p->id % 2) {
			ret = preadv(p->ex->fd, vec, PREFETCH_AT_ONCE, p->id);
			if (ret < 0 && errno != EBUSY)
				snprintf(p->error, sizeof(p->error), "preadv: %d", errno);
			continue;
		}
		ret = action(p->ex->fd, p->id, EXMAP_OP_READ, PREFETCH_AT_ONCE, 0);
		for (int i = 0; i < PREFETCH_AT_ONCE; i++)
			if (ret < 0 || (iov[i].res && iov[i].res != -EBUSY))
				snprintf(p->error, sizeof(p->error), "READ: %zd, entry %d", ret,
					 iov[i].res);
	}
	return NULL;
}

/* Until it is there: others' pages come, and do not go. */
static bool owner_read(struct prefetcher *p, uint64_t page)
{
	int ret;

	do {
		ret = run(p->ex, p->id, EXMAP_OP_READ, page, 1);
	} while (ret == -EBUSY);
	return ret >= 0;
}

static void *owner(void *arg)
{
	uint64_t generation[PREFETCHED] = { }, page;
	struct prefetcher *p = arg;
	struct exmap *ex = p->ex;

	for (int round = scaled(300); round && !p->error[0]; round--) {
		page = rand_r(&p->seed) % (PREFETCHED / OWNERS) * OWNERS + p->id % OWNERS;
		if (!owner_read(p, page))
			snprintf(p->error, sizeof(p->error), "page %lu: cannot be read", page);
		else if (!holds(ex->surface + page * PAGE, page, generation[page]))
			snprintf(p->error, sizeof(p->error), "page %lu is not generation %lu", page,
				 generation[page]);
		if (p->error[0])
			break;
		fill(ex->surface + page * PAGE, page, ++generation[page]);
		if (run(ex, p->id, EXMAP_OP_WRITE, page, 1) != 1 ||
		    run_flags(ex, p->id, EXMAP_OP_FREE, page, 1,
			      round % 4 ? 0 : EXMAP_FREE_DEFER) != 1)
			snprintf(p->error, sizeof(p->error), "page %lu: cannot be written", page);
	}
	return NULL;
}

TEST_BOTH(prefetch_without_locks)
{
	enum { THREADS = OWNERS + PREFETCHERS };
	struct exmap *ex = exmap_new_file(FILE_PAGES * PAGE, 1000, THREADS, 0,
					  backing_open(device, O_RDWR));
	struct prefetcher p[THREADS];
	atomic_bool stop = false;

	for (int i = 0; i < THREADS; i++) {
		p[i] = (struct prefetcher){ .ex = ex, .id = i, .seed = i + 1, .stop = &stop };
		ck_assert(!pthread_create(&p[i].thread, NULL, i < OWNERS ? owner : prefetcher, &p[i]));
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(p[i].thread, NULL);
		/* The prefetchers go on as long as there is an owner. */
		if (i == OWNERS - 1)
			atomic_store(&stop, true);
	}
	for (int i = 0; i < THREADS; i++)
		ck_assert_msg(!p[i].error[0], "%s", p[i].error);
	assert_fdinfo(ex->fd, "pages-in-flight", 0);
	assert_pages_add_up(ex->fd);
}

/*
 * WRITE of pages that other threads FREE meanwhile, and whose places in the pool
 * they fill with something else at once: what is written is the page, or nothing.
 */
enum { FREERS = 2, SHARE = 32, FREED = FREERS * SHARE };

struct freer {
	struct exmap *ex;
	pthread_barrier_t *barrier;
	unsigned int id;
	unsigned int seed;
	int rounds;
	char error[128];
	pthread_t thread;
};

static int freer_call(struct freer *f, int opcode, uint64_t first, unsigned int step)
{
	struct exmap_iov *iov = f->ex->interface[f->id]->iov;
	int pages = 0;

	for (int i = 0; i < SHARE; i++)
		iov[i].value = 1UL << 52 | (first + i * step);
	if (action(f->ex->fd, f->id, opcode, SHARE, 0))
		snprintf(f->error, sizeof(f->error), "opcode %d failed", opcode);
	for (int i = 0; i < SHARE; i++)
		pages += iov[i].pages;
	return pages;
}

static void dither(unsigned int *seed)
{
	for (volatile int i = rand_r(seed) % 4096; i > 0; i--)
		;
}

static void *freer(void *arg)
{
	struct freer *f = arg;
	const uint64_t scratch = FILE_PAGES + f->id * SHARE;

	for (int round = 0; round < f->rounds; round++) {
		pthread_barrier_wait(f->barrier);
		dither(&f->seed);
		if (freer_call(f, EXMAP_OP_FREE, f->id - 1, FREERS) != SHARE ||
		    freer_call(f, EXMAP_OP_ALLOC, scratch, 1) != SHARE)
			snprintf(f->error, sizeof(f->error), "round %d: not all", round);
		else
			memset(f->ex->surface + scratch * PAGE, 0xff, SHARE * PAGE);
		pthread_barrier_wait(f->barrier);
		freer_call(f, EXMAP_OP_FREE, scratch, 1);
		pthread_barrier_wait(f->barrier);
	}
	return NULL;
}

TEST_BOTH(write_while_others_free)
{
	static char buffer[FREED * PAGE] __attribute__((aligned(4096)));
	int fd = backing_open(device, O_RDWR), rounds = scaled(50);
	struct exmap *ex = exmap_new_file(2 * FILE_PAGES * PAGE, FREED, FREERS + 1, 0, fd);
	uint64_t generation[FREED] = { };
	struct freer f[FREERS + 1];
	pthread_barrier_t barrier;
	unsigned int seed = 1;

	pthread_barrier_init(&barrier, NULL, FREERS + 1);
	for (int i = 1; i <= FREERS; i++) {
		f[i] = (struct freer){
			.ex = ex, .barrier = &barrier, .id = i, .seed = i, .rounds = rounds,
		};
		ck_assert(!pthread_create(&f[i].thread, NULL, freer, &f[i]));
	}
	for (int round = 1; round <= rounds; round++) {
		int written = 0, found = 0;

		ck_assert_int_eq(alloc(ex, 0, 0, FREED), FREED);
		for (int page = 0; page < FREED; page++)
			fill(ex->surface + page * PAGE, page, round);
		for (int i = 0; i < 4; i++)
			entry(ex, 0, i, (3 - i) * FREED / 4, FREED / 4);
		pthread_barrier_wait(&barrier);
		dither(&seed);
		ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_WRITE, 4, 0), 0);
		for (int i = 0; i < 4; i++)
			written += ex->interface[0]->iov[i].pages;
		pthread_barrier_wait(&barrier);
		ck_assert_int_eq(pread(fd, buffer, sizeof(buffer), 0), sizeof(buffer));
		for (int page = 0; page < FREED; page++) {
			bool is_new = holds(buffer + page * PAGE, page, round);

			ck_assert(is_new || holds(buffer + page * PAGE, page, generation[page]));
			if (is_new)
				generation[page] = round;
			found += is_new;
		}
		ck_assert_int_eq(found, written);
		pthread_barrier_wait(&barrier);
	}
	for (int i = 1; i <= FREERS; i++) {
		pthread_join(f[i].thread, NULL);
		ck_assert_msg(!f[i].error[0], "%s", f[i].error);
	}
	assert_mapped(ex, 0);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv,
			  "Tests of the backing file. Those on a block device overwrite the one named by\n"
			  "$EXMAP_TEST_DEVICE; tests/io.c says what else they take.");
}
