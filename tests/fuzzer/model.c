// SPDX-License-Identifier: GPL-2.0
/*
 * The model: what each call must do to an exmap, and whether it has done that.
 */
#include "model.h"

void check_stats(struct exmap *ex)
{
	unsigned long count = stats_count(ex, any_fd(ex));

	if (count != ex->mapped)
		fail("alloc_count is %lu, expected %u", count, ex->mapped);
}

bool is_mapped(const struct exmap *ex, uint64_t page)
{
	return ex->state[page] != ABSENT;
}

void check_mapped(struct exmap *ex, unsigned int page, unsigned int nr)
{
	const unsigned char *seen = look(ex, page, nr);

	for (unsigned int i = 0; i < nr; i++)
		if ((seen[i] & 1) != (ex->state[page + i] != ABSENT))
			fail("page %u is %smapped, expected the opposite", page + i,
			     seen[i] & 1 ? "" : "not ");
}

/* A mapped page must hold what the model knows. Afterwards the page is KNOWN. */
void check_content(struct exmap *ex, unsigned int page)
{
	struct content *want = &ex->content[page], got;
	uint64_t between;
	int number = load(ex, page, &got, &between);

	if (number)
		fail("page %u must be mapped, but a touch got signal %d", page, number);
	if (ex->state[page] == STALE)
		*want = got;
	ex->state[page] = KNOWN;
	if (got.first != want->first || got.last != want->last)
		fail("page %u holds %#lx and %#lx, expected %#lx and %#lx", page, got.first,
		     got.last, want->first, want->last);
	check_own(ex, page, got, between);
}

void model_map(struct exmap *ex, unsigned int page, const struct content *content)
{
	ex->mapped++;
	ex->due[page].from = NOBODY;
	ex->state[page] = content ? KNOWN : STALE;
	if (content)
		ex->content[page] = *content;
}

void model_unmap(struct exmap *ex, unsigned int page)
{
	ex->mapped -= ex->state[page] != ABSENT;
	ex->state[page] = ABSENT;
}

/* All that an interface, or with NOBODY any interface, has freed is flushed. */
void model_flush(struct exmap *ex, uint8_t from)
{
	for (unsigned int page = 0; page < ex->pages; page++)
		if (from == NOBODY || ex->due[page].from == from)
			ex->due[page].from = NOBODY;
}

bool is_due(const struct exmap *ex, unsigned int page)
{
	return ex->due[page].from != NOBODY;
}

void model_check_books(struct exmap *ex)
{
	unsigned long most = 0;

	for (unsigned int page = 0; page < ex->pages; page++)
		most += is_due(ex, page);
	check_books(ex, ex->mapped, most);
}

void flush(struct exmap *ex, unsigned int interface)
{
	expect(ex, action_at(any_fd(ex), interface, EXMAP_OP_FLUSH, 0, 0), 0);
	model_flush(ex, interface);
}

void model_tag(struct exmap *ex, unsigned int page)
{
	uint64_t tag = new_tag(ex, page);

	if (store(ex, page, tag))
		fail("page %u must be mapped, but a store got a signal", page);
	ex->content[page] = (struct content){ tag, tag };
	ex->state[page] = KNOWN;
}

/* A touch must find the page that is mapped, not the one that was there before. */
void check_table(struct exmap *ex, unsigned int page)
{
	uint64_t word;

	model_tag(ex, page);
	note(ex, 0, "process_vm_readv of page %ld", page);
	if (!counted(load_by_table(ex, page, &word)))
		fail("%s", strerror(errno));
	if (word != ex->content[page].first)
		fail("page %u holds %#lx, but a touch finds another page with %#lx", page, word,
		     ex->content[page].first);
}

/* Check the result of a touch of a page that was not mapped: 0, or a signal. */
static void absent_touched(struct exmap *ex, unsigned int page, int got)
{
	bool alloc = ex->flags & EXMAP_PAGEFAULT_ALLOC;
	int want = !alloc ? SIGSEGV : ex->mapped < ex->pool ? 0 : SIGBUS;

	if (got != want && (got || !is_due(ex, page)))
		fail("signal %d, expected %d", got, want);
	/* A flush that is due may come between two loads. Then another word of the page faults. */
	if (got && me.fault != address(ex, page) && !is_due(ex, page))
		fail("fault at %p, expected %p", me.fault, address(ex, page));
	if (!got && alloc && (!is_due(ex, page) || look(ex, page, 1)[0] & 1))
		model_map(ex, page, NULL);
	check_mapped(ex, page, 1);
	if (is_mapped(ex, page))
		check_content(ex, page);
}

/*
 * Touch a page that is not mapped. With EXMAP_PAGEFAULT_ALLOC that maps a page, or is SIGBUS if the
 * pool is empty; otherwise it is SIGSEGV. While a flush is due, the touch may find the old page.
 */
void check_absent(struct exmap *ex, unsigned int page)
{
	struct content content, *want = &ex->content[page];
	uint64_t between;
	int got;

	if (is_due(ex, page) && one_in(2))
		flush(ex, ex->due[page].from);
	note(ex, 0, "touch page %ld, which is not mapped", page);
	got = load(ex, page, &content, &between);
	absent_touched(ex, page, got);
	if (got || is_mapped(ex, page))
		return;
	check_own(ex, page, content, between);
	if (ex->due[page].known && (content.first != want->first || content.last != want->last))
		fail("page %u held %#lx and %#lx when it was freed, "
		     "but %#lx and %#lx before its flush", page, want->first, want->last,
		     content.first, content.last);
}

/* Store to a page that is not mapped, with the same outcome. */
void write_to_absent(struct exmap *ex, unsigned int page)
{
	uint64_t tag = new_tag(ex, page);
	int got;

	note(ex, 0, "write to page %ld, which is not mapped", page);
	got = store(ex, page, tag);
	absent_touched(ex, page, got);
	if (is_mapped(ex, page))
		return;
	/* If the second store got a signal, the first one may still have reached the old page. */
	ex->content[page] = (struct content){ tag, tag };
	ex->due[page].known = !got;
}

/* After a call that may have mapped pages, let the model learn which ones. */
void learn_mapped(struct exmap *ex, unsigned int page, unsigned int nr)
{
	const unsigned char *seen = look(ex, page, nr);

	if (!(ex->flags & EXMAP_PAGEFAULT_ALLOC))
		return;
	for (unsigned int i = 0; i < nr; i++)
		if (seen[i] & 1 && ex->state[page + i] == ABSENT)
			model_map(ex, page + i, NULL);
	if (ex->mapped > ex->pool)
		fail("%u pages are mapped, but the pool has only %u", ex->mapped, ex->pool);
}

/* Check all that the model knows of an exmap. */
void check_all(struct exmap *ex)
{
	static const char zeros[PAGE];

	check_stats(ex);
	model_check_books(ex);
	check_mapped(ex, 0, ex->pages);
	for (unsigned int page = 0; page < ex->pages; page++) {
		if (ex->state[page] == ABSENT)
			continue;
		check_content(ex, page);
		if (one_in(4) && memcmp(address(ex, page) + 8, zeros, PAGE - 16))
			fail("page %u is not zero between its first word and its last", page);
	}
}

/* ALLOC or READ of an entry. Returns 0, or -ENOMEM. */
static int model_fill(struct exmap *ex, unsigned int opcode, unsigned int page, unsigned int len,
		      struct outcome *out)
{
	unsigned int missing = 0;

	for (unsigned int i = 0; i < len; i++)
		missing += !is_mapped(ex, page + i);
	if (missing > ex->pool - ex->mapped)
		return -ENOMEM;
	for (unsigned int p = page; p < page + len; p++) {
		if (is_mapped(ex, p))
			continue;
		if (opcode == EXMAP_OP_READ && p * PAGE >= ex->file_size) {
			out->good = out->res ? out->good : p;
			out->res = -ENODATA;
			continue;
		}
		model_map(ex, p, opcode == EXMAP_OP_READ ? &ex->in_file[p] : NULL);
		out->pages++;
	}
	if (page * PAGE < ex->file_size)
		out->res = 0;
	return 0;
}

static void model_free(struct exmap *ex, const struct call *call, unsigned int page,
		       unsigned int len, struct outcome *out)
{
	for (; len; len--, page++) {
		if (!is_mapped(ex, page))
			continue;
		out->pages++;
		if (call->flags & EXMAP_FREE_DEFER)
			ex->due[page] = (struct due){ call->interface, ex->state[page] == KNOWN };
		model_unmap(ex, page);
	}
}

static void model_write(struct exmap *ex, unsigned int page, unsigned int len, struct outcome *out)
{
	for (unsigned int p = page; p < page + len; p++) {
		if (!is_mapped(ex, p) || ex->read_only)
			out->good = out->good < p ? out->good : p;
		if (!is_mapped(ex, p))
			continue;
		if (ex->read_only) {
			out->res = -EBADF;
			continue;
		}
		check_content(ex, p);
		ex->in_file[p] = ex->content[p];
		if (ex->file_size < (p + 1) * PAGE)
			ex->file_size = (p + 1) * PAGE;
		out->pages++;
	}
}

/* Do in the model what an entry asks for. Returns 0, or -ENOMEM, which ends the call. */
int model_entry(struct exmap *ex, const struct call *call, uint64_t page, unsigned int len,
		       struct outcome *out)
{
	const unsigned int opcode = call->opcode;

	*out = (struct outcome){ .good = page + len };
	if (page > ex->pages || len > ex->pages - page) {
		out->res = -EFAULT;
		return 0;
	}
	if (opcode == EXMAP_OP_FREE)
		model_free(ex, call, page, len, out);
	else if (opcode == EXMAP_OP_WRITE)
		model_write(ex, page, len, out);
	else if (!(call->flags & EXMAP_ALLOC_PROBE) || !len || !is_mapped(ex, page))
		return model_fill(ex, opcode, page, len, out);
	return 0;
}
