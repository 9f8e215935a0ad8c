// SPDX-License-Identifier: GPL-2.0
/*
 * Functional tests of the basic calls: one test per behavior and per refusal. A test checks what
 * a call returns and also the state that the call leaves. tests/ has a program for each other
 * subject; tests/setup.c is for SETUP.
 */
#include <sys/uio.h>

#include "tests/common.h"

/* The numbers of the ABI. They must not change, because existing binaries contain them. */
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
	       EXMAP_OFF_INTERFACE_MAX == 0xf000000000000000 &&
	       EXMAP_OFF_INTERFACE_POSITIVE(3) == 0x6000000000003000, "offsets");
_Static_assert(EXMAP_USER_INTERFACE_PAGES == 512 && EXMAP_PAGE_LEN_BITS == 12 &&
	       EXMAP_PAGE_MAX_PAGES == 4096 && EXMAP_MAX_INTERFACES == 1024, "limits");

/*
 * The mapping of an interface
 */
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

/* All mappings of an interface show one page, which is zero at first. */
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

static void *map_positive(int fd, unsigned long nr)
{
	return mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		    EXMAP_OFF_INTERFACE_POSITIVE(nr));
}

/* An interface's page is the same at its offset that is a positive number. */
TEST(mmap_interface_at_a_positive_offset)
{
	const off_t before = EXMAP_OFF_INTERFACE_POSITIVE_BASE - PAGE;
	const off_t last = EXMAP_OFF_INTERFACE_MAX & INT64_MAX;
	struct exmap_user_interface *interface;
	struct exmap *ex = exmap_new(MIB, 10, 2);

	ck_assert_int_gt(EXMAP_OFF_INTERFACE_POSITIVE(EXMAP_MAX_INTERFACES - 1), 0);
	interface = map_positive(ex->fd, 1);
	assert_ok(interface);
	interface->iov[0].value = (uint64_t)3 << 52 | 5;
	ck_assert_uint_eq(ex->interface[1]->iov[0].value, interface->iov[0].value);
	ck_assert_int_eq(action(ex->fd, 1, EXMAP_OP_ALLOC, 1, 0), 0);
	ck_assert_int_eq(interface->iov[0].pages, 3);
	assert_errno(map_positive(ex->fd, 2), ENXIO);
	assert_errno(map_positive(ex->fd, EXMAP_MAX_INTERFACES), ENXIO);
	assert_errno(mmap(NULL, 2 * PAGE, PROT_READ, MAP_SHARED, ex->fd,
			  EXMAP_OFF_INTERFACE_POSITIVE(0)), EINVAL);
	assert_errno(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, ex->fd, before), EINVAL);
	assert_errno(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, ex->fd, last), EINVAL);
	assert_errno(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, ex->fd, last - PAGE), ENXIO);
}

/*
 * An interface's page is mapped by the first touch of its mapping: by user space, by the kernel,
 * by MAP_POPULATE or mlockall, and also after the file is closed.
 */
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
	/* After MADV_DONTNEED a touch maps the same page again. */
	assert_ok(madvise(early, PAGE, MADV_DONTNEED));
	ck_assert_uint_eq(early->iov[511].value, 12345);
	/* The kernel makes the first touch. */
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

TEST(interface_does_not_grow)
{
	struct exmap *ex = exmap_new(MIB, 10, 2);

	assert_errno(mremap(ex->interface[0], PAGE, 2 * PAGE, MREMAP_MAYMOVE), EFAULT);
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

/* A call without entries still gets EINVAL for a bad opcode, interface or flag. */
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

/* All entries of an interface that was never mapped are empty. */
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

/* After ENOMEM a client repeats the call with the same entries, so they must be unchanged. */
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

/*
 * ALLOC finds no memory for an entry after others have succeeded. It returns how many entries
 * failed: that one and all after it.
 */
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

/*
 * ALLOC finds no memory for its second entry. Its first entry has an answer already, so the call
 * must return a count and not ENOMEM.
 */
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
	/* The same if the first entry needed no page. */
	entry(ex, 0, 0, 0, 1);
	entry(ex, 0, 1, 20, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_ALLOC, 2, 0), 1);
	assert_entry(ex, 0, 0, 0, 0);
	assert_entry(ex, 0, 1, -ENOMEM, 0);
}

/* ALLOC maps all pages of an entry or none. */
TEST(alloc_without_memory_leaves_none_of_the_entry)
{
	struct exmap *ex = exmap_new(64 * MIB, 3000, 2);

	ck_assert_int_eq(alloc(ex, 0, 0, 100), 100);
	ck_assert_int_eq(alloc(ex, 0, 1000, 2901), -ENOMEM);
	ck_assert_int_eq(alloc(ex, 0, 1000, 4095), -ENOMEM);
	ck_assert_uint_eq(resident(ex, 1000, 4095), 0);
	assert_mapped(ex, 100);
	/* The pages that the failed call had collected are free for other interfaces. */
	ck_assert_int_eq(alloc(ex, 1, 1000, 2900), 2900);
	ck_assert_int_eq(alloc(ex, 0, 5000, 1), -ENOMEM);
	/* ALLOC needs a free page only for pages that are not mapped. */
	ck_assert_int_eq(alloc(ex, 0, 0, 100), 0);
	ck_assert_int_eq(release(ex, 0, 50, 1), 1);
	ck_assert_int_eq(alloc(ex, 0, 0, 100), 1);
	assert_mapped(ex, 3000);
}

/* With EXMAP_ALLOC_PROBE, ALLOC skips an entry if its first page is mapped. */
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

	/* Each round leaves pages full of 0xff among the free pages of the system. */
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

TEST(free_ignores_probe)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);

	ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
	entry(ex, 0, 0, 0, 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_FREE, 1, EXMAP_ALLOC_PROBE), 0);
	assert_entry(ex, 0, 0, 0, 1);
}

/*
 * STATS
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

/* STATS does not leak the kernel's stack through its padding. */
TEST(stats_padding_is_zero)
{
	struct exmap *ex = exmap_new(MIB, 10, 1);
	struct exmap_ioctl_stats s = stats(ex);

	ck_assert_mem_eq((char *)&s + 28, "\0\0\0\0", 4);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Functional tests of the basic calls of the exmap module.");
}
