// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of READ and WRITE by several threads at once: no page is lost, none holds what
 * another one should, and none holds what has been replaced.
 */
#include <stdatomic.h>

#include "io_common.h"

/*
 * A file larger than the pool. Each worker reads, changes, writes and frees random pages of its
 * own, and knows what each of them must hold.
 */
struct worker {
	struct exmap *ex;
	unsigned int id;
	unsigned int seed;
	bool proxy;
	char error[128];
	pthread_t thread;
};

enum { WORKERS = 4, BATCH = 16 };

/* One call for a batch of pages: ACTION, or preadv and pwritev. Returns false if it failed. */
static bool worker_call(struct worker *w, int opcode, const uint64_t *page)
{
	struct exmap_iov *iov = w->ex->interface[w->id]->iov;
	struct iovec vec[BATCH];
	ssize_t ret;

	if (w->proxy && opcode != EXMAP_OP_FREE) {
		for (int i = 0; i < BATCH; i++)
			vec[i] = (struct iovec){ w->ex->surface + page[i] * PAGE, PAGE };
		ret = opcode == EXMAP_OP_READ ? preadv(w->ex->fd, vec, BATCH, w->id) :
						pwritev(w->ex->fd, vec, BATCH, opcode << 8 | w->id);
		ret -= BATCH * PAGE;
	} else {
		for (int i = 0; i < BATCH; i++)
			iov[i].value = 1UL << 52 | page[i];
		ret = action(w->ex->fd, w->id, opcode, BATCH, 0);
	}
	if (ret && !w->error[0])
		note_error(w, "opcode %d: %ld (errno %d), first entry: res %d", opcode, ret, errno,
			   iov[0].res);
	return !ret;
}

static void *integrity_worker(void *arg)
{
	static const unsigned int share = FILE_PAGES / WORKERS;
	uint64_t generation[FILE_PAGES / WORKERS] = { }, page[BATCH];
	struct worker *w = arg;

	for (int round = scaled(100); round && !w->error[0]; round--) {
		/* Distinct pages in no order; the other workers' pages lie between them. */
		unsigned int at = rand_r(&w->seed) % share, step = rand_r(&w->seed) % 8 * 2 + 1;

		for (int i = 0; i < BATCH; i++)
			page[i] = (at + i * step) % share * WORKERS + w->id;
		if (!worker_call(w, EXMAP_OP_READ, page))
			break;
		for (int i = 0; i < BATCH; i++) {
			uint64_t *mine = &generation[page[i] / WORKERS];

			if (!holds(w->ex->surface + page[i] * PAGE, page[i], *mine))
				note_error(w, "page %lu does not hold generation %lu", page[i],
					   *mine);
			fill(w->ex->surface + page[i] * PAGE, page[i], ++*mine);
		}
		if (!worker_call(w, EXMAP_OP_WRITE, page) || !worker_call(w, EXMAP_OP_FREE, page))
			break;
	}
	return NULL;
}

/* All workers find in their pages what they have written last. */
static void integrity_of(int fd, bool proxy)
{
	struct exmap *ex = exmap_new_file(FILE_PAGES * PAGE, WORKERS * BATCH, WORKERS, 0, fd);
	struct worker w[WORKERS];

	for (int i = 0; i < WORKERS; i++) {
		w[i] = (struct worker){ .ex = ex, .id = i, .seed = i + 1, .proxy = proxy };
		ck_assert(!pthread_create(&w[i].thread, NULL, integrity_worker, &w[i]));
	}
	for (int i = 0; i < WORKERS; i++) {
		pthread_join(w[i].thread, NULL);
		ck_assert_msg(!w[i].error[0], "%s", w[i].error);
	}
	assert_mapped(ex, 0);
}

TEST_BOTH(integrity)
{
	integrity_of(backing_open(device, O_RDWR), false);
}

TEST_BOTH(integrity_by_proxy)
{
	integrity_of(backing_open(device, O_RDWR), true);
}

/*
 * Prefetching without locks. Prefetchers READ any page they like. At the same time owners read,
 * change, write and free pages, each of them its own.
 */
struct prefetcher {
	struct exmap *ex;
	unsigned int id;
	unsigned int seed;
	atomic_bool *stop;
	char error[128];
	pthread_t thread;
};

enum { PREFETCHERS = 2, OWNERS = 2, PREFETCHED = 64, PREFETCH_AT_ONCE = 64 };

/* READ random pages, by ACTION or by preadv. The only error may be -EBUSY. */
static void *prefetcher(void *arg)
{
	struct prefetcher *p = arg;
	struct exmap_iov *iov = p->ex->interface[p->id]->iov;
	struct iovec vec[PREFETCH_AT_ONCE];
	ssize_t ret;

	while (!atomic_load(p->stop) && !p->error[0]) {
		for (int i = 0; i < PREFETCH_AT_ONCE; i++) {
			unsigned int page = rand_r(&p->seed) % PREFETCHED;

			entry(p->ex, p->id, i, page, 1);
			vec[i] = (struct iovec){ p->ex->surface + page * PAGE, PAGE };
		}
		if (p->id % 2) {
			ret = preadv(p->ex->fd, vec, PREFETCH_AT_ONCE, p->id);
			if (ret < 0 && errno != EBUSY)
				note_error(p, "preadv: errno %d", errno);
			continue;
		}
		ret = action(p->ex->fd, p->id, EXMAP_OP_READ, PREFETCH_AT_ONCE, 0);
		for (int i = 0; i < PREFETCH_AT_ONCE; i++)
			if (ret < 0 || (iov[i].res && iov[i].res != -EBUSY))
				note_error(p, "READ: returned %zd, entry %d: res %d", ret, i,
					   iov[i].res);
	}
	return NULL;
}

/* READ until the page is mapped. A prefetcher may map it first, but only its owner frees it. */
static bool owner_read(struct prefetcher *p, uint64_t page)
{
	int ret;

	do {
		ret = run(p->ex, p->id, EXMAP_OP_READ, page, 1);
	} while (ret == -EBUSY);
	return ret >= 0;
}

/* Read a page, check that it holds its last generation, and write the next one. */
static void *owner(void *arg)
{
	uint64_t generation[PREFETCHED] = { }, page;
	struct prefetcher *p = arg;
	struct exmap *ex = p->ex;

	for (int round = scaled(300); round && !p->error[0]; round--) {
		page = rand_r(&p->seed) % (PREFETCHED / OWNERS) * OWNERS + p->id % OWNERS;
		if (!owner_read(p, page))
			note_error(p, "READ of page %lu failed", page);
		else if (!holds(ex->surface + page * PAGE, page, generation[page]))
			note_error(p, "page %lu does not hold generation %lu", page,
				   generation[page]);
		if (p->error[0])
			break;
		fill(ex->surface + page * PAGE, page, ++generation[page]);
		if (run(ex, p->id, EXMAP_OP_WRITE, page, 1) != 1 ||
		    run_flags(ex, p->id, EXMAP_OP_FREE, page, 1,
			      round % 4 ? 0 : EXMAP_FREE_DEFER) != 1)
			note_error(p, "WRITE or FREE of page %lu failed", page);
	}
	return NULL;
}

/* No READ of a prefetcher brings back contents that an owner has replaced. */
TEST_BOTH(prefetch_without_locks)
{
	enum { THREADS = OWNERS + PREFETCHERS };
	struct exmap *ex = exmap_new_file(FILE_PAGES * PAGE, 1000, THREADS, 0,
					  backing_open(device, O_RDWR));
	struct prefetcher p[THREADS];
	atomic_bool stop = false;

	for (int i = 0; i < THREADS; i++) {
		p[i] = (struct prefetcher){ .ex = ex, .id = i, .seed = i + 1, .stop = &stop };
		ck_assert(!pthread_create(&p[i].thread, NULL, i < OWNERS ? owner : prefetcher,
					  &p[i]));
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(p[i].thread, NULL);
		/* The prefetchers stop when all owners are done. */
		if (i == OWNERS - 1)
			atomic_store(&stop, true);
	}
	for (int i = 0; i < THREADS; i++)
		ck_assert_msg(!p[i].error[0], "%s", p[i].error);
	assert_fdinfo(ex->fd, "pages-in-flight", 0);
	assert_pages_add_up(ex->fd);
}

/*
 * WRITE of pages that other threads free at the same time. Those threads then ALLOC the free pages
 * elsewhere, and overwrite them.
 */
enum { FREERS = 2, SHARE = 32, FREED = FREERS * SHARE };

struct freer {
	struct exmap *ex;
	pthread_barrier_t *barrier;
	unsigned int id;
	unsigned int seed;
	int rounds;
	char error[128];
	pthread_t thread;
};

/* One call for SHARE pages, @step pages apart. Returns how many pages it was done for. */
static int freer_call(struct freer *f, int opcode, uint64_t first, unsigned int step)
{
	struct exmap_iov *iov = f->ex->interface[f->id]->iov;
	int pages = 0;

	for (int i = 0; i < SHARE; i++)
		iov[i].value = 1UL << 52 | (first + i * step);
	if (action(f->ex->fd, f->id, opcode, SHARE, 0))
		note_error(f, "opcode %d failed", opcode);
	for (int i = 0; i < SHARE; i++)
		pages += iov[i].pages;
	return pages;
}

/* Wait for a random moment. */
static void dither(unsigned int *seed)
{
	for (volatile int i = rand_r(seed) % 4096; i > 0; i--)
		;
}

/* In each round: free every second page of the WRITE, and fill the free pages with 0xff. */
static void *freer(void *arg)
{
	struct freer *f = arg;
	const uint64_t scratch = FILE_PAGES + f->id * SHARE;

	for (int round = 0; round < f->rounds; round++) {
		pthread_barrier_wait(f->barrier);
		dither(&f->seed);
		if (freer_call(f, EXMAP_OP_FREE, f->id - 1, FREERS) != SHARE ||
		    freer_call(f, EXMAP_OP_ALLOC, scratch, 1) != SHARE)
			note_error(f, "round %d: FREE or ALLOC left out a page", round);
		else
			memset(f->ex->surface + scratch * PAGE, 0xff, SHARE * PAGE);
		pthread_barrier_wait(f->barrier);
		freer_call(f, EXMAP_OP_FREE, scratch, 1);
		pthread_barrier_wait(f->barrier);
	}
	return NULL;
}

/*
 * WRITE writes a page as it was before FREE, or does not write it. Its answers count exactly the
 * pages that it has written.
 */
TEST_BOTH(write_while_others_free)
{
	static char buffer[FREED * PAGE] __attribute__((aligned(4096)));
	int fd = backing_open(device, O_RDWR), rounds = scaled(50);
	struct exmap *ex = exmap_new_file(2 * FILE_PAGES * PAGE, FREED, FREERS + 1, 0, fd);
	uint64_t generation[FREED] = { };
	struct freer f[FREERS + 1];
	pthread_barrier_t barrier;
	unsigned int seed = 1;

	pthread_barrier_init(&barrier, NULL, FREERS + 1);
	for (int i = 1; i <= FREERS; i++) {
		f[i] = (struct freer){
			.ex = ex, .barrier = &barrier, .id = i, .seed = i, .rounds = rounds,
		};
		ck_assert(!pthread_create(&f[i].thread, NULL, freer, &f[i]));
	}
	for (int round = 1; round <= rounds; round++) {
		int written = 0, found = 0;

		ck_assert_int_eq(alloc(ex, 0, 0, FREED), FREED);
		for (int page = 0; page < FREED; page++)
			fill(ex->surface + page * PAGE, page, round);
		for (int i = 0; i < 4; i++)
			entry(ex, 0, i, (3 - i) * FREED / 4, FREED / 4);
		pthread_barrier_wait(&barrier);
		dither(&seed);
		ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_WRITE, 4, 0), 0);
		for (int i = 0; i < 4; i++)
			written += ex->interface[0]->iov[i].pages;
		pthread_barrier_wait(&barrier);
		ck_assert_int_eq(pread(fd, buffer, sizeof(buffer), 0), sizeof(buffer));
		for (int page = 0; page < FREED; page++) {
			bool is_new = holds(buffer + page * PAGE, page, round);

			ck_assert(is_new || holds(buffer + page * PAGE, page, generation[page]));
			if (is_new)
				generation[page] = round;
			found += is_new;
		}
		ck_assert_int_eq(found, written);
		pthread_barrier_wait(&barrier);
	}
	for (int i = 1; i <= FREERS; i++) {
		pthread_join(f[i].thread, NULL);
		ck_assert_msg(!f[i].error[0], "%s", f[i].error);
	}
	assert_mapped(ex, 0);
}

/*
 * An entry that spans two page tables: 512 pages in the first, one page in the second. Another
 * thread keeps freeing a page of the first table. If the call maps that page again, it uses the
 * free page that was meant for the second table. It must then use the page that was freed.
 */
enum { ACROSS = 512 + 1 };

struct taker {
	struct exmap *ex;
	uint64_t page;
	atomic_int left;	/* pages still to be freed */
	pthread_t thread;
};

static void *taker(void *arg)
{
	struct taker *t = arg;

	while (atomic_load(&t->left) > 0)
		if (release(t->ex, 1, t->page, 1) == 1)
			atomic_fetch_sub(&t->left, 1);
	return NULL;
}

static void pages_of_two_tables(int opcode)
{
	struct exmap *ex = exmap_on(backing_open(false, O_RDWR), ACROSS);
	const uint64_t last = -((uintptr_t)ex->surface / PAGE) % 512 + 512;
	struct taker t = { .ex = ex, .page = last - 1, .left = scaled(1000) };
	int all = 0, ret;

	ck_assert(!pthread_create(&t.thread, NULL, taker, &t));
	while (atomic_load(&t.left) > 0) {
		ret = run(ex, 0, opcode, last - ACROSS + 1, ACROSS);
		/* The page that the other thread frees is not in the pool until it is flushed. */
		if (ret != -ENOMEM)
			ck_assert_int_ge(ret, 0);
		ck_assert_int_eq(release(ex, 0, last, 1), ret >= 0);
		all += ret >= 0;
	}
	pthread_join(t.thread, NULL);
	ck_assert_int_gt(all, 0);
	release(ex, 0, last - ACROSS + 1, ACROSS);
	assert_pool(ex, ACROSS);
}

TEST(alloc_of_two_tables_while_a_page_goes)
{
	pages_of_two_tables(EXMAP_OP_ALLOC);
}

TEST(read_of_two_tables_while_a_page_goes)
{
	pages_of_two_tables(EXMAP_OP_READ);
}

struct early_reader {
	struct exmap ex;
	atomic_bool tried;
};

static void *reader_before_mmap(void *arg)
{
	struct early_reader *r = arg;
	int ret;

	for (int i = 0; i < 512; i++)
		entry(&r->ex, 0, i, 1UL << 30, 1);
	do {
		ret = action(r->ex.fd, 0, EXMAP_OP_READ, 512, 0);
		atomic_store(&r->tried, true);
	} while (ret < 0 && errno == EPROTO);
	return (void *)(long)ret;
}

/* mmap makes the surface while another thread tries to READ to it. */
TEST(read_while_the_surface_is_mapped)
{
	int file = backing_open(false, O_RDWR);

	for (int round = scaled(300); round; round--) {
		struct early_reader r = { .ex.fd = exmap_open(), .ex.size = MIB };
		struct exmap *ex = &r.ex;
		pthread_t thread;
		void *ret;

		assert_ok(exmap_setup_file(ex->fd, 1, 100, 0, file));
		ex->interface[0] = map_interface(ex->fd, 0);
		ck_assert(!pthread_create(&thread, NULL, reader_before_mmap, &r));
		while (!atomic_load(&r.tried))
			;
		ex->surface = map_surface(ex->fd, ex->size);
		assert_ok(ex->surface);
		pthread_join(thread, &ret);
		/* All entries are past the end of the surface. */
		ck_assert_int_eq((long)ret, 512);
		assert_ok(munmap(ex->surface, ex->size));
		assert_ok(munmap(ex->interface[0], PAGE));
		close(ex->fd);
	}
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of READ and WRITE by several threads at once.");
}
