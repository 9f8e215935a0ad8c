// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of calls for which the kernel has no memory, or whose user memory it cannot reach.
 *
 * Each call is made with the first of its allocations and user copies failing, then with the
 * second, and so on, until one is made without a fault. (See fail-nth in the kernel's
 * Documentation/fault-injection.) A call that fails must say so by the right errno and leave
 * nothing behind. Then the same call must succeed.
 *
 * The tests need a kernel built for fault injection: the debug kernel of vm/run.
 *
 * EXMAP_TEST_DEVICE	a block device; is overwritten
 */
#include <liburing.h>

#include "io_common.h"
#include "write_file.h"

#define FAULTS "/sys/kernel/debug/"

enum {
	SURFACE = 4096,		/* pages */
	POOL = 1500,
	INTERFACES = 256,	/* enough for the array of interfaces to exceed a page */
	RUNS = 3,		/* of pages */
	RUN = 100,
	ALL = RUNS * RUN,
};

/* The objects that a call works on. */
struct world {
	int fd;
	int other;		/* the file of another exmap, or -1 */
	int file;		/* the backing file, or -1 */
	char *surface;
	struct exmap_user_interface *interface;
	struct io_uring ring;
};

/* A call to test, and how to prepare and check it. */
struct subject {
	void (*prepare)(struct world *w);
	/* Only the call, without assertions: those write to a file, and that could fail as well. */
	long (*call)(struct world *w);
	/* Check the result against the state after the call. Returns 0 for success or the errno. */
	int (*verdict)(struct world *w, long ret, int err);
	/* Check the state after the call has succeeded. */
	void (*check)(struct world *w, long ret);
	int errnos[4];		/* those with which the call may fail; ends with 0 */
	int again;		/* before Linux 6.12: with this one it may fail again */
};

/*
 * Faults
 */
static int fail_nth_fd;

/*
 * Let every allocation fail, whatever its size. Nothing is logged, because check_main() would take
 * that as a complaint.
 */
static void faults_init(void)
{
	write_file(FAULTS "failslab/ignore-gfp-wait", "N");
	write_file(FAULTS "failslab/verbose", "0");
	write_file(FAULTS "fail_page_alloc/ignore-gfp-wait", "N");
	write_file(FAULTS "fail_page_alloc/ignore-gfp-highmem", "N");
	write_file(FAULTS "fail_page_alloc/min-order", "0");
	write_file(FAULTS "fail_page_alloc/verbose", "0");
	write_file(FAULTS "fail_usercopy/verbose", "0");
}

/* Open the file that sets which allocation or user copy of this thread fails. */
static void faults_open(void)
{
	fail_nth_fd = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	assert_ok(fail_nth_fd);
}

static void faults_arm(int nth)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%d", nth);

	ck_assert_int_eq(pwrite(fail_nth_fd, text, len, 0), len);
}

/* Let nothing fail from now on. Returns whether there was a fault. */
static bool faults_disarm(void)
{
	char left[16] = { };

	/* A fault that has not yet come may hit these two calls instead: then none is left. */
	if (pread(fail_nth_fd, left, sizeof(left) - 1, 0) <= 0)
		return false;
	if (pwrite(fail_nth_fd, "0", 1, 0) != 1)
		ck_assert_int_eq(errno, EFAULT);
	return !atoi(left);
}

/*
 * Worlds
 */
static void world_empty(struct world *w)
{
	*w = (struct world){ .fd = -1, .other = -1, .file = -1 };
}

static void world_open(struct world *w)
{
	world_empty(w);
	w->fd = exmap_open();
}

static void world_two(struct world *w)
{
	world_open(w);
	w->other = exmap_open();
}

static void world_mapped(struct world *w)
{
	world_open(w);
	w->surface = map_surface(w->fd, SURFACE * PAGE);
	assert_ok(w->surface);
}

static void world_set_up(struct world *w)
{
	world_mapped(w);
	assert_ok(exmap_setup(w->fd, INTERFACES, POOL, 0));
}

static void world_touch(struct world *w)
{
	world_mapped(w);
	assert_ok(exmap_setup(w->fd, 1, POOL, EXMAP_PAGEFAULT_ALLOC));
}

static void world_whole(struct world *w)
{
	world_set_up(w);
	w->interface = map_interface(w->fd, 0);
	assert_ok(w->interface);
}

/* The backing file of the test's worlds. The test opens it. */
static int backing = -1;

static void world_backed(struct world *w)
{
	world_mapped(w);
	w->file = backing;
	assert_ok(exmap_setup_file(w->fd, INTERFACES, POOL, 0, w->file));
	w->interface = map_interface(w->fd, 0);
	assert_ok(w->interface);
}

static void world_ring(struct world *w)
{
	world_backed(w);
	ck_assert_int_eq(io_uring_queue_init(4, &w->ring, 0), 0);
}

static void world_end(struct world *w)
{
	if (w->ring.ring_fd)
		io_uring_queue_exit(&w->ring);
	if (w->interface)
		assert_ok(munmap(w->interface, PAGE));
	if (w->surface)
		assert_ok(munmap(w->surface, SURFACE * PAGE));
	close(w->fd);
	close(w->other);
}

/* The first page of a run. The second run lies in two page tables. */
static int run_page(int run)
{
	return run * 462;
}

static void fill_entries(struct world *w)
{
	for (int i = 0; i < RUNS; i++)
		w->interface->iov[i].value = (uint64_t)RUN << 52 | run_page(i);
}

static void assert_world_mapped(struct world *w, uint64_t pages)
{
	struct exmap_ioctl_stats stats;

	assert_ok(ioctl(w->fd, EXMAP_IOCTL_STATS, &stats));
	ck_assert_uint_eq(stats.alloc_count, pages);
}

/*
 * ACTION
 */
static long call_action(struct world *w, int opcode)
{
	fill_entries(w);
	return action(w->fd, 0, opcode, RUNS, 0);
}

/* Add up the pages of all entries, of which @failed must have an error. Returns the first errno. */
static int read_entries(struct world *w, long failed, uint64_t *pages)
{
	int err = 0;

	*pages = 0;
	for (int i = 0; i < RUNS; i++) {
		struct exmap_iov iov = w->interface->iov[i];

		ck_assert_int_le(iov.res, 0);
		ck_assert_int_ge(iov.pages, 0);
		*pages += iov.pages;
		failed -= iov.res < 0;
		err = err ?: -iov.res;
	}
	ck_assert_int_eq(failed, 0);
	return err;
}

static void assert_entries_untouched(struct world *w)
{
	for (int i = 0; i < RUNS; i++)
		ck_assert_uint_eq(w->interface->iov[i].value, (uint64_t)RUN << 52 | run_page(i));
}

/* For ALLOC and READ: the entries count exactly the pages that were mapped. */
static int verdict_mapped(struct world *w, long ret, int err)
{
	uint64_t pages = 0;

	if (ret == -1)
		assert_entries_untouched(w);
	else
		err = read_entries(w, ret, &pages);
	assert_world_mapped(w, pages);
	return err;
}

/* For ALLOC: if the first entry finds no memory then the whole call fails. */
static int verdict_alloc(struct world *w, long ret, int err)
{
	if (ret != -1)
		ck_assert_int_ne(w->interface->iov[0].res, -ENOMEM);
	return verdict_mapped(w, ret, err);
}

/* For WRITE and FREE: if the call fails then the entries are untouched. */
static int verdict_entries(struct world *w, long ret, int err)
{
	uint64_t pages;

	if (ret != -1)
		return read_entries(w, ret, &pages);
	assert_entries_untouched(w);
	return err;
}

static void check_zero(struct world *w, long ret)
{
	assert_world_mapped(w, ALL);
	for (int i = 0; i < RUNS; i++)
		for (int page = run_page(i); page < run_page(i) + RUN; page++)
			ck_assert(all_bytes(w->surface + page * PAGE, 0));
}

static void check_contents(struct world *w, long ret)
{
	assert_world_mapped(w, ALL);
	for (int i = 0; i < RUNS; i++)
		for (int page = run_page(i); page < run_page(i) + RUN; page++)
			ck_assert(holds(w->surface + page * PAGE, page, 0));
}

static void check_written(struct world *w, long ret)
{
	for (int i = 0; i < RUNS; i++)
		for (int page = run_page(i); page < run_page(i) + RUN; page++)
			ck_assert(file_holds(w->file, page, 1));
}

static void check_freed(struct world *w, long ret)
{
	assert_world_mapped(w, 0);
	/* The pages can be allocated again. */
	ck_assert_int_eq(call_action(w, EXMAP_OP_ALLOC), 0);
	assert_world_mapped(w, ALL);
}

static void world_to_write(struct world *w)
{
	world_backed(w);
	ck_assert_int_eq(call_action(w, EXMAP_OP_ALLOC), 0);
	for (int i = 0; i < RUNS; i++)
		for (int page = run_page(i); page < run_page(i) + RUN; page++)
			fill(w->surface + page * PAGE, page, 1);
}

static void world_to_free(struct world *w)
{
	world_whole(w);
	ck_assert_int_eq(call_action(w, EXMAP_OP_ALLOC), 0);
}

/* For calls without entries. */
static int verdict_errno(struct world *w, long ret, int err)
{
	return ret == -1 ? err : 0;
}

static bool is_among(const int *errnos, int err)
{
	while (*errnos && *errnos != err)
		errnos++;
	return *errnos;
}

/* What a child reports to its parent. */
struct outcome {
	bool faulted;		/* there was a fault */
	bool failed;		/* the call has failed because of it */
};

static struct outcome with_fault(const struct subject *s, int nth)
{
	int (*verdict)(struct world *, long, int) = s->verdict ?: verdict_errno;
	struct outcome outcome = { };
	struct world w;
	long ret;
	int err;

	s->prepare(&w);
	errno = 0;
	faults_arm(nth);
	ret = s->call(&w);
	err = errno;
	outcome.faulted = faults_disarm();

	err = verdict(&w, ret, err);
	if (err) {
		ck_assert_msg(outcome.faulted, "the call fails without a fault: %s", strerror(err));
		ck_assert_msg(is_among(s->errnos, err), "fault %d: unexpected error: %s",
			      nth, strerror(err));
		outcome.failed = true;
		ret = s->call(&w);
		ck_assert_msg(ret >= 0 || (errno == s->again && !kernel_is_since(6, 12)),
			      "the call fails again after fault %d: %s", nth, strerror(errno));
	}
	if (s->check)
		s->check(&w, ret);
	world_end(&w);
	return outcome;
}

/* Run it in a process of its own, because some things are allocated once per process. */
static struct outcome in_a_process(const struct subject *s, int nth, struct outcome *outcome)
{
	pid_t pid = fork();

	assert_ok(pid);
	if (!pid) {
		long resident = kib_of("/proc/self/status", "RssShmem:");

		faults_open();
		*outcome = with_fault(s, nth);
		ck_assert_int_eq(kib_of("/proc/self/status", "VmPin:"), 0);
		/* The kernel updates this number in steps. */
		ck_assert_int_le(kib_of("/proc/self/status", "RssShmem:") - resident, 1024);
		_exit(0);
	}
	wait_child(pid, 0);
	return *outcome;
}

/* Make the call with each fault. If it can fail at all then one of the faults must do it. */
static void with_every_fault(const struct subject *s)
{
	struct outcome *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
				      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct outcome outcome;
	bool failed = false;
	int nth = 1;

	assert_ok(shared);
	drop_privileges();
	do {
		outcome = in_a_process(s, nth++, shared);
		failed |= outcome.failed;
	} while (outcome.faulted);
	ck_assert_int_eq(failed, s->errnos[0] != 0);
}

/* Only a kernel that was built for fault injection has this file. */
#define NEEDS FAULTS "failslab/verbose"

/* A test of one call. The arguments are the fields of struct subject. */
#define TEST_FAULTS(name, ...)							\
	TEST(name, .needs = NEEDS)						\
	{									\
		static const struct subject subject = { __VA_ARGS__ };		\
		faults_init();							\
		with_every_fault(&subject);					\
	}

/*
 * Calls without a backing file
 */
static long call_open(struct world *w)
{
	w->fd = open("/dev/exmap", O_RDWR | O_CLOEXEC);
	return w->fd;
}

static long call_mmap_surface(struct world *w)
{
	void *surface = map_surface(w->fd, SURFACE * PAGE);

	w->surface = surface == MAP_FAILED ? NULL : surface;
	return w->surface ? 0 : -1;
}

static long call_mmap_interface(struct world *w)
{
	void *interface = map_interface(w->fd, 0);

	w->interface = interface == MAP_FAILED ? NULL : interface;
	return w->interface ? 0 : -1;
}

static long call_setup(struct world *w)
{
	return exmap_setup(w->fd, INTERFACES, POOL, EXMAP_PAGEFAULT_ALLOC);
}

static long call_clone(struct world *w)
{
	return ioctl(w->other, EXMAP_IOCTL_CLONE, w->fd);
}

static long call_resize(struct world *w)
{
	struct exmap_ioctl_resize resize = { .buffer_size = POOL + 100 };

	return ioctl(w->fd, EXMAP_IOCTL_RESIZE, &resize);
}

static long call_trim(struct world *w)
{
	struct exmap_ioctl_trim trim = { };

	return ioctl(w->fd, EXMAP_IOCTL_TRIM, &trim);
}

static long call_trim_tables(struct world *w)
{
	struct exmap_ioctl_trim trim = { .flags = EXMAP_TRIM_TABLES };

	return ioctl(w->fd, EXMAP_IOCTL_TRIM, &trim);
}

/* All pages are free. */
static void world_freed(struct world *w)
{
	world_whole(w);
	ck_assert_int_eq(call_action(w, EXMAP_OP_ALLOC), 0);
	ck_assert_int_eq(call_action(w, EXMAP_OP_FREE), 0);
}

static long call_alloc(struct world *w)
{
	return call_action(w, EXMAP_OP_ALLOC);
}

static long call_free(struct world *w)
{
	return call_action(w, EXMAP_OP_FREE);
}

/* FREE with deferred flushes, for which a large quarantine is made; without it, FREE flushes. */
static void world_to_defer(struct world *w)
{
	world_to_free(w);
	assert_ok(ioctl(w->fd, EXMAP_IOCTL_QUARANTINE, 2000));
}

static long call_defer(struct world *w)
{
	fill_entries(w);
	return action(w->fd, 0, EXMAP_OP_FREE, RUNS, EXMAP_FREE_DEFER);
}

/* Let the kernel touch the page: if that fails, getcwd() fails and no signal is sent. */
static long call_touch(struct world *w)
{
	return getcwd(w->surface, PAGE) ? 0 : -1;
}

static void check_touched(struct world *w, long ret)
{
	assert_world_mapped(w, 1);
	ck_assert_int_eq(w->surface[0], '/');
}

TEST_FAULTS(faults_in_open, world_empty, call_open, .errnos = { ENOMEM, EFAULT, ENFILE })
/* Before 6.12 the kernel allocates memory after it has told exmap of the mapping. */
TEST_FAULTS(faults_in_mmap_of_surface, world_open, call_mmap_surface, .errnos = { ENOMEM },
	    .again = EBUSY)
TEST_FAULTS(faults_in_mmap_of_interface, world_set_up, call_mmap_interface, .errnos = { ENOMEM })
TEST_FAULTS(faults_in_setup, world_mapped, call_setup, .errnos = { ENOMEM, EFAULT })
TEST_FAULTS(faults_in_resize, world_set_up, call_resize, .errnos = { EFAULT })
TEST_FAULTS(faults_in_trim, world_freed, call_trim, .check = check_freed, .errnos = { EFAULT })
TEST_FAULTS(faults_in_trim_of_tables, world_freed, call_trim_tables, .check = check_freed,
	    .errnos = { EFAULT })
/* CLONE allocates nothing. */
TEST_FAULTS(faults_in_clone, world_two, call_clone, .errnos = { 0 })
TEST_FAULTS(faults_in_alloc, world_whole, call_alloc, verdict_alloc, check_zero,
	     .errnos = { ENOMEM, EFAULT })
/* FREE and WRITE allocate nothing. action_bad_pointer_is_efault has the only other fault. */
TEST_FAULTS(faults_in_free, world_to_free, call_free, verdict_entries, check_freed,
	     .errnos = { 0 })
TEST_FAULTS(faults_in_free_deferred, world_to_defer, call_defer, verdict_entries, check_freed,
	     .errnos = { 0 })
TEST_FAULTS(faults_in_touch, world_touch, call_touch, .check = check_touched,
	     .errnos = { ENOMEM, EFAULT })

/*
 * Calls with a backing file
 */
static long call_read(struct world *w)
{
	return call_action(w, EXMAP_OP_READ);
}

static long call_write(struct world *w)
{
	return call_action(w, EXMAP_OP_WRITE);
}

/* The ranges are quarters of the runs. There are more than 8, so the kernel allocates a vector. */
static long call_preadv(struct world *w)
{
	struct iovec iov[RUNS * 4];

	for (int i = 0; i < RUNS * 4; i++)
		iov[i] = (struct iovec){
			w->surface + (run_page(i / 4) + i % 4 * RUN / 4) * PAGE, RUN / 4 * PAGE };
	return preadv(w->fd, iov, RUNS * 4, 0);
}

/* A short read has failed, but does not tell the errno: take ENOMEM. */
static int verdict_preadv(struct world *w, long ret, int err)
{
	assert_world_mapped(w, ret == -1 ? 0 : ret / PAGE);
	return ret == -1 ? err : ret == ALL * (long)PAGE ? 0 : ENOMEM;
}

static long call_uring(struct world *w)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&w->ring);
	struct io_uring_cqe *cqe;
	int ret;

	if (sqe)
		io_uring_prep_read(sqe, w->fd, w->surface, RUN * PAGE, 0);
	do {
		ret = io_uring_submit_and_wait(&w->ring, 1);
	} while (ret == -EINTR);
	if (!io_uring_peek_cqe(&w->ring, &cqe)) {
		ret = cqe->res;
		io_uring_cqe_seen(&w->ring, cqe);
	}
	if (ret >= 0)
		return ret;
	errno = -ret;
	return -1;
}

static int verdict_uring(struct world *w, long ret, int err)
{
	assert_world_mapped(w, ret == -1 ? 0 : ret / PAGE);
	return ret == -1 ? err : ret == RUN * (long)PAGE ? 0 : ENOMEM;
}

static void check_uring(struct world *w, long ret)
{
	assert_world_mapped(w, RUN);
	for (int page = 0; page < RUN; page++)
		ck_assert(holds(w->surface + page * PAGE, page, 0));
}

/* The same, on a file and on the block device. */
#define TEST_FAULTS_BACKED(name, ...)						\
	static void name(bool device);						\
	TEST(name##_file, .needs = NEEDS) { name(false); }			\
	TEST(name##_device, .needs = NEEDS, ON_A_DEVICE) { name(true); }	\
	static void name(bool device)						\
	{									\
		static const struct subject subject = { __VA_ARGS__ };		\
		backing = backing_open(device, O_RDWR);				\
		faults_init();							\
		with_every_fault(&subject);					\
	}

TEST_FAULTS_BACKED(faults_in_read, world_backed, call_read, verdict_mapped, check_contents,
		    .errnos = { ENOMEM, EFAULT })
TEST_FAULTS_BACKED(faults_in_write, world_to_write, call_write, verdict_entries, check_written,
		    .errnos = { 0 })
TEST_FAULTS_BACKED(faults_in_preadv, world_backed, call_preadv, verdict_preadv, check_contents,
		    .errnos = { ENOMEM, EFAULT })

/*
 * Not on a file: there io_uring makes a thread, and if the kernel finds no memory for its stack it
 * complains in the log.
 */
TEST(faults_in_uring_read_device, .needs = NEEDS, ON_A_DEVICE)
{
	static const struct subject subject = {
		world_ring, call_uring, verdict_uring, check_uring,
		.errnos = { ENOMEM, EFAULT, EAGAIN },
	};

	backing = backing_open(true, O_RDWR);
	faults_init();
	with_every_fault(&subject);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv,
			  "Tests of calls in which each allocation is made to fail, one after the other.\n"
			  "They need a kernel built for fault injection, and overwrite the block device\n"
			  "$EXMAP_TEST_DEVICE.");
}
