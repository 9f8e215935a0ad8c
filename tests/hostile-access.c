// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of access to the memory of a surface other than by load and store: process_vm_readv,
 * ptrace, /proc/PID/mem, pagemap, smaps, mincore, core dumps.
 */
#include <dirent.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#include "ways.h"

/* process_vm_readv and process_vm_writev stop at an absent page; EFAULT if it is the first. */
static void by_process_vm(struct exmap *ex, pid_t pid)
{
	static char buffer[100 * PAGE];
	uint64_t word;
	struct iovec local = { .iov_base = &word, .iov_len = 8 };
	struct iovec remote = { .iov_base = where(ex, 3), .iov_len = 8 };

	ck_assert_int_eq(process_vm_readv(pid, &local, 1, &remote, 1, 0), 8);
	ck_assert_uint_eq(word, stamp(3));
	ck_assert_int_eq(process_vm_writev(pid, &local, 1, &remote, 1, 0), 8);
	remote.iov_base = where(ex, ABSENT);
	assert_errno(process_vm_readv(pid, &local, 1, &remote, 1, 0), EFAULT);
	assert_errno(process_vm_writev(pid, &local, 1, &remote, 1, 0), EFAULT);
	for (int page = 512; page < PAGES; page += 100) {
		remote = (struct iovec){ .iov_base = where(ex, page), .iov_len = 100 * PAGE };
		local = (struct iovec){ .iov_base = buffer, .iov_len = 100 * PAGE };
		process_vm_readv(pid, &local, 1, &remote, 1, 0);
	}
}

/* ptrace reads and writes a mapped page. An absent one is EIO. */
static void by_ptrace(struct exmap *ex, pid_t pid)
{
	assert_ok(ptrace(PTRACE_ATTACH, pid, 0, 0));
	ck_assert_int_eq(waitpid(pid, NULL, __WALL), pid);
	ck_assert_uint_eq(ptrace(PTRACE_PEEKDATA, pid, where(ex, 4), 0), stamp(4));
	assert_ok(ptrace(PTRACE_POKEDATA, pid, where(ex, 4), stamp(4)));
	assert_errno(ptrace(PTRACE_PEEKDATA, pid, where(ex, ABSENT), 0), EIO);
	assert_errno(ptrace(PTRACE_POKEDATA, pid, where(ex, ABSENT), 1), EIO);
	assert_ok(ptrace(PTRACE_DETACH, pid, 0, 0));
}

WAY(process_vm_by_itself)
{
	by_process_vm(ex, getpid());
	return KEEPS;
}

WAY(process_vm_by_another)
{
	by_another(by_process_vm, ex);
	return KEEPS;
}

WAY(ptrace_by_another)
{
	by_another(by_ptrace, ex);
	return KEEPS;
}

/* /proc/PID/mem reads and writes a mapped page. An absent one is EIO. */
WAY(proc_mem)
{
	int fd = open("/proc/self/mem", O_RDWR);
	uint64_t word;

	assert_ok(fd);
	ck_assert_int_eq(pread(fd, &word, 8, (off_t)where(ex, 3)), 8);
	ck_assert_uint_eq(word, stamp(3));
	ck_assert_int_eq(pwrite(fd, &word, 8, (off_t)where(ex, 3)), 8);
	assert_errno(pread(fd, &word, 8, (off_t)where(ex, ABSENT)), EIO);
	assert_errno(pwrite(fd, &word, 8, (off_t)where(ex, ABSENT)), EIO);
	close(fd);
	return KEEPS;
}

/* pagemap shows a mapped page as present, and an absent one as absent. */
WAY(pagemap)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	uint64_t entry[PAGES];

	assert_ok(fd);
	ck_assert_int_eq(pread(fd, entry, sizeof(entry), (uintptr_t)ex->surface / PAGE * 8),
			 sizeof(entry));
	for (int page = 0; page < KEPT; page++)
		ck_assert(entry[page] >> 63);
	ck_assert(!(entry[ABSENT] >> 63));
	close(fd);
	return KEEPS;
}

/* Read a file of /proc to its end. */
static void read_all(const char *path)
{
	char buffer[PAGE];
	int fd = open(path, O_RDONLY);

	if (fd < 0)	/* some kernels have no numa_maps */
		ck_assert_int_eq(errno, ENOENT);
	while (fd >= 0 && read(fd, buffer, sizeof(buffer)) > 0)
		;
	close(fd);
}

/* The files that go through the page tables of all mappings. */
WAY(smaps_and_numa_maps)
{
	read_all("/proc/self/maps");
	read_all("/proc/self/smaps");
	read_all("/proc/self/smaps_rollup");
	read_all("/proc/self/numa_maps");
	return KEEPS;
}

/* mincore sees mapped pages, and no other. */
WAY(mincore_of_all)
{
	ck_assert_uint_ge(resident_in(ex->surface, PAGES), KEPT);
	ck_assert_uint_eq(resident_in(where(ex, ABSENT), 1), 0);
	assert_fence(ex);
	return KEEPS;
}

/*
 * Core dumps
 */

/* Does a file have a page of the surface? */
static bool file_has_pages(int fd)
{
	uint64_t block[PAGE / 8];

	while (read(fd, block, PAGE) == PAGE)
		for (int page = 0; page < KEPT; page++)
			if (block[0] == stamp(page) && block[511] == ~stamp(page))
				return true;
	return false;
}

/* Open and remove the only file of a directory. Returns -1 if the directory is empty. */
static int take_file(const char *directory)
{
	struct dirent *entry;
	DIR *dir = opendir(directory);
	int fd = -1;

	ck_assert_ptr_nonnull(dir);
	while ((entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		fd = openat(dirfd(dir), entry->d_name, O_RDONLY);
		assert_ok(fd);
		assert_ok(unlinkat(dirfd(dir), entry->d_name, 0));
	}
	closedir(dir);
	return fd;
}

/*
 * A process aborts with a surface, and the kernel is asked to dump every kind of memory. The core
 * has no page of the surface, not even after MADV_DODUMP.
 */
static void dump_core(bool busy)
{
	int filter = open("/proc/self/coredump_filter", O_WRONLY);
	int file = sparse_file(), status, core;
	char directory[] = "/tmp/exmap-XXXXXX";
	pid_t pid;

	become_hostile();
	ck_assert_int_eq(write(filter, "0xff", 4), 4);
	ck_assert_ptr_nonnull(mkdtemp(directory));
	assert_ok(chdir(directory));
	pid = fork();
	assert_ok(pid);
	if (!pid) {
		struct exmap *ex = stamped_exmap(file);
		struct busy b;

		if (busy)
			busy_start(&b, ex, ex->fd, false);
		madvise(ex->surface, ex->size, MADV_DODUMP);
		signal(SIGABRT, SIG_DFL);
		abort();
	}
	assert_ok(waitpid(pid, &status, 0));
	ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	core = take_file(directory);
	assert_ok(rmdir(directory));
	/* The system may put cores elsewhere: see core(5). */
	if (core >= 0)
		ck_assert(!file_has_pages(core));
}

TEST(core_dump_alone)
{
	dump_core(false);
}

TEST(core_dump_while_busy)
{
	dump_core(true);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of access to a surface other than by load and store.");
}
