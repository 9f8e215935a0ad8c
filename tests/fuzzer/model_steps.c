// SPDX-License-Identifier: GPL-2.0
/*
 * Steps of one thread: calls other than ACTION, pread and pwrite; new exmaps; the loop.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "model.h"

void do_touch(struct exmap *ex)
{
	unsigned int page, len;

	pick(ex, 8, &page, &len);
	note(ex, 0, "touch %ld+%ld", page, len);
	for (; len; len--, page++) {
		if (!is_mapped(ex, page) && one_in(is_due(ex, page) ? 8 : 32))
			check_absent(ex, page);
		else if (is_mapped(ex, page) && one_in(2))
			model_tag(ex, page);
		else if (is_mapped(ex, page))
			check_content(ex, page);
	}
}

static void do_dontneed(struct exmap *ex)
{
	unsigned int page, len;
	int advice = one_in(2) ? MADV_DONTNEED : MADV_DONTNEED_LOCKED;

	pick(ex, one_in(16) ? 4095 : 16, &page, &len);
	note(ex, 0, "madvise(%ld): %ld+%ld", advice, page, len);
	if (counted(madvise(address(ex, page), len * PAGE, advice)))
		fail("%s", strerror(errno));
	if (len)
		model_flush(ex, NOBODY);
	for (; len; len--)
		model_unmap(ex, page++);
	model_check_books(ex);
}

/* Set the size of the pool, so that what is mapped still fits: then no surplus may be left. */
static void do_resize(struct exmap *ex)
{
	unsigned int least = ex->mapped ? ex->mapped : 1;
	struct exmap_ioctl_resize resize = { .surplus = 1 };

	resize.buffer_size = one_in(4) ? least : least + below(MAX_POOL + 1 - least);
	note(ex, 0, "resize: %ld", resize.buffer_size);
	if (counted(ioctl(any_fd(ex), EXMAP_IOCTL_RESIZE, &resize)))
		fail("%s", strerror(errno));
	ex->pool = resize.buffer_size;
	check_stats(ex);
	model_check_books(ex);
}

/* Give back free pages or page tables. What is mapped stays, as the other steps will see. */
static void do_trim(struct exmap *ex)
{
	struct exmap_ioctl_trim trim = { .pages = one_in(2) ? 0 : 1 + below(100) };
	unsigned int page = 0, len = 0;

	if (one_in(2)) {
		if (one_in(2))
			pick(ex, 4095, &page, &len);
		trim.flags = EXMAP_TRIM_TABLES;
		trim.page = page;
		trim.pages = len;
	}
	note(ex, 0, "trim(%ld): %ld+%ld", trim.flags, trim.page, trim.pages);
	if (counted(ioctl(any_fd(ex), EXMAP_IOCTL_TRIM, &trim)))
		fail("%s", strerror(errno));
	if (!trim.flags && trim.pages && trim.done > trim.pages)
		fail("%lu pages went back", trim.done);
	model_check_books(ex);
}

/* Such advice may fail, and may map pages as a touch does. It must not change anything else. */
static void do_madvise(struct exmap *ex)
{
	static const uint8_t advices[] = {
		MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, 5, 7, MADV_FREE,
		MADV_REMOVE, MADV_DONTFORK, MADV_DOFORK, MADV_MERGEABLE, MADV_UNMERGEABLE,
		MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_DODUMP, MADV_WIPEONFORK,
		MADV_KEEPONFORK, MADV_COLD, MADV_PAGEOUT,
		22 /* MADV_POPULATE_READ */, 23 /* _WRITE */, 25 /* MADV_COLLAPSE */, 26,
		102 /* MADV_GUARD_INSTALL */, 103 /* _REMOVE */,
	};
	int advice = advices[below(sizeof(advices))];
	unsigned int page = 0, len = ex->pages;

	if (one_in(2))
		pick(ex, 64, &page, &len);
	note(ex, 0, "madvise(%ld): %ld+%ld", advice, page, len);
	counted(madvise(address(ex, page), len * PAGE, advice));
	learn_mapped(ex, page, len);
	check_mapped(ex, page, len);
}

static void do_mapping(struct exmap *ex)
{
	unsigned int page, len;

	pick(ex, 64, &page, &len);
	if (!len)
		return;
	if (one_in(2))
		cannot_be_split(ex, page, len);
	else if (use_mapping(ex, page, len))
		learn_mapped(ex, page, len);
	check_mapped(ex, page, len);
}

/*
 * A page that is pinned when it is freed keeps its contents. The pool gets a fresh page in its
 * place, because RLIMIT_MEMLOCK has room for one.
 */
static void do_pin(struct exmap *ex)
{
	struct call call = {
		EXMAP_OP_FREE, below(ex->interfaces), one_in(2) ? EXMAP_FREE_DEFER : 0,
	};
	unsigned int page = below(ex->pages);
	uint64_t was, got;
	struct iovec range = { address(ex, page), PAGE };
	int ends[2];

	if (!is_mapped(ex, page))
		return;
	model_tag(ex, page);
	was = ex->content[page].first;
	die_if(pipe2(ends, O_CLOEXEC));
	if (counted(vmsplice(ends[1], &range, 1, 0)) == PAGE) {
		me.request[0] = (struct exmap_iov){ .page = page, .len = 1 };
		do_call(ex, &call, 1);
		for (int i = 0; i < 4; i++) {
			do_action(ex);
			do_touch(ex);
		}
		die_if(read(ends[0], &got, sizeof(got)) != sizeof(got));
		if (got != was)
			fail("page %u was pinned and holds %#lx, expected %#lx", page, got, was);
	}
	close(ends[0]);
	close(ends[1]);
}

static void do_clone(struct exmap *ex)
{
	int fd = any_fd(ex);
	one_of(8);

	or_expect(ex, -EINVAL, ioctl(fd, EXMAP_IOCTL_CLONE, fd));
	or_expect(ex, -EINVAL, ioctl(fd, EXMAP_IOCTL_CLONE, 1));
	or_expect(ex, -EBADF, ioctl(fd, EXMAP_IOCTL_CLONE, one_in(2) ? -1 : 99));
	or_expect(ex, ex == exmaps ? -EINVAL : -EBUSY,
		  ioctl(fd, EXMAP_IOCTL_CLONE, fd_of(exmaps, 0)));
	if (n_ < 2 && ex->fds < FDS) {
		make_clone(ex, fd, ex->fds++);
	} else if (n_ < 4 && ex->fds > 1) {
		/* Close any of them: the last one takes its number. */
		ex->fds--;
		die_if(dup3(fd_of(ex, ex->fds), fd_of(ex, below(ex->fds)), O_CLOEXEC) < 0);
		close(fd_of(ex, ex->fds));
	}
}

static void do_file(struct exmap *ex)
{
	int fd = any_fd(ex);
	unsigned int page;

	if (ex->file < 0 || one_in(4)) {
		expect(ex, one_in(2) ? fsync(fd) : fdatasync(fd), ex->file < 0 ? -EOPNOTSUPP : 0);
		return;
	}
	/* A new end of the file that is not in the first or last word of a page. */
	page = one_in(2) ? below(ex->pages) : ex->file_size / PAGE;
	ex->file_size = page * PAGE + (one_in(2) ? 0 : 8 + below(PAGE - 16));
	note(ex, 0, "ftruncate to %ld", ex->file_size);
	die_if(ftruncate(ex->file, ex->file_size));
	if (page >= ex->pages)
		return;
	if (ex->file_size % PAGE)
		ex->in_file[page++].last = 0;
	memset(&ex->in_file[page], 0, (ex->pages - page) * sizeof(ex->in_file[0]));
}

/* Calls that must be refused, and one that maps an interface a second time. */
static void do_odd(struct exmap *ex)
{
	const uint64_t interface = EXMAP_OFF_INTERFACE(0);
	const uint64_t none = EXMAP_OFF_INTERFACE(ex->interfaces);
	const size_t size = ex->pages * PAGE;
	const int fd = any_fd(ex), all = PROT_READ | PROT_WRITE;
	void *extra;
	one_of(8);

	or_expect(ex, -ENOTTY, ioctl(fd, rnd(), 0));
	or_expect(ex, -EBUSY, setup(fd, -1, 1, 1, 0));
	or_expect(ex, -EBUSY, mmap(NULL, size, all, MAP_SHARED, fd, EXMAP_OFF_EXMAP));
	or_expect(ex, -ENXIO, mmap(NULL, PAGE, all, MAP_SHARED, fd, none + below(2000) * PAGE));
	or_expect(ex, -EINVAL, mmap(NULL, 2 * PAGE, all, MAP_SHARED, fd, interface));
	or_expect(ex, -EINVAL, mmap(NULL, PAGE, all, MAP_PRIVATE, fd, interface));
	or_expect(ex, -EINVAL, mmap(NULL, PAGE, all, MAP_SHARED, fd, EXMAP_OFF_PTEXPORT));
	if (n_)
		return;
	note(ex, 0, "mmap of interface 0 once more");
	extra = mmap(NULL, PAGE, all, MAP_SHARED, fd, interface);
	if (extra == MAP_FAILED || memcmp(extra, interface_of(ex, 0), PAGE))
		fail("not the same page");
	counted(munmap(extra, PAGE));
}

/* Make a backing file: it ends anywhere, and 64 of its pages have tags. */
static int make_file(struct exmap *ex)
{
	char path[] = "/tmp/test-fuzz-XXXXXX";
	bool in_memory = one_in(2);
	int backing;

	ex->file = in_memory ? memfd_create("test-fuzz", MFD_CLOEXEC) : mkostemp(path, O_CLOEXEC);
	die_if(ex->file < 0);
	ex->read_only = !in_memory && one_in(4);
	backing = ex->read_only ? open(path, O_RDONLY | O_CLOEXEC) : ex->file;
	die_if(backing < 0);
	if (!in_memory)
		unlink(path);
	ex->file_size = 8 * below(ex->pages * PAGE / 8);
	if (ex->file_size % PAGE == 0 || ex->file_size % PAGE == PAGE - 8)
		ex->file_size += 16;
	for (unsigned int i = 0; i < 64; i++) {
		unsigned int page = below(ex->pages);
		uint64_t words[WORDS] = { new_tag(ex, page), [WORDS - 1] = new_tag(ex, page) };

		ex->in_file[page] = (struct content){ words[0], words[WORDS - 1] };
		die_if(pwrite(ex->file, words, PAGE, page * PAGE) != PAGE);
	}
	die_if(ftruncate(ex->file, ex->file_size));
	for (unsigned int page = ex->file_size / PAGE; page < ex->pages; page++) {
		ex->in_file[page].last = 0;
		if (page * PAGE >= ex->file_size)
			ex->in_file[page].first = 0;
	}
	return backing;
}

static void choose(struct exmap *ex)
{
	static const unsigned int pages[] = {
		1, 5, 511, 512, 513, 1000, 2000, 4096, 4099, 9000, MAX_PAGES,
	};
	static const unsigned int pools[] = {
		1, 2, 3, 10, 64, 100, 500, 512, 513, 600, 1100, 2000, MAX_POOL,
	};
	static unsigned int number;

	ex->number = number++ % 1024;
	ex->pages = pages[below(sizeof(pages) / sizeof(pages[0]))];
	ex->pool = pools[below(sizeof(pools) / sizeof(pools[0]))];
	ex->interfaces = one_in(2) ? 1 : 1 + below(MAX_INTERFACES);
	ex->flags = one_in(4) ? EXMAP_PAGEFAULT_ALLOC : 0;
	ex->surface = window_of(ex) + below(512) * PAGE;
	ex->file = -1;
	ex->read_only = false;
	ex->mapped = 0;
	ex->hot = below(ex->pages);
	ex->file_size = 0;
	memset(ex->state, 0, sizeof(ex->state));
	memset(ex->due, NOBODY, sizeof(ex->due));
	memset(ex->in_file, 0, sizeof(ex->in_file));
}

static void model_make(struct exmap *ex)
{
	int backing = -1;

	choose(ex);
	if (one_in(2))
		backing = make_file(ex);
	make(ex, backing);
	if (backing != ex->file)
		close(backing);
}

/* Remove the surface in one of several ways. */
static void unmap_surface(struct exmap *ex)
{
	const size_t size = ex->pages * PAGE;

	if (one_in(4)) {
		expect(ex, mremap(ex->surface, size, size, MREMAP_MAYMOVE | MREMAP_FIXED,
				  elsewhere), -EINVAL);
		reserve(elsewhere, MAX_PAGES * PAGE);
	}
	if (one_in(2))
		expect(ex, munmap(ex->surface, size), 0);
	expect(ex, reserve(ex->surface, size), (long)ex->surface);
}

/* Check an exmap whose surface is gone. */
static void check_dead(struct exmap *ex)
{
	int fd = any_fd(ex);

	ex->mapped = 0;
	check_stats(ex);
	for (unsigned int opcode = 0; opcode < 4; opcode++)
		if (!needs_file(opcode) || ex->file >= 0)
			expect(ex, action_at(fd, 0, opcode, 1, 0), -EPROTO);
	expect(ex, action_at(fd, 0, EXMAP_OP_FREE, 1, EXMAP_FREE_DEFER), -EPROTO);
	expect(ex, action_at(fd, 0, EXMAP_OP_FLUSH, 0, 0), -EPROTO);
	check_books(ex, 0, 0);
	if (ex->file >= 0)
		expect(ex, pread(fd, ex->surface, PAGE, 0), -EPROTO);
}

static void do_replace(struct exmap *ex)
{
	bool fds_first = one_in(2);

	if (one_in(4))
		check_all(ex);
	if (one_in(2))
		unmap_interfaces(ex);
	if (fds_first) {
		close_fds(ex);
		for (unsigned int page = 0; page < ex->pages; page += 1 + below(100))
			if (is_mapped(ex, page))
				check_content(ex, page);
	}
	unmap_surface(ex);
	if (!fds_first) {
		check_dead(ex);
		close_fds(ex);
	}
	unmap_interfaces(ex);
	model_make(ex);
}

void run_model(unsigned long calls)
{
	static const struct step steps[] = {
		{ 350, do_bad_action }, { 1000, do_proxy }, { 1500, do_touch }, { 60, do_dontneed },
		{ 40, do_madvise }, { 40, do_mapping }, { 40, do_clone }, { 60, do_file },
		{ 50, do_odd }, { 30, do_pin }, { 2, do_fork }, { 5, do_replace },
		{ 300, do_defer }, { 60, do_flush }, { 40, do_resize }, { 60, do_trim },
		{ 10000, do_action },
	};

	for (struct exmap *ex = exmaps; ex < exmaps + SLOTS; ex++)
		model_make(ex);
	while (atomic_load(me.calls) < calls) {
		struct exmap *ex = &exmaps[below(SLOTS)];

		run_step(steps, ex);
		if (one_in(256))
			ex->hot = below(ex->pages);
		if (one_in(3))
			check_stats(ex);
		if (one_in(64))
			model_check_books(ex);
		if (one_in(6)) {
			unsigned int page = below(ex->pages), nr = 1 + below(64);

			check_mapped(ex, page, nr < ex->pages - page ? nr : ex->pages - page);
		}
		if (one_in(1500))
			check_all(ex);
	}
	for (struct exmap *ex = exmaps; ex < exmaps + SLOTS; ex++)
		check_all(ex);
}
