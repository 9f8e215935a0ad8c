// SPDX-License-Identifier: GPL-2.0
/*
 * Pages are freed at another interface than the one that allocated them, so the pool must carry
 * them back. Built with SAME_THREAD, this is the paper's 2 IF: each thread allocates at one
 * interface and frees at another. Built without, it is the paper's pool: half of the threads
 * allocate, and the other half free.
 */
#include "bench/run.h"

#ifdef SAME_THREAD

static const struct bench_program program = {
	.about =
	"Measures how fast threads allocate and free batches of single pages. Each thread\n"
	"allocates at one interface and frees at another: the paper's 2 IF. Pages are mapped,\n"
	"but not touched. Exits with 0, or 1 on failure, also if pages are left over.\n",
	.own_help = "",
	.min_threads = 1,
	.max_threads = EXMAP_MAX_INTERFACES / 2,
};

static void two_interfaces(struct bench_thread *thread)
{
	struct exmap_interface alloc, free;

	bench_attach(&alloc, 2 * thread->id);
	bench_attach_shared(&free, 2 * thread->id + 1);
	free.fd = alloc.fd;	/* one fd for each thread */
	bench_alloc_free(thread, &alloc, &free, 1);
}

int main(int argc, char **argv)
{
	bench_options(argc, argv, &program);
	bench_need_pages();
	bench_setup(2 * bench.threads, 1);
	bench_run("2if", two_interfaces);
	return 0;
}

#else /* the pool */

static const struct bench_program program = {
	.about =
	"Measures how fast threads allocate and free batches of single pages. Half of the\n"
	"threads allocate, and the other half free the same pages: the paper's pool. Pages are\n"
	"mapped, but not touched. If the number of threads is odd, one more allocates. Exits\n"
	"with 0, or 1 on failure, also if pages are left over.\n",
	.own_help =
	"\n"
	"The environment gives these if --threads is not given:\n"
	"  ALLOC       how many threads allocate (default half of them)\n"
	"  FREE        how many threads free (default half of them)\n",
	.min_threads = 2,
	.max_threads = EXMAP_MAX_INTERFACES,
};

/* The most batches that an allocating thread can have mapped. */
#define BATCHES 16
/* The most batches on the way from thread to thread. The default pool has room for all. */
#define QUEUE_SIZE 64

/**
 * struct batch - a batch, at its own place on the surface
 * @page: number of its first page
 * @nr: how many of its pages are mapped
 * @busy: pages may be mapped there. The allocating thread sets it, and the freeing thread clears
 *	it after FREE
 *
 * A batch belongs to the allocating thread, then to the queue, then to the freeing thread.
 */
struct batch {
	uint64_t page;
	unsigned int nr;
	atomic_bool busy;
};

/*
 * Dmitry Vyukov's bounded MPMC queue
 * (https://www.1024cores.net/home/lock-free-algorithms/queues/bounded-mpmc-queue).
 *
 * A cell's sequence tells which operation comes next. If it is n, position n of the stream may be
 * pushed to the cell. If it is n + 1, position n may be popped, and then the sequence becomes
 * n + QUEUE_SIZE. A position never comes again, so a thread that slept cannot mistake one position
 * for another (no ABA).
 */
struct cell {
	atomic_size_t sequence;
	struct batch *batch;
} __attribute__((aligned(64)));

static struct {
	struct cell cell[QUEUE_SIZE];
	atomic_size_t head __attribute__((aligned(64)));	/* the next to pop */
	atomic_size_t tail __attribute__((aligned(64)));	/* the next to push */
} queue;

static void queue_init(void)
{
	size_t i;

	for (i = 0; i < QUEUE_SIZE; i++)
		atomic_init(&queue.cell[i].sequence, i);
}

/*
 * Take the next position of @end. Its cell must have the sequence @turn after that position.
 * Returns NULL if the sequence is lower: then the queue is full, or empty.
 */
static struct cell *queue_claim(atomic_size_t *end, size_t turn, size_t *position)
{
	size_t at = atomic_load_explicit(end, memory_order_relaxed);

	for (;;) {
		struct cell *cell = &queue.cell[at % QUEUE_SIZE];
		/* Pairs with the store-release in queue_pop() or queue_push(). */
		size_t sequence = atomic_load_explicit(&cell->sequence, memory_order_acquire);
		ssize_t ahead = sequence - (at + turn);

		if (ahead < 0)
			return NULL;
		if (ahead > 0) {
			at = atomic_load_explicit(end, memory_order_relaxed);
		} else if (atomic_compare_exchange_weak_explicit(end, &at, at + 1,
								 memory_order_relaxed,
								 memory_order_relaxed)) {
			*position = at;
			return cell;
		}
	}
}

static bool queue_push(struct batch *batch)
{
	size_t position;
	struct cell *cell = queue_claim(&queue.tail, 0, &position);

	if (!cell)
		return false;
	cell->batch = batch;
	atomic_store_explicit(&cell->sequence, position + 1, memory_order_release);
	return true;
}

static struct batch *queue_pop(void)
{
	size_t position;
	struct cell *cell = queue_claim(&queue.head, 1, &position);
	struct batch *batch;

	if (!cell)
		return NULL;
	batch = cell->batch;
	atomic_store_explicit(&cell->sequence, position + QUEUE_SIZE, memory_order_release);
	return batch;
}

/* The threads. Those with an id below nr_alloc allocate. */

static unsigned int nr_alloc;
static atomic_uint allocating;	/* threads that may still push */

/* A batch without mapped pages, or NULL. The search starts after the last one found. */
static struct batch *next_batch(struct batch *batches, unsigned int *last)
{
	unsigned int i;

	for (i = 0; i < BATCHES; i++) {
		*last = (*last + 1) % BATCHES;
		/* Pairs with the store-release in free_batches(): FREE of this batch is over. */
		if (!atomic_load_explicit(&batches[*last].busy, memory_order_acquire))
			return &batches[*last];
	}
	return NULL;
}

/*
 * Allocate batches and push them, until the time is up. A thread that waits for free pages holds
 * no pages itself, so the freeing threads can always free some for it.
 */
static void alloc_batches(struct exmap_interface *interface, struct batch *batches)
{
	unsigned int last = 0;
	struct batch *batch;
	int nr;

	while (!bench_stopped()) {
		batch = next_batch(batches, &last);
		if (!batch) {
			sched_yield();
			continue;
		}
		bench_fill(interface, batch->page, bench.batch);
		/* The entries need not be filled in again: ENOMEM leaves them unchanged. */
		while ((nr = bench_action(interface, EXMAP_OP_ALLOC)) < 0) {
			if (bench_stopped())
				return;
			sched_yield();
		}
		/* If memory ran out half-way, the first nr entries have pages. */
		batch->nr = nr;
		atomic_store_explicit(&batch->busy, true, memory_order_relaxed);
		while (!queue_push(batch))
			sched_yield();
	}
}

/* Pop batches and free them, until no thread allocates any more and the queue is empty. */
static void free_batches(struct bench_thread *thread, struct exmap_interface *interface)
{
	struct batch *batch;
	unsigned int nr;

	for (;;) {
		/*
		 * Pairs with the release in pool(). If no thread could push before this looks
		 * at the queue, an empty queue stays empty.
		 */
		bool last = !atomic_load_explicit(&allocating, memory_order_acquire);

		batch = queue_pop();
		if (!batch) {
			if (last)
				return;
			sched_yield();
			continue;
		}
		nr = batch->nr;
		bench_fill(interface, batch->page, nr);
		bench_action(interface, EXMAP_OP_FREE);
		atomic_store_explicit(&batch->busy, false, memory_order_release);
		bench_count(thread, nr);
	}
}

static void pool(struct bench_thread *thread)
{
	struct exmap_interface interface;
	/* Static, because freeing threads may still use the batches after this thread has ended. */
	static struct batch batches[EXMAP_MAX_INTERFACES][BATCHES];
	struct batch *mine = batches[thread->id];
	unsigned int i;

	bench_attach(&interface, thread->id);
	for (i = 0; i < BATCHES; i++)
		mine[i].page = bench_batch_page(thread->id, i);
	bench_start();
	if (thread->id >= nr_alloc) {
		free_batches(thread, &interface);
		return;
	}
	alloc_batches(&interface, mine);
	atomic_fetch_sub_explicit(&allocating, 1, memory_order_release);
}

int main(int argc, char **argv)
{
	unsigned int nr_free;

	bench_options(argc, argv, &program);
	nr_free = bench.threads / 2;
	nr_alloc = bench.threads - nr_free;
	if (!bench.threads_given) {
		nr_alloc = bench_environment("ALLOC", nr_alloc, 1, EXMAP_MAX_INTERFACES / 2);
		nr_free = bench_environment("FREE", nr_free, 1, EXMAP_MAX_INTERFACES / 2);
		bench.threads = nr_alloc + nr_free;
	}
	queue_init();
	atomic_init(&allocating, nr_alloc);
	bench_setup(bench.threads, BATCHES);
	bench_run("pool", pool);
	return 0;
}

#endif
