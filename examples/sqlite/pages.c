// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Pages of a file in memory: READ on a miss, with read-ahead for scans, and a clock over the blocks
 * that are in memory.
 */
#include <pthread.h>
#include <sched.h>
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
 * A state is a number of pins, times PIN, with these bits below it. A block that is QUEUED but not
 * VALID is to be read again. Its pages may be mapped or not.
 */
enum state {
	QUEUED = 1,	/* in the queue */
	VALID = 2,	/* in memory, and equal to the file */
	USED = 4,	/* found in memory since the clock's last visit */
	PIN = 8,
};

/* A thread that opens an exmap. */
struct opening {
	struct exmap *exmap;
	const char *path;
	uint64_t surface_pages;
	uint64_t pool_pages;
	int public;	/* a descriptor of /dev/exmap */
	int err;
};

/* O_DIRECT, if the file system has it. */
static int open_direct(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);

	if (fd < 0 && errno == EINVAL)
		fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/*
 * A thread that shares no descriptors with the process any more. It opens file and exmap, and makes
 * @public another descriptor of the exmap. Its own descriptors go away with it.
 */
static void *open_apart(void *arg)
{
	struct opening *opening = arg;
	int file;

	if (unshare(CLONE_FILES)) {
		opening->err = -errno;
		return NULL;
	}
	file = open_direct(opening->path);
	if (file < 0) {
		opening->err = file;
		return NULL;
	}
	opening->err = exmap_open(opening->exmap, opening->surface_pages, opening->pool_pages, 1,
				  file, 0);
	if (!opening->err && ioctl(opening->public, EXMAP_IOCTL_CLONE, opening->exmap->fd)) {
		opening->err = -errno;
		exmap_close(opening->exmap);
	}
	return NULL;
}

/*
 * exmap_open() with the file of a path. A process that closes a descriptor of a file loses all its
 * POSIX locks on the file, those of SQLite too. A thread with descriptors of its own has none.
 */
static int open_exmap(struct opening *opening)
{
	pthread_t thread;

	opening->public = open("/dev/exmap", O_RDWR | O_CLOEXEC);
	if (opening->public < 0)
		return -errno;
	opening->err = -pthread_create(&thread, NULL, open_apart, opening);
	if (!opening->err)
		pthread_join(thread, NULL);
	if (opening->err)
		close(opening->public);
	else
		opening->exmap->fd = opening->public;
	return opening->err;
}

int pages_open(struct pages **out, const char *path, uint64_t bytes)
{
	struct pages *pages = calloc(1, sizeof(*pages));
	struct opening opening = { .path = path, .pool_pages = bytes / EXMAP_PAGE_SIZE };
	uint64_t surface = SURFACE_BYTES;
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
	if (opening.pool_pages < POOL_PAGES)
		opening.pool_pages = POOL_PAGES;
	if (opening.pool_pages > UINT32_MAX)
		opening.pool_pages = UINT32_MAX;
	opening.surface_pages = surface / EXMAP_PAGE_SIZE;
	opening.exmap = &pages->exmap;
	err = open_exmap(&opening);
	if (err)
		goto no_exmap;
	err = exmap_attach(&pages->exmap, &pages->interface);
	if (err)
		goto no_interface;

	err = -ENOMEM;
	/* Only the parts that are used take memory. */
	pages->state = mmap(NULL, opening.surface_pages * sizeof(*pages->state),
			    PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			    -1, 0);
	if (pages->state == MAP_FAILED)
		goto no_state;
	pages->queue = malloc(opening.pool_pages * sizeof(*pages->queue));
	if (!pages->queue)
		goto no_queue;
	pages->pool_pages = opening.pool_pages;
	pages->shift = __builtin_ctz(EXMAP_PAGE_SIZE);
	*out = pages;
	return 0;

no_queue:
	munmap(pages->state, opening.surface_pages * sizeof(*pages->state));
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

/* FREE what drop() has collected. */
static void free_batch(struct pages *pages)
{
	if (pages->interface.nr && exmap_batch_run(&pages->interface, EXMAP_OP_FREE, 0))
		pages->broken = 1;
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
		if (state >= PIN || (state & (VALID | USED)) == (VALID | USED)) {
			pages->state[block] &= ~USED;
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
			pages->broken = 1;
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

	if (*state >= PIN)
		return false;	/* somebody uses what was forgotten */
	if (*state & QUEUED) {
		if (exmap_run(&pages->interface, EXMAP_OP_FREE, block * block_pages(pages),
			      block_pages(pages)) < 0)
			pages->broken = 1;
		if (pages->broken || !read_blocks(pages, block, 1))
			return false;
		*state |= VALID;
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
		state[i] = QUEUED | VALID;
		push(pages, block + i);
	}
	pages->next = block + nr;
	return true;
}

/* The first page, or pages of another size than before. */
static bool set_amount(struct pages *pages, unsigned int amount)
{
	if (pages->pinned)
		return false;
	if (pages->amount)
		pages_forget(pages, 0);
	pages->amount = amount;
	pages->shift = __builtin_ctz(amount > EXMAP_PAGE_SIZE ? amount : EXMAP_PAGE_SIZE);
	pages->blocks = pages->exmap.surface_pages / block_pages(pages);
	pages->capacity = pages->pool_pages / block_pages(pages);
	pages->head = 0;
	pages->next = UINT64_MAX;
	return true;
}

void *pages_get(struct pages *pages, uint64_t offset, unsigned int amount)
{
	uint64_t block;
	uint32_t *state;

	if (amount != pages->amount && !set_amount(pages, amount))
		return NULL;
	block = offset >> pages->shift;
	if (block >= pages->blocks || pages->broken)
		return NULL;
	state = &pages->state[block];
	if (*state & VALID) {
		*state |= USED;
		pages->hits++;
	} else if (!fill(pages, block)) {
		return NULL;
	}
	*state += PIN;
	pages->pinned++;
	return pages->exmap.surface + offset;
}

void pages_put(struct pages *pages, uint64_t offset)
{
	pages->state[offset >> pages->shift] -= PIN;
	pages->pinned--;
}

/* Whether a block of the surface is in memory and equal to the file. */
static bool is_valid(const struct pages *pages, uint64_t block)
{
	return block < pages->blocks && pages->state[block] & VALID;
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
		} else if (pages->state[block] >= PIN) {
			pages->state[block] &= ~VALID;
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
