// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of what /proc/PID/fdinfo says about an exmap.
 */
#include "common.h"

/* Before SETUP fdinfo shows only the exmap's id, after it also sizes. */
TEST(fdinfo_before_setup)
{
	int fd = exmap_open(), other = exmap_open();

	ck_assert_int_gt(fdinfo(fd, "id"), 0);
	ck_assert_int_ne(fdinfo(fd, "id"), fdinfo(other, "id"));
	assert_fdinfo(fd, "interfaces", -1);
	assert_ok(exmap_setup(fd, 3, 77, 0));
	assert_fdinfo(fd, "interfaces", 3);
	assert_fdinfo(fd, "pages-ceiling", 77);
	assert_fdinfo(fd, "pages-surface", 0);
	assert_fdinfo(fd, "pages-system", 0);
	ck_assert_ptr_ne(map_surface(fd, 123 * PAGE), MAP_FAILED);
	assert_fdinfo(fd, "pages-surface", 123);
}

/* fdinfo shows where the pages are, and what the interfaces have done so far. */
TEST(fdinfo_counts_pages)
{
	struct exmap *ex = exmap_new(MIB, 100, 2);
	int clone = exmap_open();

	ck_assert_int_eq(alloc(ex, 0, 0, 100), 100);
	ck_assert_int_eq(alloc(ex, 0, 50, 50), 0);
	ck_assert_int_eq(release(ex, 0, 10, 30), 30);
	/* No page is mapped there, so FREE must not flush. */
	ck_assert_int_eq(release(ex, 0, 10, 30), 0);
	assert_fdinfo(ex->fd, "pages-system", 100);
	assert_fdinfo(ex->fd, "pages-mapped", 70);
	assert_fdinfo(ex->fd, "pages-free", 30);
	assert_fdinfo(ex->fd, "pages-in-flight", 0);
	assert_fdinfo(ex->fd, "allocs", 100);
	assert_fdinfo(ex->fd, "frees", 30);
	assert_fdinfo(ex->fd, "flushes", 1);
	assert_fdinfo(ex->fd, "steals", 0);
	assert_fdinfo(ex->fd, "reaped", 0);

	/* Interface 1 has no free page and the pool is empty, so it steals from interface 0. */
	ck_assert_int_eq(alloc(ex, 1, 10, 20), 20);
	ck_assert_int_ge(fdinfo(ex->fd, "steals"), 20);
	assert_fdinfo(ex->fd, "allocs", 120);
	assert_fdinfo(ex->fd, "interface-0", 100);
	assert_fdinfo(ex->fd, "interface-1", 20);
	assert_fdinfo(ex->fd, "interface-2", -1);
	assert_pages_add_up(ex->fd);

	assert_ok(exmap_clone(clone, ex->fd));
	assert_fdinfo(clone, "id", fdinfo(ex->fd, "id"));
	assert_fdinfo(clone, "allocs", 120);

	assert_ok(madvise(ex->surface, 5 * PAGE, MADV_DONTNEED));
	assert_fdinfo(ex->fd, "reaped", 5);
	assert_fdinfo(ex->fd, "pages-system", 95);
	assert_pages_add_up(ex->fd);
	assert_ok(munmap(ex->surface, ex->size));
	assert_fdinfo(ex->fd, "pages-mapped", 0);
	assert_fdinfo(ex->fd, "pages-system", 0);
	assert_fdinfo(ex->fd, "reaped", 90);
}

TEST(fdinfo_counts_touches)
{
	struct exmap *ex = exmap_new_flags(MIB, 100, 1, EXMAP_PAGEFAULT_ALLOC);

	memset(ex->surface, 1, 7 * PAGE);
	assert_fdinfo(ex->fd, "allocs", 7);
	assert_fdinfo(ex->fd, "pages-mapped", 7);
	assert_pages_add_up(ex->fd);
}

/* A process that may trace another can read its fdinfo at any time, also while calls run. */
TEST(fdinfo_while_calls_run)
{
	struct exmap *ex = exmap_new(MIB, 100, 1);
	const int rounds = scaled(20000);
	pid_t pid = fork();
	char path[64], line[256];
	FILE *f;

	if (!pid) {
		doomed = true;
		/* The child's own copy of the file shows the exmap, too; calls would get EPERM. */
		for (;;) {
			snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", getppid(), ex->fd);
			f = fopen(path, "r");
			while (f && fgets(line, sizeof(line), f))
				;
			if (!f)
				_exit(1);
			fclose(f);
			if (fdinfo(ex->fd, "interfaces") != 1)
				_exit(2);
		}
	}
	assert_ok(pid);
	for (int i = 0; i < rounds; i++) {
		ck_assert_int_eq(alloc(ex, 0, 0, 100), 100);
		ck_assert_int_eq(release(ex, 0, 0, 100), 100);
	}
	ck_assert_int_eq(waitpid(pid, NULL, WNOHANG), 0);
	kill(pid, SIGKILL);
	wait_child(pid, SIGKILL);
	assert_fdinfo(ex->fd, "allocs", 100L * rounds);
	assert_fdinfo(ex->fd, "frees", 100L * rounds);
	assert_pages_add_up(ex->fd);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of what fdinfo says about an exmap.");
}
