// SPDX-License-Identifier: GPL-2.0
/*
 * System calls on an exmap that are made with one thread and with several.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "fuzzer.h"

struct exmap exmaps[SLOTS];
char *surfaces, *elsewhere;
struct exmap_user_interface *interfaces;

/* The number of a descriptor of an exmap. */
int fd_of(const struct exmap *ex, unsigned int nr)
{
	return 100 + (ex - exmaps) * FDS + nr;
}

int any_fd(const struct exmap *ex)
{
	return fd_of(ex, below(ex->fds));
}

struct exmap_user_interface *interface_of(const struct exmap *ex, unsigned int nr)
{
	return &interfaces[(ex - exmaps) * MAX_INTERFACES + nr];
}

/* The start of the addresses of a slot, which have room for twice MAX_PAGES. */
char *window_of(const struct exmap *ex)
{
	return surfaces + (ex - exmaps) * 2 * MAX_PAGES * PAGE;
}

long setup(int fd, int file, int nr, size_t pages, uint64_t flags)
{
	struct exmap_ioctl_setup setup = {
		.fd = file, .max_interfaces = nr, .buffer_size = pages, .flags = flags,
	};

	return ioctl(fd, EXMAP_IOCTL_SETUP, &setup);
}

void *map(void *where, size_t size, int fd, uint64_t offset)
{
	return mmap(where, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, offset);
}

/* Reserve addresses, so that nothing is mapped there by chance. Unmaps what was there. */
long reserve(void *where, size_t size)
{
	return (long)mmap(where, size, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

/* ACTION that is not noted. */
long action_at(int fd, unsigned int interface, unsigned int opcode, unsigned int nr,
		      uint64_t flags)
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

long action(const struct exmap *ex, int fd, unsigned int interface, unsigned int opcode,
		   unsigned int nr, uint64_t flags)
{
	note(ex, nr, "ACTION: fd %ld, interface %ld, opcode %ld, %ld entries, flags %#lx:",
	     fd, interface, opcode, nr, flags);
	return counted(action_at(fd, interface, opcode, nr, flags));
}

/* fadvise64 that is not noted. */
long advise_at(int fd, uint64_t offset, uint64_t length, int advice)
{
	return syscall(SYS_fadvise64, fd, offset, length, advice);
}

/* The call of one entry by fadvise64. Returns the number of pages, or a negative errno. */
long advise(const struct exmap *ex, int fd, const struct call *call, struct exmap_iov request)
{
	note(ex, 0, "fadvise64: fd %ld, interface %ld, opcode %ld, flags %#lx: %ld+%ld", fd,
	     call->interface, call->opcode, call->flags, request.page, request.len);
	return counted(advise_at(fd, request.page * PAGE, request.len * PAGE,
				 EXMAP_ADVICE(call->opcode, call->interface, (int)call->flags)));
}

bool needs_file(unsigned int opcode)
{
	return opcode == EXMAP_OP_READ || opcode == EXMAP_OP_WRITE;
}

/* STATS must agree with SETUP. Returns alloc_count. */
unsigned long stats_count(const struct exmap *ex, int fd)
{
	struct exmap_ioctl_stats stats;

	memset(&stats, 0xa5, sizeof(stats));
	expect(ex, ioctl(fd, EXMAP_IOCTL_STATS, &stats), 0);
	if (stats.flags != ex->flags || stats.buffer_size != ex->pool ||
	    stats.max_interfaces != ex->interfaces)
		fail("flags %#lx, buffer_size %lu, max_interfaces %u", stats.flags,
		     stats.buffer_size, stats.max_interfaces);
	return stats.alloc_count;
}

struct books {
	unsigned long system, mapped, free, deferred, in_flight, pinned;
};

static bool read_books(const struct exmap *ex, struct books *books)
{
	char path[64], text[8192], *found;
	struct {
		const char *key;
		unsigned long *value;
	} rows[] = {
		{ "exmap-pages-system:", &books->system },
		{ "exmap-pages-mapped:", &books->mapped },
		{ "exmap-pages-free:", &books->free },
		{ "exmap-pages-deferred:", &books->deferred },
		{ "exmap-pages-in-flight:", &books->in_flight },
		{ "exmap-pages-pinned:", &books->pinned },
	};
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd_of(ex, 0));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	die_if(fd < 0);
	memset(text, 0, sizeof(text));
	die_if(read(fd, text, sizeof(text) - 1) < 0);
	close(fd);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		found = strstr(text, rows[i].key);
		if (found)
			*rows[i].value = strtoul(found + strlen(rows[i].key), NULL, 10);
		else
			fail("fdinfo has no %s", rows[i].key);
	}
	return books->system == books->mapped + books->free + books->deferred +
		books->in_flight + books->pinned;
}

/*
 * While no call is at work, fdinfo must count each page of the pool once: @mapped of them on the
 * surface, and at most @most of them deferred.
 */
void check_books(const struct exmap *ex, unsigned long mapped, unsigned long most)
{
	struct books books;

	note(ex, 0, "fdinfo");
	/* The shrinker may be at work. */
	for (int i = 0; !read_books(ex, &books) && i < 100; i++)
		usleep(1000);
	if (!read_books(ex, &books) || books.mapped != mapped || books.deferred > most)
		fail("%lu pages: %lu mapped (expected %lu), %lu free, %lu deferred (at most %lu), "
		     "%lu in flight, %lu pinned", books.system, books.mapped, mapped, books.free,
		     books.deferred, most, books.in_flight, books.pinned);
}

/* What mincore says about a range: a byte for each page. */
const unsigned char *look(struct exmap *ex, unsigned int page, unsigned int nr)
{
	static unsigned char seen[MAX_PAGES];

	note(ex, 0, "mincore: %ld+%ld", page, nr);
	if (counted(mincore(address(ex, page), nr * PAGE, seen)))
		fail("%s", strerror(errno));
	return seen;
}

/* Open a clone of an exmap as its descriptor @nr. */
void make_clone(struct exmap *ex, int from, unsigned int nr)
{
	int fd = open("/dev/exmap", O_RDWR | O_CLOEXEC);

	die_if(fd < 0);
	expect(ex, ioctl(fd, EXMAP_IOCTL_CLONE, from), 0);
	die_if(dup3(fd, fd_of(ex, nr), O_CLOEXEC) < 0);
	close(fd);
}

static void bad_setup(struct exmap *ex, int fd)
{
	one_of(9);

	or_expect(ex, -EINVAL, setup(fd, -1, one_in(2) ? 0 : 1025, 10, 0));
	or_expect(ex, -EINVAL, ioctl(fd, EXMAP_IOCTL_QUARANTINE,
				     one_in(2) ? 0 : EXMAP_MAX_QUARANTINE + (1UL << below(64))));
	or_expect(ex, -EINVAL, setup(fd, -1, 1, one_in(2) ? 0 : 1UL << 60, 0));
	or_expect(ex, -EBADF, setup(fd, 99, 1, 10, 0));
	or_expect(ex, -EBADF, action_at(fd, 0, EXMAP_OP_ALLOC, 1, 0));
	or_expect(ex, -EBADF, action_at(fd, 0, EXMAP_OP_FLUSH, 0, 0));
	or_expect(ex, -EBADF, pread(fd, ex->surface, PAGE, 0));
	or_expect(ex, -ENXIO, mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, EXMAP_OFF_INTERFACE(0)));
	or_expect(ex, -EBADF, ioctl(fd, EXMAP_IOCTL_STATS, interface_of(ex, 0)));
}

/* Set the size of quarantines before anything is deferred, in every other exmap. */
static void set_quarantine(struct exmap *ex, int fd)
{
	static const unsigned int sizes[] = {
		1, 2, 7, 64, 511, 513, 1024, 1300, EXMAP_MAX_QUARANTINE,
	};

	if (one_in(2))
		expect(ex, ioctl(fd, EXMAP_IOCTL_QUARANTINE,
				 (unsigned long)sizes[below(sizeof(sizes) / sizeof(sizes[0]))]), 0);
}

/* The flags for SETUP. A word with an unknown bit counts as 0, so 0 may become such a word. */
static uint64_t flags_word(uint64_t flags)
{
	return flags || one_in(2) ? flags :
		1UL << (2 + below(62)) | (one_in(2) ? EXMAP_PAGEFAULT_ALLOC : 0);
}

/* Make an exmap as its fields say, with its surface, all interfaces and one descriptor. */
void make(struct exmap *ex, int backing)
{
	bool surface_first = one_in(2);
	int fd = open("/dev/exmap", O_RDWR | O_CLOEXEC);

	die_if(fd < 0);
	if (one_in(4))
		bad_setup(ex, fd);
	if (surface_first)
		expect(ex, map(ex->surface, ex->pages * PAGE, fd, EXMAP_OFF_EXMAP),
		       (long)ex->surface);
	if (one_in(4))
		bad_setup(ex, fd);
	expect(ex, setup(fd, backing, ex->interfaces, ex->pool, flags_word(ex->flags)), 0);
	set_quarantine(ex, fd);
	for (unsigned int i = 0; i < ex->interfaces; i++)
		expect(ex, map(interface_of(ex, i), PAGE, fd, EXMAP_OFF_INTERFACE(i)),
		       (long)interface_of(ex, i));
	if (!surface_first) {
		expect(ex, action_at(fd, 0, EXMAP_OP_ALLOC, 1, 0), -EPROTO);
		expect(ex, action_at(fd, 0, EXMAP_OP_FREE, 1, EXMAP_FREE_DEFER), -EPROTO);
		expect(ex, action_at(fd, 0, EXMAP_OP_FLUSH, 0, 0), -EPROTO);
		expect(ex, map(ex->surface, ex->pages * PAGE, fd, EXMAP_OFF_EXMAP),
		       (long)ex->surface);
	}
	die_if(dup3(fd, fd_of(ex, 0), O_CLOEXEC) < 0);
	close(fd);
	ex->fds = 1;
}

void close_fds(struct exmap *ex)
{
	for (unsigned int i = 0; i < ex->fds; i++)
		expect(ex, close(fd_of(ex, i)), 0);
	ex->fds = 0;
	if (ex->file >= 0)
		close(ex->file);
	ex->file = -1;
}

void unmap_interfaces(struct exmap *ex)
{
	note(ex, 0, "unmap the interfaces");
	die_if(mmap(interface_of(ex, 0), MAX_INTERFACES * PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED);
}

/* 1 to 3 clear the accessed bits of mappings; 4 write-protects them, to find dirty pages. */
static void clear_refs(void)
{
	char what = '1' + below(4);
	int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);

	note(NULL, 0, "clear_refs: %ld", what - '0');
	if (fd < 0)
		return;
	counted(write(fd, &what, 1));
	close(fd);
}

static void read_file(const char *path)
{
	static __thread char buffer[65536];
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd >= 0)
		while (read(fd, buffer, sizeof(buffer)) > 0)
			;
	close(fd);
}

/* Calls that would split, move, resize or protect the surface must be refused. */
void cannot_be_split(const struct exmap *ex, unsigned int page, unsigned int len)
{
	const size_t size = ex->pages * PAGE;
	one_of(5);

	if (len == ex->pages)
		return;
	or_expect(ex, -EINVAL, munmap(address(ex, page), len * PAGE));
	or_expect(ex, true, mprotect(address(ex, page), len * PAGE, PROT_READ) == -1 &&
		  (errno == EINVAL || errno == EACCES));
	or_expect(ex, -EACCES, mprotect(ex->surface, size, below(4)));
	or_expect(ex, -EFAULT, mremap(ex->surface, size, size + PAGE, below(2) * MREMAP_MAYMOVE));
	or_expect(ex, -EINVAL, mremap(ex->surface, size, len * PAGE, 0));
}

/* Other calls on a part of the surface. Returns true if the call may have mapped pages. */
bool use_mapping(const struct exmap *ex, unsigned int page, unsigned int len)
{
	char *start = address(ex, page);
	const size_t size = len * PAGE;
	static __thread char buffer[PAGE];
	struct iovec here = { buffer, PAGE }, there = { start, PAGE };

	note(ex, 0, "mlock, msync, ...: %ld+%ld", page, len);
	switch (below(8)) {
	case 0:
		counted(mlock(start, size));
		return true;
	case 1:
		counted(munlock(start, size));
		break;
	case 2:
		counted(msync(start, size, one_in(2) ? MS_SYNC | MS_INVALIDATE : MS_ASYNC));
		break;
	case 3:
	case 4:
		counted(process_vm_readv(getpid(), &here, 1, &there, 1, 0));
		return true;
	case 5:
		counted(readahead(any_fd(ex), 0, size));
		break;
	case 6:
		clear_refs();
		break;
	default:
		read_file(one_in(2) ? "/proc/self/smaps" : "/proc/self/numa_maps");
	}
	return false;
}

/* In a child, every call on the exmap must fail. Returns which check failed, or 0. */
static int check_child(const struct exmap *ex, unsigned int page)
{
	struct content content;
	uint64_t between;
	struct exmap_ioctl_stats stats;
	int fd = fd_of(ex, 0);

	if (action_at(fd, 0, EXMAP_OP_FREE, 1, 0) != -1 || errno != EPERM)
		return 1;
	if (ioctl(fd, EXMAP_IOCTL_STATS, &stats) != -1 || errno != EPERM)
		return 2;
	if (pread(fd, ex->surface, PAGE, EXMAP_OP_ALLOC << 8) != -1 || errno != EPERM)
		return 3;
	if (mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, EXMAP_OFF_INTERFACE(0)) != MAP_FAILED)
		return 4;
	if (load(ex, page, &content, &between) != SIGSEGV)
		return 5;
	if (action_at(fd, 0, EXMAP_OP_FLUSH, 0, 0) != -1 || errno != EPERM)
		return 6;
	return 0;
}

void do_fork(struct exmap *ex)
{
	unsigned int page = below(ex->pages);
	int status;
	pid_t pid;

	note(ex, 0, "fork, page %ld", page);
	pid = fork();
	if (!pid)
		_exit(check_child(ex, page));
	die_if(pid < 0 || waitpid(pid, &status, 0) != pid);
	if (status)
		fail("the child's status is %#x", status);
}
