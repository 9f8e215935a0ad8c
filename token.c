// SPDX-License-Identifier: GPL-2.0
/*
 * Tokens: how a memory cgroup at its limit finds the pools that it is charged for.
 *
 * When a memory cgroup is short of memory, the kernel asks only those shrinkers that have an object
 * of this cgroup in a list_lru. So each pool has one such object, the token, which is charged to
 * the cgroup that is charged for the pool's pages. If the pool takes pages for another cgroup, for
 * example because its process has moved there, the token follows. Pages that the first cgroup was
 * charged for can then be reclaimed only through the second one, or when the system is short.
 *
 * If a cgroup is removed, the kernel moves its tokens to the parent's list.
 */
#include <linux/list_lru.h>
#include <linux/memcontrol.h>
#include <linux/slab.h>

#include "compat.h"
#include "exmap.h"
#include "pool.h"

/* An element of a list_lru, whose lock guards @node. @exmap is in use while the token is there. */
struct exmap_token {
	struct list_head node;
	struct exmap *exmap;
};

struct list_lru exmap_tokens;
static struct kmem_cache *exmap_token_cache;

/* The serial number of the cgroup that new pages are charged to. The kernel uses none twice. */
static u64 exmap_memcg_serial(void)
{
	u64 serial = 0;
#ifdef CONFIG_MEMCG
	struct mem_cgroup *memcg;

	rcu_read_lock();
	memcg = current->active_memcg ?: mem_cgroup_from_task(current);
	if (memcg)
		serial = memcg->css.serial_nr;
	rcu_read_unlock();
#endif
	return serial;
}

static struct exmap_token *exmap_token_alloc(struct exmap *exmap)
{
	struct exmap_token *token;

	token = kmem_cache_alloc_lru(exmap_token_cache, &exmap_tokens, POOL_GFP);
	if (!token)
		return NULL;
	INIT_LIST_HEAD(&token->node);
	token->exmap = exmap;
	return token;
}

/* Free a token that may be in the list. */
static void exmap_token_free(struct exmap_token *token)
{
	if (!token)
		return;
	list_lru_del_obj(&exmap_tokens, &token->node);
	kmem_cache_free(exmap_token_cache, token);
}

/**
 * exmap_token_make - allocate the token of a pool, charged to the caller's memcg
 * @exmap: has a pool without a token
 *
 * May sleep for memory. Reclaim does not find the pool before exmap_token_show().
 *
 * Return: 0 or -ENOMEM.
 */
int exmap_token_make(struct exmap *exmap)
{
	exmap->pool.token = exmap_token_alloc(exmap);
	exmap->pool.memcg = exmap_memcg_serial();
	return exmap->pool.token ? 0 : -ENOMEM;
}

/**
 * exmap_token_show - let reclaim of the memcg find a pool
 * @exmap: exmap_token_make() has succeeded, and pool->lookers is not 0. pool->transit is held for
 *	writing, so that exmap_token_follow() does not free the token meanwhile
 */
void exmap_token_show(struct exmap *exmap)
{
	list_lru_add_obj(&exmap_tokens, &exmap->pool.token->node);
}

/**
 * exmap_token_end - undo exmap_token_make() and exmap_token_show()
 * @exmap: nobody takes pages for its pool any more
 *
 * Reclaim may still be at work on the pool.
 */
void exmap_token_end(struct exmap *exmap)
{
	exmap_token_free(exmap->pool.token);
	exmap->pool.token = NULL;
}

/**
 * exmap_token_follow - charge the token to the memcg that has just been charged for pages
 * @exmap: has been set up; pool->transit is held for reading, and no lock that is taken inside it
 *
 * May sleep for memory. If there is none, the token stays where it is.
 */
void exmap_token_follow(struct exmap *exmap)
{
	const u64 memcg = exmap_memcg_serial();
	struct exmap_pool *pool = &exmap->pool;
	struct exmap_token *token;

	/* Pairs with the write below. */
	if (likely(READ_ONCE(pool->memcg) == memcg))
		return;
	token = exmap_token_alloc(exmap);
	if (!token)
		return;
	list_lru_add_obj(&exmap_tokens, &token->node);
	spin_lock(&pool->lock);
	swap(pool->token, token);
	/* Pairs with the read above. */
	WRITE_ONCE(pool->memcg, memcg);
	spin_unlock(&pool->lock);
	exmap_token_free(token);
}

/*
 * Get a reference to the interfaces of a token's pool. The token is in the list, so the exmap still
 * has its own reference. Pairs with exmap_pool_put_interfaces(). The list's lock is held.
 */
static enum lru_status exmap_token_found(struct exmap_token *token, void *exmap)
{
	refcount_inc(&token->exmap->pool.lookers);
	*(struct exmap **)exmap = token->exmap;
	return LRU_ROTATE;
}

static enum lru_status exmap_token_visit(EXMAP_LRU_WALK_ARGS(item, exmap))
{
	return exmap_token_found(container_of(item, struct exmap_token, node), exmap);
}

/**
 * exmap_tokens_next - find the memcg's pool that has not been looked at for the longest time
 * @sc: the memcg and the node
 *
 * The caller holds exmap_pools_srcu, which keeps the exmap allocated. Does not sleep.
 *
 * Return: the exmap, with a reference to its interfaces; or NULL if no pool has its token there.
 */
struct exmap *exmap_tokens_next(struct shrink_control *sc)
{
	struct exmap *exmap = NULL;
	unsigned long one = 1;

	list_lru_walk_one(&exmap_tokens, sc->nid, sc->memcg, exmap_token_visit, &exmap, &one);
	return exmap;
}

/**
 * exmap_tokens_nr - number of the memcg's pools
 * @sc: the memcg and the node
 *
 * Return: pools; it may change at any time.
 */
unsigned long exmap_tokens_nr(struct shrink_control *sc)
{
	return list_lru_shrink_count(&exmap_tokens, sc);
}

/**
 * exmap_tokens_init - make room for tokens
 *
 * Called at module init. The list is set up along with the shrinker.
 *
 * Return: 0 or -ENOMEM.
 */
int __init exmap_tokens_init(void)
{
	exmap_token_cache = kmem_cache_create("exmap_token", sizeof(struct exmap_token), 0,
					      SLAB_ACCOUNT, NULL);
	return exmap_token_cache ? 0 : -ENOMEM;
}

/**
 * exmap_tokens_exit - undo exmap_tokens_init()
 *
 * No token is left.
 */
void exmap_tokens_exit(void)
{
	kmem_cache_destroy(exmap_token_cache);
}
