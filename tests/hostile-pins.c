// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of pages that others still hold when they leave the surface: a pipe, or a file system in
 * user space. They stay charged to their user, and never become page cache.
 */
#include <linux/fuse.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "hostile.h"

/* How pages leave the surface. */
enum way_off { BY_FREE, BY_DEFERRED_FREE, BY_DONTNEED, BY_MUNMAP, BY_CLOSE, BY_EXIT, WAYS_OFF };

/* Take the first @pages off the surface; BY_EXIT leaves that to the end of the process. */
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

/* Has this user's RLIMIT_MEMLOCK room for another pool of @pages? A child tries. */
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
 * Pages that a pipe holds stay charged to the user who had them, whichever way they left the
 * surface. They are given back when the pipe is gone.
 */
TEST(pinned_pages_stay_charged)
{
	enum { PIPES = 16, EACH = 16, PINNED = PIPES * EACH };
	int pipes[PIPES][2], ready[2];
	struct iovec iov;
	struct exmap *ex;
	pid_t pid;
	char byte;

	/* The limit: twice the pages, and a page for the array of interfaces of has_room_for(). */
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
				/* They still belong to the pool, which has no others. */
				assert_fdinfo(ex->fd, "pages-pinned", PINNED);
				assert_fdinfo(ex->fd, "pages-system", PINNED);
				/* RLIMIT_MEMLOCK has room for a page in place of one of them. */
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
		/* The pages are still charged to this user, and nothing else is. */
		ck_assert(has_room_for(PINNED));
		ck_assert(!has_room_for(PINNED + 1));
		for (int i = 0; i < PIPES; i++) {
			close(pipes[i][0]);
			close(pipes[i][1]);
		}
		/* The module looks at orphans once a second. */
		for (int i = 0; !has_room_for(2 * PINNED) && i < 600; i++)
			usleep(100000);
		ck_assert(has_room_for(2 * PINNED));
		close(ready[0]);
	}
}

/*
 * A file system in user space, written by hand: one file of a few pages
 */
enum { FUSE_PAGES = 4 };

struct fuse {
	int fd;				/* of /dev/fuse */
	struct exmap *ex;
	enum way_off way;
	bool served;			/* the kernel has read the file */
	uint64_t frame[FUSE_PAGES];	/* the page frames of what it got */
};

/* The page frame number behind an address; 0 if the page is absent. */
static uint64_t frame_of(const char *address)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t value = 0;

	assert_ok(fd);
	ck_assert_int_eq(pread(fd, &value, 8, (uintptr_t)address / PAGE * 8), 8);
	close(fd);
	return value & ((1ULL << 55) - 1);
}

/* Answer a request, with an error or a body. */
static void fuse_reply(struct fuse *f, uint64_t unique, int error, const void *body, size_t len)
{
	struct fuse_out_header header = {
		.len = sizeof(header) + len, .error = error, .unique = unique,
	};
	struct iovec iov[] = { { &header, sizeof(header) }, { (void *)body, len } };

	ck_assert_int_eq(writev(f->fd, iov, 2), header.len);
}

/*
 * Answer a read with pages of the surface. vmsplice gives them away, then they leave the surface,
 * and then splice asks the kernel to move them into the page cache.
 */
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
	ck_assert_int_eq(splice(pipes[0], NULL, f->fd, NULL, header.len, SPLICE_F_MOVE),
			 header.len);
	close(pipes[0]);
	close(pipes[1]);
	f->served = true;
}

/* Answer one request of the kernel. */
static void fuse_serve(struct fuse *f)
{
	static char request[FUSE_MIN_READ_BUFFER + 64 * 1024];
	const struct fuse_in_header *in = (const void *)request;
	const struct fuse_read_in *read_in = (const void *)(in + 1);
	struct fuse_attr file = {
		.ino = 2, .size = FUSE_PAGES * PAGE, .mode = S_IFREG | 0644, .nlink = 1,
	};
	struct fuse_attr root = { .ino = 1, .mode = S_IFDIR | 0755, .nlink = 2 };
	struct fuse_init_out init = {
		.major = FUSE_KERNEL_VERSION, .minor = 31, .max_readahead = 64 * 1024,
		.max_write = 4096, .max_background = 1, .congestion_threshold = 1,
	};
	struct fuse_entry_out entry_out = {
		.nodeid = 2, .attr_valid = 3600, .entry_valid = 3600, .attr = file,
	};
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

/* Read the file by a mapping, and write to @to which page frames its pages are in. */
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

/*
 * Serve a file out of an exmap to a child that reads it. The child must find other page frames than
 * those of the exmap, and the exmap must get all its pages back.
 */
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
		/*
		 * The file system ends when the last descriptor is closed. That must be the
		 * parent's, because the child cannot let go of the file before that.
		 */
		close(f.fd);
		fuse_read(path, answer[1]);
		_exit(0);
	}
	/* So that poll() tells if the child has failed. */
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
	/* The kernel has copied the pages: the file has none that belong to the exmap. */
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

/*
 * splice with SPLICE_F_MOVE into a FUSE file copies pages that have left the surface, whichever
 * way they left it.
 */
TEST(pinned_pages_do_not_become_page_cache, .needs = "/dev/fuse")
{
	char directory[] = "/tmp/exmap-fuse-XXXXXX", path[64];

	ck_assert_ptr_nonnull(mkdtemp(directory));
	snprintf(path, sizeof(path), "%s/file", directory);
	for (int way = BY_FREE; way <= BY_CLOSE; way++)
		steal_by_fuse(way, directory, path);
	rmdir(directory);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv,
			  "Tests of pages that others hold when they leave the surface.");
}
