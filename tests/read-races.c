// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of READ while other calls map and unmap pages at the same addresses. READ never maps a
 * page with data older than what the address has held meanwhile.
 *
 * EXMAP_TEST_DEVICE	a fast block device with memory behind it, 64 MiB or more
 * EXMAP_TEST_NARROW	the configfs directory of a null_blk that takes 8 requests of a page at a
 *			time, and answers late; the tests set its bad blocks
 *
 * Both are overwritten.
 */
#include <sched.h>
#include <stdatomic.h>

#include "request.h"

static void *alloc_thread(void *arg)
{
	struct request *r = arg;

	ck_assert_int_eq(alloc(r->ex, 1, FIRST + 1, 1), 1);
	fill(where(r->ex, FIRST + 1), FIRST + 1, 9);
	return NULL;
}

/* A page that another thread maps meanwhile stays, and what was read for its address is dropped. */
static void alloc_in_flight(enum kind kind)
{
	pthread_t thread;
	struct request r;

	request_in_flight(&r, kind);
	ck_assert(!pthread_create(&thread, NULL, alloc_thread, &r));
	pthread_join(thread, NULL);
	device_go();
	/* An entry counts the pages that were mapped, a call the bytes that are on the surface. */
	assert_result(&r, (is_fixed(kind) ? PAGES - 1 : PAGES) * PAGE);
	for (int page = FIRST; page < FIRST + PAGES; page++)
		ck_assert(holds(where(r.ex, page), page, page == FIRST + 1 ? 9 : 0));
	assert_mapped(r.ex, PAGES);
	assert_nothing_lost(r.ex);
}
FOR_READS(TEST_OF_KIND, alloc_in_flight)

/* Page tables are trimmed meanwhile. Those that the READ needs stay, and so its pages come. */
static void trim_in_flight(enum kind kind)
{
	struct exmap_ioctl_trim trim = { .flags = EXMAP_TRIM_TABLES };
	struct request r;

	request_in_flight(&r, kind);
	assert_ok(ioctl(r.ex->fd, EXMAP_IOCTL_TRIM, &trim));
	device_go();
	assert_result(&r, PAGES * PAGE);
	for (int page = FIRST; page < FIRST + PAGES; page++)
		ck_assert(holds(where(r.ex, page), page, 0));
	assert_mapped(r.ex, PAGES);
	assert_nothing_lost(r.ex);
}
FOR_READS(TEST_OF_KIND, trim_in_flight)

/*
 * Pages are mapped and freed during the READ, so the data being read may be older than theirs. The
 * request fails with EBUSY, because the worker does not read again.
 */
static void alloc_and_free_in_flight(enum kind kind)
{
	struct request r;

	request_in_flight(&r, kind);
	for (int i = 0; i < 10; i++) {
		ck_assert_int_eq(alloc(r.ex, 1, FIRST, PAGES), PAGES);
		memset(where(r.ex, FIRST), 0x5a, PAGES * PAGE);
		ck_assert_int_eq(release(r.ex, 1, FIRST, PAGES), PAGES);
	}
	ck_assert(request_pending(&r));
	device_go();
	assert_result(&r, -EBUSY);
	assert_mapped(r.ex, 0);
	assert_fdinfo(r.ex->fd, "reads", 0);
	assert_pages_add_up(r.ex->fd);
	request_start(&r, FIRST, PAGES);
	assert_result(&r, PAGES * PAGE);
	assert_request_done(&r);
	assert_nothing_lost(r.ex);
}
FOR_READS(TEST_OF_KIND, alloc_and_free_in_flight)

/*
 * Of several pages, one is mapped and freed during the READ. The pages before it count, and so does
 * another that is mapped and stays.
 */
static void page_comes_and_goes_in_flight(enum kind kind)
{
	struct request r;

	request_in_flight(&r, kind);
	ck_assert_int_eq(alloc(r.ex, 1, FIRST + 1, 2), 2);
	ck_assert_int_eq(release(r.ex, 1, FIRST + 2, 1), 1);
	ck_assert(request_pending(&r));
	device_go();
	assert_result(&r, is_fixed(kind) ? -EBUSY : 2 * (long)PAGE);
	if (is_fixed(kind))
		assert_answer(r.entries[0], -EBUSY, 2);
	assert_mapped(r.ex, 3);
	ck_assert_uint_eq(resident(r.ex, FIRST + 2, 1), 0);
	ck_assert(holds(where(r.ex, FIRST), FIRST, 0));
	ck_assert(holds(where(r.ex, FIRST + 3), FIRST + 3, 0));
	assert_nothing_lost(r.ex);
}
FOR_READS(TEST_OF_KIND, page_comes_and_goes_in_flight)

/* Two requests for the same pages succeed, and each page is mapped once. */
static void same_pages_in_flight(enum kind kind)
{
	struct request r, second;

	request_in_flight(&r, kind);
	request_init(&second, URING_READ, r.ex, r.device, 0);
	request_start(&second, FIRST, PAGES);
	ck_assert(request_pending(&second));
	device_go();
	assert_result(&second, PAGES * PAGE);
	if (is_fixed(kind))
		ck_assert_int_ge(request_wait(&r), 0);
	else
		assert_result(&r, PAGES * PAGE);
	assert_request_done(&r);
	assert_mapped(r.ex, PAGES);
	assert_nothing_lost(r.ex);
}
FOR_READS(TEST_OF_KIND, same_pages_in_flight)

/*
 * A READ does not bring back the old data of pages that were replaced while it was in flight.
 *
 * The narrow device moves the data of a READ's first pages at once, but answers late. It moves the
 * data of the other pages after that. Meanwhile other calls map pages at some of the first
 * addresses, write them to the device, and unmap them: each address in another way.
 */
#define FOR_EVERY_READ(what, name)			\
	FOR_READS(what, name)				\
	what(name, action, BY_ACTION)			\
	what(name, pread, BY_PREAD)
#define TEST_OF_KIND_NARROW(name, suffix, kind)	\
	TEST(name##_##suffix, .needs_env = "EXMAP_TEST_NARROW") { name(kind); }

/* How a page comes and goes at each of the first addresses. The other addresses are left alone. */
enum {
	FAILS,		/* another READ of this page fails */
	WITH_ALLOC, WITH_READ, WITH_TOUCH, WITH_DEFER, WITH_DONTNEED,
	WITH_END, NARROW_PAGES = 128, NARROW_DEPTH = 8,
};

struct reader {
	struct request r;
	enum kind kind;
	struct exmap *ex;
	unsigned int pages;
	long result;
	atomic_bool done;
	pthread_t thread;
};

static const char *narrow_name(void)
{
	return basename(getenv("EXMAP_TEST_NARROW"));
}

/* Make page 0 bad, or good again. */
static void narrow_bad(const char *change)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/badblocks", getenv("EXMAP_TEST_NARROW"));
	write_file(path, change);
}

static int narrow_open(size_t pages)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/dev/%s", narrow_name());
	fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	assert_ok(fd);
	/* A test that failed may have left page 0 bad. */
	narrow_bad("-0-7");
	file_fill(fd, pages);
	return fd;
}

static long narrow_number(const char *file)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s/%s", narrow_name(), file);
	return number_in(path);
}

static void *narrow_reader(void *arg)
{
	struct reader *reader = arg;
	struct exmap *ex = reader->ex;

	switch (reader->kind) {
	case BY_ACTION:
		for (unsigned int page = 0; page < reader->pages; page++)
			entry(ex, 0, page, page, 1);
		reader->result = action(ex->fd, 0, EXMAP_OP_READ, reader->pages, 0);
		break;
	case BY_PREAD:
		reader->result = pread(ex->fd, where(ex, 0), reader->pages * PAGE,
				       place(0, EXMAP_OP_READ));
		break;
	default:
		request_start(&reader->r, 0, reader->pages);
		reader->result = request_wait(&reader->r);
	}
	atomic_store(&reader->done, true);
	return NULL;
}

/* Start the reader, and wait until as many of its requests are in flight as the device takes. */
static void reader_start(struct reader *reader, unsigned int pages)
{
	atomic_store(&reader->done, false);
	reader->pages = pages;
	ck_assert(!pthread_create(&reader->thread, NULL, narrow_reader, reader));
	while (narrow_number("inflight") < (pages < NARROW_DEPTH ? pages : NARROW_DEPTH) &&
	       !atomic_load(&reader->done))
		sched_yield();
}

/*
 * Map, write and free pages at the first addresses. Returns false if the reader was done too early:
 * then it has already mapped its own pages there.
 */
static bool replace_pages(struct exmap *ex, uint64_t generation)
{
	int failed;

	if (alloc(ex, 1, WITH_ALLOC, 1) != 1 || run(ex, 1, EXMAP_OP_READ, WITH_READ, 1) != 1)
		return false;
	*where(ex, WITH_TOUCH) = 1;
	if (alloc(ex, 1, WITH_DEFER, 2) != 2)
		return false;
	for (int page = WITH_ALLOC; page < WITH_END; page++)
		fill(where(ex, page), page, generation);
	ck_assert_int_eq(run(ex, 1, EXMAP_OP_WRITE, WITH_ALLOC, WITH_END - WITH_ALLOC),
			 WITH_END - WITH_ALLOC);
	ck_assert_int_eq(release(ex, 1, WITH_ALLOC, WITH_DEFER - WITH_ALLOC),
			 WITH_DEFER - WITH_ALLOC);
	assert_ok(madvise(where(ex, WITH_DONTNEED), PAGE, MADV_DONTNEED));
	ck_assert_int_eq(defer(ex, 1, WITH_DEFER, 1), 1);
	narrow_bad("+0-7");
	failed = run(ex, 1, EXMAP_OP_READ, FAILS, 1);
	narrow_bad("-0-7");
	return failed == -EIO;
}

/* Each page that is mapped must hold the right data. Returns the first that is not mapped. */
static unsigned int narrow_pages_there(struct exmap *ex, uint64_t generation)
{
	unsigned int page, there = NARROW_PAGES;
	char wrong[8 * NARROW_PAGES] = "";

	for (page = 0; page < NARROW_PAGES; page++) {
		const bool replaced = page >= WITH_ALLOC && page < WITH_END;

		if (!resident(ex, page, 1))
			there = page < there ? page : there;
		else if (!holds(where(ex, page), page, replaced ? generation : 0))
			sprintf(wrong + strlen(wrong), " %u", page);
		/* The other pages must be mapped. */
		ck_assert(replaced || resident(ex, page, 1));
	}
	ck_assert_msg(!wrong[0], "wrong data in pages%s", wrong);
	return there;
}

static void replaced_in_flight(enum kind kind)
{
	int fd = narrow_open(NARROW_PAGES);
	struct exmap *ex = exmap_new_file(2 * FILE_PAGES * PAGE, 2 * NARROW_PAGES, 2,
					  EXMAP_PAGEFAULT_ALLOC, fd);
	struct reader reader_of = { .kind = kind, .ex = ex };
	bool in_time = false, replaced, waits = kind == BY_ACTION || kind == BY_PREAD;
	unsigned int there;
	long want;

	if (!waits)
		request_init(&reader_of.r, kind, ex, fd, 0);
	/* Try again if the reader was done before the pages had been replaced. */
	for (uint64_t generation = 1; !in_time; generation++) {
		ck_assert_msg(generation <= 300, "the device answers too early");
		reader_start(&reader_of, NARROW_PAGES);
		replaced = replace_pages(ex, generation);
		in_time = replaced && !atomic_load(&reader_of.done);
		pthread_join(reader_of.thread, NULL);
		if (in_time) {
			there = narrow_pages_there(ex, generation);
			want = there < NARROW_PAGES && is_fixed(kind) ? -EBUSY : there * (long)PAGE;
			if (kind == BY_ACTION)
				want = 0;
			ck_assert_int_eq(reader_of.result, want);
			/* A call that waits reads again, so none of its pages is missing. */
			ck_assert(!waits || there == NARROW_PAGES);
			assert_fdinfo(ex->fd, "pages-in-flight", 0);
			assert_pages_add_up(ex->fd);
			ck_assert_int_ge(run(ex, 1, EXMAP_OP_READ, 0, NARROW_PAGES), 0);
			ck_assert_uint_eq(narrow_pages_there(ex, generation), NARROW_PAGES);
		}
		ck_assert_int_ge(release(ex, 1, 0, NARROW_PAGES), 0);
	}
	ck_assert(whole_pool(ex, 2 * NARROW_PAGES));
}
FOR_EVERY_READ(TEST_OF_KIND_NARROW, replaced_in_flight)

/* If a page comes and goes each time it is read then the call fails with EBUSY in the end. */
static void replaced_every_time(enum kind kind)
{
	int fd = narrow_open(1);
	struct exmap *ex = exmap_on(fd, POOL);
	struct reader reader_of = { .kind = kind, .ex = ex };
	int times = 0;
	long before;

	/*
	 * READ reads the page once, and up to 16 times more (EXMAP_IO_TRIES). The first time by
	 * pread goes another path.
	 */
	for (int tries = 0; times < 17; tries++) {
		ck_assert_msg(tries < 100, "the device answers too early, or READ gives up too soon");
		before = narrow_number("stat");
		reader_start(&reader_of, 1);
		for (times = 0; !atomic_load(&reader_of.done); times++) {
			ck_assert_int_le(times, 18);
			ck_assert_int_ge(alloc(ex, 1, 0, 1), 0);
			ck_assert_int_ge(release(ex, 1, 0, 1), 0);
			/* Wait until the next try is in flight, or the reader is done. */
			while (!atomic_load(&reader_of.done) &&
			       (narrow_number("stat") - before <= times || !narrow_number("inflight")))
				sched_yield();
		}
		pthread_join(reader_of.thread, NULL);
		/* If this thread was too late for the last try then that try has succeeded. */
		if (reader_of.result != (kind == BY_ACTION ? 1 : -1))
			times = 0;
		if (times < 17)
			ck_assert_int_ge(release(ex, 1, 0, 1), 0);
	}
	ck_assert_int_eq(reader_of.result, kind == BY_ACTION ? 1 : -1);
	if (kind == BY_ACTION)
		assert_entry(ex, 0, 0, -EBUSY, 0);
	assert_mapped(ex, 0);
	assert_nothing_lost(ex);
}
TEST_OF_KIND_NARROW(replaced_every_time, action, BY_ACTION)
TEST_OF_KIND_NARROW(replaced_every_time, pread, BY_PREAD)

int main(int argc, char **argv)
{
	return check_main(argc, argv,
			  "Tests of READ while pages come and go. They overwrite the block device\n"
			  "$EXMAP_TEST_DEVICE and that of $EXMAP_TEST_NARROW (a directory of configfs).");
}
