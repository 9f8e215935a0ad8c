// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of system calls that change the surface as a mapping, made by a user without privileges:
 * munmap, mmap, mremap, mprotect, madvise, mlock, userfaultfd, clear_refs, and those of NUMA.
 */
#include <linux/userfaultfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
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
	struct exmap *ex = stamped_exmap(-1);
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

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of the exmap module: what system calls do to the mapping of a surface.");
}
