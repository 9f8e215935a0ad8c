/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Pages of a file in memory, on the surface of an exmap.
 *
 * Byte n of the file has its place at byte n of the surface. Memory comes and goes in blocks: a
 * block is a page of the user, or 4 KiB if that is more. One thread at a time uses a struct pages.
 */
#ifndef PAGES_H
#define PAGES_H

#include "exmap_user.h"

/*
 * A state of a block is a number of pins, times PIN, with these bits below it. A block that is
 * QUEUED but not VALID is to be read again. Its pages may be mapped or not.
 */
enum pages_state {
	PAGES_QUEUED = 1,	/* in the queue */
	PAGES_VALID = 2,	/* in memory, and equal to the file */
	PAGES_USED = 4,		/* found in memory since the clock's last visit */
	PAGES_PIN = 8,
};

/**
 * struct pages - the pages of one file
 * @exmap: the surface, with the file behind it
 * @interface: the only one
 * @pool_pages: the most pages of 4 KiB that can be in memory
 * @blocks: how many blocks the surface has; 0 before the first page, and if @broken
 * @state: a state for each block
 * @queue: the blocks that are in memory, oldest first; a ring
 * @capacity: the most blocks that can be in memory
 * @head: where in @queue the oldest block is
 * @count: how many blocks @queue has
 * @amount: size of the user's pages, in bytes; 0 before the first one
 * @shift: a block has 1 << @shift bytes
 * @next: the block behind the last one that was read, where a scan goes on
 * @window: how many blocks the last read was for
 * @broken: FREE has failed, which no program can repair; no page is served any more
 * @gets: calls of pages_get() that returned a page
 * @puts: calls of pages_put()
 * @misses: calls of pages_get() that returned a page and had to read it
 * @reads: calls of READ
 * @read: how many blocks they have read
 * @evicted: how many blocks the clock has evicted
 * @forgotten: how many blocks pages_forget() has dropped
 */
struct pages {
	struct exmap exmap;
	struct exmap_interface interface;
	uint32_t pool_pages;
	uint64_t blocks;
	uint32_t *state;
	uint32_t *queue;
	uint32_t capacity;
	uint32_t head;
	uint32_t count;
	unsigned int amount;
	unsigned int shift;
	uint64_t next;
	uint32_t window;
	int broken;
	unsigned long gets, puts, misses, reads, read, evicted, forgotten;
};

/**
 * pages_open - make a struct pages
 * @pages: set to it, which pages_close() takes
 * @path: the file; the process keeps no descriptor of it, so it loses no POSIX lock
 * @bytes: the most memory for pages, in bytes
 *
 * Return: 0; or a negative errno, which exmap_strerror() explains.
 */
int pages_open(struct pages **pages, const char *path, uint64_t bytes);

/**
 * pages_close - undo pages_open()
 * @pages: no page is pinned
 */
void pages_close(struct pages *pages);

/* The part of pages_get() for a page that is not in memory, or the first of its size. */
void *pages_miss(struct pages *pages, uint64_t offset, unsigned int amount);

/**
 * pages_get - bring a page into memory and pin it there
 * @pages: the pages
 * @offset: of the page in the file, in bytes; a multiple of @amount
 * @amount: size of the page, in bytes: a power of two from 512 to 65536. The size can change while
 *	no page is pinned.
 *
 * Return: its address; or NULL if it cannot be had: read it from the file.
 */
static inline void *pages_get(struct pages *pages, uint64_t offset, unsigned int amount)
{
	const uint64_t block = offset >> pages->shift;

	if (amount != pages->amount || block >= pages->blocks ||
	    !(pages->state[block] & PAGES_VALID))
		return pages_miss(pages, offset, amount);
	pages->state[block] = (pages->state[block] | PAGES_USED) + PAGES_PIN;
	pages->gets++;
	return pages->exmap.surface + offset;
}

/**
 * pages_put - undo pages_get()
 * @pages: the pages
 * @offset: of the page
 */
static inline void pages_put(struct pages *pages, uint64_t offset)
{
	pages->state[offset >> pages->shift] -= PAGES_PIN;
	pages->puts++;
}

/* How many pages_get() have no pages_put() yet. */
static inline unsigned long pages_pinned(const struct pages *pages)
{
	return pages->gets - pages->puts;
}

/**
 * pages_find - look for bytes that are in memory
 * @pages: the pages
 * @offset: of the first byte in the file
 * @amount: how many bytes
 *
 * Return: their address, until the next call; or NULL if not all of them are in memory, or if they
 * are in more than one block.
 */
const void *pages_find(const struct pages *pages, uint64_t offset, uint64_t amount);

/**
 * pages_write - change what is in memory, because the file has been written
 * @pages: the pages
 * @data: what was written
 * @offset: where, in bytes
 * @amount: how many bytes
 */
void pages_write(struct pages *pages, const void *data, uint64_t offset, uint64_t amount);

/**
 * pages_forget - drop what is in memory of the end of the file, or of all of it
 * @pages: the pages
 * @offset: where the end begins, in bytes
 *
 * A page that is pinned stays, but pages_get() does not return it again.
 */
void pages_forget(struct pages *pages, uint64_t offset);

#endif /* PAGES_H */
