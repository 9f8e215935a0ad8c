/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Entries: read a request, write its answer.
 */
#ifndef EXMAP_ENTRY_H
#define EXMAP_ENTRY_H

#include <linux/minmax.h>
#include <linux/nospec.h>

#include "exmap.h"

/**
 * exmap_request - the addresses that an entry asks for
 * @exmap: the exmap
 * @value: the entry, which the caller has read only once, because another thread may change it
 * @start: set to the address of the first page
 * @end: set to the first address after the last page
 *
 * Return: 0, or -EFAULT if the entry leaves the surface.
 */
static inline int exmap_request(const struct exmap *exmap, u64 value, unsigned long *start,
				unsigned long *end)
{
	struct exmap_iov request = { .value = value };
	unsigned long pages = (exmap->end - exmap->start) >> PAGE_SHIFT;
	unsigned long page = request.page, len = request.len;

	*start = 0;
	*end = 0;
	if (page > pages || len > pages - page)
		return -EFAULT;
	page = array_index_nospec(page, pages + 1);
	len = array_index_nospec(len, pages - page + 1);
	*start = exmap->start + (page << PAGE_SHIFT);
	*end = *start + (len << PAGE_SHIFT);
	return 0;
}

/**
 * exmap_one_page - make an entry of one page
 * @page: which page of the surface
 *
 * Return: the entry.
 */
static inline struct exmap_iov exmap_one_page(unsigned long page)
{
	return (struct exmap_iov){ .page = page, .len = 1 };
}

/**
 * exmap_is_one_page - whether an entry has just one page
 * @request: the entry, which the caller has read only once, because another thread may change it
 *
 * Return: whether it has. The page need not be on the surface.
 */
static __always_inline bool exmap_is_one_page(u64 request)
{
	return request >> (64 - EXMAP_PAGE_LEN_BITS) == 1;
}

/**
 * exmap_only_page - the page of an entry that has just one
 * @request: the entry, of which exmap_is_one_page() is true
 *
 * Return: which page of the surface.
 */
static __always_inline unsigned long exmap_only_page(u64 request)
{
	return request - (1UL << (64 - EXMAP_PAGE_LEN_BITS));
}

/**
 * exmap_single - the page of an entry of one page
 * @request: the entry, which the caller has read only once, because another thread may change it
 * @first: the surface's first page, in pages from address 0
 * @pages: number of pages of the surface
 *
 * Return: the page's address >> PAGE_SHIFT; or 0 if the entry is not of one page, or leaves the
 * surface.
 */
static __always_inline unsigned long exmap_single(u64 request, unsigned long first,
						  unsigned long pages)
{
	/* If the entry has another length, this is beyond any surface. */
	unsigned long page = exmap_only_page(request);

	return page < pages ? first + array_index_nospec(page, pages) : 0;
}

/**
 * exmap_answer - put an entry's answer in place of the request
 * @iov: the entry
 * @res: 0 or an error
 * @pages: number of pages that the call mapped, unmapped, read or wrote
 *
 * This is one store. It pairs with user space, where no thread ever sees half an answer. It is not
 * ordered with the PTEs: they are there, or gone and flushed, when the call has returned.
 */
static inline void exmap_answer(struct exmap_iov *iov, int res, unsigned int pages)
{
	WRITE_ONCE(iov->value, (u64)(pages & U16_MAX) << 32 | (u32)res);
}

/**
 * exmap_answer_one - answer a call of one entry of one page
 * @iov: the entry
 * @res: number of pages done, or an error
 *
 * Return: how many entries failed; or an error, if the entry was not even tried.
 */
static inline long exmap_answer_one(struct exmap_iov *iov, int res)
{
	if (likely(res >= 0)) {
		exmap_answer(iov, 0, res);
		return 0;
	}
	if (res != -EFAULT)
		return res;
	exmap_answer(iov, res, 0);
	return 1;
}

/**
 * exmap_one_result - the result of a call of one entry, for a caller that has no entries
 * @iov: the entry, which holds its answer if @ret is not negative
 * @ret: what the call returned
 *
 * Return: number of pages done; or the error of the call or of the entry.
 */
static inline int exmap_one_result(const struct exmap_iov *iov, long ret)
{
	return ret < 0 ? ret : iov->res ?: iov->pages;
}

#endif /* EXMAP_ENTRY_H */
