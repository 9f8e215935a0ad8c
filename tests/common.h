/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tests of the module's calls share: an exmap with its interfaces, and the calls. The
 * tests of exmap_user.h cannot include this, because exmap_user.h has its own struct exmap.
 */
#ifndef TEST_COMMON_H
#define TEST_COMMON_H

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "linux/exmap.h"
#include "base.h"

struct exmap {
	int fd;
	char *surface;
	size_t size;
	struct exmap_user_interface *interface[EXMAP_MAX_INTERFACES];
};

static inline int exmap_open(void)
{
	int fd = open("/dev/exmap", O_RDWR | O_CLOEXEC);

	assert_ok(fd);
	return fd;
}

static inline int exmap_setup_file(int fd, int interfaces, size_t pages, uint64_t flags, int file)
{
	struct exmap_ioctl_setup setup = {
		.fd = file,
		.max_interfaces = interfaces,
		.buffer_size = pages,
		.flags = flags,
	};

	return ioctl(fd, EXMAP_IOCTL_SETUP, &setup);
}

static inline int exmap_setup(int fd, int interfaces, size_t pages, uint64_t flags)
{
	return exmap_setup_file(fd, interfaces, pages, flags, -1);
}

static inline int exmap_clone(int fd, int of)
{
	return ioctl(fd, EXMAP_IOCTL_CLONE, of);
}

static inline void *map_surface(int fd, size_t size)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, EXMAP_OFF_EXMAP);
}

static inline void *map_interface(int fd, unsigned long nr)
{
	return mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, EXMAP_OFF_INTERFACE(nr));
}

/* A new exmap with a surface of @size bytes and a pool of @pages, all interfaces mapped. */
static inline struct exmap *exmap_new_file(size_t size, size_t pages, int interfaces,
					   uint64_t flags, int file)
{
	static struct exmap all[8];
	static int nr;
	struct exmap *ex = &all[nr++];

	ex->fd = exmap_open();
	ex->size = size;
	ex->surface = map_surface(ex->fd, size);
	assert_ok(ex->surface);
	assert_ok(exmap_setup_file(ex->fd, interfaces, pages, flags, file));
	for (int i = 0; i < interfaces; i++) {
		ex->interface[i] = map_interface(ex->fd, i);
		assert_ok(ex->interface[i]);
	}
	return ex;
}

static inline struct exmap *exmap_new_flags(size_t size, size_t pages, int interfaces,
					    uint64_t flags)
{
	return exmap_new_file(size, pages, interfaces, flags, -1);
}

static inline struct exmap *exmap_new(size_t size, size_t pages, int interfaces)
{
	return exmap_new_flags(size, pages, interfaces, 0);
}

static inline int action(int fd, int interface, int opcode, int nr, uint64_t flags)
{
	struct exmap_action_params params;

	/* The module must ignore the padding. */
	memset(&params, 0xa5, sizeof(params));
	params.interface = interface;
	params.iov_len = nr;
	params.opcode = opcode;
	params.flags = flags;
	return ioctl(fd, EXMAP_IOCTL_ACTION, &params);
}

static inline void entry(struct exmap *ex, int interface, int i, uint64_t page, unsigned int len)
{
	ex->interface[interface]->iov[i].value = (uint64_t)len << 52 | page;
}

/* A call with one entry. Returns the number of pages done, or the negative errno. */
static inline int run_flags(struct exmap *ex, int interface, int opcode, uint64_t page,
			    unsigned int len, uint64_t flags)
{
	struct exmap_iov *iov = ex->interface[interface]->iov;
	int ret;

	entry(ex, interface, 0, page, len);
	ret = action(ex->fd, interface, opcode, 1, flags);
	if (ret < 0) {
		ck_assert_uint_eq(iov[0].value, (uint64_t)len << 52 | page);
		return -errno;
	}
	ck_assert_int_eq(ret, iov[0].res < 0);
	return iov[0].res ?: iov[0].pages;
}

static inline int run(struct exmap *ex, int interface, int opcode, uint64_t page, unsigned int len)
{
	return run_flags(ex, interface, opcode, page, len, 0);
}

#define alloc(ex, interface, page, len) run(ex, interface, EXMAP_OP_ALLOC, page, len)
#define release(ex, interface, page, len) run(ex, interface, EXMAP_OP_FREE, page, len)
#define defer(ex, interface, page, len)						\
	run_flags(ex, interface, EXMAP_OP_FREE, page, len, EXMAP_FREE_DEFER)

#define assert_entry(ex, nr, i, want_res, want_pages) do {		\
	struct exmap_iov iov_ = (ex)->interface[nr]->iov[i];			\
	ck_assert_msg(iov_.res == (want_res) && iov_.pages == (want_pages) &&	\
		      !(iov_.value >> 48),					\
		      "entry %d: res %d, pages %d (%#lx), expected %d, %d", i,	\
		      iov_.res, iov_.pages, (long)iov_.value, want_res, want_pages); \
} while (0)

static inline struct exmap_ioctl_stats stats(struct exmap *ex)
{
	struct exmap_ioctl_stats stats;

	memset(&stats, 0xa5, sizeof(stats));
	assert_ok(ioctl(ex->fd, EXMAP_IOCTL_STATS, &stats));
	return stats;
}

/* While no call runs, the numbers of pages in each place add up to those from the system. */
static inline void assert_pages_add_up(int fd)
{
	assert_fdinfo(fd, "pages-system", fdinfo(fd, "pages-mapped") +
		      fdinfo(fd, "pages-free") + fdinfo(fd, "pages-deferred") +
		      fdinfo(fd, "pages-in-flight") + fdinfo(fd, "pages-pinned"));
}

#define assert_mapped(ex, n) ck_assert_uint_eq(stats(ex).alloc_count, n)

/* How many of @len pages from @page on are mapped, as mincore tells. */
static inline size_t resident(struct exmap *ex, uint64_t page, size_t len)
{
	unsigned char vec[4096];
	size_t sum = 0;

	ck_assert_uint_le(len, sizeof(vec));
	assert_ok(mincore(ex->surface + page * PAGE, len * PAGE, vec));
	for (size_t i = 0; i < len; i++)
		sum += vec[i] & 1;
	return sum;
}

/*
 * Run the kernel's shrinkers, as if memory were short. Returns whether that succeeded; only root
 * may do it.
 */
static inline bool shrink(void)
{
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);
	/* 4: no message in the kernel log. 2: shrink dentries, inodes and all other shrinkers. */
	bool ok = fd >= 0 && pwrite(fd, "4", 1, 0) == 1 && pwrite(fd, "2", 1, 0) == 1;

	close(fd);
	return ok;
}

#endif /* TEST_COMMON_H */
