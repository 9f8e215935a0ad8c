// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of system calls that change mappings, made on a surface by a user without privileges:
 * munmap, mmap, mremap, mprotect, madvise, mlock, userfaultfd, clear_refs, mbind and the like.
 */
#include <linux/userfaultfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>

#include "ways.h"

/* The headers of some systems are too old for these. */
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

/* A part of the surface cannot be unmapped, because its VMA refuses to be split. */
WAY(munmap_of_a_part)
{
	assert_errno(munmap(ex->surface, PAGE), EINVAL);
	assert_errno(munmap(where(ex, 20), 20 * PAGE), EINVAL);
	assert_errno(munmap(where(ex, PAGES - 1), PAGE), EINVAL);
	assert_errno(munmap(where(ex, -1), 2 * PAGE), EINVAL);
	return KEEPS;
}

/* munmap of the surface and its surroundings. */
WAY(munmap_of_all)
{
	assert_ok(munmap(ex->surface - PAGE, ex->size + 2 * PAGE));
	return ENDS;
}

/*
 * munmap while the busy thread gets new pages from the system, because MADV_DONTNEED has just
 * given all pages back.
 */
WAY(munmap_after_dontneed)
{
	for (int i = 0; i < 5; i++)
		assert_ok(madvise(ex->surface, ex->size, MADV_DONTNEED));
	assert_ok(munmap(ex->surface, ex->size));
	return ENDS;
}

/* Map the file @fd at @address, or anonymous memory if @fd is negative. */
static void *map_over(void *address, size_t size, int fd)
{
	return mmap(address, size, PROT_READ | PROT_WRITE,
		    MAP_FIXED | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED), fd, 0);
}

/* Nothing can be mapped over a part of the surface, because its VMA refuses to be split. */
WAY(mmap_over_a_part)
{
	ck_assert_ptr_eq(map_over(ex->surface, PAGE, -1), MAP_FAILED);
	ck_assert_ptr_eq(map_over(where(ex, 20), 20 * PAGE, -1), MAP_FAILED);
	ck_assert_ptr_eq(map_over(where(ex, PAGES - 1), 2 * PAGE, -1), MAP_FAILED);
	return KEEPS;
}

/* Anonymous memory that replaces the surface shows none of its pages. */
WAY(mmap_over_all)
{
	ck_assert_ptr_eq(map_over(ex->surface, ex->size, -1), ex->surface);
	for (int page = 0; page < KEPT; page++)
		ck_assert(all_bytes(where(ex, page), 0));
	return ENDS;
}

/* A surface that replaces another one works, and shows none of the other's pages. */
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

/* A second mmap of the surface is refused, but the kernel has unmapped the first by then. */
WAY(mmap_of_the_same_surface_over_it)
{
	assert_errno(map_over(ex->surface, ex->size, ex->fd), EBUSY);
	return ENDS;
}

/* The surface neither grows nor shrinks. */
WAY(mremap_to_another_size)
{
	assert_errno(mremap(ex->surface, ex->size, ex->size + PAGE, 0), EFAULT);
	assert_errno(mremap(ex->surface, ex->size, 2 * ex->size, MREMAP_MAYMOVE), EFAULT);
	assert_errno(mremap(ex->surface, ex->size, ex->size - PAGE, 0), EINVAL);
	assert_errno(mremap(ex->surface, ex->size, PAGE, MREMAP_MAYMOVE), EINVAL);
	/* If the old size is 0, mremap makes a second mapping of shared memory. */
	assert_errno(mremap(ex->surface, 0, ex->size, MREMAP_MAYMOVE), EFAULT);
	return KEEPS;
}

/* A part of the surface does not move. */
WAY(mremap_of_a_part)
{
	void *there = elsewhere(PAGE);

	assert_errno(mremap(ex->surface, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, there),
		     EINVAL);
	assert_errno(mremap(where(ex, 20), PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, there),
		     EINVAL);
	return KEEPS;
}

/*
 * The surface does not move. The attempt ends it, because the kernel tells the MMU notifier that
 * the old addresses are unmapped before it asks the VMA.
 */
WAY(mremap_that_moves)
{
	assert_errno(mremap(ex->surface, ex->size, ex->size, MREMAP_MAYMOVE | MREMAP_FIXED,
			    elsewhere(ex->size)), EINVAL);
	return ENDS;
}

/* MREMAP_DONTUNMAP, which leaves the old mapping in place, is refused. */
WAY(mremap_dontunmap)
{
	assert_errno(mremap(ex->surface, ex->size, ex->size, MREMAP_MAYMOVE | MREMAP_DONTUNMAP,
			    NULL), EINVAL);
	return KEEPS;
}

/* No protection can be set, whether on all of the surface or on a part. */
WAY(mprotect_of_any_kind)
{
	for (int prot = 0; prot < 8; prot++) {
		ck_assert_int_eq(mprotect(ex->surface, ex->size, prot), -1);
		ck_assert_int_eq(mprotect(where(ex, 20), 20 * PAGE, prot), -1);
	}
	return KEEPS;
}

/* pkey_mprotect is refused in the same way, with a protection key and without one. */
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

/* Give advice on all pages, some pages, the last page, and across both ends. */
static void advise(struct exmap *ex, int advice)
{
	madvise(ex->surface, ex->size, advice);
	madvise(where(ex, 20), 600 * PAGE, advice);
	madvise(where(ex, PAGES - 1), PAGE, advice);
	madvise(where(ex, -1), 2 * PAGE, advice);
	madvise(where(ex, PAGES - 1), 2 * PAGE, advice);
}

/* Each kind of advice, and what it does to the surface. */
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

/* Every number that is advice today, or may be on a later kernel. */
WAY(madvise_of_any_number)
{
	for (int advice = 0; advice < 128; advice++)
		advise(ex, advice);
	return LOSES;
}

/* process_madvise by the process on itself: pages may be gone, but none is lost to the pool. */
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

/* mlock in each form maps no page and takes none away. */
WAY(mlock_and_munlock)
{
	mlock(ex->surface, ex->size);
	mlock(where(ex, 20), 20 * PAGE);
	munlock(where(ex, 30), PAGE);
	mlock2(ex->surface, ex->size, MLOCK_ONFAULT);
	munlock(ex->surface, ex->size);
	return KEEPS;
}

/* The same holds for mlockall, of mappings that exist and of later ones. */
WAY(mlockall_and_munlockall)
{
	assert_ok(mlockall(MCL_CURRENT | MCL_FUTURE));
	assert_ok(mlockall(MCL_CURRENT | MCL_ONFAULT));
	assert_ok(munlockall());
	return KEEPS;
}

/* userfaultfd write-protects an absent page by a marker in its PTE. ALLOC and FREE ignore it. */
static void leave_marker(struct exmap *ex, int fd)
{
	struct uffdio_writeprotect protect = {
		.range = { (uintptr_t)where(ex, ABSENT), PAGE },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	assert_ok(ioctl(fd, UFFDIO_WRITEPROTECT, &protect));
	ck_assert_int_eq(alloc(ex, 0, ABSENT, 1), 1);
	ck_assert_int_eq(release(ex, 0, ABSENT, 1), 1);
}

/*
 * userfaultfd refuses the surface in every mode, with one exception: from 6.7 until 6.12.105,
 * kernels accept asynchronous write protection for any VMA.
 */
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

/* Write each number to clear_refs of a process. Some kernels do not know all of them. */
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

/* clear_refs write-protects pages to see which are written. The surface stays writable. */
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

/* The same holds if another process writes to clear_refs. */
WAY(clear_refs_by_another)
{
	by_another(by_clear_refs, ex);
	return KEEPS;
}

/*
 * mbind, move_pages and the like change nothing, for the node where the pages are and for one that
 * does not exist. They return ENOSYS on a kernel without NUMA.
 */
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

/* msync with each flag changes nothing. */
WAY(msync_of_all)
{
	assert_ok(msync(ex->surface, ex->size, MS_ASYNC));
	assert_ok(msync(ex->surface, ex->size, MS_INVALIDATE));
	msync(ex->surface, ex->size, MS_SYNC);	/* EOPNOTSUPP if there is no backing file */
	return KEEPS;
}

/* remap_file_pages of a part of the surface is refused. */
WAY(remap_file_pages_of_a_part)
{
	ck_assert_int_eq(remap_file_pages(where(ex, 20), PAGE, 0, 0, 0), -1);
	ck_assert_int_eq(remap_file_pages(where(ex, 20), PAGE, 0, 5, 0), -1);
	return KEEPS;
}

/*
 * remap_file_pages of all of the surface maps it again. That fails with EBUSY, but the kernel has
 * removed the old mapping by then.
 */
WAY(remap_file_pages_of_all)
{
	assert_errno(remap_file_pages(ex->surface, ex->size, 0, 0, 0), EBUSY);
	return ENDS;
}

/* A sealed surface works as before, and cannot be unmapped. mseal exists since Linux 6.10. */
WAY(mseal)
{
	if (!syscall(SYS_mseal, ex->surface, ex->size, 0))
		ck_assert_int_eq(munmap(ex->surface, ex->size), -1);
	return KEEPS;
}

/*
 * NUMA balancing: it makes PTEs inaccessible, to see which thread touches a page
 */
#define NUMA_BALANCING "/proc/sys/kernel/numa_balancing"

/* A thread that does nothing. */
static void *idle(void *arg)
{
	pause();
	return NULL;
}

/* Touch some pages. Returns how many page faults that took. */
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
 * NUMA balancing leaves the surface alone. Page faults in other memory of the process show that
 * it is at work. Only root can turn it on.
 */
TEST(numa_balancing_overlooks_the_surface, .needs = NUMA_BALANCING)
{
	int fd = open(NUMA_BALANCING, O_WRONLY | O_CLOEXEC);
	struct exmap *ex = stamped_exmap(-1);
	char before = '0' + number_in(NUMA_BALANCING);
	long surface = 0, seen = 0, faults;
	unsigned long mask = 1;
	pthread_t thread;
	char *other;

	assert_ok(fd);
	other = mmap(NULL, BATCH * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ok(other);
	/* A huge page would take one fault for all of its pages. */
	assert_ok(madvise(other, BATCH * PAGE, MADV_NOHUGEPAGE));
	memset(other, 1, BATCH * PAGE);
	/* Ask for it: MPOL_BIND (2) with MPOL_F_NUMA_BALANCING (1 << 13). */
	syscall(SYS_mbind, ex->surface, ex->size, 2 | 1 << 13, &mask, 64, 0);
	/* In a process of one thread the kernel skips pages that are on the node of that thread. */
	ck_assert(!pthread_create(&thread, NULL, idle, NULL));
	ck_assert_int_eq(write(fd, "1", 1), 1);
	/*
	 * When NUMA balancing has been at @other three times, it has gone through all memory of
	 * the process twice. If the cpuset has only one node, it never comes. A pass over the
	 * surface may meet a few faults in the stack, in code and in data.
	 */
	while (seen < 3 && clock() < 60 * CLOCKS_PER_SEC) {
		seen += faults_in(other, BATCH) > BATCH / 2;
		faults = faults_in(ex->surface, KEPT);
		if (faults > surface)
			surface = faults;
	}
	ck_assert_int_eq(pwrite(fd, &before, 1, 0), 1);
	ck_assert_int_lt(surface, KEPT / 2);
	assert_fate(ex, KEEPS);
}

/* An interface's mapping is changed while another thread uses its entries by another mapping. */
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
	/* If advice has taken the page away, it must come back as it was. */
	if (peek(there + 4088, &value))
		ck_assert_uint_eq(value, 1);
	assert_ok(munmap(there, PAGE));
	return KEEPS;
}

int main(int argc, char **argv)
{
	return check_main(argc, argv,
			  "Tests of system calls that change the mapping of a surface.");
}
