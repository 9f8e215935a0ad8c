// SPDX-License-Identifier: GPL-2.0
/*
 * Steps of one thread: ACTION, pread and pwrite, and whether their answers are right.
 */
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "model.h"

/* A random range of at most @most pages, half of the time from the hot pages on. */
void pick(struct exmap *ex, unsigned int most, unsigned int *page, unsigned int *len)
{
	unsigned int kind = below(1024);

	/* Long runs are slow, so only few are long. */
	*page = one_in(2) ? (ex->hot + below(128)) % ex->pages : below(ex->pages);
	*len = kind < 900 ? 1 + below(4) : kind < 1000 ? 1 + below(32) :
		kind < 1020 ? below(2) : kind < 1023 ? 1 + below(600) : 1 + below(4095);
	if (*len > most)
		*len = 1 + *len % most;
	if (*len > ex->pages - *page)
		*len = ex->pages - *page;
}

static struct exmap_iov pick_entry(struct exmap *ex, unsigned int most)
{
	unsigned int page, len;

	pick(ex, most, &page, &len);
	if (!one_in(64))
		return (struct exmap_iov){ .page = page, .len = len };
	/* An entry that ends beyond the surface, or may. */
	if (one_in(2))
		return (struct exmap_iov){ .value = rnd() >> below(64) };
	return (struct exmap_iov){ .page = ex->pages - below(3) + below(3), .len = below(5) };
}

/* Both the result of ACTION and its answers, which replace the entries, must be right. */
static void check_answers(struct exmap *ex, const struct call *call, unsigned int nr, long got,
			  const struct exmap_iov *iov)
{
	int err = needs_file(call->opcode) && ex->file < 0 ? -EOPNOTSUPP : 0;
	struct outcome out;
	uint64_t want;
	long failed = 0;

	for (unsigned int i = 0; i < nr; i++) {
		struct exmap_iov request = me.request[i];

		out = (struct outcome){ };
		if (!err)
			err = model_entry(ex, call, request.page, request.len, &out);
		if (err && !i)
			break;
		if (err)
			out = (struct outcome){ .res = err };
		failed += out.res < 0;
		want = (uint64_t)out.pages << 32 | (uint32_t)out.res;
		if (iov[i].value != want)
			fail("entry %u: res %d, pages %d (%#lx), expected %d, %u", i, iov[i].res,
			     iov[i].pages, iov[i].value, out.res, out.pages);
	}
	if (err && !failed)
		failed = err;
	if (got != failed)
		fail("returned %ld, expected %ld", got, failed);
	if (got < 0 && memcmp(iov, me.request, nr * sizeof(*iov)))
		fail("returned %ld, but entries are overwritten", got);
	if (nr < ENTRIES && iov[nr].value != me.request[nr].value)
		fail("entry %u, after the last, is overwritten", nr);
}

/* The same for a call by fadvise64 of an entry that lies on the surface. */
static void check_advice(struct exmap *ex, const struct call *call, struct exmap_iov request,
			 long got)
{
	struct outcome out = { };
	long want;

	if (needs_file(call->opcode) && ex->file < 0)
		want = -EOPNOTSUPP;
	else
		want = model_entry(ex, call, request.page, request.len, &out) ?: out.res;
	want = want ?: out.pages;
	if (got != want)
		fail("returned %ld, expected %ld", got, want);
}

static unsigned int batch(void)
{
	unsigned int kind = below(1024);

	return kind < 900 ? 1 + below(4) : kind < 1020 ? 1 + below(24) : 1 + below(ENTRIES);
}

/* After a call, look at one of its pages now and then. */
static void check_some(struct exmap *ex, unsigned int nr)
{
	struct exmap_iov entry = me.request[below(nr)];
	uint64_t page = entry.page;

	if (entry.len)
		page += below(entry.len);
	if (page >= ex->pages)
		return;
	if (!is_mapped(ex, page) && one_in(is_due(ex, page) ? 4 : 16))
		check_absent(ex, page);
	else if (is_mapped(ex, page) && one_in(16))
		check_table(ex, page);
	else if (is_mapped(ex, page) && one_in(2))
		model_tag(ex, page);
	else if (is_mapped(ex, page))
		check_content(ex, page);
}

/* Make a call with the entries in me.request. */
void do_call(struct exmap *ex, const struct call *call, unsigned int nr)
{
	struct exmap_iov *iov = interface_of(ex, call->interface)->iov;
	long got;

	if (nr == 1 && me.request[0].len && me.request[0].page + me.request[0].len <= ex->pages &&
	    one_in(2)) {
		got = advise(ex, any_fd(ex), call, me.request[0]);
		check_advice(ex, call, me.request[0], got);
		return;
	}
	me.request[nr].value = rnd();
	memcpy(iov, me.request, (nr < ENTRIES ? nr + 1 : nr) * sizeof(*iov));
	got = action(ex, any_fd(ex), call->interface, call->opcode, nr, call->flags);
	check_answers(ex, call, nr, got, iov);
}

void do_action(struct exmap *ex)
{
	static const uint8_t opcodes[] = {
		EXMAP_OP_ALLOC, EXMAP_OP_FREE, EXMAP_OP_ALLOC, EXMAP_OP_FREE, EXMAP_OP_ALLOC,
		EXMAP_OP_FREE, EXMAP_OP_READ, EXMAP_OP_FREE, EXMAP_OP_READ, EXMAP_OP_WRITE,
	};
	struct call call = { opcodes[below(sizeof(opcodes))], below(ex->interfaces), 0 };
	unsigned int nr = batch();

	if (one_in(8))
		call.flags |= EXMAP_ALLOC_PROBE;
	if (call.opcode == EXMAP_OP_FREE && one_in(2))
		call.flags |= EXMAP_FREE_DEFER;
	/*
	 * If entries overlap, a READ with EXMAP_ALLOC_PROBE may or may not find mapped what it
	 * reads for the entry before. The model cannot tell.
	 */
	if (call.opcode == EXMAP_OP_READ && call.flags)
		nr = 1;
	for (unsigned int i = 0; i < nr; i++)
		me.request[i] = pick_entry(ex, nr > 32 ? 2 : 4095);
	do_call(ex, &call, nr);
	for (int i = 0; i < 2; i++)
		check_some(ex, nr);
}

void do_flush(struct exmap *ex)
{
	flush(ex, below(ex->interfaces));
	if (one_in(4))
		model_check_books(ex);
}

/* Free a page that is in the TLB with EXMAP_FREE_DEFER, and flush it in one of several ways. */
void do_defer(struct exmap *ex)
{
	struct call call = { EXMAP_OP_FREE, below(ex->interfaces), EXMAP_FREE_DEFER };
	unsigned int page, len;

	pick(ex, 1, &page, &len);
	if (!is_mapped(ex, page))
		return;
	model_tag(ex, page);
	me.request[0] = (struct exmap_iov){ .page = page, .len = 1 };
	do_call(ex, &call, 1);
	if (one_in(4))
		write_to_absent(ex, page);
	else if (one_in(2))
		check_absent(ex, page);
	if (is_mapped(ex, page))
		return;
	switch (below(4)) {
	case 0:
		flush(ex, call.interface);
		check_absent(ex, page);
		break;
	case 1:
		/* Of another page: this flushes all that is deferred. */
		expect(ex, madvise(address(ex, ex->pages - 1), PAGE, MADV_DONTNEED), 0);
		model_unmap(ex, ex->pages - 1);
		model_flush(ex, NOBODY);
		check_absent(ex, page);
		break;
	case 2:
		call = (struct call){ EXMAP_OP_ALLOC, below(ex->interfaces), 0 };
		me.request[0] = (struct exmap_iov){ .page = page, .len = 1 };
		do_call(ex, &call, 1);
		if (is_mapped(ex, page))
			check_table(ex, page);
		break;
	}
}

void do_bad_action(struct exmap *ex)
{
	const unsigned int last = ex->interfaces - 1, opcode = below(4), nr = below(3);
	const unsigned int no_free = opcode == EXMAP_OP_FREE ? EXMAP_OP_FLUSH : opcode;
	const unsigned int no_proxy = one_in(2) ? EXMAP_OP_FREE : EXMAP_OP_FLUSH;
	void *wild = (void *)(rnd() >> below(64) | 1UL << 63);
	int fd = any_fd(ex);
	one_of(18);

	or_expect(ex, -EINVAL, action_at(fd, ex->interfaces + below(3000), opcode, nr, 0));
	or_expect(ex, -EINVAL, action_at(fd, last, 5 + below(65531), nr, 0));
	or_expect(ex, -EINVAL, action_at(fd, last, opcode, 513 + below(65023), 0));
	or_expect(ex, -EINVAL, action_at(fd, last, opcode, nr, one_in(8) ? 2 : 8UL << below(61)));
	or_expect(ex, -EINVAL, action_at(fd, last, no_free, nr, EXMAP_FREE_DEFER | below(2)));
	or_expect(ex, -EINVAL, action_at(fd, last, EXMAP_OP_FLUSH, 1 + below(600), 0));
	or_expect(ex, -EINVAL, action_at(fd, last, EXMAP_OP_FLUSH, 0, 1UL << below(64)));
	or_expect(ex, -EINVAL, pread(fd, ex->surface, PAGE, no_proxy << 8 | last));
	or_expect(ex, -EINVAL, advise_at(fd, below(3) * PAGE, PAGE, below(0x40000000)));
	or_expect(ex, -EINVAL, advise_at(fd, 0, PAGE, EXMAP_ADVICE(4 + below(60), last, 0)));
	or_expect(ex, -EINVAL, advise_at(fd, 0, PAGE, EXMAP_ADVICE(no_free, last, 2)));
	or_expect(ex, -EINVAL, advise_at(fd, 0, PAGE, EXMAP_ADVICE(no_free, last, 4)));
	or_expect(ex, -EINVAL, advise_at(fd, 1 + below(4095), PAGE, EXMAP_ADVICE(opcode, last, 0)));
	or_expect(ex, -EINVAL, advise_at(fd, 0, below(4096), EXMAP_ADVICE(opcode, last, 0)));
	or_expect(ex, 0, action_at(fd, last, opcode, 0, below(2)));
	or_expect(ex, -EFAULT, ioctl(fd, EXMAP_IOCTL_ACTION, wild));
	or_expect(ex, -EFAULT, ioctl(fd, EXMAP_IOCTL_STATS, wild));
	or_expect(ex, -EFAULT, ioctl(fd, EXMAP_IOCTL_SETUP, wild));
}

/* Do in the model what a pread or pwrite of these ranges asks for. Returns what it must return. */
static long model_proxy(struct exmap *ex, unsigned int opcode, const struct iovec *iov,
			unsigned int nr)
{
	const struct call call = { .opcode = opcode };
	struct outcome out;
	long done = 0;
	int err = 0;

	for (unsigned int i = 0; i < nr; i++) {
		unsigned int page = ((char *)iov[i].iov_base - ex->surface) / PAGE;
		unsigned int left = iov[i].iov_len / PAGE, len;

		for (; left; page += len, left -= len) {
			len = left < 4096 ? left : 4096;
			if (model_entry(ex, &call, page, len, &out))
				return done || err == -ENODATA ? done : err ?: -ENOMEM;
			if (err)
				continue;
			done += (out.good - page) * PAGE;
			if (out.good < page + len)
				err = out.res ?: opcode == EXMAP_OP_WRITE ? -EFAULT : -ENODATA;
		}
	}
	return done || err == -ENODATA ? done : err;
}

/* Random ranges, of which a few are invalid. Returns the error of the first invalid one, or 0. */
static int pick_ranges(struct exmap *ex, struct iovec *iov, unsigned int nr)
{
	unsigned int page, len;
	int err = 0, this;

	for (unsigned int i = 0; i < nr; i++) {
		pick(ex, 4095, &page, &len);
		len += !len;
		iov[i] = (struct iovec){ address(ex, page), len * PAGE };
		this = 0;
		switch (below(100)) {
		case 0:
			iov[i].iov_base = (char *)iov[i].iov_base + 8;
			this = -EINVAL;
			break;
		case 1:
			iov[i].iov_len -= 512;
			this = -EINVAL;
			break;
		case 2:
			iov[i].iov_len = (ex->pages - page + 1) * PAGE;
			this = -EFAULT;
			break;
		case 3:
			iov[i].iov_base = interface_of(ex, 0);
			this = -EFAULT;
			break;
		}
		err = err ?: this;
	}
	return err;
}

void do_proxy(struct exmap *ex)
{
	static const uint8_t opcodes[] = {
		EXMAP_OP_READ, EXMAP_OP_READ, EXMAP_OP_ALLOC, EXMAP_OP_WRITE,
	};
	unsigned int opcode = opcodes[below(4)], nr = one_in(4) ? 1 + below(8) : 1;
	uint64_t offset = opcode << 8 | below(ex->interfaces);
	int fd = any_fd(ex);
	struct iovec iov[8];
	long got, want = pick_ranges(ex, iov, nr);

	if (one_in(50)) {
		offset = one_in(2) ? (rnd() >> 1) | 0x10000 :
				     opcode << 8 | (ex->interfaces + below(10));
		want = -EINVAL;
	}
	if (needs_file(opcode) && ex->file < 0 && !(offset >> 16))
		want = -EOPNOTSUPP;
	note(ex, 0, "opcode %ld by preadv or pwritev: fd %ld, at %#lx, "
	     "%ld ranges: %ld bytes at %ld", opcode, fd, offset, nr, iov[0].iov_len,
	     (char *)iov[0].iov_base - ex->surface);
	if (opcode == EXMAP_OP_WRITE)
		got = nr == 1 ? pwrite(fd, iov[0].iov_base, iov[0].iov_len, offset) :
			pwritev(fd, iov, nr, offset);
	else
		got = nr == 1 ? pread(fd, iov[0].iov_base, iov[0].iov_len, offset) :
			preadv(fd, iov, nr, offset);
	got = counted(got);
	want = want ?: model_proxy(ex, opcode, iov, nr);
	if (got != want)
		fail("returned %ld, expected %ld", got, want);
}
