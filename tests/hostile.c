// SPDX-License-Identifier: GPL-2.0
/*
 * The device is for every user, so every user is hostile: a test for each way in, by one
 * without any privilege. After each the surface holds what it has to and nothing else,
 * no page is lost, and the kernel has nothing to complain about.
 */

#include <dirent.h>
#include <linux/fuse.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

#include "ways.h"

/* Younger than the headers of some systems we build on. */
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define MADV_GUARD_INSTALL 102
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE 101
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#define UFFD_WP_ASYNC (1 << 15)
#ifndef SYS_mseal
#define SYS_mseal 462
#endif

WAY(munmap_of_a_part)
{
	assert_errno(munmap(ex->surface, PAGE), EINVAL);
	assert_errno(munmap(where(ex, 20), 20 * PAGE), EINVAL);
	assert_errno(munmap(where(ex, PAGES - 1), PAGE), EINVAL);
	assert_errno(munmap(where(ex, -1), 2 * PAGE), EINVAL);
	return KEEPS;
}

WAY(munmap_of_all)
{
	assert_ok(munmap(ex->surface - PAGE, ex->size + 2 * PAGE));
	return ENDS;
}

/* While new pages are on their way, since these have just been given back. */
WAY(munmap_after_dontneed)
{
	for (int i = 0; i < 5; i++)
		assert_ok(madvise(ex->surface, ex->size, MADV_DONTNEED));
	assert_ok(munmap(ex->surface, ex->size));
	return ENDS;
}

static void *map_over(void *address, size_t size, int fd)
{
	return mmap(address, size, PROT_READ | PROT_WRITE,
		    MAP_FIXED | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED), fd, 0);
}

WAY(mmap_over_a_part)
{
	ck_assert_ptr_eq(map_over(ex->surface, PAGE, -1), MAP_FAILED);
	ck_assert_ptr_eq(map_over(where(ex, 20), 20 * PAGE, -1), MAP_FAILED);
	ck_assert_ptr_eq(map_over(where(ex, PAGES - 1), 2 * PAGE, -1), MAP_FAILED);
	return KEEPS;
}

WAY(mmap_over_all)
{
	ck_assert_ptr_eq(map_over(ex->surface, ex->size, -1), ex->surface);
	for (int page = 0; page < KEPT; page++)
		ck_assert(all_bytes(where(ex, page), 0));
	return ENDS;
}

WAY(mmap_of_another_surface_over_it)
{
	struct exmap other = { .fd = exmap_open(), .surface = ex->surface, .size = ex->size };

	ck_assert_ptr_eq(map_over(ex->surface, ex->size, other.fd), ex->surface);
	assert_ok(exmap_setup(other.fd, 3, POOL, 0));
	for (int i = 0; i < 3; i++)
		other.interface[i] = map_interface(other.fd, i);
	ck_assert_int_eq(alloc(&other, 0, 0, KEPT), KEPT);
	for (int page = 0; page < KEPT; page++)
		ck_assert(all_bytes(where(ex, page), 0));
	assert_whole_pool(&other, POOL);
	return ENDS;
}

WAY(mmap_of_the_same_surface_over_it)
{
	assert_errno(map_over(ex->surface, ex->size, ex->fd), EBUSY);
	return ENDS;
}

WAY(mremap_to_another_size)
{
	assert_errno(mremap(ex->surface, ex->size, ex->size + PAGE, 0), EFAULT);
	assert_errno(mremap(ex->surface, ex->size, 2 * ex->size, MREMAP_MAYMOVE), EFAULT);
	assert_errno(mremap(ex->surface, ex->size, ex->size - PAGE, 0), EINVAL);
	assert_errno(mremap(ex->surface, ex->size, PAGE, MREMAP_MAYMOVE), EINVAL);
	/* Of shared memory this would make a second mapping. */
	assert_errno(mremap(ex->surface, 0, ex->size, MREMAP_MAYMOVE), EFAULT);
	return KEEPS;
}

WAY(mremap_of_a_part)
{
	void *there = elsewhere(PAGE);

	assert_errno(mremap(ex->surface, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, there),
		     EINVAL);
	assert_errno(mremap(where(ex, 20), PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, there),
		     EINVAL);
	return KEEPS;
}

WAY(mremap_that_moves)
{
	assert_errno(mremap(ex->surface, ex->size, ex->size, MREMAP_MAYMOVE | MREMAP_FIXED,
			    elsewhere(ex->size)), EINVAL);
	return ENDS;
}

WAY(mremap_dontunmap)
{
	assert_errno(mremap(ex->surface, ex->size, ex->size, MREMAP_MAYMOVE | MREMAP_DONTUNMAP,
			    NULL), EINVAL);
	return KEEPS;
}

WAY(mprotect_of_any_kind)
{
	for (int prot = 0; prot < 8; prot++) {
		ck_assert_int_eq(mprotect(ex->surface, ex->size, prot), -1);
		ck_assert_int_eq(mprotect(where(ex, 20), 20 * PAGE, prot), -1);
	}
	return KEEPS;
}

WAY(pkey_mprotect_of_any_kind)
{
	int key = syscall(SYS_pkey_alloc, 0, 0);

	for (int prot = 0; prot < 8; prot++) {
		ck_assert_int_eq(syscall(SYS_pkey_mprotect, ex->surface, ex->size, prot, key), -1);
		ck_assert_int_eq(syscall(SYS_pkey_mprotect, ex->surface, ex->size, prot, -1), -1);
	}
	syscall(SYS_pkey_free, key);
	return KEEPS;
}

/* On all of it, on some pages, on the odd tail, and across both ends. */
static void advise(struct exmap *ex, int advice)
{
	madvise(ex->surface, ex->size, advice);
	madvise(where(ex, 20), 600 * PAGE, advice);
	madvise(where(ex, PAGES - 1), PAGE, advice);
	madvise(where(ex, -1), 2 * PAGE, advice);
	madvise(where(ex, PAGES - 1), 2 * PAGE, advice);
}

#define FOR_ADVICE(f)							\
	f(dontneed, DONTNEED, LOSES) f(dontneed_locked, DONTNEED_LOCKED, LOSES)	\
	f(free, FREE, KEEPS) f(pageout, PAGEOUT, KEEPS) f(cold, COLD, KEEPS)	\
	f(remove, REMOVE, KEEPS) f(dofork, DOFORK, KEEPS) f(dodump, DODUMP, KEEPS) \
	f(populate_read, POPULATE_READ, KEEPS)				\
	f(populate_write, POPULATE_WRITE, KEEPS)			\
	f(hugepage, HUGEPAGE, KEEPS) f(collapse, COLLAPSE, KEEPS)	\
	f(mergeable, MERGEABLE, KEEPS) f(willneed, WILLNEED, KEEPS)	\
	f(wipeonfork, WIPEONFORK, KEEPS) f(keeponfork, KEEPONFORK, KEEPS) \
	f(hwpoison, HWPOISON, KEEPS) f(soft_offline, SOFT_OFFLINE, KEEPS) \
	f(guard_install, GUARD_INSTALL, KEEPS)

#define WAY_TO_ADVISE(name, advice, fate)				\
	WAY(madvise_##name)						\
	{								\
		advise(ex, MADV_##advice);				\
		return fate;						\
	}

FOR_ADVICE(WAY_TO_ADVISE)

/* Whatever there is, or will be. */
WAY(madvise_of_any_number)
{
	for (int advice = 0; advice < 128; advice++)
		advise(ex, advice);
	return LOSES;
}

WAY(process_madvise_of_itself)
{
	struct iovec range = { .iov_base = ex->surface, .iov_len = ex->size };
	int self = syscall(SYS_pidfd_open, getpid(), 0);

	assert_ok(self);
	for (int advice = 0; advice < 32; advice++)
		syscall(SYS_process_madvise, self, &range, 1, advice, 0);
	close(self);
	return LOSES;
}

WAY(mlock_and_munlock)
{
	mlock(ex->surface, ex->size);
	mlock(where(ex, 20), 20 * PAGE);
	munlock(where(ex, 30), PAGE);
	mlock2(ex->surface, ex->size, MLOCK_ONFAULT);
	munlock(ex->surface, ex->size);
	return KEEPS;
}

WAY(mlockall_and_munlockall)
{
	assert_ok(mlockall(MCL_CURRENT | MCL_FUTURE));
	assert_ok(mlockall(MCL_CURRENT | MCL_ONFAULT));
	assert_ok(munlockall());
	return KEEPS;
}

/* What it leaves in the place of an absent page is in nobody's way. */
static void leave_marker(struct exmap *ex, int fd)
{
	struct uffdio_writeprotect protect = {
		.range = { (uintptr_t)where(ex, ABSENT), PAGE }, .mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	assert_ok(ioctl(fd, UFFDIO_WRITEPROTECT, &protect));
	ck_assert_int_eq(alloc(ex, 0, ABSENT, 1), 1);
	ck_assert_int_eq(release(ex, 0, ABSENT, 1), 1);
}

/* No mode of it; but from 6.7 on, and until 6.12.105, one that any VMA can have. */
WAY(userfaultfd)
{
	for (int async = 0; async < 2; async++) {
		struct uffdio_api api = { .api = UFFD_API, .features = async * UFFD_WP_ASYNC };
		int fd = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);

		bool usable = fd >= 0 && !ioctl(fd, UFFDIO_API, &api);

		for (int mode = 1; usable && mode < 8; mode++) {
			struct uffdio_register wish = { .mode = mode };

			wish.range.start = (uintptr_t)ex->surface;
			wish.range.len = ex->size;
			if (!ioctl(fd, UFFDIO_REGISTER, &wish)) {
				ck_assert(async && mode == UFFDIO_REGISTER_MODE_WP);
				leave_marker(ex, fd);
				assert_ok(ioctl(fd, UFFDIO_UNREGISTER, &wish.range));
			}
			wish.range.len = 16 * PAGE;
			ck_assert_int_eq(ioctl(fd, UFFDIO_REGISTER, &wish), -1);
		}
		close(fd);
	}
	return KEEPS;
}

/* Memory as others see it: fewer bytes where a page is not there, and then none. */
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

static void clear_refs(pid_t pid)
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/clear_refs", pid);
	fd = open(path, O_WRONLY);
	assert_ok(fd);
	for (char how = '1'; how <= '5'; how++)
		if (write(fd, &how, 1) != 1)
			ck_assert_int_eq(errno, EINVAL);
	close(fd);
}

WAY(clear_refs_by_itself)
{
	clear_refs(getpid());
	for (int page = 0; page < KEPT; page++)
		ck_assert(poke(where(ex, page), stamp(page)));
	return KEEPS;
}

static void by_clear_refs(struct exmap *ex, pid_t pid)
{
	clear_refs(pid);
}

WAY(clear_refs_by_another)
{
	by_another(by_clear_refs, ex);
	return KEEPS;
}

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

static void read_all(const char *path)
{
	char buffer[PAGE];
	int fd = open(path, O_RDONLY);

	if (fd < 0)	/* numa_maps is not in every kernel */
		ck_assert_int_eq(errno, ENOENT);
	while (fd >= 0 && read(fd, buffer, sizeof(buffer)) > 0)
		;
	close(fd);
}

WAY(smaps_and_numa_maps)
{
	read_all("/proc/self/maps");
	read_all("/proc/self/smaps");
	read_all("/proc/self/smaps_rollup");
	read_all("/proc/self/numa_maps");
	return KEEPS;
}

WAY(mincore_of_all)
{
	ck_assert_uint_ge(resident_in(ex->surface, PAGES), KEPT);
	ck_assert_uint_eq(resident_in(where(ex, ABSENT), 1), 0);
	assert_fence(ex);
	return KEEPS;
}

/* To where they are and to where there is nothing. ENOSYS without NUMA. */
WAY(numa_calls)
{
	unsigned long node = 1, other = 2;
	void *page[KEPT];
	int nodes[KEPT] = { }, status[KEPT];

	for (int i = 0; i < KEPT; i++)
		page[i] = where(ex, i * 8);
	for (int policy = 0; policy < 7; policy++) {
		for (int flags = 0; flags < 8; flags++) {
			syscall(SYS_mbind, ex->surface, ex->size, policy, &node, 64, flags);
			syscall(SYS_mbind, where(ex, 20), 20 * PAGE, policy, &node, 64, flags);
		}
		syscall(SYS_set_mempolicy, policy, &node, 64);
	}
	syscall(SYS_set_mempolicy, 0, NULL, 0);
	syscall(SYS_move_pages, 0, KEPT, page, NULL, status, 0);
	syscall(SYS_move_pages, 0, KEPT, page, nodes, status, 2);
	syscall(SYS_migrate_pages, getpid(), 64, &node, &other);
	syscall(SYS_migrate_pages, getpid(), 64, &other, &node);
	return KEEPS;
}

WAY(msync_of_all)
{
	assert_ok(msync(ex->surface, ex->size, MS_ASYNC));
	assert_ok(msync(ex->surface, ex->size, MS_INVALIDATE));
	msync(ex->surface, ex->size, MS_SYNC);	/* EOPNOTSUPP without a file */
	return KEEPS;
}

WAY(remap_file_pages_of_a_part)
{
	ck_assert_int_eq(remap_file_pages(where(ex, 20), PAGE, 0, 0, 0), -1);
	ck_assert_int_eq(remap_file_pages(where(ex, 20), PAGE, 0, 5, 0), -1);
	return KEEPS;
}

/* It would be mapped anew, which is refused, but not before the old mapping has gone. */
WAY(remap_file_pages_of_all)
{
	assert_errno(remap_file_pages(ex->surface, ex->size, 0, 0, 0), EBUSY);
	return ENDS;
}

/* Since Linux 6.10; then it cannot even be unmapped. */
WAY(mseal)
{
	if (!syscall(SYS_mseal, ex->surface, ex->size, 0))
		ck_assert_int_eq(munmap(ex->surface, ex->size), -1);
	return KEEPS;
}

/* A child has nothing of it, even where madvise says so: neither the surface nor interfaces. */
static void assert_not_mine(struct exmap *ex)
{
	uint64_t value;

	for (int page = 0; page < PAGES; page += page < KEPT ? 9 : 129) {
		ck_assert_msg(!peek(where(ex, page), &value), "page %d holds %#lx", page, value);
		ck_assert(!poke(where(ex, page), 1));
	}
	for (int i = 0; i < 3; i++) {
		ck_assert_msg(!peek(ex->interface[i], &value), "interface %d can be read", i);
		ck_assert(!poke(ex->interface[i], 1));
	}
	assert_errno(action(ex->fd, 0, EXMAP_OP_FREE, 1, 0), EPERM);
}

/* Newer kernels refuse some of it. */
static void advise_all(struct exmap *ex, int advice)
{
	madvise(ex->surface, ex->size, advice);
	for (int i = 0; i < 3; i++)
		madvise(ex->interface[i], PAGE, advice);
}

/* What happens to the first pages while a child has them in sight, if it has. */
static void recycle_kept(struct exmap *ex)
{
	ck_assert_int_eq(release(ex, 0, 0, KEPT), KEPT);
	ck_assert_int_eq(alloc(ex, 0, 0, KEPT), KEPT);
	for (int page = 0; page < KEPT; page++) {
		*(uint64_t *)where(ex, page) = stamp(page);
		*(uint64_t *)(where(ex, page + 1) - 8) = ~stamp(page);
	}
}

/* Looks before and after its parent has freed the pages, and then has a child of its own look. */
static void look_and_fork(struct exmap *ex, int pipes[2][2])
{
	char byte = 0;
	pid_t pid;

	assert_not_mine(ex);
	ck_assert_int_eq(write(pipes[0][1], &byte, 1), 1);
	ck_assert_int_eq(read(pipes[1][0], &byte, 1), 1);
	assert_not_mine(ex);
	advise_all(ex, MADV_KEEPONFORK);
	advise_all(ex, MADV_DOFORK);
	madvise(ex->surface, ex->size, MADV_DONTNEED);
	pid = fork();
	assert_ok(pid);
	if (!pid)
		assert_not_mine(ex);
	else
		wait_child(pid, 0);
	_exit(0);
}

/* Each piece of advice is added to what was said before it. */
WAY(fork_after_dofork)
{
	static const int said[] = {
		MADV_DOFORK, MADV_KEEPONFORK, MADV_WIPEONFORK, MADV_DONTFORK, MADV_DOFORK,
	};
	struct exmap_iov *last = &ex->interface[0]->iov[EXMAP_USER_INTERFACE_PAGES - 1];

	for (size_t i = 0; i < sizeof(said) / sizeof(said[0]); i++) {
		int pipes[2][2];
		char byte = 0;
		pid_t pid;

		advise_all(ex, said[i]);
		assert_ok(pipe(pipes[0]));
		assert_ok(pipe(pipes[1]));
		last->value = stamp(i);
		pid = fork();
		assert_ok(pid);
		if (!pid)
			look_and_fork(ex, pipes);
		/* The end of a child that has failed. */
		close(pipes[0][1]);
		if (read(pipes[0][0], &byte, 1) == 1)
			recycle_kept(ex);
		ck_assert_int_eq(write(pipes[1][1], &byte, 1), 1);
		wait_child(pid, 0);
		ck_assert_uint_eq(last->value, stamp(i));
		for (int side = 0; side < 4; side++)
			if (side != 1)
				close(pipes[side / 2][side % 2]);
	}
	return KEEPS;
}

/* Where a child has pages that were not counted when it got them, they are when it ends. */
TEST(fork_after_dofork_keeps_the_books)
{
	enum { MANY = 4000, SLACK = MANY * 4 / 2 /* half of them, in KiB */ };

	become_hostile();
	struct exmap *ex = fenced_exmap(MANY, MANY, 0, -1);
	long before;

	/* The number does not fall below nothing: have it larger than what may go wrong. */
	assert_ok(mmap(NULL, MANY * PAGE, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0));
	ck_assert_int_eq(alloc(ex, 0, 0, MANY), MANY);
	advise_all(ex, MADV_DOFORK);
	advise_all(ex, MADV_KEEPONFORK);
	before = kib_of("/proc/meminfo", "Mapped:");
	for (int i = 0; i < 8; i++) {
		pid_t pid = fork();

		assert_ok(pid);
		if (!pid)
			_exit(0);
		wait_child(pid, 0);
	}
	/* Each CPU brings in its part of it now and then. */
	for (int i = 0; i < 100 && labs(kib_of("/proc/meminfo", "Mapped:") - before) > SLACK; i++)
		usleep(100000);
	ck_assert_int_le(labs(kib_of("/proc/meminfo", "Mapped:") - before), SLACK);
	assert_whole_pool(ex, MANY);
}

/*
 * NUMA balancing makes entries of page tables PROT_NONE, to see who touches the pages
 */
#define NUMA_BALANCING "/proc/sys/kernel/numa_balancing"

static void *idle(void *arg)
{
	pause();
	return NULL;
}

/* Page faults of this thread while it touches some pages. */
static long faults_in(const char *start, size_t pages)
{
	struct rusage before, after;

	assert_ok(getrusage(RUSAGE_THREAD, &before));
	for (size_t i = 0; i < pages; i++)
		*(const volatile char *)(start + i * PAGE);
	assert_ok(getrusage(RUSAGE_THREAD, &after));
	return after.ru_minflt - before.ru_minflt;
}

/*
 * Other memory of the process shows that it is at work. It leaves the surface alone. (Only root
 * can switch it on.)
 */
TEST(numa_balancing_overlooks_the_surface, .needs = NUMA_BALANCING)
{
	int fd = open(NUMA_BALANCING, O_WRONLY | O_CLOEXEC);
	struct exmap *ex = stamped_exmap(0, -1);
	char before = '0' + number_in(NUMA_BALANCING);
	long surface = 0, seen = 0, faults;
	unsigned long mask = 1;
	pthread_t thread;
	char *other;

	assert_ok(fd);
	other = mmap(NULL, BATCH * PAGE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	assert_ok(other);
	/* MPOL_BIND with MPOL_F_NUMA_BALANCING asks for it. */
	syscall(SYS_mbind, ex->surface, ex->size, 2 | 1 << 13, &mask, 64, 0);
	/* Pages on the node of a process's only thread are left alone anyway. */
	ck_assert(!pthread_create(&thread, NULL, idle, NULL));
	ck_assert_int_eq(write(fd, "1", 1), 1);
	/*
	 * Having come by here the third time, it has twice been everywhere. (It does not come
	 * at all if the cpuset has one node.)
	 */
	while (seen < 3 && clock() < 60 * CLOCKS_PER_SEC) {
		faults = faults_in(other, BATCH);
		seen += faults > BATCH / 2;
		surface += faults_in(ex->surface, KEPT);
	}
	ck_assert_int_eq(pwrite(fd, &before, 1, 0), 1);
	ck_assert_int_lt(surface, KEPT / 2);
	assert_fate(ex, KEEPS);
}

/* The page with the entries, which another thread may be using by another mapping. */
WAY(the_interface_taken_away)
{
	char *mine = map_interface(ex->fd, 1), *there = elsewhere(PAGE);
	uint64_t value;

	assert_ok(mine);
	assert_ok(mprotect(mine, PAGE, PROT_READ));
	ck_assert(!poke(mine + 4088, 1));
	assert_ok(mprotect(mine, PAGE, PROT_READ | PROT_WRITE));
	assert_ok(mremap(mine, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, there));
	ck_assert(poke(there + 4088, 1));
	clear_refs(getpid());
	for (int advice = 0; advice < 32; advice++)
		madvise(there, PAGE, advice);
	/* Not even a page that is gone comes back with something else in it. */
	if (peek(there + 4088, &value))
		ck_assert_uint_eq(value, 1);
	assert_ok(munmap(there, PAGE));
	return KEEPS;
}

/*
 * Core dumps
 */

/* Whether a page of the surface is in a file. */
static bool file_has_pages(int fd)
{
	uint64_t block[PAGE / 8];

	while (read(fd, block, PAGE) == PAGE)
		for (int page = 0; page < KEPT; page++)
			if (block[0] == stamp(page) && block[511] == ~stamp(page))
				return true;
	return false;
}

/* The only file of a directory, removed; -1 where there is none. */
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

/* With every kind of memory asked for. */
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
		struct exmap *ex = stamped_exmap(0, file);
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
	/* It may have gone elsewhere: see core(5). */
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

/*
 * Wild arguments
 */
static uint64_t random64(void)
{
	return (uint64_t)random() << 42 ^ (uint64_t)random() << 21 ^ random();
}

/* Mostly something at the edge of being right. */
static uint64_t wild_number(void)
{
	static const uint64_t numbers[] = {
		0, 1, 2, 3, 63, 64, 255, 256, 511, 512, 513, 1023, 1024, 1025, 4094, 4095, 4096,
		65535, INT32_MAX, 1U << 31, UINT32_MAX, 1UL << 35, 1UL << 52, INT64_MAX,
		1UL << 63, UINT64_MAX,
	};

	if (random() % 8 == 0)
		return random64();
	return numbers[random() % (sizeof(numbers) / sizeof(numbers[0]))];
}

/* A struct, some of it wild; or one that cannot be read, or not all of it. */
static void *wild_pointer(struct exmap *ex, char *end)
{
	static const uint64_t bad[] = {
		0, 1, PAGE - 1, 0x7ffffffff000, 0x7fffffffefff, 0x800000000000, 1UL << 63,
		0xffff888000000000, 0xffffffff81000000, UINT64_MAX - 7, UINT64_MAX,
	};
	uint64_t *fields = (uint64_t *)(end - 64 + random() % 24);

	switch (random() % 8) {
	case 0:
		return (void *)bad[random() % (sizeof(bad) / sizeof(bad[0]))];
	case 1:
		return end - random() % 32;
	case 2:
		return where(ex, random() % PAGES) + random() % PAGE;
	}
	for (int i = 0; i < 4; i++)
		fields[i] = wild_number();
	/* ACTION: interface and number, opcode and hole, flags. */
	if (random() % 2) {
		fields[0] = random() % 5 | random() % 514 << 16 | (random() % 5) << 32;
		fields[1] = random() % 3;
	}
	return fields;
}

/* The entries, too. */
static void wild_entries(struct exmap *ex)
{
	for (int i = 0; i < 3; i++)
		for (int n = 0; n < 512; n += 1 + random() % 16)
			entry(ex, i, n, random() % 2 ? wild_number() >> 12 : (uint64_t)random() % PAGES,
			      random() % 2 ? random() % 32 : random() % 4096);
}

static void wild_calls(int file)
{
	static const unsigned int known[] = {
		EXMAP_IOCTL_SETUP, EXMAP_IOCTL_ACTION, EXMAP_IOCTL_CLONE, EXMAP_IOCTL_STATS,
	};
	struct exmap *ex = stamped_exmap(0, -1);
	char *end = (char *)elsewhere(2 * PAGE) + PAGE;
	int fds[] = { ex->fd, exmap_open(), exmap_open(), exmap_open(), file, -1, -2, 1 << 30 };

	assert_ok(mprotect(end - PAGE, PAGE, PROT_READ | PROT_WRITE));
	for (int i = 0; i < 300; i++) {
		unsigned int cmd = known[random() % 4];
		int fd = fds[random() % 4];
		char *pointer = wild_pointer(ex, end);

		if (random() % 8 == 0)
			cmd = _IOC(random() % 4, 'k', random() % 8, random() % 4096);
		if (cmd == EXMAP_IOCTL_CLONE)
			pointer = (char *)(long)fds[random() % 8];
		/* No file but ours. */
		else if (cmd == EXMAP_IOCTL_SETUP && pointer >= end - PAGE && pointer <= end - 4)
			*(int *)pointer = fds[random() % 8];
		if (random() % 4 == 0)
			wild_entries(ex);
		int ret = ioctl(fd, cmd, pointer);

		ck_assert_int_ge(ret, -1);
		ck_assert_int_le(ret, cmd == EXMAP_IOCTL_ACTION ? 512 : 0);
		ck_assert_msg(ret >= 0 || errno == EINVAL || errno == EFAULT || errno == EBADF ||
			      errno == ENOTTY || errno == EBUSY || errno == ENOMEM ||
			      errno == EPROTO || errno == EOPNOTSUPP,
			      "ioctl %#x: %s", cmd, strerror(errno));
	}
	assert_whole_pool(ex, POOL);
}

TEST(ioctls_with_wild_arguments)
{
	become_hostile();
	int file = sparse_file();

	for (int round = scaled(60); round; round--) {
		pid_t pid = fork();

		assert_ok(pid);
		if (!pid) {
			srandom(round);
			wild_calls(file);
			_exit(0);
		}
		wait_child(pid, 0);
	}
}

/* Every number in every direction and size: just those four are there. */
TEST(ioctls_of_every_number)
{
	become_hostile();
	struct exmap *ex = stamped_exmap(0, -1);

	for (int nr = 0; nr < 256; nr++)
		for (int direction = 0; direction < 4; direction++)
			for (int size = 0; size < 64; size++) {
				unsigned int cmd = _IOC(direction, 'k', nr, size);

				if (cmd != EXMAP_IOCTL_SETUP && cmd != EXMAP_IOCTL_ACTION &&
				    cmd != EXMAP_IOCTL_CLONE && cmd != EXMAP_IOCTL_STATS)
					assert_errno(ioctl(ex->fd, cmd, ex->interface[0]), ENOTTY);
			}
	assert_fate(ex, KEEPS);
}

/* Threads that use, set up, clone, map, close and reopen the same few files. */
struct mixer {
	int *fds;
	unsigned int seed;
	pthread_t thread;
};

static void mix(int *fd, int other, int what)
{
	struct exmap_action_params params = { .iov_len = 1, .opcode = EXMAP_OP_ALLOC };
	void *mapping = MAP_FAILED;

	switch (what) {
	case 0:
		exmap_setup(*fd, 2, 10, 0);
		break;
	case 1:
		exmap_clone(*fd, other);
		break;
	case 2:
		mapping = map_surface(*fd, MIB);
		break;
	case 3:
		mapping = map_interface(*fd, 0);
		if (mapping != MAP_FAILED)
			*(volatile uint64_t *)mapping = 10UL << 52;
		break;
	case 4:
		close(*fd);
		*fd = open("/dev/exmap", O_RDWR | O_CLOEXEC);
		break;
	}
	ioctl(*fd, EXMAP_IOCTL_ACTION, &params);
	if (mapping != MAP_FAILED)
		munmap(mapping, what == 2 ? MIB : PAGE);
}

static void *mixer_thread(void *arg)
{
	struct mixer *m = arg;

	for (int i = scaled(700); i; i--)
		mix(&m->fds[rand_r(&m->seed) % 4], m->fds[rand_r(&m->seed) % 4],
		    rand_r(&m->seed) % 6);
	return NULL;
}

TEST(files_mixed_up_by_threads)
{
	struct mixer m[4];
	int fds[4], first;

	become_hostile();
	for (int i = 0; i < 4; i++)
		fds[i] = exmap_open();
	first = fds[0];
	for (int i = 0; i < 4; i++) {
		m[i] = (struct mixer){ .fds = fds, .seed = i };
		ck_assert(!pthread_create(&m[i].thread, NULL, mixer_thread, &m[i]));
	}
	for (int i = 0; i < 4; i++)
		pthread_join(m[i].thread, NULL);
	/* Also those that got lost where two reopened the same. */
	assert_ok(close_range(first, ~0U, 0));
	ck_assert_int_eq(kib_of("/proc/self/status", "VmPin:"), 0);
}

/*
 * Entries that change while they are looked at
 */
struct changer {
	struct exmap *ex;
	atomic_bool stop;
	pthread_t thread;
};

/* Right and wrong by turns, and so often that a second look would see the other. */
static void *changer_thread(void *arg)
{
	static const struct { uint64_t page; unsigned int len; } entries[] = {
		{ PAGES - 1, 1 }, { PAGES - 1, 4095 }, { 0, 1 }, { PAGES, 30 },
		{ 0, 0 }, { (1UL << 52) - 1, 1 }, { 600, 2 }, { PAGES + 500, 1 },
	};
	struct changer *c = arg;

	for (unsigned int i = 0; !atomic_load(&c->stop); i = (i + 1) % 8)
		for (int n = 0; n < 64; n++)
			entry(c->ex, 0, n, entries[i].page, entries[i].len);
	return NULL;
}

TEST(entries_changed_by_another_thread)
{
	become_hostile();
	struct exmap *ex = fenced_exmap(PAGES, POOL, 0, sparse_file());
	struct changer c[2];

	for (int i = 0; i < 2; i++) {
		c[i] = (struct changer){ .ex = ex };
		ck_assert(!pthread_create(&c[i].thread, NULL, changer_thread, &c[i]));
	}
	for (int round = scaled(1000); round; round--) {
		for (int opcode = EXMAP_OP_READ; opcode <= EXMAP_OP_WRITE; opcode++) {
			int ret = action(ex->fd, 0, opcode, 64, round % 2);

			ck_assert_msg(ret >= 0 && ret <= 64, "opcode %d: %d", opcode, ret);
			ck_assert_uint_le(stats(ex).alloc_count, POOL);
		}
		if (round % 64 == 0)
			assert_fence(ex);
	}
	for (int i = 0; i < 2; i++) {
		atomic_store(&c[i].stop, true);
		pthread_join(c[i].thread, NULL);
	}
	assert_whole_pool(ex, POOL);
}

/*
 * Interfaces and pages out of range
 */
static void assert_interfaces(int fd, unsigned int nr)
{
	static const unsigned int edges[] = {
		0, 1, 2, 3, 254, 255, 256, 257, 1022, 1023, 1024, 1025, 4096, 65535,
	};
	static char memory[PAGE] __attribute__((aligned(4096)));

	for (size_t i = 0; i < sizeof(edges) / sizeof(edges[0]); i++) {
		unsigned int edge = edges[i];
		void *mapping = map_interface(fd, edge);

		if (edge < nr) {
			assert_ok(mapping);
			assert_ok(munmap(mapping, PAGE));
			assert_errno(action(fd, edge, EXMAP_OP_ALLOC, 1, 0), EPROTO);
		} else {
			ck_assert(mapping == MAP_FAILED && errno == ENXIO);
			assert_errno(action(fd, edge, EXMAP_OP_ALLOC, 1, 0), nr ? EINVAL : EBADF);
		}
		/* The next higher bits are the opcode's. */
		edge = edge > 255 ? edge << 16 : edge;
		assert_errno(pread(fd, memory, PAGE, EXMAP_OP_ALLOC << 8 | edge),
			     !nr ? EBADF : edge < nr ? EPROTO : EINVAL);
	}
	for (uint64_t far = 1UL << 16; far < 1UL << 48; far <<= 1)
		assert_errno(map_interface(fd, far), ENXIO);
}

TEST(interfaces_at_and_above_the_limit)
{
	static const int limits[] = { 1, 2, 255, 256, 257, 1023, 1024 };

	become_hostile();
	for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
		int fd = exmap_open();

		assert_interfaces(fd, 0);
		assert_ok(exmap_setup(fd, limits[i], 10, 0));
		assert_interfaces(fd, limits[i]);
		close(fd);
	}
}

/* With 4095 pages more than fit into a call's last entry, and a tail. */
TEST(pages_at_and_above_the_limit)
{
	enum { SIZE = 4096 + 16 };
	static const uint64_t pages[] = {
		0, 1, 16, 17, 18, SIZE - 4095, SIZE - 512, SIZE - 17, SIZE - 16, SIZE - 1, SIZE,
		SIZE + 1, 4608, 1UL << 36, (1UL << 36) - 1, 1UL << 51, (1UL << 52) - 4095,
		(1UL << 52) - 2, (1UL << 52) - 1,
	};
	static const unsigned int lens[] = { 0, 1, 2, 16, 17, 511, 512, 513, 4094, 4095 };
	static const int opcodes[] = { EXMAP_OP_ALLOC, EXMAP_OP_WRITE, EXMAP_OP_FREE,
				       EXMAP_OP_READ, EXMAP_OP_FREE };

	become_hostile();
	struct exmap *ex = fenced_exmap(SIZE, SIZE, 0, sparse_file());

	for (size_t p = 0; p < sizeof(pages) / sizeof(pages[0]); p++)
		for (size_t l = 0; l < sizeof(lens) / sizeof(lens[0]); l++)
			for (int o = 0; o < 5; o++) {
				bool fits = pages[p] + lens[l] <= SIZE;
				int ret = run(ex, 0, opcodes[o], pages[p], lens[l]);

				/* WRITE has made the file long enough. */
				if (fits)
					ck_assert_int_eq(ret, lens[l]);
				else
					ck_assert_int_eq(ret, -EFAULT);
			}
	assert_whole_pool(ex, SIZE);
}

/*
 * Processes that share memory, or the file
 */

/* Set in the environment of the program that exec_with_an_open_file() starts. */
#define INHERITED "EXMAP_TEST_INHERITED"

/* In that program: 0 where nothing can be done with the file. */
static int use_inherited(int fd)
{
	struct exmap_ioctl_stats s;
	char page[PAGE];

	errno = 0;
	if (action(fd, 0, EXMAP_OP_FREE, 1, 0) != -1 || errno != EPERM ||
	    ioctl(fd, EXMAP_IOCTL_STATS, &s) != -1 || errno != EPERM ||
	    exmap_setup(fd, 1, 1, 0) != -1 || errno != EPERM ||
	    map_surface(fd, MIB) != MAP_FAILED || errno != EPERM ||
	    map_interface(fd, 0) != MAP_FAILED || errno != EPERM ||
	    pread(fd, page, PAGE, EXMAP_OP_ALLOC << 8) != -1 || errno != EPERM)
		return 1;
	return 42;
}

TEST(exec_with_an_open_file)
{
	become_hostile();
	int status;

	for (int threads = 0; threads < 2; threads++) {
		pid_t pid = fork();

		assert_ok(pid);
		if (!pid) {
			struct exmap *ex = stamped_exmap(0, sparse_file());
			struct busy b;
			char fd[16];

			if (threads)
				busy_start(&b, ex, ex->fd, false);
			fcntl(ex->fd, F_SETFD, 0);
			snprintf(fd, sizeof(fd), "%d", ex->fd);
			setenv(INHERITED, fd, 1);
			execl("/proc/self/exe", "tests/hostile", NULL);
			_exit(1);
		}
		assert_ok(waitpid(pid, &status, 0));
		ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 42);
	}
}

/* A process with the same memory may do all, and its end is not that of the exmap. */
static int sharer(void *arg)
{
	struct exmap *ex = arg;

	return alloc(ex, 0, ABSENT, 5) != 5 || !poke(where(ex, ABSENT), 1) ||
		release(ex, 0, ABSENT, 5) != 5 || !poke(where(ex, 0), stamp(0));
}

TEST(clone_vm_and_vfork)
{
	static char stack[65536] __attribute__((aligned(16)));

	become_hostile();
	struct exmap *ex = stamped_exmap(0, -1);

	for (int round = 0; round < 10; round++) {
		pid_t pid = clone(sharer, stack + sizeof(stack),
				  CLONE_VM | SIGCHLD | (round % 2 ? CLONE_VFORK : 0), ex);

		/* No assertion before: for the C library they are one thread, with its locks. */
		wait_child(pid, 0);
	}
	assert_fate(ex, KEEPS);
}

/* It goes on when the process that opened the file is gone; nobody waits for it. */
static int survivor(void *arg)
{
	struct exmap *ex = arg;
	pid_t parent = *(pid_t *)where(ex, 11);
	char result = 'f';

	while (getppid() == parent)
		sched_yield();
	if (!sharer(ex))
		result = 'p';
	return write(*(int *)where(ex, 10), &result, 1) != 1;
}

TEST(clone_vm_survives_its_parent)
{
	static char stack[65536] __attribute__((aligned(16)));
	int pipes[2];
	char result;

	become_hostile();
	assert_ok(pipe(pipes));
	pid_t pid = fork();

	assert_ok(pid);
	if (!pid) {
		struct exmap *ex = stamped_exmap(0, -1);

		*(int *)where(ex, 10) = pipes[1];
		*(pid_t *)where(ex, 11) = getpid();
		assert_ok(clone(survivor, stack + sizeof(stack), CLONE_VM, ex));
		_exit(0);
	}
	wait_child(pid, 0);
	close(pipes[1]);
	ck_assert_int_eq(read(pipes[0], &result, 1), 1);
	ck_assert_int_eq(result, 'p');
}

/*
 * The end at any moment
 */
TEST(close_while_calls_run)
{
	become_hostile();
	int file = sparse_file();

	for (int round = scaled(10); round; round--) {
		pid_t pid = fork();

		assert_ok(pid);
		if (!pid) {
			struct exmap *ex = stamped_exmap(0, file);
			int clone = exmap_open();
			struct busy b;

			assert_ok(exmap_clone(clone, ex->fd));
			busy_start(&b, ex, round % 2 ? clone : ex->fd, true);
			close(ex->fd);
			close(clone);
			busy_join(&b, true);
			/* The mapping holds it. */
			assert_kept(ex, KEEPS);
			assert_ok(munmap(ex->surface, ex->size));
			for (int i = 0; i < 3; i++)
				assert_ok(munmap(ex->interface[i], PAGE));
			ck_assert_int_eq(kib_of("/proc/self/status", "VmPin:"), 0);
			_exit(0);
		}
		wait_child(pid, 0);
	}
}

/* A child does one thing again and again until it is killed. */
static void killed_in(void (*call)(struct exmap *ex))
{
	long before = available_kib();

	become_hostile();
	int file = sparse_file();

	srandom(1);
	for (int round = scaled(40); round; round--) {
		int ready[2];
		char byte;
		pid_t pid;

		assert_ok(pipe(ready));
		pid = fork();
		assert_ok(pid);
		if (!pid) {
			struct exmap *ex = stamped_exmap(0, file);

			doomed = true;
			if (write(ready[1], "x", 1) != 1)
				_exit(1);
			for (;;)
				call(ex);
		}
		ck_assert_int_eq(read(ready[0], &byte, 1), 1);
		for (volatile long spin = random() % 100000; spin > 0; spin--)
			;
		assert_ok(kill(pid, SIGKILL));
		wait_child(pid, SIGKILL);
		close(ready[0]);
		close(ready[1]);
	}
	/* One pool each time would be 64 MiB. */
	assert_available(before, 16 * 1024);
}

#define KILLED_IN(name)							\
	static void again_##name(struct exmap *ex);			\
	TEST(killed_in_##name) { killed_in(again_##name); } \
	static void again_##name(struct exmap *ex)

/* Always pages from the system. */
KILLED_IN(alloc_of_new_pages)
{
	alloc(ex, 0, 100, 300);
	madvise(ex->surface, ex->size, MADV_DONTNEED);
}

KILLED_IN(free_of_single_pages)
{
	alloc(ex, 0, 0, POOL);
	for (int page = 0; page < POOL; page++)
		release(ex, 1, page, 1);
}

KILLED_IN(read)
{
	run(ex, 0, EXMAP_OP_READ, 512, 300);
	release(ex, 0, 512, 300);
}

KILLED_IN(write)
{
	run(ex, 0, EXMAP_OP_WRITE, 0, KEPT);
}

KILLED_IN(pread)
{
	if (pread(ex->fd, where(ex, 512), 300 * PAGE, 1) < 0)
		release(ex, 0, 512, 300);
	release(ex, 0, 512, 300);
}

KILLED_IN(setup)
{
	int fd = exmap_open();

	exmap_setup(fd, 64, 100, EXMAP_PAGEFAULT_ALLOC);
	close(fd);
}

KILLED_IN(clone)
{
	int fd = exmap_open();

	exmap_clone(fd, ex->fd);
	close(fd);
}

KILLED_IN(mmap)
{
	int fd = exmap_open();
	char *surface = map_surface(fd, GIB);

	exmap_setup(fd, 3, 10, EXMAP_PAGEFAULT_ALLOC);
	poke(surface + GIB / 2, 1);
	munmap(map_interface(fd, 2), PAGE);
	munmap(surface, GIB);
	close(fd);
}

/*
 * Accounts: a memory cgroup of the test's own
 */
static char cgroup[64];

static void cgroup_file(char *path, size_t size, const char *file)
{
	snprintf(path, size, "%s/%s", cgroup, file);
}

static bool cgroup_write(const char *file, const char *text)
{
	char path[128];
	int fd;
	bool ok;

	cgroup_file(path, sizeof(path), file);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return ok;
}

static long cgroup_kib(void)
{
	char path[128];

	cgroup_file(path, sizeof(path), "memory.current");
	return number_in(path) / 1024;
}

static long cgroup_events(const char *key)
{
	char path[128];

	cgroup_file(path, sizeof(path), "memory.events");
	return kib_of(path, key);
}

static void cgroup_new(const char *max)
{
	strcpy(cgroup, "/sys/fs/cgroup");
	ck_assert(cgroup_write("cgroup.subtree_control", "+memory"));
	snprintf(cgroup, sizeof(cgroup), "/sys/fs/cgroup/exmap-hostile-%d", getpid());
	assert_ok(mkdir(cgroup, 0755));
	ck_assert(cgroup_write("memory.max", max));
	cgroup_write("memory.swap.max", "0");	/* not in every kernel */
}

/* A child in it. */
static pid_t cgroup_fork(void)
{
	pid_t pid = fork();

	assert_ok(pid);
	if (!pid)
		ck_assert(cgroup_write("cgroup.procs", "0"));
	return pid;
}

/*
 * What was charged is given back: after a while, and but for what each CPU keeps at
 * hand (64 pages) and for what a process leaves in caches.
 */
static void cgroup_settle(void)
{
	long slack_kib = 1024 + 256 * sysconf(_SC_NPROCESSORS_ONLN);

	for (int i = 0; cgroup_kib() > slack_kib && i < 300; i++)
		usleep(100000);
	ck_assert_int_le(cgroup_kib(), slack_kib);
}

/* At its limit a memory cgroup has no pages for ALLOC, and that is all. */
struct limited {
	int got, again, back, kept;
};

static void reach_limit(struct limited *seen)
{
	enum { MANY = 32 * MIB / PAGE };
	struct exmap *ex;
	int ret;

	become_hostile();
	ex = fenced_exmap(MANY, MANY, 0, -1);
	/* The page tables, which are the kernel's to get, and all that is ours. */
	for (int page = 0; page < MANY; page += 512) {
		alloc(ex, 0, page, 1);
		release(ex, 0, page, 1);
	}
	assert_ok(mlockall(MCL_CURRENT));
	memset(seen, 0, sizeof(*seen));
	/* No assertion as long as there is no memory for it. */
	while ((ret = alloc(ex, 0, seen->got, 1)) == 1)
		seen->got++;
	seen->again = ret;
	seen->back = release(ex, 0, 0, 100);
	seen->kept = alloc(ex, 0, 0, 100);
	munmap(ex->surface, ex->size);
}

#define MEMCG "/sys/fs/cgroup/memory.stat"

TEST(memcg_at_its_limit_is_enomem, .needs = MEMCG)
{
	struct limited *seen = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
				    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pid;

	cgroup_new("16M");
	pid = cgroup_fork();
	if (!pid) {
		reach_limit(seen);
		_exit(0);
	}
	wait_child(pid, 0);
	ck_assert_int_eq(cgroup_events("oom_kill"), 0);
	ck_assert_int_gt(cgroup_events("max"), 0);
	ck_assert_int_ge(seen->got, 1000);
	ck_assert_int_lt(seen->got, 4096);
	ck_assert_int_eq(seen->again, -ENOMEM);
	ck_assert_int_eq(seen->back, 100);
	ck_assert_int_eq(seen->kept, 100);
	cgroup_settle();
	assert_ok(rmdir(cgroup));
}

/* A touch by another process takes memory of this one's. */
TEST(memcg_of_the_process_pays_for_others, .needs = MEMCG)
{
	enum { MANY = 16 * MIB / PAGE };
	int ready[2];
	struct exmap *ex;
	struct iovec local, remote;
	char *surface, byte;
	long before;
	pid_t pid;

	cgroup_new("64M");
	assert_ok(pipe(ready));
	pid = cgroup_fork();
	if (!pid) {
		ex = exmap_new_flags(16 * MIB, MANY, 1, EXMAP_PAGEFAULT_ALLOC);
		if (write(ready[1], &ex->surface, sizeof(surface)) != sizeof(surface))
			_exit(1);
		for (;;)
			pause();
	}
	ck_assert_int_eq(read(ready[0], &surface, sizeof(surface)), sizeof(surface));
	before = cgroup_kib();
	for (int page = 0; page < MANY; page++) {
		local = (struct iovec){ &byte, 1 };
		remote = (struct iovec){ surface + page * PAGE, 1 };
		ck_assert_int_eq(process_vm_readv(pid, &local, 1, &remote, 1, 0), 1);
	}
	ck_assert_int_ge(cgroup_kib() - before, 12 * 1024);
	assert_ok(kill(pid, SIGKILL));
	wait_child(pid, SIGKILL);
	cgroup_settle();
	assert_ok(rmdir(cgroup));
}

/* Pages in use and free ones, and then more memory than it may have. */
static void use_too_much(void)
{
	struct exmap *ex;
	char *more;

	become_hostile();
	ex = fenced_exmap(PAGES, 2000, 0, -1);
	ck_assert_int_eq(alloc(ex, 0, 0, 2000), 2000);
	ck_assert_int_eq(release(ex, 0, 0, 1000), 1000);
	more = elsewhere(64 * MIB);
	assert_ok(mprotect(more, 64 * MIB, PROT_READ | PROT_WRITE));
	for (size_t at = 0; at < 64 * MIB; at += PAGE)
		more[at] = 1;
}

TEST(killed_for_memory, .needs = MEMCG, .expects = "Call Trace")
{
	int printk = open("/proc/sys/kernel/printk", O_RDWR);
	char level[32] = { };
	pid_t pid;

	/* The stack that the kernel shows then is for the log, not for the console. */
	ck_assert_int_gt(read(printk, level, sizeof(level) - 1), 0);
	ck_assert_int_eq(pwrite(printk, "4", 1, 0), 1);
	cgroup_new("24M");
	for (int round = 0; round < 3; round++) {
		pid = cgroup_fork();
		if (!pid) {
			use_too_much();
			_exit(0);
		}
		wait_child(pid, SIGKILL);
		ck_assert_int_eq(cgroup_events("oom_kill"), round + 1);
		cgroup_settle();
	}
	/* On 7.3 a thread does the printing, and nothing tells when it has. */
	sleep(1);
	ck_assert_int_gt(pwrite(printk, level, strlen(level), 0), 0);
	assert_ok(rmdir(cgroup));
}

/*
 * Everything is given back in whatever order it is taken down, and wherever the
 * process ends.
 */
enum { SURFACE, INTERFACES, FILE_ITSELF, CLONE, STEPS };

static void take_down(struct exmap *ex, int clone, int step)
{
	switch (step) {
	case SURFACE:
		assert_ok(munmap(ex->surface, ex->size));
		break;
	case INTERFACES:
		for (int i = 0; i < 3; i++)
			assert_ok(munmap(ex->interface[i], PAGE));
		break;
	case FILE_ITSELF:
		assert_ok(close(ex->fd));
		break;
	case CLONE:
		assert_ok(close(clone));
		break;
	}
}

static void live_and_die(const int *order, int steps)
{
	long before = kib_of("/proc/self/status", "RssShmem:");
	struct exmap *ex;
	int clone;

	/* The pool, the array of interfaces, and three of these. */
	set_memlock((2000 + 1 + 3 * 4) * PAGE);
	drop_privileges();
	ex = fenced_exmap(PAGES, 2000, 0, -1);
	clone = exmap_open();
	assert_ok(exmap_clone(clone, ex->fd));
	ck_assert_int_eq(alloc(ex, 0, 0, 2000), 2000);
	ck_assert_int_eq(release(ex, 1, 0, 1200), 1200);
	ck_assert_int_ge(kib_of("/proc/self/status", "RssShmem:") - before, 8000 - 1024);
	ck_assert_int_ge(cgroup_kib(), 8000);
	for (int i = 0; i < steps; i++)
		take_down(ex, clone, order[i]);
	if (steps < STEPS)
		return;
	ck_assert_int_le(labs(kib_of("/proc/self/status", "RssShmem:") - before), 1024);
	ck_assert_int_eq(kib_of("/proc/self/status", "VmPin:"), 0);
}

/* All orders that begin with these steps. */
static void all_orders(int *order, int steps)
{
	pid_t pid = cgroup_fork();

	if (!pid) {
		live_and_die(order, steps);
		_exit(0);
	}
	wait_child(pid, 0);
	cgroup_settle();
	for (int next = 0; next < STEPS; next++) {
		bool done = false;

		for (int i = 0; i < steps; i++)
			done |= order[i] == next;
		order[steps] = next;
		if (!done)
			all_orders(order, steps + 1);
	}
}

TEST(all_is_given_back_in_any_order, .needs = MEMCG)
{
	int order[STEPS + 1];

	cgroup_new("max");
	all_orders(order, 0);
	assert_ok(rmdir(cgroup));
}

/*
 * Pages that others still hold
 */
enum way_off { BY_FREE, BY_DEFERRED_FREE, BY_DONTNEED, BY_MUNMAP, BY_CLOSE, BY_EXIT, WAYS_OFF };

/* Take the first pages of the surface away from it. */
static void take_off(struct exmap *ex, enum way_off way, unsigned int pages)
{
	switch (way) {
	case BY_FREE:
		ck_assert_int_eq(release(ex, 0, 0, pages), pages);
		break;
	case BY_DEFERRED_FREE:
		ck_assert_int_eq(defer(ex, 0, 0, pages), pages);
		ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_FLUSH, 0, 0), 0);
		break;
	case BY_DONTNEED:
		assert_ok(madvise(ex->surface, pages * PAGE, MADV_DONTNEED));
		break;
	case BY_CLOSE:
		munmap(ex->interface[0], PAGE);
		close(ex->fd);
		assert_ok(munmap(ex->surface, ex->size));
		break;
	case BY_MUNMAP:
		assert_ok(munmap(ex->surface, ex->size));
		break;
	default:
		break;
	}
}

/* Whether this user's RLIMIT_MEMLOCK, of @pages, has room for a pool of that many. */
static bool has_room_for(unsigned int pages)
{
	int status;
	pid_t pid = fork();

	assert_ok(pid);
	if (!pid)
		_exit(exmap_setup(exmap_open(), 1, pages, 0) ? 1 : 0);
	assert_ok(waitpid(pid, &status, 0));
	return WIFEXITED(status) && !WEXITSTATUS(status);
}

/*
 * Pages that a pipe holds stay charged to who had them, whatever way they were taken from the
 * surface; and only until the pipe is gone.
 */
TEST(pinned_pages_stay_charged)
{
	enum { PIPES = 16, EACH = 16, PINNED = PIPES * EACH };
	int pipes[PIPES][2], ready[2];
	struct iovec iov;
	struct exmap *ex;
	pid_t pid;
	char byte;

	/* And a page for the interfaces of has_room_for(). */
	set_memlock((2 * PINNED + 1) * PAGE);
	drop_privileges();
	for (int way = 0; way < WAYS_OFF; way++) {
		for (int i = 0; i < PIPES; i++)
			assert_ok(pipe(pipes[i]));
		assert_ok(pipe(ready));
		pid = fork();
		assert_ok(pid);
		if (!pid) {
			ex = exmap_new(MIB + PINNED * PAGE, PINNED, 1);
			ck_assert_int_eq(alloc(ex, 0, 0, PINNED), PINNED);
			for (int i = 0; i < PIPES; i++) {
				iov = (struct iovec){ where(ex, i * EACH), EACH * PAGE };
				ck_assert_int_eq(vmsplice(pipes[i][1], &iov, 1, SPLICE_F_GIFT),
						 EACH * PAGE);
			}
			take_off(ex, way, PINNED);
			if (way <= BY_DONTNEED) {
				/* They are the pool's, and all of it. */
				assert_fdinfo(ex->fd, "pages-pinned", PINNED);
				assert_fdinfo(ex->fd, "pages-system", PINNED);
				/* But the limit has room for one in the place of one of them. */
				ck_assert_int_eq(alloc(ex, 0, PINNED, 1), 1);
				assert_fdinfo(ex->fd, "pages-system", PINNED + 1);
			}
			if (way == BY_MUNMAP)
				assert_fdinfo(ex->fd, "pages-system", 0);
			ck_assert_int_eq(write(ready[1], "", 1), 1);
			_exit(0);
		}
		close(ready[1]);
		ck_assert_int_eq(read(ready[0], &byte, 1), 1);
		wait_child(pid, 0);
		/* They are still his. */
		ck_assert(has_room_for(PINNED));
		ck_assert(!has_room_for(PINNED + 1));
		for (int i = 0; i < PIPES; i++) {
			close(pipes[i][0]);
			close(pipes[i][1]);
		}
		/* Whoever looks after them does so once a second. */
		for (int i = 0; !has_room_for(2 * PINNED) && i < 600; i++)
			usleep(100000);
		ck_assert(has_room_for(2 * PINNED));
		close(ready[0]);
	}
}

/*
 * A file system in user space, by hand: one file of a few pages
 */
enum { FUSE_PAGES = 4 };

struct fuse {
	int fd;
	struct exmap *ex;
	enum way_off way;
	bool served;		/* the file's contents were asked for */
	uint64_t frame[FUSE_PAGES];
};

static uint64_t frame_of(const char *address)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t value = 0;

	assert_ok(fd);
	ck_assert_int_eq(pread(fd, &value, 8, (uintptr_t)address / PAGE * 8), 8);
	close(fd);
	return value & ((1ULL << 55) - 1);
}

static void fuse_reply(struct fuse *f, uint64_t unique, int error, const void *body, size_t len)
{
	struct fuse_out_header header = {
		.len = sizeof(header) + len, .error = error, .unique = unique,
	};
	struct iovec iov[] = { { &header, sizeof(header) }, { (void *)body, len } };

	ck_assert_int_eq(writev(f->fd, iov, 2), header.len);
}

/* The contents are pages of the surface, given away and then taken off it. */
static void fuse_reply_pages(struct fuse *f, uint64_t unique, unsigned int pages)
{
	struct fuse_out_header header = {
		.len = sizeof(header) + pages * PAGE, .unique = unique,
	};
	struct iovec head = { &header, sizeof(header) };
	struct iovec body = { f->ex->surface, pages * PAGE };
	int pipes[2];

	assert_ok(pipe(pipes));
	ck_assert_int_eq(alloc(f->ex, 0, 0, pages), pages);
	for (unsigned int i = 0; i < pages; i++) {
		memset(where(f->ex, i), 'A' + i, PAGE);
		f->frame[i] = frame_of(where(f->ex, i));
		ck_assert_uint_ne(f->frame[i], 0);
	}
	ck_assert_int_eq(vmsplice(pipes[1], &head, 1, 0), sizeof(header));
	ck_assert_int_eq(vmsplice(pipes[1], &body, 1, SPLICE_F_GIFT), pages * PAGE);
	take_off(f->ex, f->way, pages);
	ck_assert_int_eq(splice(pipes[0], NULL, f->fd, NULL, header.len, SPLICE_F_MOVE), header.len);
	close(pipes[0]);
	close(pipes[1]);
	f->served = true;
}

static void fuse_serve(struct fuse *f)
{
	static char request[FUSE_MIN_READ_BUFFER + 64 * 1024];
	const struct fuse_in_header *in = (const void *)request;
	const struct fuse_read_in *read_in = (const void *)(in + 1);
	struct fuse_attr file = { .ino = 2, .size = FUSE_PAGES * PAGE, .mode = S_IFREG | 0644, .nlink = 1 };
	struct fuse_attr root = { .ino = 1, .mode = S_IFDIR | 0755, .nlink = 2 };
	struct fuse_init_out init = {
		.major = FUSE_KERNEL_VERSION, .minor = 31, .max_readahead = 64 * 1024,
		.max_write = 4096, .max_background = 1, .congestion_threshold = 1,
	};
	struct fuse_entry_out entry_out = { .nodeid = 2, .attr_valid = 3600, .entry_valid = 3600, .attr = file };
	struct fuse_attr_out attr = { .attr_valid = 3600 };
	struct fuse_open_out opened = { .fh = 1 };

	ck_assert_int_gt(read(f->fd, request, sizeof(request)), 0);
	switch (in->opcode) {
	case FUSE_INIT:
		fuse_reply(f, in->unique, 0, &init, sizeof(init));
		break;
	case FUSE_LOOKUP:
		fuse_reply(f, in->unique, 0, &entry_out, sizeof(entry_out));
		break;
	case FUSE_GETATTR:
		attr.attr = in->nodeid == 1 ? root : file;
		fuse_reply(f, in->unique, 0, &attr, sizeof(attr));
		break;
	case FUSE_OPEN:
		fuse_reply(f, in->unique, 0, &opened, sizeof(opened));
		break;
	case FUSE_READ:
		fuse_reply_pages(f, in->unique, read_in->size / PAGE < FUSE_PAGES ?
				 read_in->size / PAGE : FUSE_PAGES);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break;
	case FUSE_FLUSH:
	case FUSE_RELEASE:
		fuse_reply(f, in->unique, 0, NULL, 0);
		break;
	default:
		fuse_reply(f, in->unique, -ENOSYS, NULL, 0);
	}
}

/* Reads the file, and says which page frames its pages are in. */
static void fuse_read(const char *path, int to)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t frame[FUSE_PAGES];
	char *file;

	assert_ok(fd);
	file = mmap(NULL, FUSE_PAGES * PAGE, PROT_READ, MAP_SHARED, fd, 0);
	assert_ok(file);
	for (int i = 0; i < FUSE_PAGES; i++) {
		ck_assert(all_bytes(file + i * PAGE, 'A' + i));
		frame[i] = frame_of(file + i * PAGE);
	}
	ck_assert_int_eq(write(to, frame, sizeof(frame)), sizeof(frame));
}

static void steal_by_fuse(enum way_off way, const char *directory, const char *path)
{
	struct fuse f = { .fd = open("/dev/fuse", O_RDWR | O_CLOEXEC), .way = way };
	uint64_t frame[FUSE_PAGES];
	struct pollfd fds[2];
	char options[96];
	int answer[2];
	pid_t pid;

	assert_ok(f.fd);
	f.ex = exmap_new(MIB, FUSE_PAGES, 1);
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0", f.fd);
	assert_ok(mount("exmap", directory, "fuse", MS_NOSUID | MS_NODEV, options));
	assert_ok(pipe(answer));
	pid = fork();
	assert_ok(pid);
	if (!pid) {
		/* The parent's: it has to be closed first, or the file cannot be let go of. */
		close(f.fd);
		fuse_read(path, answer[1]);
		_exit(0);
	}
	/* So that a child that fails is noticed. */
	close(answer[1]);
	fds[0] = (struct pollfd){ .fd = f.fd, .events = POLLIN };
	fds[1] = (struct pollfd){ .fd = answer[0], .events = POLLIN };
	for (;;) {
		assert_ok(poll(fds, 2, -1));
		if (fds[1].revents)
			break;
		if (fds[0].revents)
			fuse_serve(&f);
	}
	ck_assert_int_eq(read(answer[0], frame, sizeof(frame)), sizeof(frame));
	ck_assert(f.served);
	/* The pages were copied: the file has none of the exmap's. */
	for (int i = 0; i < FUSE_PAGES; i++)
		for (int j = 0; j < FUSE_PAGES; j++)
			ck_assert_uint_ne(frame[i], f.frame[j]);
	assert_ok(umount2(directory, MNT_DETACH));
	close(f.fd);
	wait_child(pid, 0);
	if (way <= BY_DONTNEED) {
		ck_assert_int_eq(alloc(f.ex, 0, 0, FUSE_PAGES), FUSE_PAGES);
		assert_fdinfo(f.ex->fd, "pages-pinned", 0);
		assert_pages_add_up(f.ex->fd);
	}
}

TEST(pinned_pages_do_not_become_page_cache, .needs = "/dev/fuse")
{
	char directory[] = "/tmp/exmap-fuse-XXXXXX", path[64];

	ck_assert_ptr_nonnull(mkdtemp(directory));
	snprintf(path, sizeof(path), "%s/file", directory);
	for (int way = BY_FREE; way <= BY_CLOSE; way++)
		steal_by_fuse(way, directory, path);
	rmdir(directory);
}

/*
 * Locks whose holder does not run
 */

/* Nanoseconds of CPU time that a process has had so far. */
static long cpu_time(pid_t pid)
{
	struct timespec used;
	clockid_t clock;

	ck_assert_int_eq(clock_getcpuclockid(pid, &clock), 0);
	assert_ok(clock_gettime(clock, &used));
	return used.tv_sec * 1000000000L + used.tv_nsec;
}

static void run_on(int cpu)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	assert_ok(sched_setaffinity(0, sizeof(cpus), &cpus));
}

/* After so many seconds what waits for it is taken to wait for ever, and the other runs again. */
enum { PATIENCE = 10 };

/* Who keeps it from running, and whether that one is to. */
struct starved {
	pid_t holder, spinner;
	struct {
		atomic_bool spin;
		atomic_bool spins;
	} *shared;
};

/* A real-time task then runs all the time, not just 95 % of it. */
static void allow_starving(void)
{
	static const char *const settings[][2] = {
		{ "/proc/sys/kernel/sched_rt_runtime_us", "-1" },
		{ "/sys/kernel/debug/sched/fair_server/cpu0/runtime", "0" },
	};

	for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++) {
		int fd = open(settings[i][0], O_WRONLY | O_CLOEXEC);

		if (fd < 0)
			continue;
		/* 6.12 may say so if it is set already. */
		ck_assert(write(fd, settings[i][1], strlen(settings[i][1])) > 0 || errno == EBUSY);
		close(fd);
	}
}

/* A real-time task on CPU 0, which runs when it is told to. */
static void spin(struct starved *s)
{
	const struct sched_param priority = { .sched_priority = 1 };
	struct timespec now, start;

	run_on(0);
	assert_ok(sched_setscheduler(0, SCHED_FIFO, &priority));
	for (;;) {
		while (!atomic_load(&s->shared->spin))
			usleep(1000);
		clock_gettime(CLOCK_MONOTONIC, &start);
		atomic_store(&s->shared->spins, true);
		do
			clock_gettime(CLOCK_MONOTONIC, &now);
		while (atomic_load(&s->shared->spin) && now.tv_sec - start.tv_sec < PATIENCE);
		atomic_store(&s->shared->spins, false);
		while (atomic_load(&s->shared->spin))
			usleep(1000);
	}
}

/* Have a child do something on CPU 0 all the time. */
static void starved_start(struct starved *s, void (*work)(void *arg), void *arg)
{
	allow_starving();
	s->shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ok(s->shared);
	s->holder = fork();
	assert_ok(s->holder);
	if (!s->holder) {
		run_on(0);
		work(arg);
		_exit(1);
	}
	s->spinner = fork();
	assert_ok(s->spinner);
	if (!s->spinner)
		spin(s);
	run_on(1);
}

/* From here on it does not run. */
static void starved_begin(struct starved *s)
{
	long before = cpu_time(s->holder);

	/* It is at work, and at another place each time. */
	while (cpu_time(s->holder) - before < 2000000 + random() % 8000000)
		usleep(500);
	atomic_store(&s->shared->spin, true);
	while (!atomic_load(&s->shared->spins))
		usleep(500);
}

static void starved_end(struct starved *s)
{
	atomic_store(&s->shared->spin, false);
	while (atomic_load(&s->shared->spins))
		usleep(500);
}

static void starved_stop(struct starved *s)
{
	kill(s->spinner, SIGKILL);
	wait_child(s->spinner, SIGKILL);
	kill(s->holder, SIGKILL);
	wait_child(s->holder, SIGKILL);
}

/*
 * Do something again and again while the other does not run. If that waits for it, it runs again
 * before that is done.
 */
static void assert_not_delayed(struct starved *s, void (*what)(void *arg), void *arg)
{
	enum { ROUNDS = 40, CHANCE = 1 };
	int waited = 0;

	for (int i = 0; i < ROUNDS && waited <= CHANCE; i++) {
		starved_begin(s);
		what(arg);
		waited += !atomic_load(&s->shared->spins);
		starved_end(s);
	}
	/* The machine may have been away for long. */
	ck_assert_msg(waited <= CHANCE, "%d times it took a task that does not run", waited);
}

/* Pages go to quarantine at one interface, and are flushed from another, all the time. */
static void flush_for_ever(void *arg)
{
	struct exmap *ex;

	become_hostile();
	doomed = true;
	ex = exmap_new(512 * 2 * MIB, 1024, 2);
	for (;;) {
		/* In a page table of its own each: the flush takes a while. */
		for (int i = 0; i < 512; i++)
			entry(ex, 0, i, i * 512, 1);
		action(ex->fd, 0, EXMAP_OP_ALLOC, 512, 0);
		for (int i = 0; i < 512; i++)
			entry(ex, 0, i, i * 512, 1);
		action(ex->fd, 0, EXMAP_OP_FREE, 512, EXMAP_FREE_DEFER);
		entry(ex, 1, 0, 0, 1);
		action(ex->fd, 1, EXMAP_OP_ALLOC, 1, 0);
		entry(ex, 1, 0, 0, 1);
		action(ex->fd, 1, EXMAP_OP_FREE, 1, 0);
	}
}

static void shrink_and_set_up(void *arg)
{
	int fd;

	ck_assert(shrink());
	fd = exmap_open();
	assert_ok(exmap_setup(fd, 1, 1, 0));
	close(fd);
}

TEST(reclaim_waits_for_no_user)
{
	struct starved s;

	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		return;
	starved_start(&s, flush_for_ever, NULL);
	assert_not_delayed(&s, shrink_and_set_up, NULL);
	starved_stop(&s);
}

/* An exmap with many interfaces, and a page on its surface. */
static void exmap_with_a_page(void)
{
	struct rlimit files = { 4096, 4096 };
	struct exmap_iov *iov;
	void *surface;
	int fd;

	assert_ok(setrlimit(RLIMIT_NOFILE, &files));
	fd = exmap_open();
	surface = map_surface(fd, MIB);
	assert_ok(surface);
	assert_ok(exmap_setup(fd, EXMAP_MAX_INTERFACES, 1, 0));
	iov = map_interface(fd, 0);
	assert_ok(iov);
	iov->value = 1UL << 52;
	ck_assert_int_eq(action(fd, 0, EXMAP_OP_ALLOC, 1, 0), 0);
}

static void shrink_for_ever(void *arg)
{
	for (;;)
		shrink();
}

static void use_and_set_up(void *arg)
{
	struct exmap *ex = arg;
	int fd;

	for (int i = 0; i < 64; i++)
		if (alloc(ex, i, 0, 1) == 1)
			ck_assert_int_eq(release(ex, i, 0, 1), 1);
	fd = exmap_open();
	assert_ok(exmap_setup(fd, 1, 1, 0));
	close(fd);
}

/* Whoever needs memory may be of the lowest priority. */
TEST(nobody_waits_for_reclaim)
{
	int count = scaled(64);
	struct starved s;
	struct exmap *ex;

	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		return;
	/* It takes a while to look through them. */
	for (int i = 0; i < count; i++)
		exmap_with_a_page();
	ex = exmap_new(MIB, 1024, 64);
	starved_start(&s, shrink_for_ever, NULL);
	assert_not_delayed(&s, use_and_set_up, ex);
	starved_stop(&s);
}

/* The shortest of a few times, in seconds. */
static double time_of(void (*what)(void))
{
	struct timespec start, end;
	double seconds, best = 0;

	for (int i = 0; i < 7; i++) {
		clock_gettime(CLOCK_MONOTONIC, &start);
		what();
		clock_gettime(CLOCK_MONOTONIC, &end);
		seconds = end.tv_sec - start.tv_sec + (end.tv_nsec - start.tv_nsec) / 1e9;
		best = best && best < seconds ? best : seconds;
	}
	return best;
}

static void reclaim(void)
{
	ck_assert(shrink());
}

/* How long reclaim takes does not depend on how many exmaps there are. */
TEST(reclaim_with_many_interfaces)
{
	int count = scaled(800);
	double one = 0, many;

	for (int i = 0; i < count; i++) {
		exmap_with_a_page();
		if (!i)
			one = time_of(reclaim);
	}
	many = time_of(reclaim);
	/* The machine may be busy with other things. */
	for (int i = 0; many >= 3 * one && i < 10; i++)
		many = time_of(reclaim);
	ck_assert_msg(many < 3 * one, "%.1f ms with %d exmaps, %.1f ms with one", many * 1e3, count,
		      one * 1e3);
}

/* How long it takes to make so many exmaps, in seconds, and to kill the process that has them. */
static void make_and_kill(int count, double *made, double *gone)
{
	struct timespec start, end;
	int ready[2];
	pid_t pid;

	assert_ok(pipe(ready));
	pid = fork();
	assert_ok(pid);
	if (!pid) {
		struct rlimit files = { 4096, 4096 };

		assert_ok(setrlimit(RLIMIT_NOFILE, &files));
		clock_gettime(CLOCK_MONOTONIC, &start);
		for (int i = 0; i < count; i++)
			assert_ok(exmap_setup(exmap_open(), 1, 1, 0));
		clock_gettime(CLOCK_MONOTONIC, &end);
		*made = end.tv_sec - start.tv_sec + (end.tv_nsec - start.tv_nsec) / 1e9;
		ck_assert_int_eq(write(ready[1], made, sizeof(*made)), sizeof(*made));
		for (;;)
			pause();
	}
	ck_assert_int_eq(read(ready[0], made, sizeof(*made)), sizeof(*made));
	clock_gettime(CLOCK_MONOTONIC, &start);
	assert_ok(kill(pid, SIGKILL));
	wait_child(pid, SIGKILL);
	clock_gettime(CLOCK_MONOTONIC, &end);
	*gone = end.tv_sec - start.tv_sec + (end.tv_nsec - start.tv_nsec) / 1e9;
	close(ready[0]);
	close(ready[1]);
}

/* Exmaps of a process that is killed go all at once. */
TEST(exit_with_many_exmaps)
{
	int count = scaled(1600);
	double made, gone;

	make_and_kill(count, &made, &gone);
	/* The machine may be busy with other things. */
	for (int i = 0; gone >= 3 * made && i < 2; i++)
		make_and_kill(count, &made, &gone);
	ck_assert_msg(gone < 3 * made, "%d exmaps: made in %.2f s, gone in %.2f s", count, made,
		      gone);
}

/* Only where there is a memory controller. */
int main(int argc, char **argv)
{
	const char *inherited = getenv(INHERITED);

	if (inherited)
		return use_inherited(atoi(inherited));
	return check_main(argc, argv, "Tests of the exmap module against hostile users.");
}
