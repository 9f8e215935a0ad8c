// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of NUMA: an interface's pages come from the node on which its thread allocates, also after
 * they were freed on another node. They need two nodes: vm/run -n 2.
 *
 * Most tests are one thread that moves from node to node, so that it tells in which order things
 * happen.
 */
#include <linux/mempolicy.h>
#include <pthread.h>
#include <sys/syscall.h>

#include "common.h"
#include "cpu.h"

#define NODE1 "/sys/devices/system/node/node1"

enum { NODES = 2, BATCH = 512, BATCHES = 8, ALL = NODES * BATCHES * BATCH };

static void set_policy(int mode, unsigned long nodes)
{
	assert_ok(syscall(SYS_set_mempolicy, mode, &nodes, 8 * sizeof(nodes)));
}

/*
 * Run on the first CPU of a node, and take memory from that node. If the kernel has made up the
 * nodes (numa=fake), all CPUs are on the first one, so a memory policy has to say so.
 */
static void run_on_node(int node)
{
	unsigned int own;
	char path[64];

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/cpulist", node);
	run_on(number_in(path));
	assert_ok(getcpu(NULL, &own));
	if (own == (unsigned int)node)
		set_policy(MPOL_DEFAULT, 0);
	else
		set_policy(MPOL_BIND, 1UL << node);
}

/* How many of @nr pages are on @node: page @first and every @step-th after it. */
static int on_node(struct exmap *ex, int first, int nr, int step, int node)
{
	static void *address[ALL];
	static int status[ALL];
	int sum = 0;

	for (int i = 0; i < nr; i++)
		address[i] = ex->surface + (first + i * step) * PAGE;
	assert_ok(syscall(SYS_move_pages, 0, nr, address, NULL, status, 0));
	for (int i = 0; i < nr; i++) {
		ck_assert_int_ge(status[i], 0);
		sum += status[i] == node;
	}
	return sum;
}

/* ALLOC or FREE of single pages in one call: page @first and every @step-th after it. */
static void batch(struct exmap *ex, int interface, int opcode, int first, int step, uint64_t flags)
{
	for (int i = 0; i < BATCH; i++)
		entry(ex, interface, i, first + i * step, 1);
	ck_assert_int_eq(action(ex->fd, interface, opcode, BATCH, flags), 0);
}

/* The paper's 1 IF: each thread allocates and frees at an interface of its own. */
TEST(nodes_one_interface, .needs = NODE1)
{
	struct exmap *ex = exmap_new(ALL * PAGE, ALL, NODES);

	for (int round = 0; round < 4; round++) {
		for (int node = 0; node < NODES; node++) {
			int first = node * BATCHES * BATCH;

			run_on_node(node);
			for (int i = 0; i < BATCHES; i++)
				batch(ex, node, EXMAP_OP_ALLOC, first + i * BATCH, 1, 0);
			ck_assert_int_eq(on_node(ex, first, BATCHES * BATCH, 1, node),
					 BATCHES * BATCH);
			for (int i = 0; i < BATCHES; i++)
				batch(ex, node, EXMAP_OP_FREE, first + i * BATCH, 1,
				      round % 2 ? EXMAP_FREE_DEFER : 0);
		}
	}
	assert_pages_add_up(ex->fd);
}

struct user {
	struct exmap *ex;
	int node;
};

/* A thread on each node: allocate and free at the interface of that number. All pages are left. */
static void *use_interface(void *arg)
{
	struct user *user = arg;
	int first = user->node * BATCHES * BATCH;

	run_on_node(user->node);
	for (int round = 0; round < 20; round++) {
		for (int i = 0; i < BATCHES; i++)
			batch(user->ex, user->node, EXMAP_OP_ALLOC, first + i * BATCH, 1, 0);
		if (round == 19)
			break;
		for (int i = 0; i < BATCHES; i++)
			batch(user->ex, user->node, EXMAP_OP_FREE, first + i * BATCH, 1, 0);
	}
	return NULL;
}

TEST(nodes_one_interface_for_each_thread, .needs = NODE1)
{
	/* Each may take some more pages than it needs. */
	struct exmap *ex = exmap_new(ALL * PAGE, ALL + 4 * BATCH, NODES);
	struct user user[NODES];
	pthread_t thread[NODES];

	for (int node = 0; node < NODES; node++) {
		user[node] = (struct user){ ex, node };
		ck_assert(!pthread_create(&thread[node], NULL, use_interface, &user[node]));
	}
	for (int node = 0; node < NODES; node++)
		ck_assert(!pthread_join(thread[node], NULL));
	for (int node = 0; node < NODES; node++)
		ck_assert_int_eq(on_node(ex, node * BATCHES * BATCH, BATCHES * BATCH, 1, node),
				 BATCHES * BATCH);
	assert_pages_add_up(ex->fd);
}

/*
 * The paper's pool: a thread on each node allocates, another frees. Those who free get pages of
 * both nodes. The pool has no page to spare, so each page must come back to its node.
 */
static void pool(uint64_t flags)
{
	struct exmap *ex = exmap_new(ALL * PAGE, ALL, 2 * NODES);
	int local = 0, rounds = 4;

	for (int round = 0; round < rounds; round++) {
		for (int i = 0; i < BATCHES; i++) {
			for (int node = 0; node < NODES; node++) {
				run_on_node(node);
				batch(ex, node, EXMAP_OP_ALLOC, i * NODES * BATCH + node, NODES, 0);
			}
		}
		for (int node = 0; node < NODES; node++)
			local += on_node(ex, node, ALL / NODES, NODES, node);
		assert_pages_add_up(ex->fd);
		for (int i = 0; i < ALL / BATCH; i++) {
			run_on_node(i % NODES);
			batch(ex, NODES + i % NODES, EXMAP_OP_FREE, i * BATCH, 1, flags);
		}
		assert_pages_add_up(ex->fd);
	}
	assert_fdinfo(ex->fd, "pages-system", ALL);
	ck_assert_msg(local >= rounds * ALL / 100 * 95, "%d of %d pages are local", local,
		      rounds * ALL);
}

TEST(nodes_pool, .needs = NODE1)
{
	pool(0);
}

TEST(nodes_pool_with_deferred_flushes, .needs = NODE1)
{
	pool(EXMAP_FREE_DEFER);
}

/* Pages freed one by one at another node's interface come back, too. */
TEST(nodes_single_frees, .needs = NODE1)
{
	struct exmap *ex = exmap_new(MIB, 128, NODES);

	for (int round = 0; round < 4; round++) {
		for (int node = 0; node < NODES; node++) {
			run_on_node(node);
			ck_assert_int_eq(alloc(ex, node, node * 64, 64), 64);
			ck_assert_int_eq(on_node(ex, node * 64, 64, 1, node), 64);
		}
		for (int page = 0; page < 128; page++)
			ck_assert_int_eq(release(ex, 1 - page / 64, page, 1), 1);
		assert_pages_add_up(ex->fd);
	}
}

/* ALLOC takes the other node's free pages before it fails. */
TEST(nodes_no_false_enomem, .needs = NODE1)
{
	struct exmap *ex = exmap_new((ALL + 1) * PAGE, ALL, 2 * NODES);

	for (int node = 0; node < NODES; node++) {
		run_on_node(node);
		for (int i = 0; i < ALL / BATCH; i++)
			batch(ex, node, EXMAP_OP_ALLOC, i * BATCH, 1, 0);
		ck_assert_int_eq(alloc(ex, node, ALL, 1), -ENOMEM);
		assert_pages_add_up(ex->fd);
		run_on_node(1 - node);
		for (int i = 0; i < ALL / BATCH; i++)
			batch(ex, NODES + i % NODES, EXMAP_OP_FREE, i * BATCH, 1, 0);
		assert_pages_add_up(ex->fd);
	}
}

/* An exmap whose pages were all freed on another node than theirs, with these flags. */
static struct exmap *all_foreign(uint64_t flags)
{
	struct exmap *ex = exmap_new(ALL * PAGE, ALL, NODES);

	run_on_node(0);
	for (int i = 0; i < ALL / BATCH; i++)
		batch(ex, 0, EXMAP_OP_ALLOC, i * BATCH, 1, 0);
	run_on_node(1);
	for (int i = 0; i < ALL / BATCH; i++)
		batch(ex, 1, EXMAP_OP_FREE, i * BATCH, 1, flags);
	ck_assert_int_eq(fdinfo(ex->fd, "pages-free") + fdinfo(ex->fd, "pages-deferred"), ALL);
	return ex;
}

/* Such pages go back to the system like others: TRIM takes as many as it is told, then all. */
static void trim(uint64_t flags)
{
	struct exmap_ioctl_trim trim = { .pages = 1000 };
	struct exmap *ex = all_foreign(flags);

	assert_ok(ioctl(ex->fd, EXMAP_IOCTL_TRIM, &trim));
	ck_assert_uint_eq(trim.done, 1000);
	assert_fdinfo(ex->fd, "pages-system", ALL - 1000);
	assert_pages_add_up(ex->fd);
	trim.pages = 0;
	assert_ok(ioctl(ex->fd, EXMAP_IOCTL_TRIM, &trim));
	assert_fdinfo(ex->fd, "pages-system", 0);
}

TEST(nodes_trim, .needs = NODE1)
{
	trim(0);
}

/* TRIM flushes what is deferred. Those pages go to the depot, from where they are given, too. */
TEST(nodes_trim_flushes_first, .needs = NODE1)
{
	trim(EXMAP_FREE_DEFER);
}

TEST(nodes_shrinker, .needs = NODE1)
{
	struct exmap *ex = all_foreign(EXMAP_FREE_DEFER);

	ck_assert(shrink());
	ck_assert_int_le(fdinfo(ex->fd, "pages-system"), BATCH);
	assert_pages_add_up(ex->fd);
}

/* A surplus goes back to the system, whichever node its pages are freed on. */
TEST(nodes_resize, .needs = NODE1)
{
	struct exmap *ex = exmap_new(ALL * PAGE, ALL, NODES);
	struct exmap_ioctl_resize resize = { .buffer_size = BATCH };

	run_on_node(0);
	for (int i = 0; i < ALL / BATCH; i++)
		batch(ex, 0, EXMAP_OP_ALLOC, i * BATCH, 1, 0);
	run_on_node(1);
	for (int i = 0; i < ALL / BATCH / 2; i++)
		batch(ex, 1, EXMAP_OP_FREE, i * BATCH, 1, 0);
	assert_ok(ioctl(ex->fd, EXMAP_IOCTL_RESIZE, &resize));
	assert_fdinfo(ex->fd, "pages-system", ALL / 2);
	for (int i = ALL / BATCH / 2; i < ALL / BATCH; i++)
		batch(ex, 1, EXMAP_OP_FREE, i * BATCH, 1, 0);
	assert_fdinfo(ex->fd, "pages-system", BATCH);
	assert_pages_add_up(ex->fd);
}

/* munmap gives back pages that were freed on another node. */
TEST(nodes_munmap, .needs = NODE1)
{
	long before = available_kib();
	struct exmap *ex = all_foreign(0);

	assert_ok(munmap(ex->surface, ex->size));
	assert_fdinfo(ex->fd, "pages-system", 0);
	assert_available(before, 8 * 1024);
}

/* The memory policy of the thread decides, not where it runs. */
TEST(nodes_memory_policy, .needs = NODE1)
{
	struct exmap *ex = exmap_new(ALL * PAGE, ALL, NODES);

	run_on_node(0);
	for (int i = 0; i < 8; i++)
		batch(ex, 0, EXMAP_OP_ALLOC, i * BATCH, 1, 0);
	for (int i = 0; i < 8; i++)
		batch(ex, 0, EXMAP_OP_FREE, i * BATCH, 1, 0);
	set_policy(MPOL_BIND, 2);
	for (int i = 0; i < 8; i++)
		batch(ex, 1, EXMAP_OP_ALLOC, i * BATCH, 1, 0);
	ck_assert_int_eq(on_node(ex, 0, 8 * BATCH, 1, 1), 8 * BATCH);
	set_policy(MPOL_INTERLEAVE, 3);
	for (int i = 8; i < 16; i++)
		batch(ex, 0, EXMAP_OP_ALLOC, i * BATCH, 1, 0);
	for (int i = 0; i < 16; i++)
		batch(ex, 1, EXMAP_OP_FREE, i * BATCH, 1, 0);
	assert_pages_add_up(ex->fd);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of systems with several NUMA nodes.");
}
