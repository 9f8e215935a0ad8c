// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Pages of a file in memory: READ on a miss, with read-ahead for scans, and a clock over the blocks
 * that are in memory.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "pages.h"

#define SURFACE_BYTES (UINT64_C(1) << 36)	/* at least, and 8 times the file */
#define SURFACE_MOST (UINT64_C(1) << 43)	/* what lies behind is not served */
#define POOL_PAGES 64				/* at least */
#define BATCH 64				/* the most blocks that are evicted at a time */
#define WINDOW_BYTES (UINT64_C(256) << 10)	/* the most that a scan reads at a time */

/*
 * The exmap, with the file of a path: O_DIRECT, if the file system has it. The process may hold
 * POSIX locks on the file, SQLite's, and would drop them if it closed a descriptor of the file.
 */
static int open_exmap(struct exmap *exmap, uint64_t surface_pages, uint64_t pool_pages,
		      const char *path)
{
	const char *backend = getenv("EXMAP_BACKEND");
	int err;

	/* Without the module, the process would close a descriptor. */
	if (backend && !strcmp(backend, "madvise"))
		return -EOPNOTSUPP;
	err = exmap_open_path(exmap, surface_pages, pool_pages, 1, path, O_RDONLY | O_DIRECT, 0);
	if (err == -EINVAL)
		err = exmap_open_path(exmap, surface_pages, pool_pages, 1, path, O_RDONLY, 0);
	return err;
}

int pages_open(struct pages **out, const char *path, uint64_t bytes)
{
	struct pages *pages = calloc(1, sizeof(*pages));
	uint64_t surface = SURFACE_BYTES, surface_pages, pool_pages = bytes / EXMAP_PAGE_SIZE;
	struct stat file;
	int err;

	if (!pages)
		return -ENOMEM;
	err = stat(path, &file) ? -errno : 0;
	if (err)
		goto no_exmap;
	if ((uint64_t)file.st_size > surface / 8)
		surface = (uint64_t)file.st_size * 8;
	if (surface > SURFACE_MOST)
		surface = SURFACE_MOST;
	if (pool_pages < POOL_PAGES)
		pool_pages = POOL_PAGES;
	if (pool_pages > UINT32_MAX)
		pool_pages = UINT32_MAX;
	surface_pages = surface / EXMAP_PAGE_SIZE;
	err = open_exmap(&pages->exmap, surface_pages, pool_pages, path);
	if (err)
		goto no_exmap;
	err = exmap_attach(&pages->exmap, &pages->interface);
	if (err)
		goto no_interface;

	err = -ENOMEM;
	/* Only the parts that are used take memory. */
	pages->state = mmap(NULL, surface_pages * sizeof(*pages->state),
			    PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			    -1, 0);
	if (pages->state == MAP_FAILED)
		goto no_state;
	pages->queue = malloc(pool_pages * sizeof(*pages->queue));
	if (!pages->queue)
		goto no_queue;
	pages->pool_pages = pool_pages;
	pages->shift = __builtin_ctz(EXMAP_PAGE_SIZE);
	*out = pages;
	return 0;

no_queue:
	munmap(pages->state, surface_pages * sizeof(*pages->state));
no_state:
	exmap_detach(&pages->interface);
no_interface:
	exmap_close(&pages->exmap);
no_exmap:
	free(pages);
	return err;
}

void pages_close(struct pages *pages)
{
	const uint64_t surface_pages = pages->exmap.surface_pages;

	exmap_detach(&pages->interface);
	exmap_close(&pages->exmap);
	munmap(pages->state, surface_pages * sizeof(*pages->state));
	free(pages->queue);
	free(pages);
}

/* How many pages of 4 KiB a block has. */
static uint64_t block_pages(const struct pages *pages)
{
	return (UINT64_C(1) << pages->shift) / EXMAP_PAGE_SIZE;
}

static void push(struct pages *pages, uint32_t block)
{
	uint32_t tail = pages->head + pages->count++;

	pages->queue[tail < pages->capacity ? tail : tail - pages->capacity] = block;
}

static uint32_t pop(struct pages *pages)
{
	uint32_t block = pages->queue[pages->head];

	if (++pages->head == pages->capacity)
		pages->head = 0;
	pages->count--;
	return block;
}

/* A block leaves memory with the next free_batch(). It has left the queue. */
static void drop(struct pages *pages, uint32_t block)
{
	pages->state[block] = 0;
	exmap_batch_add(&pages->interface, block * block_pages(pages), block_pages(pages));
}

/* FREE has failed. */
static void give_up(struct pages *pages)
{
	pages->broken = 1;
	pages->blocks = 0;
}

/* FREE what drop() has collected. */
static void free_batch(struct pages *pages)
{
	if (pages->interface.nr && exmap_batch_run(&pages->interface, EXMAP_OP_FREE, 0))
		give_up(pages);
	exmap_batch_clear(&pages->interface);
}

/* The clock: drop up to a batch of blocks. Blocks that are pinned, or were used, stay. */
static void evict(struct pages *pages)
{
	uint64_t left = 2 * (uint64_t)pages->count;
	unsigned int nr = 0;
	uint32_t block, state;

	for (; left && nr < BATCH && nr <= pages->capacity / 8; left--) {
		block = pop(pages);
		state = pages->state[block];
		if (state >= PAGES_PIN || (state & PAGES_VALID && state & PAGES_USED)) {
			pages->state[block] &= ~PAGES_USED;
			push(pages, block);
		} else {
			drop(pages, block);
			nr++;
		}
	}
	pages->evicted += nr;
	free_batch(pages);
}

/* Make room for that many blocks, or return false. */
static bool make_room(struct pages *pages, uint32_t nr)
{
	uint32_t before;

	while (pages->count + nr > pages->capacity) {
		before = pages->count;
		evict(pages);
		if (pages->count == before)
			return false;
	}
	return !pages->broken;
}

/* READ blocks of which none is mapped. If it fails, none is mapped after it, either. */
static bool read_blocks(struct pages *pages, uint64_t block, uint32_t nr)
{
	const uint64_t first = block * block_pages(pages), count = nr * block_pages(pages);

	if (exmap_run(&pages->interface, EXMAP_OP_READ, first, count) != (long)count) {
		if (exmap_run(&pages->interface, EXMAP_OP_FREE, first, count) < 0)
			give_up(pages);
		return false;
	}
	pages->reads++;
	pages->read += nr;
	return true;
}

/* How many blocks to read at a miss: if it is where the last read ended, this is a scan. */
static uint32_t window(struct pages *pages, uint64_t block)
{
	uint32_t most = WINDOW_BYTES >> pages->shift, nr;

	if (most > pages->capacity / 8)
		most = pages->capacity / 8;
	pages->window = block != pages->next ? 1 :
			pages->window * 2 < most ? pages->window * 2 : most;
	for (nr = 1; nr < pages->window && block + nr < pages->blocks; nr++)
		if (pages->state[block + nr])
			break;
	return nr;
}

/* Read a block, and perhaps what comes behind it. */
static bool fill(struct pages *pages, uint64_t block)
{
	uint32_t *state = &pages->state[block], nr = 1, i;

	if (*state >= PAGES_PIN)
		return false;	/* somebody uses what was forgotten */
	if (*state & PAGES_QUEUED) {
		if (exmap_run(&pages->interface, EXMAP_OP_FREE, block * block_pages(pages),
			      block_pages(pages)) < 0)
			give_up(pages);
		if (pages->broken || !read_blocks(pages, block, 1))
			return false;
		*state |= PAGES_VALID;
		return true;
	}
	nr = window(pages, block);
	if (!make_room(pages, nr)) {
		nr = 1;
		if (!make_room(pages, nr))
			return false;
	}
	/* A read past the end of the file fails. */
	while (!read_blocks(pages, block, nr)) {
		if (nr == 1 || pages->broken)
			return false;
		nr /= 2;
		pages->window = nr;
	}
	for (i = 0; i < nr; i++) {
		state[i] = PAGES_QUEUED | PAGES_VALID;
		push(pages, block + i);
	}
	pages->next = block + nr;
	return true;
}

/* The first page, or pages of another size than before. */
static bool set_amount(struct pages *pages, unsigned int amount)
{
	if (pages_pinned(pages))
		return false;
	if (pages->amount)
		pages_forget(pages, 0);
	if (pages->broken)
		return false;
	pages->amount = amount;
	pages->shift = __builtin_ctz(amount > EXMAP_PAGE_SIZE ? amount : EXMAP_PAGE_SIZE);
	pages->blocks = pages->exmap.surface_pages / block_pages(pages);
	pages->capacity = pages->pool_pages / block_pages(pages);
	pages->head = 0;
	pages->next = UINT64_MAX;
	return true;
}

void *pages_miss(struct pages *pages, uint64_t offset, unsigned int amount)
{
	uint64_t block;

	if (amount != pages->amount && !set_amount(pages, amount))
		return NULL;
	block = offset >> pages->shift;
	/* After set_amount(), no block is valid. */
	if (block >= pages->blocks || !fill(pages, block))
		return NULL;
	pages->state[block] += PAGES_PIN;
	pages->gets++;
	pages->misses++;
	return pages->exmap.surface + offset;
}

/* Whether a block of the surface is in memory and equal to the file. */
static bool is_valid(const struct pages *pages, uint64_t block)
{
	return block < pages->blocks && pages->state[block] & PAGES_VALID;
}

const void *pages_find(const struct pages *pages, uint64_t offset, uint64_t amount)
{
	const uint64_t block = offset >> pages->shift;

	if (!is_valid(pages, block) || (offset + amount - 1) >> pages->shift != block)
		return NULL;
	return pages->exmap.surface + offset;
}

void pages_write(struct pages *pages, const void *data, uint64_t offset, uint64_t amount)
{
	const uint64_t size = UINT64_C(1) << pages->shift;
	const char *from = data;
	uint64_t here;

	for (; amount; offset += here, from += here, amount -= here) {
		here = size - (offset & (size - 1));
		if (here > amount)
			here = amount;
		if (is_valid(pages, offset >> pages->shift))
			memcpy(pages->exmap.surface + offset, from, here);
	}
}

void pages_forget(struct pages *pages, uint64_t offset)
{
	const uint64_t first = offset >> pages->shift;
	uint32_t left, block;

	for (left = pages->count; left; left--) {
		block = pop(pages);
		if (block < first) {
			push(pages, block);
		} else if (pages->state[block] >= PAGES_PIN) {
			pages->state[block] &= ~PAGES_VALID;
			push(pages, block);
		} else {
			drop(pages, block);
			pages->forgotten++;
		}
		if (pages->interface.nr == EXMAP_USER_INTERFACE_PAGES)
			free_batch(pages);
	}
	free_batch(pages);
}
