/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The part of exmap_user.h that opens and closes an exmap. Programs include exmap_user.h.
 */
#ifndef EXMAP_OPEN_H
#define EXMAP_OPEN_H

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/exmap.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EXMAP_PAGE_SIZE ((size_t)4096)

/* MAP_ANONYMOUS, which strict ISO C hides. */
#define EXMAP_MAP_ANONYMOUS 0x20

/**
 * struct exmap - a surface and its pool
 * @fd: the open /dev/exmap; -1 after exmap_close()
 * @interfaces: how many interfaces the exmap has
 * @surface: address of page 0; NULL after exmap_close()
 * @surface_pages: size of the surface, in pages
 * @taken: a bit for each interface that is attached
 * @process: the process that opened the exmap; its children have neither surface nor interfaces
 * @has_advice: calls on one range go by fadvise64(2): see EXMAP_ADVICE()
 *
 * A program may read these fields, but must not write them.
 */
struct exmap {
	int fd;
	unsigned int interfaces;
	char *surface;
	uint64_t surface_pages;
	uint64_t taken[EXMAP_MAX_INTERFACES / 64];
	pid_t process;
	int has_advice;
};

/**
 * exmap_address - the address of a page
 * @exmap: the exmap
 * @page: its number, counted from the start of the surface
 *
 * Return: the address, whether a page is mapped there or not.
 */
static inline void *exmap_address(const struct exmap *exmap, uint64_t page)
{
	return exmap->surface + page * EXMAP_PAGE_SIZE;
}

/**
 * exmap_strerror - explain why opening an exmap or taking an interface failed
 * @err: what exmap_open(), exmap_open_path(), exmap_attach(), exmap_attach_to() or
 *	exmap_own_fd() returned
 *
 * Return: one line without a newline, which says what is wrong and what to do about it.
 */
static inline const char *exmap_strerror(int err)
{
	switch (-err) {
	case ENOENT:
		return "/dev/exmap does not exist: load the module (modprobe exmap); or the path of the backing file does not exist";
	case EACCES:
		return "no permission for /dev/exmap (ask the administrator to add you to its group), or for the path of the backing file";
	case ENOMEM:
		return "pool and interfaces are above RLIMIT_MEMLOCK (raise ulimit -l, or use fewer pages), or no memory or address space is left";
	case EPERM:
		return "RLIMIT_MEMLOCK is 0 (raise ulimit -l), or the exmap belongs to another process (open one after fork)";
	case EBADF:
		return "the backing file is not open for reading";
	case EISDIR:
	case ESPIPE:
		return "the backing file must be a regular file or a block device";
	case EINVAL:
		return "a number is out of range (1 to 1024 interfaces, at least 1 page), a flag is unknown, or the backing file is neither a regular file nor a block device";
	case EMFILE:
		return "too many files are open: close some, or raise ulimit -n";
	case ENXIO:
		return "the exmap has no interface of that number";
	case EBUSY:
		return "every interface is in use: open the exmap with more interfaces";
	default:
		return strerror(-err);
	}
}

/**
 * exmap_stats - what an exmap was set up with, and how many of its pages are mapped
 * @exmap: the exmap
 * @stats: filled in
 *
 * After -ENOMEM, @stats->alloc_count says of which kind it was. If it is @stats->buffer_size, the
 * pool is used up. If it is far below, the system or the memory cgroup has no memory left.
 *
 * Return: 0; or a negative errno.
 */
static inline int exmap_stats(const struct exmap *exmap, struct exmap_ioctl_stats *stats)
{
	memset(stats, 0, sizeof(*stats));
	return ioctl(exmap->fd, EXMAP_IOCTL_STATS, stats) ? -errno : 0;
}

/*
 * Close a descriptor of an exmap. In a child, close it only if it is what the child has inherited.
 * If the child has closed it, its number may be that of any other file by now.
 */
static inline void exmap_close_fd(const struct exmap *exmap, int fd)
{
	struct exmap_ioctl_stats stats;

	memset(&stats, 0, sizeof(stats));
	if (exmap->process == getpid() ||
	    (ioctl(fd, EXMAP_IOCTL_STATS, &stats) && errno == EPERM))
		close(fd);
}

/*
 * Unmap the surface or an interface. In a child, other mappings may be at the same addresses. A
 * child can have the number of its parent, in a PID namespace of its own.
 */
static inline void exmap_unmap(const struct exmap *exmap, void *address, size_t size)
{
	struct exmap_ioctl_stats stats;

	if (exmap->process == getpid() && exmap_stats(exmap, &stats) != -EPERM)
		munmap(address, size);
}

/**
 * exmap_close - undo exmap_open()
 * @exmap: has been opened; a second exmap_close() does nothing
 *
 * Unmaps the surface and frees its pages. Detach all interfaces before: pool and interfaces count
 * against RLIMIT_MEMLOCK as long as one interface is attached. In a child of the process that
 * opened the exmap, this closes the child's descriptor, if it still is the exmap's, and unmaps
 * nothing.
 */
static inline void exmap_close(struct exmap *exmap)
{
	if (exmap->surface)
		exmap_unmap(exmap, exmap->surface, exmap->surface_pages * EXMAP_PAGE_SIZE);
	if (exmap->fd >= 0)
		exmap_close_fd(exmap, exmap->fd);
	exmap->surface = NULL;
	exmap->fd = -1;
}

/* Open /dev/exmap. Returns a file descriptor that execve() closes, or a negative errno. */
static inline int exmap_open_device(void)
{
#ifdef O_CLOEXEC
	int fd = open("/dev/exmap", O_RDWR | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
#else	/*
	 * ISO C has no O_CLOEXEC. A process that inherits the descriptor before fcntl() can
	 * do nothing with it, but keeps the backing file open.
	 */
	int fd = open("/dev/exmap", O_RDWR);

	if (fd < 0)
		return -errno;
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	return fd;
#endif
}

#ifndef __cplusplus
/* Strict ISO C hides these in unistd.h and sched.h. C++ does not. */
long syscall(long number, ...);
int clone(int (*function)(void *), void *stack, int flags, void *arg, ...);
#endif

/*
 * A call on one range with all arguments in registers. Returns how many pages were done, or a
 * negative errno. The kernel may lack the call; exmap->has_advice tells.
 */
static inline long exmap_advise(int fd, unsigned int number, unsigned int opcode, uint64_t page,
				uint64_t pages, int flags)
{
	long done = syscall(SYS_fadvise64, fd, (off_t)(page * EXMAP_PAGE_SIZE),
			    (off_t)(pages * EXMAP_PAGE_SIZE),
			    (int)EXMAP_ADVICE(opcode, number, (unsigned int)flags));

	return done < 0 ? -(long)errno : done;
}

/* What exmap_setup_child() does. */
struct exmap_setup_job {
	int fd;		/* the exmap */
	const char *path;
	int flags;	/* of open(2) */
	struct exmap_ioctl_setup *setup;
	int err;	/* the result */
};

/* SETUP, with the file of a path. */
static inline int exmap_setup_child(void *arg)
{
	struct exmap_setup_job *job = (struct exmap_setup_job *)arg;

	job->setup->fd = open(job->path, job->flags);
	job->err = job->setup->fd < 0 || ioctl(job->fd, EXMAP_IOCTL_SETUP, job->setup) ? -errno : 0;
	return 0;
}

/*
 * SETUP in a child that shares the memory of its parent but not the descriptors. So it is not the
 * parent who closes the file, which would drop the parent's POSIX locks on it. As in posix_spawn(),
 * the parent waits, and no handler of a signal runs in the child. Returns 0 or a negative errno.
 */
static inline int exmap_setup_path(int fd, const char *path, int flags,
				   struct exmap_ioctl_setup *setup)
{
	const int vm_and_vfork = 0x4100, set_mask = 2, every_child = 0x40000000;
	struct exmap_setup_job job = { fd, path, flags, setup, -EPERM };
	const size_t size = 65536;
	uint64_t mask = ~UINT64_C(0), before;
	void *stack, *no_usage = NULL;
	int pid, status;

	stack = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | EXMAP_MAP_ANONYMOUS, -1, 0);
	if (stack == MAP_FAILED)
		return -errno;
	syscall(SYS_rt_sigprocmask, set_mask, &mask, &before, sizeof(mask));
	pid = clone(exmap_setup_child, (char *)stack + size, vm_and_vfork, &job);
	if (pid < 0)
		job.err = -errno;
	else
		while (syscall(SYS_wait4, pid, &status, every_child, no_usage) < 0 &&
		       errno == EINTR)
			;
	syscall(SYS_rt_sigprocmask, set_mask, &before, &mask, sizeof(mask));
	munmap(stack, size);
	return job.err;
}

/* exmap_open() with @backing, or exmap_open_path() if @path is not NULL. */
static inline int exmap_open_either(struct exmap *exmap, uint64_t surface_pages,
				    uint64_t pool_pages, unsigned int interfaces, int backing,
				    const char *path, int open_flags, uint64_t flags)
{
	struct exmap_ioctl_setup setup;
	void *surface;
	int err;

	memset(exmap, 0, sizeof(*exmap));
	exmap->process = getpid();
	memset(&setup, 0, sizeof(setup));
	setup.fd = backing;
	setup.max_interfaces = (int)interfaces;
	setup.buffer_size = pool_pages;
	setup.flags = flags;

	exmap->fd = exmap_open_device();
	if (exmap->fd < 0)
		return exmap->fd;
	/* Before SETUP, a module that has the call says EBADF. Others say EINVAL or ENOSYS. */
	exmap->has_advice = exmap_advise(exmap->fd, 0, EXMAP_OP_FREE, 0, 1, 0) == -EBADF;
	/* SETUP ignores all flags if it does not know one of them. */
	if (surface_pages == 0 || surface_pages > SIZE_MAX / EXMAP_PAGE_SIZE ||
	    flags & ~(uint64_t)EXMAP_PAGEFAULT_ALLOC) {
		err = -EINVAL;
		goto fail;
	}
	surface = mmap(NULL, surface_pages * EXMAP_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
		       exmap->fd, (off_t)EXMAP_OFF_EXMAP);
	if (surface == MAP_FAILED) {
		err = -errno;
		goto fail;
	}
	exmap->surface = (char *)surface;
	exmap->surface_pages = surface_pages;
	exmap->interfaces = interfaces;
	if (path)
		err = exmap_setup_path(exmap->fd, path, open_flags, &setup);
	else
		err = ioctl(exmap->fd, EXMAP_IOCTL_SETUP, &setup) ? -errno : 0;
	if (err)
		goto fail;
	return 0;
fail:
	exmap_close(exmap);
	return err;
}

/**
 * exmap_open - open, set up and map an exmap
 * @exmap: filled in; after an error there is nothing to close
 * @surface_pages: size of the surface, in pages of 4 KiB; a large one costs next to nothing
 * @pool_pages: the most pages that can be mapped at a time; counts against RLIMIT_MEMLOCK
 * @interfaces: how many interfaces, one for each thread that works on the exmap; 1 to 1024
 * @backing: a file or block device for READ and WRITE, which may be closed after this;
 *	or -1
 * @flags: 0 or EXMAP_PAGEFAULT_ALLOC
 *
 * Return: 0; or a negative errno, which exmap_strerror() explains.
 */
static inline int exmap_open(struct exmap *exmap, uint64_t surface_pages, uint64_t pool_pages,
			     unsigned int interfaces, int backing, uint64_t flags)
{
	return exmap_open_either(exmap, surface_pages, pool_pages, interfaces, backing, NULL, 0,
				 flags);
}

/**
 * exmap_open_path - exmap_open(), with a backing file that the process has no descriptor of
 * @exmap: filled in; after an error there is nothing to close
 * @surface_pages: as for exmap_open()
 * @pool_pages: as for exmap_open()
 * @interfaces: as for exmap_open()
 * @path: the path of a file or block device that exists
 * @open_flags: flags of open(2), such as O_RDWR | O_DIRECT
 * @flags: as for exmap_open()
 *
 * For programs that have POSIX locks on the file. A process that closes any descriptor of a file
 * loses all its POSIX locks on that file. The exmap keeps the file open, and exmap_close() drops
 * no lock. WRITE writes to the file, and fsync() of @exmap->fd is passed on to it.
 *
 * Return: 0; or a negative errno, which exmap_strerror() explains.
 */
static inline int exmap_open_path(struct exmap *exmap, uint64_t surface_pages,
				  uint64_t pool_pages, unsigned int interfaces, const char *path,
				  int open_flags, uint64_t flags)
{
	return exmap_open_either(exmap, surface_pages, pool_pages, interfaces, -1, path,
				 open_flags, flags);
}

#ifdef __cplusplus
}
#endif

#endif /* EXMAP_OPEN_H */
