// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of READ by ACTION: which pages of the backing file it maps, what they hold, and
 * what each entry gets as its answer.
 */
#include <stdatomic.h>

#include "io_common.h"

/* 512 entries of one page each, in no order of the file. */
TEST_BOTH(read_single_pages)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, 600);

	for (int i = 0; i < 512; i++)
		entry(ex, 0, i, (i * 37) % FILE_PAGES, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_READ, 512, 0), 0);
	for (int i = 0; i < 512; i++) {
		int page = i * 37 % FILE_PAGES;

		assert_entry(ex, 0, i, 0, 1);
		ck_assert(holds(ex->surface + page * PAGE, page, 0));
	}
	assert_mapped(ex, 512);
	ck_assert_uint_eq(resident(ex, 0, FILE_PAGES), 512);
}

/* Runs of pages. An empty entry succeeds; one past the end of the surface is -EFAULT. */
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

/*
 * READ keeps a mapped page as it is, and does not count it. With EXMAP_ALLOC_PROBE, an entry whose
 * first page is mapped reads nothing.
 */
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

/* Two entries of one call name the same page. It is read once, and counts for one entry. */
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
	/* Only one page is free. The second entry must not need another. */
	ck_assert_int_eq(release(ex, 0, 5, 1), 1);
	entry(ex, 0, 0, 5, 1);
	entry(ex, 0, 1, 5, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_READ, 2, 0), 0);
	assert_entry(ex, 0, 0, 0, 1);
	assert_entry(ex, 0, 1, 0, 0);
}

/*
 * The pool lacks pages. If the first entry cannot be read, the call returns -ENOMEM. Otherwise
 * -ENOMEM is the answer of the first entry that lacks pages, and of all entries after it.
 */
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

/*
 * The file is shorter than the surface, and ends inside a page. READ maps the pages that the file
 * has, and fills the last one with zeroes. An entry past the end gets -ENODATA.
 */
TEST(read_at_the_end_of_the_file)
{
	int fd = backing_open(false, O_RDWR);
	struct exmap *ex = exmap_on(fd, 100);
	static const char zero[PAGE];

	assert_ok(ftruncate(fd, 20 * PAGE + 100));
	/* Pages that held 0xff before: zeroes cannot be there by chance. */
	ck_assert_int_eq(alloc(ex, 0, 0, 100), 100);
	memset(ex->surface, 0xff, 100 * PAGE);
	ck_assert_int_eq(release(ex, 0, 0, 100), 100);

	ck_assert_int_eq(read_pages(ex, 18, 10), 3);
	ck_assert(holds(ex->surface + 19 * PAGE, 19, 0));
	ck_assert_mem_eq(ex->surface + 20 * PAGE + 100, zero, PAGE - 100);
	ck_assert_uint_eq(resident(ex, 0, 100), 3);
	/* Again: every page that the file has is mapped now, so READ has nothing to do. */
	ck_assert_int_eq(read_pages(ex, 18, 10), 0);
	ck_assert_int_eq(read_pages(ex, 30, 2), -ENODATA);
	entry(ex, 0, 0, 40, 1);
	entry(ex, 0, 1, 0, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_READ, 2, 0), 1);
	assert_entry(ex, 0, 0, -ENODATA, 0);
	assert_entry(ex, 0, 1, 0, 1);
	assert_mapped(ex, 4);
	/* The entries that failed have given their free pages back. */
	ck_assert_int_eq(alloc(ex, 0, 100, 96), 96);
}

/* A new file in /tmp, or in the directory to test. */
static int new_file(bool directory)
{
	return directory ? file_open(getenv("EXMAP_TEST_DIRECTORY"), direct_flag()) :
			   file_open("/tmp", 0);
}

/* Holes and preallocated blocks of the file are read as zeroes, and WRITE can fill them. */
TEST_TWICE(read_sparse_file, file, directory,
	   .needs_env = "EXMAP_TEST_DIRECTORY")
{
	int fd = new_file(directory);
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

/* Shorten the file step by step. Returns NULL if all steps succeeded. */
static void *shrinker(void *arg)
{
	struct shrinker *s = arg;

	for (off_t size = FILE_PAGES * PAGE; size > 0; size -= 5000)
		if (ftruncate(s->fd, size))
			return s;
	return ftruncate(s->fd, 0) ? s : NULL;
}

/* Does @page hold page @nr of the file up to some byte, and zeroes after it? */
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

/*
 * READ while another thread shortens the file. Each entry gets the pages that the file still has,
 * or -ENODATA. The last page may end in zeroes.
 */
TEST_TWICE(read_while_the_file_shrinks, file, directory,
	   .needs_env = "EXMAP_TEST_DIRECTORY")
{
	struct shrinker s = { .fd = new_file(directory) };
	enum { RUN = 32 };
	/* Any reader of ext4's page cache may get zeroes before data while the file shrinks. */
	const bool torn = directory && !direct_flag();
	struct exmap *ex = exmap_on(s.fd, FILE_PAGES);
	int nr = FILE_PAGES / RUN, failed;
	void *error;

	for (int round = scaled(5); round; round--) {
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

struct resizer {
	int fd;
	atomic_bool stop;
	pthread_t thread;
};

/* Move the end of the file into page 20 and past it, until told to stop. */
static void *resizer(void *arg)
{
	struct resizer *r = arg;

	while (!atomic_load(&r->stop))
		if (ftruncate(r->fd, 20 * PAGE + 100) || ftruncate(r->fd, 40 * PAGE))
			return r;
	return NULL;
}

/* The end of the file is in page 20 or past it. Either way READ and pread get page 20. */
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

/*
 * /proc/self/mem has no read_iter(): the kernel reads such a file only into user memory. Its
 * pages are those of this process. A page that is not mapped there is -EIO.
 */
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
	/* READ sees the new contents: it keeps no copy of the old ones. */
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
	/* A page that cannot be read is in the middle of a run. */
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

/* Without a surface the call itself returns -EPROTO, before it looks at any entry. */
TEST(read_without_a_surface_is_eproto)
{
	struct exmap ex = { .fd = exmap_open() };

	assert_ok(exmap_setup_file(ex.fd, 1, 100, 0, backing_open(false, O_RDWR)));
	ex.interface[0] = map_interface(ex.fd, 0);
	ck_assert_int_eq(read_pages(&ex, 0, 1), -EPROTO);
	ck_assert_int_eq(write_pages(&ex, 0, 1), -EPROTO);
	assert_errno(pread(ex.fd, ex.interface[0], PAGE, 0), EPROTO);
}

/* The exmap has a reference of its own to the backing file. */
TEST_BOTH(backing_fd_may_be_closed)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, 100);

	close(fd);
	ck_assert_int_eq(read_pages(ex, 7, 1), 1);
	ck_assert(holds(ex->surface + 7 * PAGE, 7, 0));
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of READ by ACTION.");
}
