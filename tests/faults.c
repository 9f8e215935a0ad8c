// SPDX-License-Identifier: GPL-2.0
/*
 * Calls for which the kernel has no memory: each is made with the first of its
 * allocations and copies from or to user space failing, then with the second, and so on,
 * until it gets through without a failure (fail-nth: Documentation/fault-injection of
 * Linux). What failed must say so with the right errno and leave nothing behind; then
 * the same call must succeed.
 *
 * $EXMAP_TEST_DEVICE is a block device.
 */
#include <liburing.h>

#include "io_common.h"
#include "write_file.h"

#define FAULTS "/sys/kernel/debug/"

enum {
	SURFACE = 4096,		/* pages */
	POOL = 1500,
	INTERFACES = 256,	/* so many that they take more than a page */
	RUNS = 3,		/* of pages */
	RUN = 100,
	ALL = RUNS * RUN,
};

/* What a call works on. */
struct world {
	int fd;
	int other;		/* another exmap's, or -1 */
	int file;		/* the backing file, or -1 */
	char *surface;
	struct exmap_user_interface *interface;
	struct io_uring ring;
};

/* A call, and what goes before and after it. */
struct subject {
	void (*prepare)(struct world *w);
	/* Nothing but the call: an assertion writes to a file, which could fail as well. */
	long (*call)(struct world *w);
	/* Whether the result fits what is there now: 0 for a success, or the errno. */
	int (*verdict)(struct world *w, long ret, int err);
	/* What must be so at the end. */
	void (*check)(struct world *w, long ret);
	int errnos[4];		/* how it may fail; ends with 0 */
};

/*
 * Faults
 */
static int fail_nth_fd;

/* All allocations of all sizes; and no word in the log, where it would be a complaint. */
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

/* Those of this process. */
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

/* No more of them. Returns whether there was one. */
static bool faults_disarm(void)
{
	char left[16] = { };

	/* What was left may hit these calls: then nothing is left. */
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

/* Its file is the test's, and stays. */
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

/* The second lies in two page tables. */
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

/* How many pages the entries say, and the first error among them. */
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

/* What ALLOC and READ say is what they mapped. */
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

/* Where the first entry finds no memory nothing has happened. */
static int verdict_alloc(struct world *w, long ret, int err)
{
	if (ret != -1)
		ck_assert_int_ne(w->interface->iov[0].res, -ENOMEM);
	return verdict_mapped(w, ret, err);
}

/* Of WRITE and FREE. */
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
	/* And can be had again. */
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

/*
 * Each call with each fault
 */
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

/* What a process says to the one that started it. */
struct outcome {
	bool faulted;		/* there was a fault */
	bool failed;		/* and the call failed */
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
		ck_assert_msg(outcome.faulted, "%s without a fault", strerror(err));
		ck_assert_msg(is_among(s->errnos, err), "fault %d: %s", nth, strerror(err));
		outcome.failed = true;
		ret = s->call(&w);
		ck_assert_msg(ret >= 0, "after fault %d: %s", nth, strerror(errno));
	}
	if (s->check)
		s->check(&w, ret);
	world_end(&w);
	return outcome;
}

/* In a process of its own: some things the kernel allocates once for each. */
static struct outcome in_a_process(const struct subject *s, int nth, struct outcome *outcome)
{
	pid_t pid = fork();

	assert_ok(pid);
	if (!pid) {
		long resident = kib_of("/proc/self/status", "RssShmem:");

		faults_open();
		*outcome = with_fault(s, nth);
		ck_assert_int_eq(kib_of("/proc/self/status", "VmPin:"), 0);
		/* The kernel counts in steps. */
		ck_assert_int_le(kib_of("/proc/self/status", "RssShmem:") - resident, 1024);
		_exit(0);
	}
	wait_child(pid, 0);
	return *outcome;
}

/* Where a call can fail at all there must be faults from which it does. */
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

/* Only a kernel that was built for fault injection has it. */
#define NEEDS FAULTS "failslab/verbose"

#define TEST_FAULTS(name, ...)							\
	TEST(name, .needs = NEEDS)						\
	{									\
		static const struct subject subject = { __VA_ARGS__ };		\
		faults_init();							\
		with_every_fault(&subject);					\
	}

/*
 * Without a backing file
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

static long call_alloc(struct world *w)
{
	return call_action(w, EXMAP_OP_ALLOC);
}

static long call_free(struct world *w)
{
	return call_action(w, EXMAP_OP_FREE);
}

/* By the kernel, which does not get a signal for it. */
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
TEST_FAULTS(faults_in_mmap_of_surface, world_open, call_mmap_surface, .errnos = { ENOMEM })
TEST_FAULTS(faults_in_mmap_of_interface, world_set_up, call_mmap_interface, .errnos = { ENOMEM })
TEST_FAULTS(faults_in_setup, world_mapped, call_setup, .errnos = { ENOMEM, EFAULT })
/* Takes no memory. */
TEST_FAULTS(faults_in_clone, world_two, call_clone, .errnos = { 0 })
TEST_FAULTS(faults_in_alloc, world_whole, call_alloc, verdict_alloc, check_zero,
	     .errnos = { ENOMEM, EFAULT })
TEST_FAULTS(faults_in_free, world_to_free, call_free, verdict_entries, check_freed,
	     .errnos = { EFAULT })
TEST_FAULTS(faults_in_touch, world_touch, call_touch, .check = check_touched,
	     .errnos = { ENOMEM, EFAULT })

/*
 * With one
 */
static long call_read(struct world *w)
{
	return call_action(w, EXMAP_OP_READ);
}

static long call_write(struct world *w)
{
	return call_action(w, EXMAP_OP_WRITE);
}

/* The runs' places on the surface: more than eight of them would take an allocation. */
static long call_preadv(struct world *w)
{
	struct iovec iov[RUNS * 4];

	for (int i = 0; i < RUNS * 4; i++)
		iov[i] = (struct iovec){
			w->surface + (run_page(i / 4) + i % 4 * RUN / 4) * PAGE, RUN / 4 * PAGE };
	return preadv(w->fd, iov, RUNS * 4, 0);
}

/* A short read is a failure that does not say why. */
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
		    .errnos = { ENOMEM, EFAULT })
TEST_FAULTS_BACKED(faults_in_preadv, world_backed, call_preadv, verdict_preadv, check_contents,
		    .errnos = { ENOMEM, EFAULT })
/*
 * On a file it takes a thread, for whose stack the kernel complains in the log where it
 * does not get it.
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
	return check_main(argc, argv, "Every allocation within a call made to fail, one by one.");
}
