// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of requests in flight: submission does not wait for the device, and the result is right
 * whatever happens to the surface meanwhile. (READ while pages come and go at the same addresses
 * is in read-races.c; the end of rings, files, threads and processes is in uring-exit.c.)
 *
 * EXMAP_TEST_DEVICE		a fast block device with memory behind it, 64 MiB or more
 * EXMAP_TEST_SLOW_DEVICE	a block device that answers after half a second
 *
 * Both are overwritten.
 */
#include "request.h"

#define TEST_OF_KIND_SLOW(name, suffix, kind)		\
	TEST(name##_##suffix, .needs_env = "EXMAP_TEST_SLOW_DEVICE") { name(kind); }

/* Submit a request. Returns false if the device has answered too early to see it in flight. */
static bool submitted_at_once(struct request *r)
{
	const size_t before = is_write(r->kind) ? PAGES : 0;
	size_t mapped, there;
	int threads;

	request_start(r, FIRST, PAGES);
	threads = count_threads();
	there = resident(r->ex, 0, 100);
	mapped = stats(r->ex).alloc_count;
	if (!request_pending(r))
		return false;
	ck_assert_int_eq(threads, 1);
	ck_assert_uint_eq(there, before);
	ck_assert_uint_eq(mapped, before);
	return true;
}

/* Submission returns at once, and makes no thread, if the device takes half a second. */
static void returns_at_once(enum kind kind)
{
	int fd = device_open("EXMAP_TEST_SLOW_DEVICE", FIRST + PAGES);
	struct request r;

	request_prepare(&r, kind, fd, 0);
	/* Try again if this task got no CPU before the device had answered. */
	for (int tries = 0; !submitted_at_once(&r); tries++) {
		ck_assert_msg(tries < 10, "submission waits for the device");
		assert_result(&r, PAGES * PAGE);
		if (!is_write(kind))
			ck_assert_int_eq(release(r.ex, 0, FIRST, PAGES), PAGES);
	}
	assert_result(&r, PAGES * PAGE);
	assert_mapped(r.ex, PAGES);
	assert_request_done(&r);
	assert_nothing_lost(r.ex);
}
FOR_ALL(TEST_OF_KIND_SLOW, returns_at_once)
FOR_VECTORS(TEST_OF_KIND_SLOW, returns_at_once)

/* Submission returns while the device is stopped; fdinfo counts the pages in flight. */
static void in_flight(enum kind kind)
{
	int fd = device_open("EXMAP_TEST_DEVICE", FIRST + PAGES);
	struct request r;

	device_stop(fd);
	request_prepare(&r, kind, fd, 0);
	ck_assert(submitted_at_once(&r));
	/* The pages of a WRITE stay mapped. */
	assert_fdinfo(r.ex->fd, "pages-in-flight", is_write(kind) ? 0 : PAGES);
	assert_pages_add_up(r.ex->fd);
	assert_request_succeeds(&r);
	assert_threads(1);
	assert_mapped(r.ex, PAGES);
	assert_fdinfo(r.ex->fd, "pages-in-flight", 0);
	assert_fdinfo(r.ex->fd, is_write(kind) ? "writes" : "reads", PAGES);
	assert_fdinfo(r.ex->fd, is_write(kind) ? "reads" : "writes", 0);
	assert_pages_add_up(r.ex->fd);
	assert_nothing_lost(r.ex);
}
FOR_ALL(TEST_OF_KIND, in_flight)
FOR_VECTORS(TEST_OF_KIND, in_flight)

/* The surface is unmapped: a READ fails with EPROTO, a WRITE succeeds. */
static void munmap_in_flight(enum kind kind)
{
	struct request r;

	request_in_flight(&r, kind);
	assert_ok(munmap(r.ex->surface, r.ex->size));
	ck_assert(request_pending(&r));
	device_go();
	/* A WRITE has pinned its pages. */
	assert_result(&r, is_write(kind) ? PAGES * (long)PAGE : -EPROTO);
	if (is_write(kind))
		assert_request_done(&r);
	assert_mapped(r.ex, 0);
}
FOR_ALL(TEST_OF_KIND, munmap_in_flight)

/* Other memory is mapped at the address of the surface: a READ does not touch it. */
static void munmap_and_mmap_in_flight(enum kind kind)
{
	struct request r;
	char *other;

	request_in_flight(&r, kind);
	assert_ok(munmap(r.ex->surface, r.ex->size));
	other = mmap(r.ex->surface, r.ex->size, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	ck_assert_ptr_eq(other, r.ex->surface);
	memset(other, 0x5a, 20 * PAGE);
	device_go();
	assert_result(&r, is_write(kind) ? PAGES * (long)PAGE : -EPROTO);
	for (int page = 0; page < 20; page++)
		ck_assert(all_bytes(other + page * PAGE, 0x5a));
	if (is_write(kind))
		assert_request_done(&r);
}
FOR_ALL(TEST_OF_KIND, munmap_and_mmap_in_flight)

/* MADV_DONTNEED frees the pages of the surface. A READ may map its pages, or drop some. */
static void dontneed_in_flight(enum kind kind)
{
	struct request r;
	size_t mapped;
	long result;

	request_in_flight(&r, kind);
	assert_ok(madvise(r.ex->surface, r.ex->size, MADV_DONTNEED));
	assert_mapped(r.ex, 0);
	/*
	 * Allocate the pages that were freed. They are mapped elsewhere, because the page table of
	 * the request's pages may be gone.
	 */
	ck_assert_int_eq(alloc(r.ex, 1, 1200, POOL - PAGES), POOL - PAGES);
	memset(where(r.ex, 1200), 0x5a, (POOL - PAGES) * PAGE);
	ck_assert(request_pending(&r));
	device_go();
	result = request_wait(&r);
	mapped = resident(r.ex, FIRST, PAGES);
	/*
	 * An entry counts the pages that were mapped. These may be fewer than PAGES if a page table
	 * is gone, and the pages may lie in two of them. A page may also be mapped, be counted, and
	 * then be freed.
	 */
	if (is_fixed(kind) && !is_write(kind)) {
		ck_assert_int_ge(result, mapped * PAGE);
		ck_assert_int_le(result, PAGES * PAGE);
	} else {
		ck_assert_int_eq(result, PAGES * PAGE);
	}
	if (is_write(kind)) {
		ck_assert_uint_eq(mapped, 0);
		assert_request_done(&r);
	}
	for (int page = FIRST; page < FIRST + PAGES; page++)
		if (resident(r.ex, page, 1))
			ck_assert(holds(where(r.ex, page), page, 0));
	assert_mapped(r.ex, POOL - PAGES + mapped);
	for (int page = 1200; page < 1200 + POOL - PAGES; page++)
		ck_assert(all_bytes(where(r.ex, page), 0x5a));
	assert_nothing_lost(r.ex);
}
FOR_ALL(TEST_OF_KIND, dontneed_in_flight)

/* The pages of a READ in flight are neither mapped nor free. */
static void reserved_in_flight(enum kind kind)
{
	struct request r;

	request_in_flight(&r, kind);
	assert_mapped(r.ex, 0);
	ck_assert_int_eq(alloc(r.ex, 1, 100, POOL - PAGES + 1), -ENOMEM);
	ck_assert_int_ge(release(r.ex, 1, 100, POOL), 0);
	ck_assert_int_eq(alloc(r.ex, 1, 100, POOL - PAGES), POOL - PAGES);
	ck_assert_int_eq(alloc(r.ex, 1, 0, 1), -ENOMEM);
	memset(where(r.ex, 100), 0x5a, (POOL - PAGES) * PAGE);
	assert_request_succeeds(&r);
	assert_mapped(r.ex, POOL);
	for (int page = 100; page < 100 + POOL - PAGES; page++)
		ck_assert(all_bytes(where(r.ex, page), 0x5a));
	assert_nothing_lost(r.ex);
}
FOR_READS(TEST_OF_KIND, reserved_in_flight)

/* fork() does not disturb a request, whether the child ends before it or after it. */
static void fork_in_flight(enum kind kind)
{
	struct request r;
	pid_t pid;

	request_in_flight(&r, kind);
	pid = fork();
	assert_ok(pid);
	if (!pid)
		_exit(0);
	wait_child(pid, 0);
	/* This child lives longer than the request. */
	pid = fork();
	assert_ok(pid);
	if (!pid)
		for (;;)
			pause();
	assert_request_succeeds(&r);
	assert_nothing_lost(r.ex);
	kill(pid, SIGKILL);
	wait_child(pid, SIGKILL);
}
FOR_ALL(TEST_OF_KIND, fork_in_flight)

/* The kernel complains about a task that sleeps for longer than this. */
#define HUNG_TASK "/proc/sys/kernel/hung_task_timeout_secs"

static void *reader_of_two(void *arg)
{
	return (void *)(long)run(arg, 0, EXMAP_OP_READ, FIRST, 2);
}

/* A READ by ACTION that waits for a stopped device is not reported as a hung task. */
TEST(a_slow_device_is_no_hung_task, ON_A_DEVICE)
{
	int fd = device_open("EXMAP_TEST_DEVICE", FIRST + PAGES);
	struct exmap *ex = exmap_on(fd, POOL);
	long before = number_in(HUNG_TASK);
	pthread_t thread;
	char number[16];
	void *read;

	device_stop(fd);
	write_file(HUNG_TASK, "6");
	ck_assert(!pthread_create(&thread, NULL, reader_of_two, ex));
	/*
	 * The kernel looks at every task once in 6 seconds, and complains after it has seen the
	 * same sleep twice. 19 seconds are enough for that.
	 */
	sleep(19);
	snprintf(number, sizeof(number), "%ld", before);
	write_file(HUNG_TASK, number);
	device_go();
	pthread_join(thread, &read);
	ck_assert_int_eq((long)read, 2);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv,
			  "Tests of requests in flight. They overwrite the block devices $EXMAP_TEST_DEVICE\n"
			  "and $EXMAP_TEST_SLOW_DEVICE.");
}
