/* The floor: one Adam step over a list of float32 leaves in a single pass, which reads p, m, v and g and writes p, m
   and v: 28 bytes for each parameter. Every thread takes an equal share of all elements. */

#include <math.h>
#include <pthread.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__linux__)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

enum { MOST_THREADS = 64, FEWEST_ELEMENTS = 1 << 16 /* for which starting a thread pays */ };

typedef struct {
    int64_t leaves;
    const int64_t *sizes;
    float *const *p, *const *m, *const *v;
    const float *const *g;
    float rate, b1, b2, eps, w1, w2; /* w: the weight of each average, 1 - b**t */
} Work;

typedef struct {
    const Work *work;
    int64_t begin, end; /* of all elements, leaf after leaf */
} Share;

CLONES static void adam(float *restrict p, float *restrict m, float *restrict v, const float *restrict g, int64_t n,
                        float rate, float b1, float b2, float eps, float over_w1, float over_w2) {
    for (int64_t i = 0; i < n; i++) {
        float u = b1 * m[i] + (1 - b1) * g[i];
        float s = b2 * v[i] + (1 - b2) * g[i] * g[i];
        m[i] = u;
        v[i] = s;
        p[i] -= rate * (u * over_w1) / (sqrtf(s * over_w2) + eps);
    }
}

static void *run(void *argument) {
    const Share *share = argument;
    const Work *w = share->work;
    int64_t start = 0;
    for (int64_t i = 0; i < w->leaves && start < share->end; start += w->sizes[i++]) {
        int64_t a = share->begin > start ? share->begin - start : 0;
        int64_t b = share->end - start < w->sizes[i] ? share->end - start : w->sizes[i];
        if (a < b)
            adam(w->p[i] + a, w->m[i] + a, w->v[i] + a, w->g[i] + a, b - a, w->rate, w->b1, w->b2, w->eps, 1 / w->w1,
                 1 / w->w2);
    }
    return 0;
}

void step(const Work *work, int64_t threads) {
    int64_t total = 0;
    for (int64_t i = 0; i < work->leaves; i++)
        total += work->sizes[i];
    if (threads > 1 + total / FEWEST_ELEMENTS)
        threads = 1 + total / FEWEST_ELEMENTS;
    if (threads > MOST_THREADS)
        threads = MOST_THREADS;
    pthread_t others[MOST_THREADS];
    int started[MOST_THREADS];
    Share shares[MOST_THREADS];
    for (int64_t t = 0; t < threads; t++)
        shares[t] = (Share){work, total * t / threads, total * (t + 1) / threads};
    for (int64_t t = 1; t < threads; t++)
        started[t] = !pthread_create(&others[t], 0, run, &shares[t]);
    run(&shares[0]);
    for (int64_t t = 1; t < threads; t++) {
        if (started[t])
            pthread_join(others[t], 0);
        else
            run(&shares[t]);
    }
}
