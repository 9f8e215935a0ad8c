// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of the pool's size while it is in use: EXMAP_IOCTL_RESIZE and EXMAP_IOCTL_TRIM.
 */
#include "hostile.h"
#include "worker.h"

/* Set the ceiling. Returns the surplus, or the negative errno. */
static long resize(struct exmap *ex, size_t pages)
{
	struct exmap_ioctl_resize resize = { .buffer_size = pages, .surplus = 12345 };

	return ioctl(ex->fd, EXMAP_IOCTL_RESIZE, &resize) ? -errno : (long)resize.surplus;
}

/* Give up to @pages free pages back. Returns how many went back, or the negative errno. */
static long trim(struct exmap *ex, size_t pages)
{
	struct exmap_ioctl_trim trim = { .pages = pages };

	return ioctl(ex->fd, EXMAP_IOCTL_TRIM, &trim) ? -errno : (long)trim.done;
}

static void assert_size(struct exmap *ex, long ceiling, long taken, long surplus)
{
	struct exmap_ioctl_stats stats;

	assert_ok(ioctl(ex->fd, EXMAP_IOCTL_STATS, &stats));
	ck_assert_int_eq(stats.buffer_size, ceiling);
	assert_fdinfo(ex->fd, "pages-ceiling", ceiling);
	assert_fdinfo(ex->fd, "pages-system", taken);
	assert_fdinfo(ex->fd, "pages-surplus", surplus);
	assert_pages_add_up(ex->fd);
}

/* The process's pinned memory, without what is not the pool's, in pages. */
static long pinned_pages(void)
{
	return kib_of("/proc/self/status", "VmPin:") / 4;
}

TEST(resize_up)
{
	struct exmap *ex = exmap_new(16 * MIB, 100, 2);
	long before = pinned_pages();

	ck_assert_int_eq(alloc(ex, 0, 0, 100), 100);
	ck_assert_int_eq(alloc(ex, 0, 100, 1), -ENOMEM);
	ck_assert_int_eq(resize(ex, 1000), 0);
	ck_assert_int_eq(pinned_pages() - before, 900);
	ck_assert_int_eq(alloc(ex, 1, 100, 900), 900);
	ck_assert_int_eq(alloc(ex, 0, 1000, 1), -ENOMEM);
	assert_size(ex, 1000, 1000, 0);
}

/* Free pages go back at once, wherever they are; mapped ones when they are freed. */
TEST(resize_down)
{
	struct exmap *ex = exmap_new(64 * MIB, 4000, 3);
	long before = pinned_pages();

	ck_assert_int_eq(alloc(ex, 0, 0, 4000), 4000);
	ck_assert_int_eq(release(ex, 0, 0, 1500), 1500);
	ck_assert_int_eq(release(ex, 1, 1500, 100), 100);
	ck_assert_int_eq(run_flags(ex, 2, EXMAP_OP_FREE, 1600, 400, EXMAP_FREE_DEFER), 400);
	/* What the quarantine is charged for is not the pool's. */
	before = pinned_pages();
	ck_assert_int_eq(resize(ex, 1000), 1000);
	assert_size(ex, 1000, 2000, 1000);
	ck_assert_int_eq(pinned_pages() - before, -2000);
	ck_assert_int_eq(alloc(ex, 0, 0, 1), -ENOMEM);

	/* One by one, many, deferred, and by MADV_DONTNEED. */
	ck_assert_int_eq(release(ex, 1, 2000, 1), 1);
	assert_size(ex, 1000, 1999, 999);
	ck_assert_int_eq(release(ex, 0, 2001, 599), 599);
	assert_size(ex, 1000, 1400, 400);
	ck_assert_int_eq(run_flags(ex, 2, EXMAP_OP_FREE, 2600, 300, EXMAP_FREE_DEFER), 300);
	assert_size(ex, 1000, 1400, 400);
	ck_assert_int_eq(alloc(ex, 0, 0, 1), -ENOMEM);
	assert_size(ex, 1000, 1100, 100);
	assert_ok(madvise(where(ex, 2900), 150 * PAGE, MADV_DONTNEED));
	assert_size(ex, 1000, 950, 0);
	ck_assert_int_eq(pinned_pages() - before, -3000);
	ck_assert_int_eq(alloc(ex, 0, 0, 50), 50);
	ck_assert_int_eq(alloc(ex, 0, 50, 1), -ENOMEM);
	assert_size(ex, 1000, 1000, 0);
}

/* A page that is flushed because its address is used again does not exceed the ceiling. */
TEST(resize_down_and_deferred_frees)
{
	struct exmap *ex = exmap_new(MIB, 20, 2);

	ck_assert_int_eq(alloc(ex, 0, 0, 20), 20);
	ck_assert_int_eq(resize(ex, 10), 10);
	ck_assert_int_eq(run_flags(ex, 0, EXMAP_OP_FREE, 0, 5, EXMAP_FREE_DEFER), 5);
	for (int page = 0; page < 5; page++)
		ck_assert_int_eq(alloc(ex, 1, page, 1), -ENOMEM);
	assert_size(ex, 10, 15, 5);
	ck_assert_int_eq(run_flags(ex, 0, EXMAP_OP_FREE, 5, 8, EXMAP_FREE_DEFER), 8);
	ck_assert_int_eq(alloc(ex, 1, 0, 3), 3);
	ck_assert_int_eq(alloc(ex, 1, 3, 1), -ENOMEM);
	assert_size(ex, 10, 10, 0);
}

/* RLIMIT_MEMLOCK: refused as by SETUP, and nothing changes. */
TEST(resize_and_the_limit)
{
	struct exmap *ex;

	set_memlock(1000 * PAGE);
	drop_privileges();
	ex = exmap_new(MIB, 100, 1);
	ck_assert_int_eq(resize(ex, 1000), -ENOMEM);
	assert_size(ex, 100, 0, 0);
	ck_assert_int_eq(resize(ex, 900), 0);
	ck_assert_int_eq(resize(ex, 10), 0);
	ck_assert_int_eq(resize(ex, 900), 0);
	/* A surplus stays charged. */
	ck_assert_int_eq(alloc(ex, 0, 0, 250), 250);
	ck_assert_int_eq(resize(ex, 50), 200);
	ck_assert_int_eq(resize(ex, 900), 0);
	ck_assert_int_eq(resize(ex, 1000), -ENOMEM);
	ck_assert_int_eq(resize(ex, 50), 200);
	set_memlock(0);
	ck_assert_int_eq(resize(ex, 60), -EPERM);
	assert_size(ex, 50, 250, 200);
	close(ex->fd);
	assert_ok(munmap(ex->surface, ex->size));
	assert_ok(munmap(ex->interface[0], PAGE));
	ck_assert_int_eq(pinned_pages(), 0);
}

/* A process that set its exmap up as root is limited once it is not root any more. */
TEST(resize_after_privileges_are_gone)
{
	struct exmap *ex;

	set_memlock(1000 * PAGE);
	ex = exmap_new(MIB, 2000, 1);
	drop_privileges();
	ck_assert_int_eq(resize(ex, 2001), -ENOMEM);
	ck_assert_int_eq(resize(ex, 100), 0);
	ck_assert_int_eq(resize(ex, 900), 0);
	ck_assert_int_eq(resize(ex, 1001), -ENOMEM);
}

TEST(resize_refuses_what_makes_no_sense)
{
	struct exmap_ioctl_resize resize_to = { .buffer_size = 5 };
	struct exmap *ex = exmap_new(MIB, 10, 1);
	struct exmap_ioctl_resize *read_only;
	int fd = exmap_open();

	read_only = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(read_only, MAP_FAILED);
	read_only->buffer_size = 5;
	assert_ok(mprotect(read_only, PAGE, PROT_READ));
	ck_assert_int_eq(resize(ex, 0), -EINVAL);
	ck_assert_int_eq(resize(ex, 1UL << 60), -EINVAL);
	assert_errno(ioctl(ex->fd, EXMAP_IOCTL_RESIZE, NULL), EFAULT);
	/* There is no room for the answer, so nothing changes. */
	assert_errno(ioctl(ex->fd, EXMAP_IOCTL_RESIZE, read_only), EFAULT);
	assert_size(ex, 10, 0, 0);
	assert_errno(ioctl(fd, EXMAP_IOCTL_RESIZE, &resize_to), EBADF);
	assert_errno(ioctl(fd, EXMAP_IOCTL_TRIM, &(struct exmap_ioctl_trim){ }), EBADF);
	assert_errno(ioctl(ex->fd, EXMAP_IOCTL_TRIM, NULL), EFAULT);
	assert_errno(ioctl(ex->fd, EXMAP_IOCTL_TRIM, &(struct exmap_ioctl_trim){ .flags = 1 << 9 }),
		     EINVAL);
	assert_ok(munmap(ex->surface, ex->size));
	ck_assert_int_eq(resize(ex, 5), -EPROTO);
	ck_assert_int_eq(trim(ex, 0), 0);
	assert_size(ex, 10, 0, 0);
}

/* Pages that are pinned when the ceiling sinks. */
TEST(resize_down_and_pinned_pages)
{
	struct exmap *ex = exmap_new(MIB, 20, 1);
	struct iovec iov = { where(ex, 12), 8 * PAGE };
	int pipes[2];
	char *sink = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);

	assert_ok(pipe(pipes));
	ck_assert_int_eq(alloc(ex, 0, 0, 20), 20);
	ck_assert_int_eq(vmsplice(pipes[1], &iov, 1, 0), 8 * PAGE);
	ck_assert_int_eq(resize(ex, 10), 10);
	ck_assert_int_eq(release(ex, 0, 12, 8), 8);
	ck_assert_int_eq(release(ex, 0, 8, 4), 4);
	assert_size(ex, 10, 16, 6);
	/* Pinned pages do not count: fresh ones take their place. */
	ck_assert_int_eq(alloc(ex, 0, 8, 2), 2);
	ck_assert_int_eq(alloc(ex, 0, 10, 1), -ENOMEM);
	assert_size(ex, 10, 18, 0);
	ck_assert_int_eq(read(pipes[0], sink, 8 * PAGE), 8 * PAGE);
	ck_assert_int_eq(release(ex, 0, 0, 1), 1);
	ck_assert_int_eq(trim(ex, 0), 9);
	assert_size(ex, 10, 9, 0);
}

/* Up to N free pages go back, from any place; mapped ones stay. */
TEST(trim_gives_free_pages_back)
{
	struct exmap *ex = exmap_new(64 * MIB, 4000, 3);

	ck_assert_int_eq(alloc(ex, 0, 0, 4000), 4000);
	ck_assert_int_eq(trim(ex, 0), 0);
	ck_assert_int_eq(release(ex, 0, 0, 2500), 2500);
	ck_assert_int_eq(release(ex, 1, 2500, 100), 100);
	ck_assert_int_eq(run_flags(ex, 2, EXMAP_OP_FREE, 2600, 400, EXMAP_FREE_DEFER), 400);
	memset(where(ex, 3000), 'x', 1000 * PAGE);
	ck_assert_int_eq(trim(ex, 1), 1);
	ck_assert_int_eq(trim(ex, 777), 777);
	assert_size(ex, 4000, 4000 - 778, 0);
	ck_assert_int_eq(trim(ex, 0), 3000 - 778);
	assert_size(ex, 4000, 1000, 0);
	for (int page = 3000; page < 4000; page++)
		ck_assert(all_bytes(where(ex, page), 'x'));
	ck_assert_int_eq(alloc(ex, 2, 0, 3000), 3000);
	assert_size(ex, 4000, 4000, 0);
}

/* Resize and trim all the time. */
static void *resizer(void *arg)
{
	struct worker *w = arg;
	long ret;

	for (int round = 0; round < w->rounds && !w->error[0]; round++) {
		ret = resize(w->ex, round % 3 ? 24 + round % 100 : 24);
		if (ret < 0)
			worker_error(w, "resize", ret);
		ret = trim(w->ex, round % 20);
		if (ret < 0)
			worker_error(w, "trim", ret);
	}
	return NULL;
}

/* Use pages that the ceiling always has room for. */
static void *user(void *arg)
{
	struct worker *w = arg;
	int first = w->interface * 64, ret;

	for (int round = 0; round < w->rounds && !w->error[0]; round++) {
		ret = alloc(w->ex, w->interface, first, w->pages);
		if (ret != w->pages)
			worker_error(w, "ALLOC below the ceiling", ret);
		ret = run_flags(w->ex, w->interface, EXMAP_OP_FREE, first, w->pages,
				round % 2 ? EXMAP_FREE_DEFER : 0);
		if (ret != w->pages)
			worker_error(w, "FREE", ret);
	}
	return NULL;
}

/* ALLOC succeeds as long as the ceiling has room, whatever resize and trim do meanwhile. */
TEST(resize_while_calls_run)
{
	enum { THREADS = 3, PAGES_EACH = 8 };
	struct exmap *ex = exmap_new(16 * MIB, THREADS * PAGES_EACH, THREADS);
	struct worker w[THREADS + 1];

	for (int i = 0; i <= THREADS; i++) {
		w[i] = (struct worker){ .ex = ex, .interface = i, .pages = PAGES_EACH,
				       .rounds = scaled(2000) };
		ck_assert(!pthread_create(&w[i].thread, NULL, i < THREADS ? user : resizer, &w[i]));
	}
	for (int i = 0; i <= THREADS; i++) {
		pthread_join(w[i].thread, NULL);
		ck_assert_msg(!w[i].error[0], "%s", w[i].error);
	}
	assert_mapped(ex, 0);
	trim(ex, 0);
	ck_assert_int_eq(resize(ex, 7), 0);
	assert_size(ex, 7, 0, 0);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of the pool's size while it is in use.");
}
