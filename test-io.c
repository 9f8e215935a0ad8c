// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of the backing file: READ and WRITE by ACTION, and the exmap's file as a
 * proxy. Each runs on a buffered file, and on a block device with O_DIRECT
 * ($EXMAP_TEST_DEVICE, which is overwritten; a null_blk with memory behind it).
 */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "test_common.h"

#define FILE_PAGES 1024		/* what the tests use of file or device */

/* A page of the file holds its number, a generation, and words that follow from both. */
static uint64_t mix(uint64_t page, uint64_t generation)
{
	uint64_t x = page * 0x9e3779b97f4a7c15 + generation * 0xbf58476d1ce4e5b9;

	return (x ^ x >> 29) * 0x94d049bb133111eb;
}

static void fill(void *where, uint64_t page, uint64_t generation)
{
	uint64_t *word = where;

	word[0] = page;
	word[1] = generation;
	for (size_t i = 2; i < PAGE / sizeof(*word); i++)
		word[i] = mix(page, generation) + i;
}

static bool holds(const void *where, uint64_t page, uint64_t generation)
{
	const uint64_t *word = where;

	if (word[0] != page || word[1] != generation)
		return false;
	for (size_t i = 2; i < PAGE / sizeof(*word); i++)
		if (word[i] != mix(page, generation) + i)
			return false;
	return true;
}

/* Open the backing file; fill it with generation 0. */
static int backing_open(bool device, int mode)
{
	static char buffer[PAGE] __attribute__((aligned(4096)));
	const char *path = getenv("EXMAP_TEST_DEVICE");
	int fd, again;

	if (device)
		fd = open(path, O_RDWR | O_DIRECT);
	else
		fd = open("/tmp", O_RDWR | O_TMPFILE, 0600);
	assert_ok(fd);
	for (uint64_t page = 0; page < FILE_PAGES; page++) {
		fill(buffer, page, 0);
		ck_assert_int_eq(pwrite(fd, buffer, PAGE, page * PAGE), PAGE);
	}
	if (mode == O_RDWR)
		return fd;
	snprintf(buffer, sizeof(buffer), "/proc/self/fd/%d", fd);
	again = open(buffer, mode | (device ? O_DIRECT : 0));
	assert_ok(again);
	return again;
}

static bool file_holds(int fd, uint64_t page, uint64_t generation)
{
	static char buffer[PAGE] __attribute__((aligned(4096)));

	ck_assert_int_eq(pread(fd, buffer, PAGE, page * PAGE), PAGE);
	return holds(buffer, page, generation);
}

static struct exmap *exmap_on(int file, size_t pages)
{
	return exmap_new_file(2 * FILE_PAGES * PAGE, pages, 2, 0, file);
}

#define read_pages(ex, page, len) run(ex, 0, EXMAP_OP_READ, page, len)
#define write_pages(ex, page, len) run(ex, 0, EXMAP_OP_WRITE, page, len)

/* START_TEST, twice: for the file, and for the device. */
#define START_TEST_BOTH(name)							\
	static void name(bool device);						\
	START_TEST(name##_file) { name(false); } END_TEST			\
	START_TEST(name##_device) { name(true); } END_TEST			\
	static void name(bool device)

/*
 * READ
 */
START_TEST_BOTH(read_single_pages)
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

START_TEST_BOTH(read_runs)
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

START_TEST_BOTH(read_leaves_what_is_mapped)
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
START_TEST_BOTH(read_of_the_same_page_twice)
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

START_TEST_BOTH(read_without_memory)
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
START_TEST(read_at_the_end_of_the_file)
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
END_TEST

START_TEST(read_sparse_file)
{
	int fd = open("/tmp", O_RDWR | O_TMPFILE, 0600);
	struct exmap *ex = exmap_on(fd, 100);

	assert_ok(ftruncate(fd, FILE_PAGES * PAGE));
	ck_assert_int_eq(alloc(ex, 0, 0, 100), 100);
	memset(ex->surface, 0xff, 100 * PAGE);
	ck_assert_int_eq(release(ex, 0, 0, 100), 100);
	ck_assert_int_eq(read_pages(ex, 500, 100), 100);
	for (int page = 500; page < 600; page++)
		ck_assert(all_bytes(ex->surface + page * PAGE, 0));
}
END_TEST

/*
 * WRITE
 */
START_TEST_BOTH(write_what_is_mapped)
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
	/* They stay, and are what they were when read again. */
	assert_mapped(ex, 67);
	ck_assert_int_eq(release(ex, 0, 0, 50), 34);
	ck_assert_int_eq(read_pages(ex, 0, 50), 50);
	for (int page = 0; page < 50; page++)
		ck_assert(holds(ex->surface + page * PAGE, page, page % 3 != 2 ? 5 : 0));
}

START_TEST_BOTH(write_to_a_read_only_file_is_ebadf)
{
	struct exmap *ex = exmap_on(backing_open(device, O_RDONLY), 100);

	ck_assert_int_eq(read_pages(ex, 0, 1), 1);
	ck_assert_int_eq(write_pages(ex, 0, 1), -EBADF);
	assert_mapped(ex, 1);
}

START_TEST(write_past_the_end_of_the_device_is_enospc)
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
END_TEST

/* It would go elsewhere. */
START_TEST(write_to_an_appending_file_is_einval)
{
	int fd = backing_open(false, O_RDWR);
	struct exmap *ex = exmap_on(fd, 100);

	ck_assert_int_eq(alloc(ex, 0, 3, 1), 1);
	assert_ok(fcntl(fd, F_SETFL, O_APPEND));
	ck_assert_int_eq(write_pages(ex, 3, 1), -EINVAL);
	ck_assert_int_eq(lseek(fd, 0, SEEK_END), FILE_PAGES * PAGE);
}
END_TEST

/* The exmap holds the file by itself. */
START_TEST_BOTH(backing_fd_may_be_closed)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, 100);

	close(fd);
	ck_assert_int_eq(read_pages(ex, 7, 1), 1);
	ck_assert(holds(ex->surface + 7 * PAGE, 7, 0));
}

/*
 * The proxy
 */
START_TEST_BOTH(pread_is_as_vmcache_does_it)
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

START_TEST_BOTH(pread_that_only_allocates)
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

START_TEST_BOTH(preadv_and_pwritev)
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

START_TEST_BOTH(proxy_refusals)
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

START_TEST(proxy_ends_early)
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
END_TEST

START_TEST(proxy_before_setup_or_without_a_file)
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
END_TEST

/* Not -EFAULT in the entries: nothing has been looked at. */
START_TEST(read_without_a_surface_is_eproto)
{
	struct exmap ex = { .fd = exmap_open() };

	assert_ok(exmap_setup_file(ex.fd, 1, 100, 0, backing_open(false, O_RDWR)));
	ex.interface[0] = map_interface(ex.fd, 0);
	ck_assert_int_eq(read_pages(&ex, 0, 1), -EPROTO);
	ck_assert_int_eq(write_pages(&ex, 0, 1), -EPROTO);
	assert_errno(pread(ex.fd, ex.interface[0], PAGE, 0), EPROTO);
}
END_TEST

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
START_TEST(read_while_the_surface_is_mapped)
{
	int file = backing_open(false, O_RDWR);

	for (int round = 0; round < 500; round++) {
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
END_TEST

START_TEST(proxy_of_another_process_is_eperm)
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
END_TEST

/* Existing clients write back with O_DIRECT on the device's own descriptor. */
START_TEST_BOTH(surface_pages_are_good_for_direct_io)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_on(fd, 100);

	ck_assert_int_eq(alloc(ex, 0, 0, 20), 20);
	for (int page = 0; page < 10; page++)
		fill(ex->surface + page * PAGE, 50 + page, 8);
	ck_assert_int_eq(pwrite(fd, ex->surface, 10 * PAGE, 50 * PAGE), 10 * PAGE);
	ck_assert_int_eq(pread(fd, ex->surface + 10 * PAGE, 10 * PAGE, 50 * PAGE), 10 * PAGE);
	for (int page = 0; page < 10; page++)
		ck_assert(holds(ex->surface + (10 + page) * PAGE, 50 + page, 8));
	ck_assert_int_eq(release(ex, 0, 0, 20), 20);
}

/*
 * Integrity: a file larger than the pool; threads read, change, write back and
 * free random pages of their own, and know what each must hold.
 */
struct worker {
	struct exmap *ex;
	unsigned int id;
	unsigned int seed;
	char error[128];
	pthread_t thread;
};

enum { WORKERS = 4, BATCH = 16, ROUNDS = 300 };

static bool worker_call(struct worker *w, int opcode, const uint64_t *page)
{
	struct exmap_iov *iov = w->ex->interface[w->id]->iov;
	int ret;

	for (int i = 0; i < BATCH; i++)
		iov[i].value = 1UL << 52 | page[i];
	ret = action(w->ex->fd, w->id, opcode, BATCH, 0);
	if (ret && !w->error[0])
		snprintf(w->error, sizeof(w->error), "opcode %d returned %d (errno %d), first entry %d",
			 opcode, ret, errno, iov[0].res);
	return !ret;
}

static void *integrity_worker(void *arg)
{
	static const unsigned int share = FILE_PAGES / WORKERS;
	uint64_t generation[FILE_PAGES / WORKERS] = { }, page[BATCH];
	struct worker *w = arg;

	for (int round = 0; round < ROUNDS && !w->error[0]; round++) {
		/* Different pages, in no order, interleaved with the other workers'. */
		unsigned int at = rand_r(&w->seed) % share, step = rand_r(&w->seed) % 8 * 2 + 1;

		for (int i = 0; i < BATCH; i++)
			page[i] = (at + i * step) % share * WORKERS + w->id;
		if (!worker_call(w, EXMAP_OP_READ, page))
			break;
		for (int i = 0; i < BATCH; i++) {
			uint64_t *mine = &generation[page[i] / WORKERS];

			if (!holds(w->ex->surface + page[i] * PAGE, page[i], *mine))
				snprintf(w->error, sizeof(w->error), "page %lu is not generation %lu",
					 page[i], *mine);
			fill(w->ex->surface + page[i] * PAGE, page[i], ++*mine);
		}
		if (!worker_call(w, EXMAP_OP_WRITE, page) || !worker_call(w, EXMAP_OP_FREE, page))
			break;
	}
	return NULL;
}

START_TEST_BOTH(integrity)
{
	int fd = backing_open(device, O_RDWR);
	struct exmap *ex = exmap_new_file(FILE_PAGES * PAGE, WORKERS * BATCH, WORKERS, 0, fd);
	struct worker w[WORKERS];

	for (int i = 0; i < WORKERS; i++) {
		w[i] = (struct worker){ .ex = ex, .id = i, .seed = i + 1 };
		ck_assert(!pthread_create(&w[i].thread, NULL, integrity_worker, &w[i]));
	}
	for (int i = 0; i < WORKERS; i++) {
		pthread_join(w[i].thread, NULL);
		ck_assert_msg(!w[i].error[0], "%s", w[i].error);
	}
	assert_mapped(ex, 0);
}

#define TEST_BOTH(name)	TEST(name##_file), TEST_NEEDS_ENV(name##_device, "EXMAP_TEST_DEVICE")

static const struct test tests[] = {
	TEST_BOTH(read_single_pages),
	TEST_BOTH(read_runs),
	TEST_BOTH(read_leaves_what_is_mapped),
	TEST_BOTH(read_of_the_same_page_twice),
	TEST_BOTH(read_without_memory),
	TEST(read_at_the_end_of_the_file),
	TEST(read_sparse_file),
	TEST_BOTH(write_what_is_mapped),
	TEST_BOTH(write_to_a_read_only_file_is_ebadf),
	TEST_NEEDS_ENV(write_past_the_end_of_the_device_is_enospc, "EXMAP_TEST_DEVICE"),
	TEST(write_to_an_appending_file_is_einval),
	TEST_BOTH(backing_fd_may_be_closed),
	TEST_BOTH(pread_is_as_vmcache_does_it),
	TEST_BOTH(pread_that_only_allocates),
	TEST_BOTH(preadv_and_pwritev),
	TEST_BOTH(proxy_refusals),
	TEST(proxy_ends_early),
	TEST(proxy_before_setup_or_without_a_file),
	TEST(read_without_a_surface_is_eproto),
	TEST(read_while_the_surface_is_mapped),
	TEST(proxy_of_another_process_is_eperm),
	TEST_BOTH(surface_pages_are_good_for_direct_io),
	TEST_BOTH(integrity),
	{ }
};

int main(int argc, char **argv)
{
	return check_main(argc, argv,
			  "Tests of the backing file. Those on a block device overwrite the one named by\n"
			  "$EXMAP_TEST_DEVICE.", tests);
}
