// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of pages that others have pinned when they leave the surface, and of pages with a memory
 * error: neither are handed out again.
 */
#include "common.h"

/*
 * The kernel can pin pages of the surface. process_vm_readv of another process takes the slow
 * path of get_user_pages(), which looks at the VMA.
 */
TEST(pages_can_be_pinned_by_others)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);
	char buffer[PAGE];
	struct iovec here = { buffer, PAGE }, there = { ex->surface, PAGE };
	pid_t parent = getpid(), pid;

	ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
	memset(ex->surface, 'p', PAGE);
	pid = fork();
	if (!pid) {
		ck_assert_int_eq(process_vm_readv(parent, &here, 1, &there, 1, 0), PAGE);
		ck_assert(all_bytes(buffer, 'p'));
		_exit(0);
	}
	wait_child(pid, 0);
}

/* The 64-bit word with index @number in a file that has one for each page or page frame. */
static uint64_t page_number_in(const char *path, uint64_t number)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t value;

	assert_ok(fd);
	ck_assert_int_eq(pread(fd, &value, sizeof(value), number * sizeof(value)), sizeof(value));
	close(fd);
	return value;
}

static uint64_t frame_of(const char *address)
{
	return page_number_in("/proc/self/pagemap", (uintptr_t)address / PAGE) & ((1ULL << 55) - 1);
}

#define HARD_OFFLINE "/sys/devices/system/memory/hard_offline_page"

/* Report an uncorrected memory error, as a machine check does. */
static void break_frame(uint64_t frame)
{
	enum { KPF_HWPOISON = 19 };
	int fd = open(HARD_OFFLINE, O_WRONLY | O_CLOEXEC);
	char text[32];

	assert_ok(fd);
	snprintf(text, sizeof(text), "%#lx", frame * PAGE);
	/* The write fails, because the kernel cannot take the page away from exmap. */
	(void)!write(fd, text, strlen(text));
	close(fd);
	ck_assert(page_number_in("/proc/kpageflags", frame) >> KPF_HWPOISON & 1);
}

/* A page in which the hardware has reported an error is not handed out again. */
TEST(faulty_pages_are_not_recycled, .needs = HARD_OFFLINE)
{
	enum { POOL = 20 };
	struct exmap *ex = exmap_new(MIB, POOL, 1);

	for (int flags = 0; flags <= EXMAP_FREE_DEFER; flags += EXMAP_FREE_DEFER) {
		for (int how = 0; how < 3; how++) {
			uint64_t frame;
			long before;

			ck_assert_int_eq(alloc(ex, 0, 0, POOL), POOL);
			before = fdinfo(ex->fd, "pages-system");
			frame = frame_of(ex->surface + 5 * PAGE);
			/* MADV_HWPOISON also keeps a reference to the page forever. */
			if (how)
				break_frame(frame);
			else
				madvise(ex->surface + 5 * PAGE, PAGE, MADV_HWPOISON);
			if (how == 2)
				assert_ok(madvise(ex->surface, MIB, MADV_DONTNEED));
			else
				ck_assert_int_eq(run_flags(ex, 0, EXMAP_OP_FREE, 0, POOL, flags),
						 POOL);
			ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_FLUSH, 0, 0), 0);
			assert_fdinfo(ex->fd, "pages-system", how == 2 ? 0 : before - 1);
			assert_fdinfo(ex->fd, "pages-pinned", 0);
			ck_assert_int_eq(alloc(ex, 0, 100, POOL), POOL);
			for (int i = 0; i < POOL; i++)
				ck_assert_uint_ne(frame_of(ex->surface + (100 + i) * PAGE), frame);
			ck_assert_int_eq(release(ex, 0, 100, POOL), POOL);
			assert_pages_add_up(ex->fd);
		}
	}
}

/*
 * A page that is pinned when FREE with @flags unmaps it is not handed out again until its holder
 * lets go of it. RLIMIT_MEMLOCK leaves no room for pages that replace the pinned ones.
 */
static void pinned_pages_are_kept(uint64_t flags)
{
	/* Pages charged for the array of interfaces, the interface and its quarantine. */
	const int overhead = 1 + 4 + (flags & EXMAP_FREE_DEFER ? 3 : 0);
	struct iovec iov = { .iov_len = 10 * PAGE };
	struct exmap *ex;
	char buffer[PAGE];
	int pipes[2];

	set_memlock((20 + overhead) * PAGE);
	drop_privileges();
	ex = exmap_new(MIB, 20, 1);
	iov.iov_base = ex->surface;
	assert_ok(pipe(pipes));
	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	memset(ex->surface, 'A', 10 * PAGE);
	ck_assert_int_eq(vmsplice(pipes[1], &iov, 1, 0), 10 * PAGE);
	ck_assert_int_eq(run_flags(ex, 0, EXMAP_OP_FREE, 0, 10, flags), 10);
	assert_fdinfo(ex->fd, "pages-pinned", flags & EXMAP_FREE_DEFER ? 0 : 10);
	/* The pinned pages still count as taken, so the pool has only ten others. */
	ck_assert_int_eq(alloc(ex, 0, 100, 10), 10);
	memset(ex->surface + 100 * PAGE, 'B', 10 * PAGE);
	ck_assert_int_eq(alloc(ex, 0, 0, 1), -ENOMEM);
	assert_fdinfo(ex->fd, "pages-pinned", 10);
	assert_pages_add_up(ex->fd);
	/* As the pipe lets go of each page, ALLOC gets one page more, and no sooner. */
	for (int i = 0; i < 10; i++) {
		ck_assert_int_eq(read(pipes[0], buffer, PAGE), PAGE);
		ck_assert(all_bytes(buffer, 'A'));
		ck_assert_int_eq(alloc(ex, 0, 110 + i, 1), 1);
		memset(ex->surface + (110 + i) * PAGE, 'B', PAGE);
		assert_fdinfo(ex->fd, "pages-pinned", 9 - i);
		ck_assert_int_eq(alloc(ex, 0, 0, 1), -ENOMEM);
	}
	assert_fdinfo(ex->fd, "pages-system", 20);
	ck_assert_int_eq(release(ex, 0, 100, 20), 20);
	assert_pages_add_up(ex->fd);
	close(pipes[0]);
	close(pipes[1]);
}

TEST(pinned_pages_are_not_recycled)
{
	pinned_pages_are_kept(0);
}

TEST(deferred_pinned_pages_are_not_recycled)
{
	pinned_pages_are_kept(EXMAP_FREE_DEFER);
}

/* After FREE nobody can pin a page anew, even if its flush is put off. */
TEST(deferred_pages_cannot_be_pinned)
{
	struct exmap *ex = exmap_new(MIB, 20, 1);
	struct iovec iov = { .iov_base = ex->surface, .iov_len = PAGE };
	int pipes[2];

	assert_ok(pipe(pipes));
	ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
	ck_assert_int_eq(defer(ex, 0, 0, 1), 1);
	assert_errno(vmsplice(pipes[1], &iov, 1, 0), EFAULT);
}

/* If RLIMIT_MEMLOCK leaves room, the pool takes a fresh page for each page that is pinned. */
TEST(pinned_pages_are_replaced)
{
	struct exmap *ex = exmap_new(MIB, 20, 1);
	struct iovec iov = { .iov_base = ex->surface, .iov_len = 10 * PAGE };
	long locked = kib_of("/proc/self/status", "VmPin:");
	char buffer[PAGE];
	int pipes[2];

	assert_ok(pipe(pipes));
	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	memset(ex->surface, 'A', 10 * PAGE);
	ck_assert_int_eq(vmsplice(pipes[1], &iov, 1, 0), 10 * PAGE);
	ck_assert_int_eq(release(ex, 0, 0, 10), 10);
	/* ALLOC gets as many pages as the whole pool has, none of them pinned. */
	ck_assert_int_eq(alloc(ex, 0, 100, 20), 20);
	memset(ex->surface + 100 * PAGE, 'B', 20 * PAGE);
	ck_assert_int_eq(alloc(ex, 0, 0, 1), -ENOMEM);
	assert_fdinfo(ex->fd, "pages-pinned", 10);
	assert_fdinfo(ex->fd, "pages-system", 30);
	ck_assert_int_eq(kib_of("/proc/self/status", "VmPin:"), locked + 10 * 4);
	assert_pages_add_up(ex->fd);
	for (int i = 0; i < 10; i++) {
		ck_assert_int_eq(read(pipes[0], buffer, PAGE), PAGE);
		ck_assert(all_bytes(buffer, 'A'));
	}
	/* The pages that come back replace the fresh ones: the pool is as large as before. */
	ck_assert_int_eq(alloc(ex, 0, 0, 1), -ENOMEM);
	assert_fdinfo(ex->fd, "pages-pinned", 0);
	assert_fdinfo(ex->fd, "pages-system", 20);
	ck_assert_int_eq(kib_of("/proc/self/status", "VmPin:"), locked);
	ck_assert_int_eq(release(ex, 0, 100, 20), 20);
	ck_assert_int_eq(alloc(ex, 0, 0, 20), 20);
	assert_pages_add_up(ex->fd);
	close(pipes[0]);
	close(pipes[1]);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of pages that are pinned, or have a memory error.");
}
