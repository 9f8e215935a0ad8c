// SPDX-License-Identifier: GPL-2.0
/*
 * Pages that are freed at another interface than they were allocated at, so that
 * the pool has to carry them back. Built with SAME_THREAD, the paper's 2 IF: each
 * thread allocates at one interface and frees at another. Built without, the
 * paper's pool: half of the threads allocate, the other half free.
 */
#include "bench/run.h"

#ifdef SAME_THREAD

static const struct bench_program program = {
	.about =
	"Measures how fast single pages are allocated and freed, in batches, each thread\n"
	"allocating at one interface and freeing at another: the paper's 2 IF. Pages are\n"
	"mapped, but not touched. Exits 0, or 1 on failure (also where pages are left over).\n",
	.own_help = "",
	.min_threads = 1,
	.max_threads = EXMAP_MAX_INTERFACES / 2,
};

static void two_interfaces(struct bench_thread *thread)
{
	struct exmap_interface alloc, free;

	bench_attach(&alloc, 2 * thread->id);
	bench_attach_shared(&free, 2 * thread->id + 1);
	free.fd = alloc.fd;	/* one for the thread */
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
	"Measures how fast single pages are allocated and freed, in batches, half of the\n"
	"threads allocating and the other half freeing what they get from them: the paper's\n"
	"pool. Pages are mapped, but not touched. Of an odd number of threads one more\n"
	"allocates. Exits 0, or 1 on failure (also where pages are left over).\n",
	.own_help =
	"\n"
	"In the environment, where there is no --threads:\n"
	"  ALLOC       how many threads allocate (default half of them)\n"
	"  FREE        how many threads free (default half of them)\n",
	.min_threads = 2,
	.max_threads = EXMAP_MAX_INTERFACES,
};

/* Batches that an allocating thread can have under way. */
#define BATCHES 16
/* Batches between the threads. So few that the default pool does for all. */
#define QUEUE_SIZE 64

/**
 * struct batch - a batch, at its own place on the surface
 * @page: where it starts, a page number
 * @nr: how many of its pages are mapped
 * @busy: pages may be mapped there. Set by the thread that allocates there, and
 *	cleared by the one that has freed it
 *
 * Belongs to the allocating thread, then to the queue, then to the freeing thread.
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
 * A cell's sequence says whose turn it is: position n of the stream may be pushed
 * to it at n, popped from it at n + 1, and then it is the turn of n + QUEUE_SIZE.
 * Positions never come again, so a thread that was asleep in between cannot
 * mistake one for another (no ABA).
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
 * Take the next position of @end whose cell has come to its turn, @turn after the
 * position. NULL where the cell has not: the queue is full, or empty.
 */
static struct cell *queue_claim(atomic_size_t *end, size_t turn, size_t *position)
{
	size_t at = atomic_load_explicit(end, memory_order_relaxed);

	for (;;) {
		struct cell *cell = &queue.cell[at % QUEUE_SIZE];
		/* Pairs with the release by whose turn it was. */
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

/* The threads: those below nr_alloc allocate. */

static unsigned int nr_alloc;
static atomic_uint allocating;	/* threads that may still push */

/* A batch with nothing mapped, looking at the one after the last first, or NULL. */
static struct batch *next_batch(struct batch *batches, unsigned int *last)
{
	unsigned int i;

	for (i = 0; i < BATCHES; i++) {
		*last = (*last + 1) % BATCHES;
		/* Pairs with the release in free_batches(): its FREE is over. */
		if (!atomic_load_explicit(&batches[*last].busy, memory_order_acquire))
			return &batches[*last];
	}
	return NULL;
}

/* Nothing is held while waiting for a page, so that there will be one. */
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
		/* Not filled in again: a call without memory leaves the entries alone. */
		while ((nr = bench_action(interface, EXMAP_OP_ALLOC)) < 0) {
			if (bench_stopped())
				return;
			sched_yield();
		}
		/* Where memory ran out half-way these are the first of them. */
		batch->nr = nr;
		atomic_store_explicit(&batch->busy, true, memory_order_relaxed);
		while (!queue_push(batch))
			sched_yield();
	}
}

static void free_batches(struct bench_thread *thread, struct exmap_interface *interface)
{
	struct batch *batch;
	unsigned int nr;

	for (;;) {
		/* Before the look at the queue: then an empty one stays empty. */
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
	/* Static: a freeing thread may still be at them when this one is over. */
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
