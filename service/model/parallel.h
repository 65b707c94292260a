// A loop shared out between threads, item by item, in PyTorch's own OpenMP runtime (libgomp), so that both have one thread pool.
#include <stdint.h>

extern void GOMP_parallel(void (*body)(void *), void *data, unsigned num_threads, unsigned flags);

struct loop {
    void (*body)(void *args, int64_t i);
    void *args;
    int64_t count;
    int64_t next;
};

static void run_loop(void *data) {
    struct loop *loop = data;
    int64_t i;
    while ((i = __atomic_fetch_add(&loop->next, 1, __ATOMIC_RELAXED)) < loop->count) loop->body(loop->args, i);
}

static void parallel_for(int64_t count, void *args, void (*body)(void *, int64_t), int worth_threads) {
    struct loop loop = {body, args, count, 0};
    if (count > 1 && worth_threads)
        GOMP_parallel(run_loop, &loop, 0, 0);
    else
        run_loop(&loop);
}
