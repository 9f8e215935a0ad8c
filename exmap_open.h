/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The part of exmap_user.h that opens and closes an exmap. Programs include exmap_user.h.
 */
#ifndef EXMAP_OPEN_H
#define EXMAP_OPEN_H

#include <sched.h>
#include <sys/ioctl.h>

#include "exmap_madvise.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * How the functions for programs are declared. lib/libexmap.c defines it as nothing, and so do
 * tools that make declarations for another language of this header.
 */
#ifndef EXMAP_LIBRARY
#define EXMAP_LIBRARY static inline
#endif

/* A flag of exmap_open(): use madvise(2) instead of the module. */
#define EXMAP_WITH_MADVISE (UINT64_C(1) << 32)

/**
 * struct exmap - a surface and its pool
 * @fd: the open /dev/exmap; -1 after exmap_close(), and without the module
 * @interfaces: how many interfaces the exmap has
 * @surface: address of page 0; NULL after exmap_close()
 * @surface_pages: size of the surface, in pages
 * @taken: a bit for each interface that is attached
 * @process: the process that opened the exmap; its children have neither surface nor interfaces
 * @has_advice: calls on one range go by fadvise64(2): see EXMAP_ADVICE()
 * @madvise: what takes the place of the module; NULL with the module
 * @reserved: for later versions
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
	struct exmap_madvise *madvise;
	uint64_t reserved[4];
};

/**
 * exmap_version - the version of this header, or of the library
 *
 * Return: EXMAP_VERSION.
 */
EXMAP_LIBRARY const char *exmap_version(void)
{
	return EXMAP_VERSION;
}

/**
 * exmap_address - the address of a page
 * @exmap: the exmap
 * @page: its number, counted from the start of the surface
 *
 * Return: the address, whether a page is mapped there or not.
 */
EXMAP_LIBRARY void *exmap_address(const struct exmap *exmap, uint64_t page)
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
EXMAP_LIBRARY const char *exmap_strerror(int err)
{
	switch (-err) {
	case ENOENT:
		return "/dev/exmap does not exist: load the module (modprobe exmap); "
		       "or the path of the backing file does not exist";
	case EACCES:
		return "no permission for /dev/exmap (ask the administrator to add you to its "
		       "group), or for the path of the backing file";
	case ENOMEM:
		return "pool and interfaces are above RLIMIT_MEMLOCK (raise ulimit -l, or use fewer "
		       "pages), or no memory or address space is left";
	case EPERM:
		return "RLIMIT_MEMLOCK is 0 (raise ulimit -l), or the exmap belongs to another "
		       "process (open one after fork)";
	case EBADF:
		return "the backing file is not open for reading";
	case EISDIR:
	case ESPIPE:
		return "the backing file must be a regular file or a block device";
	case EINVAL:
		return "a number is out of range (1 to 1024 interfaces, at least 1 page), a flag is "
		       "unknown, or the backing file is neither a regular file nor a block device";
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
EXMAP_LIBRARY int exmap_stats(const struct exmap *exmap, struct exmap_ioctl_stats *stats)
{
	memset(stats, 0, sizeof(*stats));
	if (exmap->madvise) {
		exmap_madvise_stats(exmap->madvise, stats);
		return 0;
	}
	return ioctl(exmap->fd, EXMAP_IOCTL_STATS, stats) ? -errno : 0;
}

/**
 * exmap_sync - fsync() of the backing file
 * @exmap: the exmap
 *
 * It writes no page of the surface: WRITE does.
 *
 * Return: 0; -EOPNOTSUPP if the exmap has no backing file; or another negative errno.
 */
EXMAP_LIBRARY int exmap_sync(const struct exmap *exmap)
{
	if (exmap->madvise && exmap->madvise->backing < 0)
		return -EOPNOTSUPP;
	return fsync(exmap->madvise ? exmap->madvise->backing : exmap->fd) ? -errno : 0;
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
EXMAP_LIBRARY void exmap_close(struct exmap *exmap)
{
	if (exmap->surface)
		exmap_unmap(exmap, exmap->surface, exmap->surface_pages * EXMAP_PAGE_SIZE);
	if (exmap->fd >= 0)
		exmap_close_fd(exmap, exmap->fd);
	if (exmap->madvise && exmap->process == getpid())
		exmap_madvise_close(exmap->madvise);
	exmap->madvise = NULL;
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
/* Strict ISO C hides it in sched.h. C++ does not. */
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

/* Open /dev/exmap, and find out what it can do. Returns 0 or a negative errno. */
static inline int exmap_open_module(struct exmap *exmap)
{
	exmap->fd = exmap_open_device();
	if (exmap->fd < 0)
		return exmap->fd;
	/* Before SETUP, a module that has the call says EBADF. Others say EINVAL or ENOSYS. */
	exmap->has_advice = exmap_advise(exmap->fd, 0, EXMAP_OP_FREE, 0, 1, 0) == -EBADF;
	return 0;
}

/* SETUP without the module, after the surface is mapped. Returns 0 or a negative errno. */
static inline int exmap_setup_madvise(struct exmap *exmap, const char *path, int open_flags,
				      struct exmap_ioctl_setup *setup)
{
	int err;

	if (path) {
		setup->fd = open(path, open_flags);
		if (setup->fd < 0)
			return -errno;
	}
	err = exmap_madvise_open(&exmap->madvise, exmap->surface, exmap->surface_pages, setup);
	if (path)
		close(setup->fd);
	return err;
}

/* exmap_open_path(), or exmap_open() if @path is NULL. @setup has the arguments of both. */
static inline int exmap_open_either(struct exmap *exmap, uint64_t surface_pages,
				    struct exmap_ioctl_setup *setup, const char *path,
				    int open_flags)
{
	const char *backend = getenv("EXMAP_BACKEND");
	const int madvise = setup->flags & EXMAP_WITH_MADVISE ||
		(backend && !strcmp(backend, "madvise"));
	void *surface;
	int err;

	memset(exmap, 0, sizeof(*exmap));
	exmap->process = getpid();
	exmap->fd = -1;
	setup->flags &= ~EXMAP_WITH_MADVISE;
	err = madvise ? 0 : exmap_open_module(exmap);
	if (err)
		return err;
	/* SETUP ignores all flags if it does not know one of them. */
	err = -EINVAL;
	if (surface_pages == 0 || surface_pages > SIZE_MAX / EXMAP_PAGE_SIZE ||
	    setup->flags & ~(uint64_t)EXMAP_PAGEFAULT_ALLOC)
		goto fail;
	surface = mmap(NULL, surface_pages * EXMAP_PAGE_SIZE, PROT_READ | PROT_WRITE,
		       madvise ? MAP_PRIVATE | EXMAP_MAP_ANONYMOUS | EXMAP_MAP_NORESERVE :
		       MAP_SHARED, exmap->fd, (off_t)EXMAP_OFF_EXMAP);
	err = -errno;
	if (surface == MAP_FAILED)
		goto fail;
	exmap->surface = (char *)surface;
	exmap->surface_pages = surface_pages;
	exmap->interfaces = (unsigned int)setup->max_interfaces;
	if (madvise)
		err = exmap_setup_madvise(exmap, path, open_flags, setup);
	else if (path)
		err = exmap_setup_path(exmap->fd, path, open_flags, setup);
	else
		err = ioctl(exmap->fd, EXMAP_IOCTL_SETUP, setup) ? -errno : 0;
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
 * @flags: EXMAP_PAGEFAULT_ALLOC, EXMAP_WITH_MADVISE, both or 0
 *
 * With EXMAP_BACKEND=madvise in the environment, EXMAP_WITH_MADVISE is always set.
 *
 * Return: 0; or a negative errno, which exmap_strerror() explains.
 */
EXMAP_LIBRARY int exmap_open(struct exmap *exmap, uint64_t surface_pages, uint64_t pool_pages,
			     unsigned int interfaces, int backing, uint64_t flags)
{
	struct exmap_ioctl_setup setup;

	memset(&setup, 0, sizeof(setup));
	setup.fd = backing;
	setup.max_interfaces = (int)interfaces;
	setup.buffer_size = pool_pages;
	setup.flags = flags;
	return exmap_open_either(exmap, surface_pages, &setup, NULL, 0);
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
 * no lock. WRITE writes to the file, and exmap_sync() is fsync() of it. Without the module,
 * exmap_close() drops the locks.
 *
 * Return: 0; or a negative errno, which exmap_strerror() explains.
 */
EXMAP_LIBRARY int exmap_open_path(struct exmap *exmap, uint64_t surface_pages,
				  uint64_t pool_pages, unsigned int interfaces, const char *path,
				  int open_flags, uint64_t flags)
{
	struct exmap_ioctl_setup setup;

	memset(&setup, 0, sizeof(setup));
	setup.fd = -1;
	setup.max_interfaces = (int)interfaces;
	setup.buffer_size = pool_pages;
	setup.flags = flags;
	return exmap_open_either(exmap, surface_pages, &setup, path, open_flags);
}

#ifdef __cplusplus
}
#endif

#endif /* EXMAP_OPEN_H */
