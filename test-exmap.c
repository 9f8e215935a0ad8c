// SPDX-License-Identifier: GPL-2.0
/*
 * Functional tests: one per behaviour and per refusal of the interface. Each
 * looks not only at what a call returns but at what it left behind.
 */
#include <linux/kvm.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "tests/common.h"
#include "tests/stale.h"

/* The numbers of the interface: existing binaries have them built in. */
#define assert_at(type, field, offset) \
	_Static_assert(offsetof(struct type, field) == (offset), #type "." #field)
#define assert_size(type, size) _Static_assert(sizeof(struct type) == (size), #type)

assert_size(exmap_ioctl_setup, 24);
assert_at(exmap_ioctl_setup, fd, 0);
assert_at(exmap_ioctl_setup, max_interfaces, 4);
assert_at(exmap_ioctl_setup, buffer_size, 8);
assert_at(exmap_ioctl_setup, flags, 16);
assert_size(exmap_action_params, 16);
assert_at(exmap_action_params, interface, 0);
assert_at(exmap_action_params, iov_len, 2);
assert_at(exmap_action_params, opcode, 4);
assert_at(exmap_action_params, flags, 8);
assert_size(exmap_ioctl_stats, 32);
assert_at(exmap_ioctl_stats, flags, 0);
assert_at(exmap_ioctl_stats, buffer_size, 8);
assert_at(exmap_ioctl_stats, alloc_count, 16);
assert_at(exmap_ioctl_stats, max_interfaces, 24);
assert_size(exmap_iov, 8);
assert_at(exmap_iov, res, 0);
assert_at(exmap_iov, pages, 4);
assert_size(exmap_user_interface, 4096);
_Static_assert(EXMAP_IOCTL_SETUP == 0x40186b01, "EXMAP_IOCTL_SETUP");
_Static_assert(EXMAP_IOCTL_ACTION == 0x40106b02, "EXMAP_IOCTL_ACTION");
_Static_assert(EXMAP_IOCTL_CLONE == 0x40046b03, "EXMAP_IOCTL_CLONE");
_Static_assert(EXMAP_IOCTL_STATS == 0x40206b04, "EXMAP_IOCTL_STATS");
_Static_assert(EXMAP_OP_READ == 0 && EXMAP_OP_ALLOC == 1 && EXMAP_OP_FREE == 2 &&
	       EXMAP_OP_WRITE == 3, "opcodes");
_Static_assert(EXMAP_ALLOC_PROBE == 1 && EXMAP_PAGEFAULT_ALLOC == 2, "flags");
_Static_assert(EXMAP_OFF_EXMAP == 0 && EXMAP_OFF_PTEXPORT == 0x1000000000000000 &&
	       EXMAP_OFF_INTERFACE(3) == 0xe000000000003000 &&
	       EXMAP_OFF_INTERFACE_MAX == 0xf000000000000000, "offsets");
_Static_assert(EXMAP_USER_INTERFACE_PAGES == 512 && EXMAP_PAGE_LEN_BITS == 12 &&
	       EXMAP_PAGE_MAX_PAGES == 4096 && EXMAP_MAX_INTERFACES == 1024, "limits");

/*
 * SETUP
 */
TEST(setup_reports_in_stats)
{
	struct exmap *ex = exmap_new_flags(MIB, 100, 3, EXMAP_PAGEFAULT_ALLOC);
	struct exmap_ioctl_stats s = stats(ex);

	ck_assert_uint_eq(s.flags, EXMAP_PAGEFAULT_ALLOC);
	ck_assert_uint_eq(s.buffer_size, 100);
	ck_assert_uint_eq(s.alloc_count, 0);
	ck_assert_uint_eq(s.max_interfaces, 3);
}

TEST(setup_twice_is_ebusy)
{
	struct exmap *ex = exmap_new(MIB, 100, 1);

	assert_errno(exmap_setup(ex->fd, 2, 50, 0), EBUSY);
	ck_assert_uint_eq(stats(ex).buffer_size, 100);
	ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
}

/* After SETUP with that word, these flags hold; STATS and a touch tell. */
static void setup_has_flags(uint64_t word, uint64_t flags)
{
	int fd = exmap_open(), zero = open("/dev/zero", O_RDONLY);
	char *surface = map_surface(fd, MIB);
	struct exmap_ioctl_stats stats;

	assert_ok(surface);
	assert_ok(exmap_setup(fd, 1, 10, word));
	assert_ok(ioctl(fd, EXMAP_IOCTL_STATS, &stats));
	ck_assert_msg(stats.flags == flags, "SETUP with flags %#lx: STATS says %#lx, expected %#lx",
		      word, stats.flags, flags);
	if (flags & EXMAP_PAGEFAULT_ALLOC)
		ck_assert_int_eq(read(zero, surface, 1), 1);
	else
		assert_errno(read(zero, surface, 1), EFAULT);
	assert_ok(munmap(surface, MIB));
	assert_ok(close(zero));
	assert_ok(close(fd));
}

/* Programs for the published module do not set the word. */
TEST(setup_word_with_an_unknown_flag_counts_as_0)
{
	setup_has_flags(0x383131ffffffdc38, 0);	/* seen in LeanStore */
	setup_has_flags(UINT64_MAX, 0);
	setup_has_flags(EXMAP_PAGEFAULT_ALLOC, EXMAP_PAGEFAULT_ALLOC);
	for (int bit = 0; bit < 64; bit++) {
		if (1UL << bit == EXMAP_PAGEFAULT_ALLOC)
			continue;
		setup_has_flags(1UL << bit, 0);
		setup_has_flags(1UL << bit | EXMAP_PAGEFAULT_ALLOC, 0);
	}
}

TEST(setup_interfaces_out_of_range_is_einval)
{
	int fd = exmap_open();

	assert_errno(exmap_setup(fd, 0, 1, 0), EINVAL);
	assert_errno(exmap_setup(fd, -1, 1, 0), EINVAL);
	assert_errno(exmap_setup(fd, EXMAP_MAX_INTERFACES + 1, 1, 0), EINVAL);
	assert_errno(exmap_setup(fd, INT32_MAX, 1, 0), EINVAL);
	assert_ok(exmap_setup(fd, EXMAP_MAX_INTERFACES, 1, 0));
}

TEST(setup_pool_out_of_range_is_einval)
{
	int fd = exmap_open();

	assert_errno(exmap_setup(fd, 1, 0, 0), EINVAL);
	assert_errno(exmap_setup(fd, 1, SIZE_MAX, 0), EINVAL);
	assert_errno(exmap_setup(fd, 1, 1UL << 52, 0), EINVAL);
	assert_ok(exmap_setup(fd, 1, 1, 0));
}

TEST(setup_pool_as_large_as_the_address_space)
{
	int fd = exmap_open();

	/* With four levels of page tables: as many pages as there are addresses. */
	assert_errno(exmap_setup(fd, 1, 1UL << 35, 0), EINVAL);
	assert_ok(exmap_setup(fd, 1, (1UL << 35) - 1, 0));
}

TEST(setup_bad_pointer_is_efault)
{
	assert_errno(ioctl(exmap_open(), EXMAP_IOCTL_SETUP, NULL), EFAULT);
	assert_errno(ioctl(exmap_open(), EXMAP_IOCTL_SETUP, -1L), EFAULT);
}

TEST(setup_fd_that_is_not_open_is_ebadf)
{
	struct exmap_ioctl_setup setup = { .fd = 999, .max_interfaces = 1, .buffer_size = 1 };
	int fd = exmap_open();

	assert_errno(ioctl(fd, EXMAP_IOCTL_SETUP, &setup), EBADF);
	setup.fd = -2;
	assert_errno(ioctl(fd, EXMAP_IOCTL_SETUP, &setup), EBADF);
	assert_ok(exmap_setup(fd, 1, 1, 0));
}

/* What cannot be a backing file is refused, and nothing is set up. */
TEST(setup_backing_fd_that_cannot_work)
{
	struct exmap_ioctl_setup setup = { .max_interfaces = 1, .buffer_size = 1 };
	int fd = exmap_open(), pipes[2];

	assert_ok(pipe(pipes));
	setup.fd = pipes[0];
	assert_errno(ioctl(fd, EXMAP_IOCTL_SETUP, &setup), ESPIPE);
	setup.fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_errno(ioctl(fd, EXMAP_IOCTL_SETUP, &setup), ESPIPE);
	setup.fd = open("/tmp", O_RDONLY);
	assert_errno(ioctl(fd, EXMAP_IOCTL_SETUP, &setup), EISDIR);
	setup.fd = open("/tmp", O_WRONLY | O_TMPFILE, 0600);
	assert_errno(ioctl(fd, EXMAP_IOCTL_SETUP, &setup), EBADF);
	setup.fd = open("/dev/zero", O_RDWR);
	assert_errno(ioctl(fd, EXMAP_IOCTL_SETUP, &setup), EINVAL);
	setup.fd = fd;
	assert_errno(ioctl(fd, EXMAP_IOCTL_SETUP, &setup), EINVAL);
	assert_ok(exmap_setup(fd, 1, 1, 0));
}

TEST(setup_above_memlock_is_enomem)
{
	int fd = exmap_open(), fd2 = exmap_open();

	/* Of each a page is for what the interfaces take before they are used. */
	set_memlock(100 * PAGE);
	drop_privileges();
	assert_errno(exmap_setup(fd, 1, 101, 0), ENOMEM);
	assert_errno(exmap_setup(fd, 1, 100, 0), ENOMEM);
	assert_ok(exmap_setup(fd, 1, 59, 0));
	/* It counts for the user, not for each exmap. */
	assert_errno(exmap_setup(fd2, 1, 40, 0), ENOMEM);
	assert_ok(exmap_setup(fd2, 1, 39, 0));
	/* And is given back. */
	close(fd);
	assert_ok(exmap_setup(exmap_open(), 1, 59, 0));
}

TEST(setup_with_memlock_of_zero_is_eperm)
{
	int fd = exmap_open();

	set_memlock(0);
	drop_privileges();
	assert_errno(exmap_setup(fd, 1, 1, 0), EPERM);
}

TEST(setup_with_cap_ipc_lock_has_no_limit)
{
	set_memlock(0);
	assert_ok(exmap_setup(exmap_open(), 1, 1000, 0));
}

/* Nothing is taken before it is needed. */
TEST(setup_of_a_large_pool_takes_no_memory)
{
	long before = available_kib();

	exmap_new(TIB, GIB / PAGE, 1);
	assert_available(before, 100 * 1024);
}

/*
 * mmap
 */
TEST(mmap_surface_after_setup)
{
	struct exmap ex = { .fd = exmap_open() };

	assert_ok(exmap_setup(ex.fd, 1, 10, 0));
	ex.surface = map_surface(ex.fd, MIB);
	assert_ok(ex.surface);
	ex.interface[0] = map_interface(ex.fd, 0);
	ck_assert_int_eq(alloc(&ex, 0, 7, 1), 1);
	ex.surface[7 * PAGE] = 1;
}

TEST(mmap_surface_twice_is_ebusy)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	assert_errno(map_surface(ex->fd, MIB), EBUSY);
	ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
	assert_ok(munmap(ex->surface, ex->size));
	assert_errno(map_surface(ex->fd, MIB), EBUSY);
}

TEST(mmap_private_is_einval)
{
	int fd = exmap_open();

	assert_ok(exmap_setup(fd, 1, 10, 0));
	assert_errno(mmap(NULL, MIB, PROT_READ, MAP_PRIVATE, fd, EXMAP_OFF_EXMAP), EINVAL);
	assert_errno(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, EXMAP_OFF_INTERFACE(0)), EINVAL);
	assert_ok(map_surface(fd, MIB));
}

TEST(mmap_without_access_is_einval)
{
	int fd = exmap_open();

	assert_errno(mmap(NULL, MIB, PROT_NONE, MAP_SHARED, fd, EXMAP_OFF_EXMAP), EINVAL);
	assert_ok(map_surface(fd, MIB));
}

TEST(mmap_offsets_in_between_are_einval)
{
	int fd = exmap_open();

	assert_ok(exmap_setup(fd, 1, 10, 0));
	assert_errno(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, EXMAP_OFF_PTEXPORT), EINVAL);
	assert_errno(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, PAGE), EINVAL);
	assert_errno(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd,
			  EXMAP_OFF_INTERFACE_BASE - PAGE), EINVAL);
	assert_errno(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, EXMAP_OFF_INTERFACE_MAX), EINVAL);
	assert_ok(map_surface(fd, MIB));
}

TEST(mmap_interface_out_of_range_is_enxio)
{
	int fd = exmap_open();

	assert_errno(map_interface(fd, 0), ENXIO);
	assert_ok(exmap_setup(fd, 2, 10, 0));
	assert_ok(map_interface(fd, 0));
	assert_ok(map_interface(fd, 1));
	assert_errno(map_interface(fd, 2), ENXIO);
	assert_errno(map_interface(fd, EXMAP_MAX_INTERFACES), ENXIO);
	assert_errno(map_interface(fd, (EXMAP_OFF_INTERFACE_MAX - PAGE -
					EXMAP_OFF_INTERFACE_BASE) / PAGE), ENXIO);
}

TEST(mmap_interface_of_two_pages_is_einval)
{
	int fd = exmap_open();

	assert_ok(exmap_setup(fd, 2, 10, 0));
	assert_errno(mmap(NULL, 2 * PAGE, PROT_READ, MAP_SHARED, fd, EXMAP_OFF_INTERFACE(0)),
		     EINVAL);
}

/* The same page wherever it is mapped, and empty at first. */
TEST(mmap_interface_twice_is_one_page)
{
	int fd = exmap_open();
	struct exmap_user_interface *a, *b;

	assert_ok(exmap_setup(fd, 2, 10, 0));
	a = map_interface(fd, 1);
	b = map_interface(fd, 1);
	ck_assert(all_bytes((char *)a, 0));
	a->iov[511].value = 12345;
	ck_assert_uint_eq(b->iov[511].value, 12345);
	ck_assert(all_bytes(map_interface(fd, 0), 0));
}

/* It is mapped when it is touched, which may be at once, or after its file is closed. */
TEST(mmap_interface_is_mapped_when_touched)
{
	struct exmap *ex = exmap_new(MIB, 10, 2);
	const struct exmap_user_interface *read_only;
	struct exmap_user_interface *late, *early;
	struct iovec local, remote;
	unsigned char there;
	uint64_t value = 0;

	ex->interface[1]->iov[511].value = 12345;
	read_only = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, ex->fd, EXMAP_OFF_INTERFACE(1));
	assert_ok(read_only);
	ck_assert_uint_eq(read_only->iov[511].value, 12345);
	early = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ex->fd,
		     EXMAP_OFF_INTERFACE(1));
	assert_ok(early);
	assert_ok(mincore(early, PAGE, &there));
	ck_assert_uint_eq(there & 1, 1);
	ck_assert_uint_eq(early->iov[511].value, 12345);
	/* What is taken away comes back as it was. */
	assert_ok(madvise(early, PAGE, MADV_DONTNEED));
	ck_assert_uint_eq(early->iov[511].value, 12345);
	/* By the kernel. */
	late = map_interface(ex->fd, 1);
	assert_ok(late);
	local = (struct iovec){ .iov_base = &value, .iov_len = 8 };
	remote = (struct iovec){ .iov_base = &late->iov[511], .iov_len = 8 };
	ck_assert_int_eq(process_vm_readv(getpid(), &local, 1, &remote, 1, 0), 8);
	ck_assert_uint_eq(value, 12345);
	late = map_interface(ex->fd, 1);
	assert_ok(late);
	assert_ok(mlockall(MCL_CURRENT | MCL_FUTURE));
	assert_ok(munlockall());
	close(ex->fd);
	assert_ok(munmap(ex->surface, ex->size));
	late->iov[510].value = 54321;
	ck_assert_uint_eq(read_only->iov[510].value, 54321);
}

TEST(surface_read_only, .signal = SIGSEGV)
{
	struct exmap ex = { .fd = exmap_open() };

	ex.surface = mmap(NULL, MIB, PROT_READ, MAP_SHARED, ex.fd, EXMAP_OFF_EXMAP);
	assert_ok(ex.surface);
	assert_ok(exmap_setup(ex.fd, 1, 10, 0));
	ex.interface[0] = map_interface(ex.fd, 0);
	ck_assert_int_eq(alloc(&ex, 0, 0, 1), 1);
	ck_assert_int_eq(ex.surface[0], 0);
	ex.surface[0] = 1;
}

TEST(surface_changes_are_refused)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	ex->surface[0] = 42;
	assert_errno(munmap(ex->surface, PAGE), EINVAL);
	assert_errno(munmap(ex->surface + ex->size - PAGE, PAGE), EINVAL);
	assert_errno(mprotect(ex->surface, ex->size, PROT_READ), EACCES);
	assert_errno(mremap(ex->surface, ex->size, 2 * ex->size, MREMAP_MAYMOVE), EFAULT);
	assert_errno(mremap(ex->surface, ex->size, ex->size / 2, 0), EINVAL);
	ck_assert_int_eq(ex->surface[0], 42);
	assert_mapped(ex, 10);
	ck_assert_int_eq(release(ex, 0, 0, 10), 10);
}

/* The flags of a mapping, from smaps: dd is VM_DONTDUMP, de VM_DONTEXPAND. */
static void assert_vm_flags(void *address, const char *want)
{
	char line[512], key[32];
	bool here = false, seen = false;
	FILE *f = fopen("/proc/self/smaps", "r");

	snprintf(key, sizeof(key), "%lx-", (long)address);
	while (fgets(line, sizeof(line), f)) {
		if (!strncmp(line, key, strlen(key)))
			here = true;
		if (here && !strncmp(line, "VmFlags:", 8)) {
			ck_assert_msg(strstr(line, want), "%s not in %s", want, line);
			seen = true;
			break;
		}
	}
	fclose(f);
	ck_assert(seen);
}

TEST(mappings_are_not_dumped)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	assert_vm_flags(ex->surface, " dd");
	assert_vm_flags(ex->interface[0], " dd");
}

TEST(interface_does_not_grow)
{
	struct exmap *ex = exmap_new(MIB, 10, 2);

	assert_errno(mremap(ex->interface[0], PAGE, 2 * PAGE, MREMAP_MAYMOVE), EFAULT);
}

/* A move is refused, but only after the kernel has had to clear the surface. */
TEST(surface_does_not_move)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);
	char *there = mmap(NULL, ex->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	assert_errno(mremap(ex->surface, ex->size, ex->size, MREMAP_MAYMOVE | MREMAP_FIXED, there),
		     EINVAL);
	ck_assert_int_eq(alloc(ex, 0, 0, 1), -EPROTO);
	assert_mapped(ex, 0);
	ck_assert_uint_eq(resident(ex, 0, 10), 0);
}

TEST(surface_of_16_tib)
{
	static const uint64_t pages[] = {
		0, 511, 512, GIB / PAGE - 1, GIB / PAGE, 512 * GIB / PAGE, 16 * TIB / PAGE - 1,
	};
	struct exmap *ex = exmap_new(16 * TIB, GIB / PAGE, 1);
	const int nr = sizeof(pages) / sizeof(pages[0]);

	for (int i = 0; i < nr; i++)
		entry(ex, 0, i, pages[i], 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_ALLOC, nr, 0), 0);
	for (int i = 0; i < nr; i++) {
		assert_entry(ex, 0, i, 0, 1);
		ck_assert(all_bytes(ex->surface + pages[i] * PAGE, 0));
		memset(ex->surface + pages[i] * PAGE, i + 1, PAGE);
	}
	for (int i = 0; i < nr; i++) {
		ck_assert(all_bytes(ex->surface + pages[i] * PAGE, i + 1));
		ck_assert_uint_eq(resident(ex, pages[i], 1), 1);
		entry(ex, 0, i, pages[i], 1);
	}
	assert_mapped(ex, nr);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_FREE, nr, 0), 0);
	assert_mapped(ex, 0);
}

TEST(surface_of_100_tib_costs_nothing_untouched)
{
	long before = available_kib();
	struct exmap *ex = exmap_new(100 * TIB, 100, 1);

	assert_available(before, 16 * 1024);
	ck_assert_int_eq(alloc(ex, 0, 100 * TIB / PAGE - 1, 1), 1);
	ck_assert_int_eq(alloc(ex, 0, 100 * TIB / PAGE, 1), -EFAULT);
}

/* As LeanStore does it: a little longer than the data, so not in whole tables. */
TEST(surface_of_an_odd_size)
{
	struct exmap *ex = exmap_new(MIB + 64 * 1024, 300, 1);

	ck_assert_int_eq(alloc(ex, 0, 256, 16), 16);
	ck_assert_int_eq(alloc(ex, 0, 271, 1), 0);
	ck_assert_int_eq(alloc(ex, 0, 271, 2), -EFAULT);
	ck_assert_int_eq(alloc(ex, 0, 272, 1), -EFAULT);
	assert_mapped(ex, 16);
}

TEST(several_exmaps_in_one_process)
{
	struct exmap *ex[4];

	for (int i = 0; i < 4; i++) {
		ex[i] = exmap_new(MIB, 10, 1);
		ck_assert_int_eq(alloc(ex[i], 0, 0, 10), 10);
		memset(ex[i]->surface, i + 1, 10 * PAGE);
	}
	assert_ok(munmap(ex[1]->surface, ex[1]->size));
	close(ex[2]->fd);
	for (int i = 0; i < 4; i++)
		if (i != 1)
			ck_assert(all_bytes(ex[i]->surface + 9 * PAGE, i + 1));
	ck_assert_int_eq(release(ex[0], 0, 0, 10), 10);
	ck_assert(all_bytes(ex[3]->surface, 4));
	assert_mapped(ex[3], 10);
}

/*
 * ACTION
 */
TEST(action_before_setup_is_ebadf)
{
	int fd = exmap_open();

	assert_ok(map_surface(fd, MIB));
	assert_errno(action(fd, 0, EXMAP_OP_ALLOC, 1, 0), EBADF);
	assert_errno(action(fd, 0, EXMAP_OP_FREE, 1, 0), EBADF);
}

TEST(action_without_a_surface_is_eproto)
{
	struct exmap ex = { .fd = exmap_open() };

	assert_ok(exmap_setup(ex.fd, 1, 10, 0));
	ex.interface[0] = map_interface(ex.fd, 0);
	ck_assert_int_eq(alloc(&ex, 0, 0, 1), -EPROTO);
	ck_assert_int_eq(release(&ex, 0, 0, 1), -EPROTO);
}

TEST(action_after_munmap_is_eproto)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	assert_ok(munmap(ex->surface, ex->size));
	ck_assert_int_eq(alloc(ex, 0, 20, 1), -EPROTO);
	ck_assert_int_eq(release(ex, 0, 0, 1), -EPROTO);
	assert_mapped(ex, 0);
}

/* Nobody told us, since without a pool there is nothing to tell. */
TEST(action_after_munmap_before_setup_is_eproto)
{
	struct exmap a = { .fd = exmap_open(), .size = MIB };
	struct exmap b = { .fd = exmap_open(), .size = MIB };

	a.surface = map_surface(a.fd, a.size);
	assert_ok(munmap(a.surface, a.size));
	/* Another's surface takes its place. */
	b.surface = mmap(a.surface, b.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, b.fd,
			 EXMAP_OFF_EXMAP);
	ck_assert_ptr_eq(b.surface, a.surface);
	assert_ok(exmap_setup(b.fd, 1, 10, 0));
	b.interface[0] = map_interface(b.fd, 0);
	ck_assert_int_eq(alloc(&b, 0, 0, 10), 10);
	assert_ok(exmap_setup(a.fd, 1, 10, 0));
	a.interface[0] = map_interface(a.fd, 0);
	ck_assert_int_eq(release(&a, 0, 0, 10), -EPROTO);
	ck_assert_int_eq(alloc(&a, 0, 0, 10), -EPROTO);
	assert_ok(munmap(a.interface[0], PAGE));
	close(a.fd);
	assert_mapped(&b, 10);
	ck_assert_int_eq(release(&b, 0, 0, 10), 10);
}

TEST(action_out_of_range_is_einval)
{
	struct exmap *ex = exmap_new(MIB, 10, 2);

	assert_errno(action(ex->fd, 2, EXMAP_OP_ALLOC, 1, 0), EINVAL);
	assert_errno(action(ex->fd, 65535, EXMAP_OP_ALLOC, 1, 0), EINVAL);
	assert_errno(action(ex->fd, 0, EXMAP_OP_FLUSH + 1, 1, 0), EINVAL);
	assert_errno(action(ex->fd, 0, 65535, 1, 0), EINVAL);
	assert_errno(action(ex->fd, 0, EXMAP_OP_ALLOC, 513, 0), EINVAL);
	assert_errno(action(ex->fd, 0, EXMAP_OP_FREE, 65535, 0), EINVAL);
	for (int bit = 0; bit < 64; bit++)
		if (1UL << bit != EXMAP_ALLOC_PROBE)
			assert_errno(action(ex->fd, 0, EXMAP_OP_ALLOC, 1, 1UL << bit), EINVAL);
	assert_mapped(ex, 0);
}

TEST(action_bad_pointer_is_efault)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	assert_errno(ioctl(ex->fd, EXMAP_IOCTL_ACTION, NULL), EFAULT);
	assert_errno(ioctl(ex->fd, EXMAP_IOCTL_ACTION, ex->surface), EFAULT);
}

TEST(action_of_no_entries_does_nothing)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	entry(ex, 0, 0, 5, 1);
	for (int op = EXMAP_OP_READ; op <= EXMAP_OP_WRITE; op++)
		ck_assert_int_eq(action(ex->fd, 0, op, 0, 0), 0);
	ck_assert_uint_eq(ex->interface[0]->iov[0].value, 1UL << 52 | 5);
	assert_mapped(ex, 0);
}

TEST(action_of_no_entries_is_checked)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	assert_errno(action(ex->fd, 0, EXMAP_OP_FLUSH + 1, 0, 0), EINVAL);
	assert_errno(action(ex->fd, 1, EXMAP_OP_ALLOC, 0, 0), EINVAL);
	assert_errno(action(ex->fd, 0, EXMAP_OP_ALLOC, 0, 2), EINVAL);
}

TEST(action_read_write_without_backing_is_eopnotsupp)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	ck_assert_int_eq(run(ex, 0, EXMAP_OP_READ, 0, 1), -EOPNOTSUPP);
	ck_assert_int_eq(run(ex, 0, EXMAP_OP_WRITE, 0, 1), -EOPNOTSUPP);
	assert_mapped(ex, 0);
}

/* An interface that was never mapped holds empty entries. */
TEST(action_on_an_unmapped_interface)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);
	int fd = exmap_open();

	assert_ok(map_surface(fd, MIB));
	assert_ok(exmap_setup(fd, 2, 10, 0));
	ck_assert_int_eq(action(fd, 1, EXMAP_OP_ALLOC, 512, 0), 0);
	ck_assert_int_eq(action(fd, 1, EXMAP_OP_FREE, 512, 0), 0);
	assert_mapped(ex, 0);
}

TEST(ioctl_unknown_is_enotty)
{
	int fd = exmap_open();

	assert_errno(ioctl(fd, _IOC(_IOC_WRITE, 'k', 5, 4), 0), ENOTTY);
	assert_errno(ioctl(fd, _IOC(_IOC_WRITE, 'k', 0, 4), 0), ENOTTY);
	assert_errno(ioctl(fd, _IOC(_IOC_WRITE, 'k', 1, 4), 0), ENOTTY);
}

/*
 * ALLOC
 */
TEST(alloc_maps_single_pages)
{
	struct exmap *ex = exmap_new(64 * MIB, 600, 1);

	for (int i = 0; i < 512; i++)
		entry(ex, 0, i, i * 31, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_ALLOC, 512, 0), 0);
	for (int i = 0; i < 512; i++) {
		assert_entry(ex, 0, i, 0, 1);
		ck_assert_uint_eq(resident(ex, i * 31, 31), 1);
		ck_assert(all_bytes(ex->surface + i * 31 * PAGE, 0));
		memset(ex->surface + i * 31 * PAGE, i, PAGE);
	}
	/* No page is mapped twice. */
	for (int i = 0; i < 512; i++)
		ck_assert(all_bytes(ex->surface + i * 31 * PAGE, i));
	assert_mapped(ex, 512);
}

TEST(alloc_maps_a_run)
{
	struct exmap *ex = exmap_new(64 * MIB, 5000, 1);

	ck_assert_int_eq(alloc(ex, 0, 777, 4095), 4095);
	ck_assert_uint_eq(resident(ex, 776, 4096), 4095);
	ck_assert_uint_eq(resident(ex, 777, 4096), 4095);
	for (uint64_t page = 777; page < 777 + 4095; page++) {
		ck_assert(all_bytes(ex->surface + page * PAGE, 0));
		memset(ex->surface + page * PAGE, page % 251, PAGE);
	}
	for (uint64_t page = 777; page < 777 + 4095; page++)
		ck_assert(all_bytes(ex->surface + page * PAGE, page % 251));
	assert_mapped(ex, 4095);
}

TEST(alloc_leaves_what_is_mapped)
{
	struct exmap *ex = exmap_new(MIB, 100, 1);

	ck_assert_int_eq(alloc(ex, 0, 10, 1), 1);
	memset(ex->surface + 10 * PAGE, 'x', PAGE);
	ck_assert_int_eq(alloc(ex, 0, 10, 1), 0);
	ck_assert_int_eq(alloc(ex, 0, 8, 5), 4);
	ck_assert(all_bytes(ex->surface + 10 * PAGE, 'x'));
	ck_assert(all_bytes(ex->surface + 11 * PAGE, 0));
	assert_mapped(ex, 5);
}

TEST(alloc_outside_the_surface_is_efault)
{
	struct exmap *ex = exmap_new(MIB, 300, 1);
	static const struct { uint64_t page; unsigned int len; } bad[] = {
		{ 256, 1 }, { 255, 2 }, { 0, 257 }, { 257, 0 }, { 1UL << 40, 1 },
		{ (1UL << 52) - 1, 1 }, { (1UL << 52) - 1, 4095 }, { (1UL << 52) - 4095, 4095 },
	};
	const int nr = sizeof(bad) / sizeof(bad[0]);

	for (int i = 0; i < nr; i++)
		entry(ex, 0, 2 * i, bad[i].page, bad[i].len);
	for (int i = 0; i < nr; i++)
		entry(ex, 0, 2 * i + 1, i, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_ALLOC, 2 * nr, 0), nr);
	for (int i = 0; i < nr; i++) {
		assert_entry(ex, 0, 2 * i, -EFAULT, 0);
		assert_entry(ex, 0, 2 * i + 1, 0, 1);
	}
	ck_assert_uint_eq(resident(ex, 0, 256), nr);
	assert_mapped(ex, nr);

	for (int i = 0; i < nr; i++)
		entry(ex, 0, i, bad[i].page, bad[i].len);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_FREE, nr, 0), nr);
	for (int i = 0; i < nr; i++)
		assert_entry(ex, 0, i, -EFAULT, 0);
	assert_mapped(ex, nr);
}

TEST(alloc_of_empty_entries)
{
	struct exmap *ex = exmap_new(MIB, 300, 1);

	ck_assert_int_eq(alloc(ex, 0, 0, 0), 0);
	ck_assert_int_eq(alloc(ex, 0, 256, 0), 0);
	assert_mapped(ex, 0);
}

/* Clients retry such a call as it is. */
TEST(alloc_first_entry_without_memory_is_enomem_and_untouched)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);
	struct exmap_user_interface before;

	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	for (int i = 0; i < 512; i++)
		entry(ex, 0, i, 100 + i % 50, 1);
	before = *ex->interface[0];
	assert_errno(action(ex->fd, 0, EXMAP_OP_ALLOC, 512, 0), ENOMEM);
	ck_assert_mem_eq(&before, ex->interface[0], PAGE);
	assert_mapped(ex, 10);
	ck_assert_uint_eq(resident(ex, 0, 256), 10);
}

TEST(alloc_later_entry_without_memory_is_a_count)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	entry(ex, 0, 0, 0, 4);
	entry(ex, 0, 1, 1000, 1);
	entry(ex, 0, 2, 4, 6);
	entry(ex, 0, 3, 20, 1);
	entry(ex, 0, 4, 0, 1);
	entry(ex, 0, 5, 21, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_ALLOC, 6, 0), 4);
	assert_entry(ex, 0, 0, 0, 4);
	assert_entry(ex, 0, 1, -EFAULT, 0);
	assert_entry(ex, 0, 2, 0, 6);
	for (int i = 3; i < 6; i++)
		assert_entry(ex, 0, i, -ENOMEM, 0);
	assert_mapped(ex, 10);
	ck_assert_uint_eq(resident(ex, 0, 10), 10);
	ck_assert_uint_eq(resident(ex, 10, 246), 0);
}

/* An entry is overwritten already, so this is not a call that did nothing. */
TEST(alloc_without_memory_after_an_answer_is_a_count)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	entry(ex, 0, 0, 1000, 1);
	entry(ex, 0, 1, 20, 1);
	entry(ex, 0, 2, 1000, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_ALLOC, 3, 0), 3);
	assert_entry(ex, 0, 0, -EFAULT, 0);
	assert_entry(ex, 0, 1, -ENOMEM, 0);
	assert_entry(ex, 0, 2, -ENOMEM, 0);
	/* Likewise after one that needed no page. */
	entry(ex, 0, 0, 0, 1);
	entry(ex, 0, 1, 20, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_ALLOC, 2, 0), 1);
	assert_entry(ex, 0, 0, 0, 0);
	assert_entry(ex, 0, 1, -ENOMEM, 0);
}

/* All of an entry or nothing of it. */
TEST(alloc_without_memory_leaves_none_of_the_entry)
{
	struct exmap *ex = exmap_new(64 * MIB, 3000, 2);

	ck_assert_int_eq(alloc(ex, 0, 0, 100), 100);
	ck_assert_int_eq(alloc(ex, 0, 1000, 2901), -ENOMEM);
	ck_assert_int_eq(alloc(ex, 0, 1000, 4095), -ENOMEM);
	ck_assert_uint_eq(resident(ex, 1000, 4095), 0);
	assert_mapped(ex, 100);
	/* What it had got together is there for others. */
	ck_assert_int_eq(alloc(ex, 1, 1000, 2900), 2900);
	ck_assert_int_eq(alloc(ex, 0, 5000, 1), -ENOMEM);
	/* What is mapped needs no page. */
	ck_assert_int_eq(alloc(ex, 0, 0, 100), 0);
	ck_assert_int_eq(release(ex, 0, 50, 1), 1);
	ck_assert_int_eq(alloc(ex, 0, 0, 100), 1);
	assert_mapped(ex, 3000);
}

TEST(alloc_probe_skips_entries_that_are_there)
{
	struct exmap *ex = exmap_new(MIB, 100, 1);

	ck_assert_int_eq(alloc(ex, 0, 10, 1), 1);
	entry(ex, 0, 0, 10, 5);
	entry(ex, 0, 1, 20, 5);
	entry(ex, 0, 2, 9, 3);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_ALLOC, 3, EXMAP_ALLOC_PROBE), 0);
	assert_entry(ex, 0, 0, 0, 0);
	assert_entry(ex, 0, 1, 0, 5);
	assert_entry(ex, 0, 2, 0, 2);
	ck_assert_uint_eq(resident(ex, 9, 3), 3);
	ck_assert_uint_eq(resident(ex, 12, 8), 0);
	assert_mapped(ex, 8);
}

TEST(alloc_probe_looks_at_the_first_page_only)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	ck_assert_int_eq(alloc(ex, 0, 10, 1), 1);
	entry(ex, 0, 0, 8, 3);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_ALLOC, 1, EXMAP_ALLOC_PROBE), 0);
	assert_entry(ex, 0, 0, 0, 2);
}

TEST(alloc_probe_needs_no_memory_for_what_it_skips)
{
	struct exmap *ex = exmap_new(MIB, 1, 1);

	ck_assert_int_eq(alloc(ex, 0, 10, 1), 1);
	entry(ex, 0, 0, 10, 5);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_ALLOC, 1, EXMAP_ALLOC_PROBE), 0);
	assert_entry(ex, 0, 0, 0, 0);
}

TEST(alloc_fresh_pages_are_zero)
{
	struct exmap *ex;

	/* Leave something behind in the system's free pages. */
	for (int round = 0; round < 3; round++) {
		ex = exmap_new(64 * MIB, 4095, 1);
		ck_assert_int_eq(alloc(ex, 0, 0, 4095), 4095);
		for (int i = 0; i < 4095; i++)
			ck_assert(all_bytes(ex->surface + i * PAGE, 0));
		memset(ex->surface, 0xff, 4095 * PAGE);
		assert_ok(munmap(ex->surface, ex->size));
		close(ex->fd);
	}
}

TEST(alloc_recycled_pages_hold_what_was_in_them)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);
	bool seen[256] = { };

	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	for (int i = 0; i < 10; i++)
		memset(ex->surface + i * PAGE, i + 1, PAGE);
	ck_assert_int_eq(release(ex, 0, 0, 10), 10);
	ck_assert_int_eq(alloc(ex, 0, 100, 10), 10);
	for (int i = 100; i < 110; i++) {
		unsigned char byte = ex->surface[i * PAGE];

		ck_assert(byte >= 1 && byte <= 10 && !seen[byte]);
		ck_assert(all_bytes(ex->surface + i * PAGE, byte));
		seen[byte] = true;
	}
}

/*
 * FREE
 */
TEST(free_unmaps)
{
	struct exmap *ex = exmap_new(64 * MIB, 5000, 1);

	ck_assert_int_eq(alloc(ex, 0, 100, 4000), 4000);
	memset(ex->surface + 100 * PAGE, 1, 4000 * PAGE);
	for (int i = 0; i < 500; i++)
		entry(ex, 0, i, 100 + i * 8, i % 3);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_FREE, 500, 0), 0);
	for (int i = 0; i < 500; i++) {
		assert_entry(ex, 0, i, 0, i % 3);
		ck_assert_uint_eq(resident(ex, 100 + i * 8, 8), 8 - i % 3);
	}
	assert_mapped(ex, 4000 - 499);
	ck_assert_int_eq(release(ex, 0, 5, 4095), 4000 - 499);
	assert_mapped(ex, 0);
	ck_assert_uint_eq(resident(ex, 0, 4096), 0);
}

TEST(free_of_what_is_not_mapped_is_nothing)
{
	struct exmap *ex = exmap_new(16 * TIB, 10, 1);

	ck_assert_int_eq(release(ex, 0, 0, 4095), 0);
	ck_assert_int_eq(release(ex, 0, 15 * TIB / PAGE, 4095), 0);
	ck_assert_int_eq(alloc(ex, 0, 15 * TIB / PAGE, 2), 2);
	ck_assert_int_eq(release(ex, 0, 15 * TIB / PAGE - 5, 4095), 2);
	ck_assert_int_eq(release(ex, 0, 15 * TIB / PAGE, 2), 0);
	assert_mapped(ex, 0);
}

TEST(free_pages_go_to_the_interface_that_freed_them)
{
	struct exmap *ex = exmap_new(MIB, 20, 2);

	ck_assert_int_eq(alloc(ex, 0, 0, 20), 20);
	memset(ex->surface + 5 * PAGE, 'z', PAGE);
	ck_assert_int_eq(release(ex, 1, 5, 1), 1);
	ck_assert_int_eq(alloc(ex, 1, 100, 1), 1);
	ck_assert(all_bytes(ex->surface + 100 * PAGE, 'z'));
	assert_mapped(ex, 20);
}

TEST(touch_read_of_a_page_that_is_not_there, .signal = SIGSEGV)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	ck_assert_int_eq(alloc(ex, 0, 4, 1), 1);
	ck_assert_int_eq(ex->surface[4 * PAGE], 0);
	*(volatile char *)(ex->surface + 5 * PAGE);
}

TEST(touch_write_to_a_freed_page, .signal = SIGSEGV)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	ck_assert_int_eq(alloc(ex, 0, 4, 1), 1);
	ex->surface[4 * PAGE] = 1;
	ck_assert_int_eq(release(ex, 0, 4, 1), 1);
	ex->surface[4 * PAGE] = 1;
}

static sigjmp_buf segv_jump;
static volatile void *segv_address;

static void on_segv(int sig, siginfo_t *info, void *context)
{
	segv_address = info->si_addr;
	siglongjmp(segv_jump, 1);
}

static void catch_segv(void)
{
	struct sigaction sa = { .sa_sigaction = on_segv, .sa_flags = SA_SIGINFO };

	assert_ok(sigaction(SIGSEGV, &sa, NULL));
	assert_ok(sigaction(SIGBUS, &sa, NULL));
}

/* vmcache catches it, looks at the address, and goes on. */
TEST(touch_signal_tells_the_address)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);
	volatile char *where = ex->surface + 33 * PAGE + 123;

	catch_segv();
	if (!sigsetjmp(segv_jump, 1)) {
		*where;
		ck_abort_msg("no signal");
	}
	ck_assert_ptr_eq((void *)segv_address, (void *)where);
	ck_assert_int_eq(alloc(ex, 0, 33, 1), 1);
	ck_assert_int_eq(*where, 0);
}

TEST(touch_by_a_system_call_is_efault)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);
	int fd = open("/dev/zero", O_RDONLY);

	assert_errno(read(fd, ex->surface, 1), EFAULT);
	ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
	ck_assert_int_eq(read(fd, ex->surface, PAGE + 1), PAGE);
}

TEST(free_ignores_probe)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
	entry(ex, 0, 0, 0, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_FREE, 1, EXMAP_ALLOC_PROBE), 0);
	assert_entry(ex, 0, 0, 0, 1);
}

/* By the slow way of get_user_pages(), which looks at the VMA. */
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

/*
 * PAGEFAULT_ALLOC
 */
TEST(pagefault_alloc_maps_what_is_touched)
{
	struct exmap *ex = exmap_new_flags(TIB, 10, 1, EXMAP_PAGEFAULT_ALLOC);

	ck_assert_int_eq(ex->surface[5 * PAGE], 0);
	ex->surface[TIB - 1] = 1;
	ck_assert_uint_eq(resident(ex, 4, 3), 1);
	assert_mapped(ex, 2);
	ck_assert_int_eq(alloc(ex, 0, 5, 2), 1);
	ck_assert_int_eq(release(ex, 0, 5, 2), 2);
	ck_assert_int_eq(release(ex, 0, TIB / PAGE - 1, 1), 1);
	assert_mapped(ex, 0);
	ex->surface[5 * PAGE] = 2;
	assert_mapped(ex, 1);
}

TEST(pagefault_alloc_takes_pages_from_other_interfaces)
{
	struct exmap *ex = exmap_new_flags(MIB, 10, 1, EXMAP_PAGEFAULT_ALLOC);

	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	ck_assert_int_eq(release(ex, 0, 0, 10), 10);
	for (int i = 20; i < 30; i++)
		ex->surface[i * PAGE] = 1;
	assert_mapped(ex, 10);
	ck_assert_int_eq(release(ex, 0, 20, 10), 10);
}

TEST(pagefault_alloc_of_an_empty_pool_is_sigbus, .signal = SIGBUS)
{
	struct exmap *ex = exmap_new_flags(MIB, 10, 1, EXMAP_PAGEFAULT_ALLOC);

	for (int i = 0; i < 10; i++)
		ex->surface[i * PAGE] = 1;
	ex->surface[10 * PAGE] = 1;
}

/* An access by the kernel to a dead surface must end: it could not be killed. */
TEST(pagefault_alloc_on_a_dead_surface_is_efault)
{
	struct exmap *ex = exmap_new_flags(MIB, 10, 1, EXMAP_PAGEFAULT_ALLOC);
	char *there = mmap(NULL, ex->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int pipes[2];

	assert_ok(pipe(pipes));
	ck_assert_int_eq(write(pipes[1], ex->surface, 1), 1);
	assert_errno(mremap(ex->surface, ex->size, ex->size, MREMAP_MAYMOVE | MREMAP_FIXED, there),
		     EINVAL);
	assert_errno(write(pipes[1], ex->surface, 1), EFAULT);
}

/* Nor may one by a task that is being killed while the pool is empty. */
enum { TOUCHERS = 3 };

static pthread_barrier_t touch_barrier;

static void *touching_thread(void *arg)
{
	struct exmap *ex = arg;

	for (;;) {
		pthread_barrier_wait(&touch_barrier);
		*(volatile char *)ex->surface = 1;
		pthread_barrier_wait(&touch_barrier);
	}
	return NULL;
}

/* The pool has one page: who comes too late to get it finds it where it was touched. */
TEST(pagefault_alloc_of_the_same_page_by_threads)
{
	struct exmap *ex = exmap_new_flags(MIB, 1, 1, EXMAP_PAGEFAULT_ALLOC);
	pthread_t thread;

	pthread_barrier_init(&touch_barrier, NULL, TOUCHERS + 1);
	for (int i = 0; i < TOUCHERS; i++)
		ck_assert(!pthread_create(&thread, NULL, touching_thread, ex));
	for (int round = scaled(3000); round; round--) {
		pthread_barrier_wait(&touch_barrier);
		pthread_barrier_wait(&touch_barrier);
		ck_assert_int_eq(release(ex, 0, 0, 1), 1);
	}
}
TEST(pagefault_alloc_can_be_killed)
{
	for (int round = 0; round < 30; round++) {
		pid_t pid = fork();

		if (!pid) {
			int fd = open("/dev/zero", O_RDONLY);
			struct exmap *ex;

			doomed = true;
			ex = exmap_new_flags(64 * MIB, 16000, 1, EXMAP_PAGEFAULT_ALLOC);
			for (;;) {
				if (read(fd, ex->surface, 64 * MIB) < 0)
					_exit(1);
				for (int page = 0; page < 16384; page += 4095)
					release(ex, 0, page, 4095);
			}
		}
		for (volatile long spin = random() % 3000000; spin > 0; spin--)
			;
		kill(pid, SIGKILL);
		wait_child(pid, SIGKILL);
	}
}

/*
 * The pool
 */
TEST(pool_any_free_page_can_be_had)
{
	struct exmap *ex = exmap_new(MIB, 128, 128);

	/* One page in each interface's hands, the system has none left. */
	ck_assert_int_eq(alloc(ex, 0, 0, 128), 128);
	for (int i = 0; i < 128; i++)
		ck_assert_int_eq(release(ex, i, i, 1), 1);
	assert_mapped(ex, 0);
	for (int i = 0; i < 128; i++)
		ck_assert_int_eq(alloc(ex, 77, i, 1), 1);
	assert_mapped(ex, 128);
	ck_assert_int_eq(alloc(ex, 77, 200, 1), -ENOMEM);
	ck_assert_int_eq(release(ex, 3, 9, 1), 1);
	ck_assert_int_eq(alloc(ex, 77, 200, 1), 1);
}

TEST(pool_one_entry_takes_from_all_interfaces)
{
	struct exmap *ex = exmap_new(64 * MIB, 4095, 64);

	ck_assert_int_eq(alloc(ex, 0, 0, 4095), 4095);
	for (int i = 0; i < 4095; i++)
		ck_assert_int_eq(release(ex, i % 64, i, 1), 1);
	ck_assert_int_eq(alloc(ex, 5, 5000, 4095), 4095);
	ck_assert_int_eq(alloc(ex, 6, 0, 1), -ENOMEM);
	assert_mapped(ex, 4095);
}

/* Through the depot: one allocates, the other frees, more than bundles hold. */
TEST(pool_pages_travel_between_interfaces)
{
	struct exmap *ex = exmap_new(64 * MIB, 3000, 2);

	for (int round = 0; round < 50; round++) {
		for (int i = 0; i < 512; i++)
			entry(ex, 0, i, i * 5, 5);
		ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_ALLOC, 512, 0), 0);
		assert_mapped(ex, 2560);
		for (int i = 0; i < 512; i++)
			entry(ex, 1, i, i * 5, 5);
		ck_assert_int_eq(action(ex->fd, 1, EXMAP_OP_FREE, 512, 0), 0);
		assert_mapped(ex, 0);
	}
	ck_assert_int_eq(alloc(ex, 0, 0, 3000), 3000);
}

TEST(pool_1024_interfaces)
{
	struct exmap *ex = exmap_new(MIB, 256, 1024);

	for (int i = 0; i < 1024; i++) {
		ck_assert_int_eq(alloc(ex, i, i % 256, 1), 1);
		ck_assert_int_eq(release(ex, 1023 - i, i % 256, 1), 1);
	}
	assert_mapped(ex, 0);
	ck_assert_int_eq(alloc(ex, 500, 0, 256), 256);
}

struct worker {
	struct exmap *ex;
	int interface;
	int pages;
	int rounds;
	atomic_bool *stop;
	pthread_t thread;
	bool surface_gone;
	char error[128];
};

/* Note what went wrong, the first time that something did. */
static void worker_error(struct worker *w, const char *what, int ret)
{
	if (!w->error[0])
		snprintf(w->error, sizeof(w->error), "%s: returned %d (%s), first entry %d", what,
			 ret, ret < 0 ? strerror(errno) : "-",
			 w->ex->interface[w->interface]->iov[0].res);
}

/* Allocates and frees its own pages. No call may fail. */
static void *honest_worker(void *arg)
{
	struct worker *w = arg;
	uint64_t first = w->interface * 64;
	int ret;

	for (int round = 0; round < w->rounds && !w->error[0]; round++) {
		for (int i = 0; i < w->pages; i++)
			entry(w->ex, w->interface, i, first + i, 1);
		ret = action(w->ex->fd, w->interface, EXMAP_OP_ALLOC, w->pages, 0);
		if (ret) {
			worker_error(w, "ALLOC while pages were free", ret);
			break;
		}
		for (int i = 0; i < w->pages; i++)
			memset(w->ex->surface + (first + i) * PAGE, w->interface, PAGE);
		for (int i = 0; i < w->pages; i++) {
			if (!all_bytes(w->ex->surface + (first + i) * PAGE, w->interface))
				worker_error(w, "a page is somebody else's, too", 0);
			entry(w->ex, w->interface, i, first + i, 1);
		}
		ret = action(w->ex->fd, w->interface, EXMAP_OP_FREE, w->pages, 0);
		if (ret)
			worker_error(w, "FREE", ret);
	}
	return NULL;
}

/*
 * As many pages as the threads can use at a time, so each always finds one free,
 * but mostly in other hands, or on its way there.
 */
TEST(pool_no_false_enomem)
{
	enum { THREADS = 8, PAGES = 3 };
	struct exmap *ex = exmap_new(16 * MIB, THREADS * PAGES, THREADS);
	struct worker w[THREADS];

	for (int i = 0; i < THREADS; i++) {
		w[i] = (struct worker){ .ex = ex, .interface = i, .pages = PAGES,
				       .rounds = scaled(1000) };
		ck_assert(!pthread_create(&w[i].thread, NULL, honest_worker, &w[i]));
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(w[i].thread, NULL);
		ck_assert_msg(!w[i].error[0], "%s", w[i].error);
	}
	assert_mapped(ex, 0);
}

/* A process that does so all the time. */
static pid_t start_shrinking(void)
{
	pid_t pid = fork();

	assert_ok(pid);
	if (pid)
		return pid;
	/* No assertions: they write to a file that is the parent's, too. */
	while (shrink())
		;
	_exit(1);
}

static void stop_shrinking(pid_t pid)
{
	assert_ok(kill(pid, SIGKILL));
	wait_child(pid, SIGKILL);
}

/* All free pages go, wherever they are; those that are mapped stay. */
TEST(shrinker_takes_free_pages)
{
	enum { POOL = 4000, KEPT = 500, SLACK = 1024 };
	struct exmap *ex = exmap_new(64 * MIB, POOL, 2);
	long rss, peak;

	ck_assert_int_eq(alloc(ex, 0, 0, POOL), POOL);
	memset(ex->surface, 'x', POOL * PAGE);
	peak = kib_of("/proc/self/status", "VmRSS:");
	ck_assert_int_eq(release(ex, 0, KEPT, 2000), 2000);
	ck_assert_int_eq(release(ex, 1, KEPT + 2000, 1500), 1500);
	rss = kib_of("/proc/self/status", "RssShmem:");
	ck_assert_int_ge(rss, POOL * 4 - SLACK);

	ck_assert(shrink());
	rss -= kib_of("/proc/self/status", "RssShmem:");
	ck_assert_msg(labs(rss - (POOL - KEPT) * 4) <= SLACK, "%ld KiB were given back", rss);
	ck_assert_int_ge(kib_of("/proc/self/status", "VmHWM:"), peak - SLACK);
	assert_mapped(ex, KEPT);
	for (int page = 0; page < KEPT; page++)
		ck_assert(all_bytes(ex->surface + page * PAGE, 'x'));
	ck_assert_int_eq(alloc(ex, 1, 0, POOL), POOL - KEPT);
	for (int page = KEPT; page < POOL; page++)
		ck_assert(all_bytes(ex->surface + page * PAGE, 0));
	ck_assert_int_eq(alloc(ex, 0, POOL, 1), -ENOMEM);
}

/* Pages that are on their way to the system are no reason for ENOMEM. */
TEST(shrinker_while_calls_run)
{
	enum { THREADS = 4, PAGES = 3, BULK = 2000 };
	struct exmap *ex = exmap_new(64 * MIB, THREADS * PAGES + BULK, THREADS + 2);
	pid_t shrinking = start_shrinking();
	struct worker w[THREADS];

	for (int i = 0; i < THREADS; i++) {
		w[i] = (struct worker){ .ex = ex, .interface = i, .pages = PAGES,
				       .rounds = scaled(1000) };
		ck_assert(!pthread_create(&w[i].thread, NULL, honest_worker, &w[i]));
	}
	/* Full bundles by way of the depot. */
	for (int round = scaled(200); round; round--) {
		ck_assert_int_eq(alloc(ex, THREADS, 1024, BULK), BULK);
		ck_assert_int_eq(release(ex, THREADS + 1, 1024, BULK), BULK);
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(w[i].thread, NULL);
		ck_assert_msg(!w[i].error[0], "%s", w[i].error);
	}
	stop_shrinking(shrinking);
	assert_mapped(ex, 0);
	ck_assert_int_eq(alloc(ex, 0, 0, THREADS * PAGES + BULK), THREADS * PAGES + BULK);
}

/* The books of a process are right at its end, whoever has just taken its pages. */
TEST(shrinker_while_processes_die)
{
	long before = available_kib();
	pid_t shrinking = start_shrinking();

	for (int round = scaled(20); round; round--) {
		pid_t pid = fork();

		assert_ok(pid);
		if (!pid) {
			struct exmap *ex = exmap_new(64 * MIB, 2000, 2);

			ck_assert_int_eq(alloc(ex, 0, 0, 2000), 2000);
			ck_assert_int_eq(release(ex, 1, round, 1500), 1500);
			_exit(0);
		}
		wait_child(pid, 0);
	}
	stop_shrinking(shrinking);
	assert_available(before, 8 * 1024);
}

/* What top shows grows with the pages taken, and is back to nothing at the end. */
TEST(pool_counts_as_resident)
{
	long before = kib_of("/proc/self/status", "VmRSS:"), after;
	struct exmap *ex = exmap_new(64 * MIB, 4000, 1);

	ck_assert_int_eq(alloc(ex, 0, 0, 4000), 4000);
	after = kib_of("/proc/self/status", "VmRSS:");
	ck_assert_int_ge(after - before, 4000 * 4 - 1024);
	assert_ok(munmap(ex->surface, ex->size));
	close(ex->fd);
	ck_assert_int_lt(kib_of("/proc/self/status", "VmRSS:") - before, 2048);
}

/* The surface gone, the fd still open: no page is kept. */
TEST(pool_is_given_back_at_munmap)
{
	long before = kib_of("/proc/self/status", "VmRSS:");
	struct exmap *ex = exmap_new(64 * MIB, 4000, 1);

	ck_assert_int_eq(alloc(ex, 0, 0, 4000), 4000);
	ck_assert_int_eq(release(ex, 0, 0, 4000), 4000);
	assert_ok(munmap(ex->surface, ex->size));
	ck_assert_int_lt(kib_of("/proc/self/status", "VmRSS:") - before, 2048);
}

TEST(pool_counts_as_pinned)
{
	struct exmap *ex = exmap_new(MIB, 1000, 1);

	/* With what the interface takes, and one page for the array it is in. */
	ck_assert_int_eq(kib_of("/proc/self/status", "VmPin:"), 4000 + 16 + 4);
	assert_ok(munmap(ex->interface[0], PAGE));
	assert_ok(munmap(ex->surface, ex->size));
	close(ex->fd);
	ck_assert_int_eq(kib_of("/proc/self/status", "VmPin:"), 0);
}

/*
 * STATS, CLONE
 */
TEST(stats_before_setup_is_ebadf)
{
	struct exmap_ioctl_stats s;

	assert_errno(ioctl(exmap_open(), EXMAP_IOCTL_STATS, &s), EBADF);
}

TEST(stats_bad_pointer_is_efault)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	assert_errno(ioctl(ex->fd, EXMAP_IOCTL_STATS, NULL), EFAULT);
}

/* Nothing of the kernel's stack leaks through the padding. */
TEST(stats_padding_is_zero)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);
	struct exmap_ioctl_stats s = stats(ex);

	ck_assert_mem_eq((char *)&s + 28, "\0\0\0\0", 4);
}

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
TEST(fdinfo_counts_pages)
{
	struct exmap *ex = exmap_new(MIB, 100, 2);
	int clone = exmap_open();

	ck_assert_int_eq(alloc(ex, 0, 0, 100), 100);
	ck_assert_int_eq(alloc(ex, 0, 50, 50), 0);
	ck_assert_int_eq(release(ex, 0, 10, 30), 30);
	/* Nothing there: nothing to flush. */
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

	/* The other interface has none, and the pool no more. */
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
/* Any process may be looked into by who may trace it, whatever it is doing. */
TEST(fdinfo_while_calls_run)
{
	struct exmap *ex = exmap_new(MIB, 100, 1);
	const int rounds = scaled(20000);
	pid_t pid = fork();
	char path[64], line[256];
	FILE *f;

	if (!pid) {
		doomed = true;
		/* A child sees it as well, though it can do nothing with it. */
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
TEST(clone_shares_everything)
{
	struct exmap *ex = exmap_new(MIB, 10, 2);
	struct exmap clone = *ex;

	clone.fd = exmap_open();
	assert_ok(exmap_clone(clone.fd, ex->fd));
	ck_assert_int_eq(alloc(&clone, 1, 3, 2), 2);
	ex->surface[3 * PAGE] = 1;
	assert_mapped(ex, 2);
	ck_assert_int_eq(release(ex, 0, 3, 1), 1);
	assert_mapped(&clone, 1);
	assert_errno(exmap_setup(clone.fd, 1, 1, 0), EBUSY);
	assert_errno(map_surface(clone.fd, MIB), EBUSY);
	clone.interface[1] = map_interface(clone.fd, 1);
	ck_assert_uint_eq(clone.interface[1]->iov[0].value, ex->interface[1]->iov[0].value);
}

TEST(clone_works_after_the_first_is_closed)
{
	struct exmap *ex = exmap_new(MIB, 10, 2);
	struct exmap clone = *ex;

	ck_assert_int_eq(alloc(ex, 0, 0, 5), 5);
	clone.fd = exmap_open();
	assert_ok(exmap_clone(clone.fd, ex->fd));
	close(ex->fd);
	assert_mapped(&clone, 5);
	ck_assert_int_eq(alloc(&clone, 0, 5, 5), 5);
	ck_assert_int_eq(release(&clone, 1, 0, 10), 10);
}

TEST(clone_before_setup)
{
	struct exmap ex = { .fd = exmap_open() }, clone = { .fd = exmap_open() };

	assert_ok(exmap_clone(clone.fd, ex.fd));
	assert_ok(exmap_setup(clone.fd, 1, 10, 0));
	ex.surface = map_surface(clone.fd, MIB);
	ex.interface[0] = map_interface(ex.fd, 0);
	close(clone.fd);
	ck_assert_int_eq(alloc(&ex, 0, 0, 1), 1);
}

TEST(clone_of_no_exmap_is_refused)
{
	int fd = exmap_open();

	assert_errno(exmap_clone(fd, 999), EBADF);
	assert_errno(exmap_clone(fd, -1), EBADF);
	assert_errno(exmap_clone(fd, open("/dev/null", O_RDWR)), EINVAL);
	assert_ok(exmap_setup(fd, 1, 1, 0));
}

TEST(clone_of_itself_is_einval)
{
	int fd = exmap_open(), clone = exmap_open();

	assert_errno(exmap_clone(fd, fd), EINVAL);
	assert_errno(exmap_clone(fd, dup(fd)), EINVAL);
	assert_ok(exmap_clone(clone, fd));
	assert_errno(exmap_clone(clone, fd), EINVAL);
	assert_errno(exmap_clone(fd, clone), EINVAL);
}

/* A file that another works with has something to lose, too. */
TEST(clone_into_one_that_was_cloned_is_ebusy)
{
	int a = exmap_open(), b = exmap_open(), c = exmap_open();
	pid_t pid;

	assert_ok(exmap_clone(b, a));
	assert_errno(exmap_clone(a, c), EBUSY);
	/* The last of them, in a process that outlives the one it belongs to. */
	pid = fork();
	if (!pid) {
		int mine = exmap_open(), clone = exmap_open();
		pid_t parent = getpid();

		assert_ok(exmap_clone(clone, mine));
		pid = fork();
		if (!pid) {
			close(mine);
			while (getppid() == parent)
				sched_yield();
			close(clone);
		}
		_exit(0);
	}
	wait_child(pid, 0);
	assert_ok(exmap_setup(b, 1, 1, 0));
}

TEST(clone_into_one_in_use_is_ebusy)
{
	struct exmap *ex = exmap_new(MIB, 10, 1), *other = exmap_new(MIB, 10, 1);
	int mapped = exmap_open(), set_up = exmap_open(), clone = exmap_open();

	assert_errno(exmap_clone(other->fd, ex->fd), EBUSY);
	assert_ok(map_surface(mapped, MIB));
	assert_errno(exmap_clone(mapped, ex->fd), EBUSY);
	assert_ok(exmap_setup(set_up, 1, 1, 0));
	assert_errno(exmap_clone(set_up, ex->fd), EBUSY);
	assert_ok(exmap_clone(clone, ex->fd));
	assert_errno(exmap_clone(clone, other->fd), EBUSY);
}

TEST(clone_twice_is_ebusy)
{
	int a = exmap_open(), b = exmap_open(), clone = exmap_open();

	assert_ok(exmap_clone(clone, a));
	assert_errno(exmap_clone(clone, b), EBUSY);
}

/* A clone, refused or not, does not keep an exmap alive: its pool is paid back. */
TEST(clone_keeps_nothing)
{
	set_memlock(100 * PAGE);
	drop_privileges();
	for (int round = 0; round < 3; round++) {
		int a = exmap_open(), b = exmap_open(), c = exmap_open();

		assert_ok(exmap_setup(a, 1, 90, 0));
		assert_ok(exmap_setup(b, 1, 8, 0));
		assert_errno(exmap_clone(b, a), EBUSY);
		assert_ok(exmap_clone(c, a));
		close(a);
		close(b);
		close(c);
	}
}

/* Files that a refused call has looked at are let go again. */
static void assert_no_leak(int pipes[2])
{
	char byte;

	close(pipes[1]);
	fcntl(pipes[0], F_SETFL, O_NONBLOCK);
	ck_assert_int_eq(read(pipes[0], &byte, 1), 0);
}

TEST(refused_files_are_let_go)
{
	struct exmap_ioctl_setup setup = { .max_interfaces = 1, .buffer_size = 1 };
	int pipes[2], fd = exmap_open();

	assert_ok(pipe(pipes));
	setup.fd = pipes[1];
	assert_errno(ioctl(fd, EXMAP_IOCTL_SETUP, &setup), ESPIPE);
	assert_no_leak(pipes);
	assert_ok(pipe(pipes));
	assert_errno(exmap_clone(fd, pipes[1]), EINVAL);
	assert_no_leak(pipes);
}

/*
 * Other processes
 */
static void send_fd(int socket, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = { };
	struct iovec iov = { .iov_base = "x", .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
	assert_ok(sendmsg(socket, &msg, 0));
}

static int receive_fd(int socket)
{
	char control[CMSG_SPACE(sizeof(int))], byte;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	int fd;

	assert_ok(recvmsg(socket, &msg, 0));
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
	return fd;
}

/* Every call on an fd whose exmap is another process's. */
static void assert_all_eperm(int fd)
{
	struct exmap_ioctl_stats s;

	assert_errno(action(fd, 0, EXMAP_OP_ALLOC, 1, 0), EPERM);
	assert_errno(action(fd, 0, EXMAP_OP_FREE, 1, 0), EPERM);
	assert_errno(ioctl(fd, EXMAP_IOCTL_STATS, &s), EPERM);
	assert_errno(exmap_setup(fd, 1, 1, 0), EPERM);
	assert_errno(exmap_clone(fd, fd), EPERM);
	assert_errno(exmap_clone(fd, exmap_open()), EPERM);
	assert_errno(exmap_clone(exmap_open(), fd), EPERM);
	assert_errno(map_surface(fd, MIB), EPERM);
	assert_errno(map_interface(fd, 0), EPERM);
}

TEST(fork_inherits_only_a_useless_fd)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);
	int unused = exmap_open();
	pid_t pid;

	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	ex->surface[0] = 7;
	pid = fork();
	if (!pid) {
		assert_all_eperm(ex->fd);
		assert_all_eperm(unused);
		/* Neither surface nor interface is mapped here. */
		assert_errno(msync(ex->surface, PAGE, MS_ASYNC), ENOMEM);
		assert_errno(msync(ex->interface[0], PAGE, MS_ASYNC), ENOMEM);
		_exit(0);
	}
	wait_child(pid, 0);
	ck_assert_int_eq(ex->surface[0], 7);
	assert_mapped(ex, 10);
	ck_assert_int_eq(release(ex, 0, 0, 10), 10);
	assert_ok(exmap_setup(unused, 1, 1, 0));
}

TEST(fork_after_madv_dofork_inherits_nothing)
{
	struct exmap *ex = exmap_new_flags(MIB, 10, 1, EXMAP_PAGEFAULT_ALLOC);
	pid_t pid;

	ck_assert_int_eq(alloc(ex, 0, 0, 5), 5);
	ex->surface[0] = 7;
	/* Newer kernels refuse it. */
	if (madvise(ex->surface, ex->size, MADV_DOFORK))
		ck_assert_int_eq(errno, EINVAL);
	pid = fork();
	if (!pid) {
		*(volatile char *)ex->surface;
		_exit(0);
	}
	wait_child(pid, SIGSEGV);
	ck_assert_int_eq(ex->surface[0], 7);
	assert_mapped(ex, 5);
	ck_assert_int_eq(release(ex, 0, 0, 5), 5);
}

TEST(fork_after_madv_dofork_inherits_no_interface)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);
	pid_t pid;

	entry(ex, 0, 7, 3, 1);
	if (madvise(ex->interface[0], PAGE, MADV_DOFORK))
		ck_assert_int_eq(errno, EINVAL);
	/* Should it have been what kept the page from a child. */
	assert_ok(madvise(ex->interface[0], PAGE, MADV_KEEPONFORK));
	pid = fork();
	if (!pid) {
		entry(ex, 0, 7, 5, 1);
		_exit(0);
	}
	wait_child(pid, SIGSEGV);
	ck_assert_uint_eq(ex->interface[0]->iov[7].value, 1ULL << 52 | 3);
	ck_assert_int_eq(alloc(ex, 0, 0, 5), 5);
}

TEST(fd_passed_to_another_process_is_eperm)
{
	int sockets[2];
	pid_t pid;

	assert_ok(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	pid = fork();
	if (!pid) {
		struct exmap *ex = exmap_new(MIB, 10, 1);

		ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
		doomed = true;
		send_fd(sockets[1], ex->fd);
		pause();
	}
	int fd = receive_fd(sockets[0]);

	assert_all_eperm(fd);
	kill(pid, SIGKILL);
	wait_child(pid, SIGKILL);
	/* Its process is gone, its pages too; the last reference is here. */
	assert_all_eperm(fd);
	close(fd);
}

TEST(exec_leaves_a_useless_fd)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);
	pid_t pid = fork();
	char command[128];

	if (!pid) {
		struct exmap *mine = exmap_new(MIB, 10, 1);

		ck_assert_int_eq(alloc(mine, 0, 0, 10), 10);
		fcntl(mine->fd, F_SETFD, 0);
		snprintf(command, sizeof(command), "exec %d<&-; exit 42", mine->fd);
		execl("/bin/bash", "bash", "-c", command, NULL);
		_exit(1);
	}
	wait_child(pid, 42);
	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
}

/* All pages mapped, and the kernel tears it down. */
TEST(exit_with_pages_mapped)
{
	for (int order = 0; order < 3; order++) {
		pid_t pid = fork();

		if (!pid) {
			struct exmap *ex = exmap_new(4 * GIB, 20000, 4);

			for (int i = 0; i < 4; i++)
				ck_assert_int_eq(alloc(ex, i, i * GIB / PAGE, 4095), 4095);
			if (order == 1)
				close(ex->fd);
			if (order == 2)
				munmap(ex->surface, ex->size);
			_exit(0);
		}
		wait_child(pid, 0);
	}
}

/*
 * What the rest of the kernel does to the surface
 */
TEST(madvise_dontneed_takes_pages_away)
{
	struct exmap *ex = exmap_new(64 * MIB, 3000, 1);

	ck_assert_int_eq(alloc(ex, 0, 0, 3000), 3000);
	memset(ex->surface, 'q', 3000 * PAGE);
	assert_ok(madvise(ex->surface + 100 * PAGE, 2000 * PAGE, MADV_DONTNEED));
	assert_mapped(ex, 1000);
	ck_assert_uint_eq(resident(ex, 0, 3000), 1000);
	ck_assert(all_bytes(ex->surface + 99 * PAGE, 'q'));
	ck_assert(all_bytes(ex->surface + 2100 * PAGE, 'q'));
	/* They can be had again, zeroed: they were the system's meanwhile. */
	ck_assert_int_eq(alloc(ex, 0, 0, 3000), 2000);
	ck_assert(all_bytes(ex->surface + 100 * PAGE, 0));
	ck_assert(all_bytes(ex->surface + 2099 * PAGE, 0));
	ck_assert_int_eq(alloc(ex, 0, 4000, 1), -ENOMEM);
	ck_assert_int_eq(release(ex, 0, 0, 3000), 3000);
}

/*
 * Where a huge page of a neighbour is split, 6.1 and 6.12 announce all of its 2 MiB, of which
 * the surface has a half.
 */
TEST(huge_page_of_a_neighbour_is_split, .needs = "/sys/kernel/mm/transparent_hugepage")
{
	enum { PAGES = MIB / PAGE };
	struct exmap ex = { .fd = exmap_open(), .size = MIB };
	char *area = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *huge = (char *)(((uintptr_t)area + 2 * MIB - 1) & -(2 * MIB));

	assert_ok(area);
	assert_ok(madvise(huge, 2 * MIB, MADV_HUGEPAGE));
	memset(huge, 'h', 2 * MIB);
	ck_assert_int_eq(kib_of("/proc/self/smaps_rollup", "AnonHugePages:"), 2048);
	assert_ok(munmap(huge + MIB, MIB));
	ex.surface = mmap(huge + MIB, MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, ex.fd,
			  EXMAP_OFF_EXMAP);
	assert_ok(ex.surface);
	assert_ok(exmap_setup(ex.fd, 1, PAGES, 0));
	ex.interface[0] = map_interface(ex.fd, 0);
	assert_ok(ex.interface[0]);
	ck_assert_int_eq(alloc(&ex, 0, 0, PAGES), PAGES);
	memset(ex.surface, 'x', MIB);

	assert_ok(madvise(huge, MIB / 2, MADV_PAGEOUT));
	assert_mapped(&ex, PAGES);
	ck_assert_uint_eq(resident(&ex, 0, PAGES), PAGES);
	for (int page = 0; page < PAGES; page++)
		ck_assert(all_bytes(ex.surface + page * PAGE, 'x'));
	/* And the gate is as it was. */
	assert_ok(madvise(ex.surface, MIB / 2, MADV_DONTNEED));
	ck_assert_int_eq(release(&ex, 0, 0, PAGES), PAGES / 2);
}

/* Soft-dirty tracking takes write permission out of PTEs, then faults put it back. */
TEST(clear_refs_is_survived)
{
	struct exmap *ex = exmap_new(64 * MIB, 3000, 1);
	int fd = open("/proc/self/clear_refs", O_WRONLY);

	assert_ok(fd);
	ck_assert_int_eq(alloc(ex, 0, 0, 2000), 2000);
	for (char how = '1'; how <= '4'; how++) {
		memset(ex->surface, how, 2000 * PAGE);
		/* A kernel without soft-dirty bits refuses 4. */
		if (write(fd, &how, 1) != 1)
			ck_assert_int_eq(errno, EINVAL);
		ck_assert(all_bytes(ex->surface + 1999 * PAGE, how));
		memset(ex->surface, how + 1, 2000 * PAGE);
		ck_assert(all_bytes(ex->surface + 1999 * PAGE, how + 1));
		ck_assert_int_eq(release(ex, 0, 0, 1000), 1000);
		ck_assert_int_eq(alloc(ex, 0, 0, 1000), 1000);
	}
	assert_mapped(ex, 2000);
}

struct madviser {
	char *where;
	size_t size;
	atomic_bool stop;
};

static void *madvise_worker(void *arg)
{
	struct madviser *m = arg;

	while (!atomic_load(&m->stop))
		madvise(m->where, m->size, MADV_DONTNEED);
	return NULL;
}

/*
 * SETUP while the kernel is at work on the surface, in a process that has an exmap already:
 * what has begun before must not end for the new one. (Its gate would stay closed for ever.)
 */
TEST(setup_while_madvise_runs)
{
	enum { PAGES = 600 };
	struct exmap *first = exmap_new(MIB, 10, 1);
	struct madviser m = { .size = PAGES * PAGE };
	struct exmap ex = { .size = PAGES * PAGE };
	pthread_t thread[2];

	/* A place where nothing else comes. */
	m.where = mmap(NULL, m.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ok(m.where);
	ck_assert_int_eq(alloc(first, 0, 0, 10), 10);
	for (int i = 0; i < 2; i++)
		ck_assert(!pthread_create(&thread[i], NULL, madvise_worker, &m));
	for (int round = scaled(300); round; round--) {
		ex.fd = exmap_open();
		ex.surface = mmap(m.where, ex.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
				  ex.fd, EXMAP_OFF_EXMAP);
		assert_ok(ex.surface);
		assert_ok(exmap_setup(ex.fd, 1, PAGES, 0));
		ex.interface[0] = map_interface(ex.fd, 0);
		assert_ok(ex.interface[0]);
		/* What it maps may be gone the next moment. */
		ck_assert_int_ge(alloc(&ex, 0, 0, PAGES), 0);
		ck_assert_int_ge(release(&ex, 0, 0, PAGES), 0);
		assert_ok(mmap(m.where, m.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
			       -1, 0));
		assert_ok(munmap(ex.interface[0], PAGE));
		assert_ok(close(ex.fd));
		assert_mapped(first, 10);
	}
	atomic_store(&m.stop, true);
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	ck_assert_int_eq(release(first, 0, 0, 10), 10);
}

TEST(mlockall_and_populate_are_survived)
{
	struct exmap *ex;

	assert_ok(mlockall(MCL_CURRENT | MCL_FUTURE));
	ex = exmap_new(MIB, 10, 1);
	ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
	mlock(ex->surface, ex->size);
	munlock(ex->surface, ex->size);
	ck_assert_int_eq(release(ex, 0, 0, 10), 10);
	assert_mapped(ex, 0);
}

static void *alloc_free_worker(void *arg)
{
	struct worker *w = arg;
	uint64_t first = w->interface * 1024;
	int ret = 0;

	while (!atomic_load(w->stop) && !w->error[0]) {
		for (int op = EXMAP_OP_ALLOC; op <= EXMAP_OP_FREE; op++) {
			for (int i = 0; i < w->pages; i++)
				entry(w->ex, w->interface, i, first + i * 2, 1);
			ret = action(w->ex->fd, w->interface, op, w->pages, 0);
			/* The surface may go before the call or in the middle of it. */
			if ((ret < 0 && errno == EPROTO) ||
			    (ret > 0 && w->ex->interface[w->interface]->iov[w->pages - 1].res == -EPROTO)) {
				w->surface_gone = true;
				return NULL;
			}
			if (ret)
				worker_error(w, op == EXMAP_OP_ALLOC ? "ALLOC" : "FREE", ret);
		}
	}
	return NULL;
}

/* Two workers, at one interface or at two. */
static void start_workers(struct exmap *ex, struct worker w[2], int interfaces, atomic_bool *stop)
{
	for (int i = 0; i < 2; i++) {
		w[i] = (struct worker){
			.ex = ex, .interface = i % interfaces, .pages = 512, .stop = stop,
		};
		ck_assert(!pthread_create(&w[i].thread, NULL, alloc_free_worker, &w[i]));
	}
}

static void join_workers(struct worker w[2], bool surface_gone)
{
	for (int i = 0; i < 2; i++) {
		pthread_join(w[i].thread, NULL);
		ck_assert_msg(!w[i].error[0], "%s", w[i].error);
		ck_assert_int_eq(w[i].surface_gone, surface_gone);
	}
}

TEST(munmap_while_calls_run)
{
	for (int round = scaled(30); round; round--) {
		struct worker w[2];
		atomic_bool stop = false;
		pid_t pid = fork();

		if (!pid) {
			struct exmap *ex = exmap_new(64 * MIB, 3000, 2);

			start_workers(ex, w, 2, &stop);
			while (!stats(ex).alloc_count)
				;
			assert_ok(munmap(ex->surface, ex->size));
			join_workers(w, true);
			assert_mapped(ex, 0);
			_exit(0);
		}
		wait_child(pid, 0);
	}
}

TEST(madvise_and_clear_refs_while_calls_run)
{
	struct exmap *ex = exmap_new(64 * MIB, 3000, 2);
	int fd = open("/proc/self/clear_refs", O_WRONLY);
	atomic_bool stop = false;
	struct worker w[2];

	start_workers(ex, w, 2, &stop);
	for (int round = scaled(300); round; round--) {
		assert_ok(madvise(ex->surface + round * PAGE, 700 * PAGE, MADV_DONTNEED));
		if (write(fd, "4", 1) != 1)
			ck_assert_int_eq(errno, EINVAL);
	}
	atomic_store(&stop, true);
	join_workers(w, false);
	assert_mapped(ex, 0);
	ck_assert_int_eq(alloc(ex, 0, 0, 3000), 3000);
}

/*
 * Other memory where a surface has been is not ours: the kernel may take it away
 * without being able to wait (process_mrelease() as the OOM reaper does).
 */
TEST(memory_in_place_of_a_surface)
{
	int reaped = 0, fd;
	pid_t pid;

	for (int round = 0; round < 100 && reaped < 3; round++) {
		pid = fork();
		if (!pid) {
			struct exmap *ex = exmap_new(4 * MIB, 10, 1);
			char *more = malloc(64 * MIB);

			ck_assert_ptr_nonnull(more);
			ck_assert_int_eq(alloc(ex, 0, 0, 10), 10);
			assert_ok(munmap(ex->surface, ex->size));
			ck_assert_ptr_eq(mmap(ex->surface, ex->size, PROT_READ | PROT_WRITE,
					      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
					 ex->surface);
			memset(ex->surface, 1, ex->size);
			/* So much that its exit leaves time for the other. */
			memset(more, 1, 64 * MIB);
			raise(SIGSTOP);
			_exit(0);
		}
		assert_ok(waitpid(pid, NULL, WUNTRACED));
		fd = syscall(SYS_pidfd_open, pid, 0);
		assert_ok(fd);
		assert_ok(kill(pid, SIGKILL));
		reaped += !syscall(SYS_process_mrelease, fd, 0);
		wait_child(pid, SIGKILL);
		close(fd);
	}
	ck_assert_int_gt(reaped, 0);
}

/* Two threads at one interface are a mistake, but nobody else's problem. */
TEST(threads_sharing_an_interface)
{
	struct exmap *ex = exmap_new(64 * MIB, 3000, 1);
	atomic_bool stop = false;
	struct worker w[2];
	long pages = 0;

	start_workers(ex, w, 1, &stop);
	for (int round = scaled(1000); round; round--)
		pages += stats(ex).alloc_count;
	atomic_store(&stop, true);
	for (int i = 0; i < 2; i++)
		pthread_join(w[i].thread, NULL);
	ck_assert_int_ge(pages, 0);
	release(ex, 0, 0, 4095);
	assert_mapped(ex, 0);
	ck_assert_int_eq(alloc(ex, 0, 0, 3000), 3000);
}

/*
 * Memory safety
 */

static void *spinning_worker(void *arg)
{
	atomic_bool *spinning = arg;

	for (;;)
		atomic_store(spinning, true);
	return NULL;
}

/* TLB shootdowns so far, of all CPUs. */
static long shootdowns(void)
{
	FILE *f = fopen("/proc/interrupts", "r");
	char line[4096], *number, *next;
	long sum = 0;

	ck_assert_ptr_nonnull(f);
	while (fgets(line, sizeof(line), f))
		if (strstr(line, "TLB:"))
			for (number = strchr(line, ':') + 1;; number = next) {
				sum += strtol(number, &next, 10);
				if (next == number)
					break;
			}
	fclose(f);
	return sum;
}

/* One shootdown for all of a batch, with another CPU to be shot at. */
TEST(free_flushes_once_per_call)
{
	struct exmap *ex = exmap_new(64 * MIB, 512, 2);
	static atomic_bool spinning;
	long before, rounds;
	pthread_t thread;
	cpu_set_t cpu;

	CPU_ZERO(&cpu);
	CPU_SET(1, &cpu);
	assert_ok(sched_setaffinity(0, sizeof(cpu), &cpu));
	ck_assert(!pthread_create(&thread, NULL, spinning_worker, &spinning));
	CPU_ZERO(&cpu);
	CPU_SET(0, &cpu);
	assert_ok(sched_setaffinity(0, sizeof(cpu), &cpu));
	before = shootdowns();
	/* The other CPU may have something else to do, and then is not shot at. */
	for (rounds = 0; shootdowns() - before < 50; rounds++) {
		atomic_store(&spinning, false);
		while (!atomic_load(&spinning))
			;
		for (int i = 0; i < 512; i++)
			entry(ex, 0, i, i * 31, 1);
		ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_ALLOC, 512, 0), 0);
		for (int i = 0; i < 512; i++)
			entry(ex, 0, i, i * 31, 1);
		ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_FREE, 512, 0), 0);
	}
	ck_assert_int_le(shootdowns() - before, 2 * rounds);
}

/* What one of the kernel's files says about a page, or a page frame, by number. */
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
	/* The kernel cannot take it from us, and says so. */
	(void)!write(fd, text, strlen(text));
	close(fd);
	ck_assert(page_number_in("/proc/kpageflags", frame) >> KPF_HWPOISON & 1);
}

/* A page that the hardware has reported an error in does not come back. */
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
			/* The other way keeps a reference to the page, for ever. */
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

TEST(pinned_pages_are_not_recycled)
{
	pinned_pages_are_kept(0);
}

/*
 * The longest time for which a real-time thread on the same CPU did not get to run
 */
struct ticker {
	atomic_bool stop;
	atomic_bool runs;
	atomic_long gap;	/* nanoseconds */
};

static long nanoseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000L + now.tv_nsec;
}

static void *tick(void *arg)
{
	const struct sched_param priority = { .sched_priority = 1 };
	const struct timespec period = { .tv_nsec = 50000 };
	struct ticker *t = arg;
	long last, now;

	if (pthread_setschedparam(pthread_self(), SCHED_FIFO, &priority))
		abort();
	last = nanoseconds();
	while (!atomic_load(&t->stop)) {
		nanosleep(&period, NULL);
		now = nanoseconds();
		if (now - last > atomic_load(&t->gap))
			atomic_store(&t->gap, now - last);
		last = now;
		atomic_store(&t->runs, true);
	}
	return NULL;
}

/* Share of an ALLOC of so many pages new from the system for which the ticker had to wait. */
static double longest_wait(struct ticker *t, int pages)
{
	struct exmap_user_interface *interface;
	struct exmap ex = { .fd = exmap_open(), .size = pages * PAGE };
	long time;

	assert_ok(exmap_setup(ex.fd, 1, pages, 0));
	ex.surface = map_surface(ex.fd, ex.size);
	assert_ok(ex.surface);
	interface = map_interface(ex.fd, 0);
	assert_ok(interface);
	ex.interface[0] = interface;
	entry(&ex, 0, 0, 0, pages);
	atomic_store(&t->gap, 0);
	time = nanoseconds();
	ck_assert_int_eq(action(ex.fd, 0, EXMAP_OP_ALLOC, 1, 0), 0);
	time = nanoseconds() - time;
	assert_ok(munmap(ex.surface, ex.size));
	assert_ok(munmap(interface, PAGE));
	close(ex.fd);
	return (double)atomic_load(&t->gap) / time;
}

/* Also if the kernel does not preempt itself, as on the machine of tests/all --la57. */
TEST(alloc_of_a_long_entry_lets_others_run)
{
	struct ticker t = { };
	double share = 1;
	pthread_t thread;
	cpu_set_t cpu;

	CPU_ZERO(&cpu);
	CPU_SET(1, &cpu);
	assert_ok(sched_setaffinity(0, sizeof(cpu), &cpu));
	ck_assert(!pthread_create(&thread, NULL, tick, &t));
	while (!atomic_load(&t.runs))
		sched_yield();
	/* The machine may have been away meanwhile: once is enough. */
	for (int i = 0; i < 20 && share > 0.5; i++)
		share = longest_wait(&t, 4095);
	atomic_store(&t.stop, true);
	ck_assert(!pthread_join(thread, NULL));
	ck_assert_msg(share <= 0.5, "others wait for %.0f %% of the call", share * 100);
}

/* While there is room in RLIMIT_MEMLOCK the pool takes a fresh page for each that is pinned. */
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
	/* All of the pool, and the pinned ones are not among these. */
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
	/* They come back in the place of what was taken for them: the pool is as large as before. */
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

/*
 * A guest with two pages of code and, at 64 KiB, the surface as its memory. Its
 * program writes AL to DS:BX and halts.
 */
struct guest {
	int cpu;
};

static int guest_vm(struct exmap *ex, void *low)
{
	struct kvm_userspace_memory_region region[2] = {
		{ .slot = 0, .memory_size = 0x10000, .userspace_addr = (uintptr_t)low },
		{ .slot = 1, .guest_phys_addr = 0x10000, .memory_size = ex->size,
		  .userspace_addr = (uintptr_t)ex->surface },
	};
	int kvm, vm;

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	assert_ok(kvm);
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	assert_ok(vm);
	assert_ok(close(kvm));
	for (int i = 0; i < 2; i++)
		assert_ok(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region[i]));
	return vm;
}

static struct guest guest_new(struct exmap *ex)
{
	static const unsigned char code[] = { 0x88, 0x07, 0xf4 };	/* mov %al,(%bx); hlt */
	char *low = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct kvm_sregs sregs;
	struct guest guest;

	memcpy(low + 0x1000, code, sizeof(code));
	guest.cpu = ioctl(guest_vm(ex, low), KVM_CREATE_VCPU, 0);
	assert_ok(guest.cpu);
	assert_ok(ioctl(guest.cpu, KVM_GET_SREGS, &sregs));
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	sregs.ds.base = 0x10000;
	sregs.ds.selector = 0x1000;
	assert_ok(ioctl(guest.cpu, KVM_SET_SREGS, &sregs));
	return guest;
}

/* Returns what KVM_RUN does: 0, or -1 where the guest hit a page that is not there. */
static int guest_write(struct guest guest, unsigned char byte)
{
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2, .rax = byte, .rbx = 16 };

	assert_ok(ioctl(guest.cpu, KVM_SET_REGS, &regs));
	return ioctl(guest.cpu, KVM_RUN, 0);
}

/*
 * A guest's page tables follow ours without a reference to the pages. What was
 * freed, or taken away by the kernel, is out of its reach.
 */
TEST(guests_lose_what_is_freed, .needs = "/dev/kvm")
{
	struct exmap *ex = exmap_new(16 * PAGE, 16, 1);
	struct guest guest = guest_new(ex);

	ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
	ck_assert_int_eq(guest_write(guest, 0xaa), 0);
	ck_assert_uint_eq((unsigned char)ex->surface[16], 0xaa);
	ck_assert_int_eq(release(ex, 0, 0, 1), 1);
	ck_assert_int_eq(alloc(ex, 0, 1, 1), 1);
	ck_assert_uint_eq((unsigned char)ex->surface[PAGE + 16], 0xaa);
	ck_assert_int_eq(guest_write(guest, 0xbb), -1);
	ck_assert_uint_eq((unsigned char)ex->surface[PAGE + 16], 0xaa);

	/* Where its flush is put off they lose it then. */
	ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
	ck_assert_int_eq(guest_write(guest, 0xcc), 0);
	ck_assert_int_eq(defer(ex, 0, 0, 1), 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_FLUSH, 0, 0), 0);
	ck_assert_int_eq(guest_write(guest, 0xdd), -1);
	ck_assert_int_eq(alloc(ex, 0, 2, 1), 1);
	ck_assert_uint_eq((unsigned char)ex->surface[2 * PAGE + 16], 0xcc);

	ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
	ck_assert_int_eq(guest_write(guest, 0xcc), 0);
	assert_ok(madvise(ex->surface, ex->size, MADV_DONTNEED));
	ck_assert_int_eq(guest_write(guest, 0xdd), -1);
	ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
	ck_assert_int_eq(guest_write(guest, 0xee), 0);
	ck_assert_uint_eq((unsigned char)ex->surface[16], 0xee);
	assert_ok(munmap(ex->surface, ex->size));
	ck_assert_int_eq(guest_write(guest, 0xff), -1);
}

static void *unmap_worker(void *arg)
{
	struct worker *w = arg;

	while (!atomic_load(w->stop)) {
		alloc(w->ex, w->interface, 1, w->pages);
		if (madvise(w->ex->surface, w->ex->size, MADV_DONTNEED))
			snprintf(w->error, sizeof(w->error), "madvise: errno %d", errno);
	}
	return NULL;
}

/* A touch that comes at the wrong moment is put off, and succeeds in the end. */
TEST(guests_touch_while_the_kernel_unmaps, .needs = "/dev/kvm")
{
	struct exmap *ex = exmap_new_flags(4 * MIB, 1000, 1, EXMAP_PAGEFAULT_ALLOC);
	struct guest guest = guest_new(ex);
	atomic_bool stop = false;
	struct worker w = { .ex = ex, .pages = 500, .stop = &stop };

	ck_assert(!pthread_create(&w.thread, NULL, unmap_worker, &w));
	for (int round = scaled(3000); round; round--)
		ck_assert_int_eq(guest_write(guest, round), 0);
	atomic_store(&stop, true);
	ck_assert(!pthread_join(w.thread, NULL));
	ck_assert_msg(!w.error[0], "%s", w.error);
	assert_ok(madvise(ex->surface, ex->size, MADV_DONTNEED));
	ck_assert_int_eq(alloc(ex, 0, 0, 1000), 1000);
}

/*
 * A machine that comes while pages go is not told just the end of that: it would wait for
 * ever, for as many beginnings, before its memory can be set again.
 */
TEST(guests_come_while_pages_go, .needs = "/dev/kvm")
{
	struct exmap *ex = exmap_new(16 * PAGE, 16, 1);
	char *low = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	atomic_bool stop = false;
	struct worker w = { .ex = ex, .pages = 1, .stop = &stop };

	/* Stays: the kernel changes its code for the first machine, and after the last. */
	guest_vm(ex, low);
	ck_assert(!pthread_create(&w.thread, NULL, alloc_free_worker, &w));
	for (int round = scaled(100); round; round--)
		assert_ok(close(guest_vm(ex, low)));
	atomic_store(&stop, true);
	ck_assert(!pthread_join(w.thread, NULL));
	ck_assert_msg(!w.error[0], "%s", w.error);
}

/*
 * Another CPU writes to page 0 while it is freed and its frame mapped at page 1:
 * once FREE has returned no such write may arrive there.
 */
TEST(stale_tlb_entries_reach_nothing)
{
	struct exmap *ex = exmap_new(MIB, 1, 1);
	volatile uint64_t *ours = (void *)(ex->surface + PAGE);
	struct stale_writer w;

	stale_writer_start(&w, ex->surface);
	for (int round = scaled(2000); round; round--) {
		ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
		stale_writer_wait(&w);
		ck_assert_int_eq(release(ex, 0, 0, 1), 1);
		ck_assert_int_eq(alloc(ex, 0, 1, 1), 1);
		*ours = round;
		for (int i = 0; i < 200; i++)
			ck_assert_uint_eq(*ours, round);
		ck_assert_int_eq(release(ex, 0, 1, 1), 1);
	}
	stale_writer_stop(&w);
}

struct thief {
	struct exmap *ex;
	atomic_bool stop;
	atomic_int caught;
};

/* Takes the page over the moment it is free, and looks whether it alone has it. */
static void *stale_thief(void *arg)
{
	struct thief *t = arg;
	volatile uint64_t *ours = (void *)(t->ex->surface + PAGE);
	uint64_t round = 0;

	while (!atomic_load(&t->stop)) {
		entry(t->ex, 1, 0, 1, 1);
		if (action(t->ex->fd, 1, EXMAP_OP_ALLOC, 1, 0))
			continue;
		*ours = ++round;
		for (int i = 0; i < 2000; i++) {
			if (*ours != round) {
				atomic_fetch_add(&t->caught, 1);
				break;
			}
		}
		entry(t->ex, 1, 0, 1, 1);
		action(t->ex->fd, 1, EXMAP_OP_FREE, 1, 0);
		for (volatile int i = 0; i < 3000; i++)	/* let the other have it again */
			;
	}
	return NULL;
}

/* No page may be free before the flush, not even while FREE is still at work. */
TEST(stale_tlb_entries_reach_no_thief)
{
	struct exmap *ex = exmap_new(MIB, 1, 2);
	struct thief t = { .ex = ex };
	struct stale_writer w;
	pthread_t thief;

	/* Before this thread is bound to a CPU. */
	ck_assert(!pthread_create(&thief, NULL, stale_thief, &t));
	stale_writer_start(&w, ex->surface);
	for (int round = scaled(3000); round; round--) {
		while (alloc(ex, 0, 0, 1) != 1)
			;
		stale_writer_wait(&w);
		ck_assert_int_eq(release(ex, 0, 0, 1), 1);
	}
	stale_writer_stop(&w);
	atomic_store(&t.stop, true);
	pthread_join(thief, NULL);
	ck_assert_int_eq(atomic_load(&t.caught), 0);
}

/* Processes killed at random moments leave no page behind. */
TEST(kill_at_random_moments)
{
	enum { PAGES = 1000 };
	long before = available_kib();

	srandom(1);
	for (int round = scaled(1000); round; round--) {
		int ready[2];
		char byte;
		pid_t pid;

		assert_ok(pipe(ready));
		pid = fork();
		if (!pid) {
			struct exmap *ex;

			doomed = true;
			/* Some are killed before, some after this. */
			if (write(ready[1], "x", 1) != 1)
				_exit(1);
			ex = exmap_new(GIB, PAGES, 1);
			for (;;) {
				alloc(ex, 0, random() % 200000, PAGES);
				release(ex, 0, 0, 4095);
			}
		}
		ck_assert_int_eq(read(ready[0], &byte, 1), 1);
		for (volatile long spin = random() % 300000; spin > 0; spin--)
			;
		kill(pid, SIGKILL);
		wait_child(pid, SIGKILL);
		close(ready[0]);
		close(ready[1]);
	}
	/* Two pages in each round would be about as much. */
	assert_available(before, 8 * 1024);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Functional tests of the exmap module.");
}
