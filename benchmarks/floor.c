/* The floor: one Adam step over a list of float32 leaves in a single pass, which reads p, m, v and g and writes p, m
   and v: 28 bytes for each parameter. Every thread takes an equal share of all elements. And what guards ask for: the
   gradients measured before (4 bytes more), a sum of gradients instead (see add and summed), moments in bfloat16. */

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

enum { MOST_THREADS = 64, FEWEST_ELEMENTS = 1 << 16 /* for which starting a thread pays */ };
enum { ADAM, MEASURED, ADDED, SUMMED, IN_BFLOAT16 };

typedef struct {
    int64_t leaves;
    const int64_t *sizes;
    float *const *p, *const *a; /* a: the sums */
    void *const *m, *const *v;
    const float *const *g;
    float rate, b1, b2, eps, w1, w2; /* w: the weight of each average, 1 - b**t */
    float over_steps;                /* that were summed */
    int32_t kind;
} Work;

typedef struct {
    const Work *work;
    int64_t begin, end; /* of all elements, leaf after leaf */
    int measures;
    double squares;
} Share;

typedef struct {
    float rate, b1, b2, eps, over_w1, over_w2, over_steps;
} Numbers;

static inline float moved(float p, float u, float s, const Numbers *c) {
    return p - c->rate * (u * c->over_w1) / (sqrtf(s * c->over_w2) + c->eps);
}

CLONES static void adam(float *restrict p, float *restrict m, float *restrict v, const float *restrict g, int64_t n,
                        const Numbers *numbers) {
    Numbers c = *numbers;
    for (int64_t i = 0; i < n; i++) {
        float u = c.b1 * m[i] + (1 - c.b1) * g[i];
        float s = c.b2 * v[i] + (1 - c.b2) * g[i] * g[i];
        m[i] = u;
        v[i] = s;
        p[i] = moved(p[i], u, s, &c);
    }
}

/* Adam with the mean of the sum and the last gradient; 0 is the sum afterwards. */
CLONES static void summed(float *restrict p, float *restrict m, float *restrict v, float *restrict a,
                          const float *restrict g, int64_t n, const Numbers *numbers) {
    Numbers c = *numbers;
    for (int64_t i = 0; i < n; i++) {
        float x = (a[i] + g[i]) * c.over_steps;
        float u = c.b1 * m[i] + (1 - c.b1) * x;
        float s = c.b2 * v[i] + (1 - c.b2) * x * x;
        a[i] = 0;
        m[i] = u;
        v[i] = s;
        p[i] = moved(p[i], u, s, &c);
    }
}

CLONES static void add(float *restrict a, const float *restrict g, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        a[i] += g[i];
}

/* bfloat16 is the upper half of float32; to nearest, ties to even. */
static inline float widened(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

static inline uint16_t narrowed(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((x != x ? bits | 0x400000 : bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

CLONES static void adam_in_bfloat16(float *restrict p, uint16_t *restrict m, uint16_t *restrict v,
                                    const float *restrict g, int64_t n, const Numbers *numbers) {
    Numbers c = *numbers;
    for (int64_t i = 0; i < n; i++) {
        float u = c.b1 * widened(m[i]) + (1 - c.b1) * g[i];
        float s = c.b2 * widened(v[i]) + (1 - c.b2) * g[i] * g[i];
        m[i] = narrowed(u);
        v[i] = narrowed(s);
        p[i] = moved(p[i], u, s, &c);
    }
}

CLONES static double sum_of_squares(const float *g, int64_t n) {
    enum { LANES = 32 }; /* side by side, which become vectors */
    double lanes[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lanes[j] += (double)g[i + j] * g[i + j];
    for (; i < n; i++)
        sum += (double)g[i] * g[i];
    for (int j = 0; j < LANES; j++)
        sum += lanes[j];
    return sum;
}

static void take(const Work *w, int64_t i, int64_t a, int64_t n, Share *share) {
    Numbers c = {w->rate, w->b1, w->b2, w->eps, 1 / w->w1, 1 / w->w2, w->over_steps};
    float *p = w->p[i] + a;
    const float *g = w->g[i] + a;
    if (share->measures)
        share->squares += sum_of_squares(g, n);
    else if (w->kind == ADDED)
        add(w->a[i] + a, g, n);
    else if (w->kind == SUMMED)
        summed(p, (float *)w->m[i] + a, (float *)w->v[i] + a, w->a[i] + a, g, n, &c);
    else if (w->kind == IN_BFLOAT16)
        adam_in_bfloat16(p, (uint16_t *)w->m[i] + a, (uint16_t *)w->v[i] + a, g, n, &c);
    else
        adam(p, (float *)w->m[i] + a, (float *)w->v[i] + a, g, n, &c);
}

static void *run(void *argument) {
    Share *share = argument;
    const Work *w = share->work;
    int64_t start = 0;
    for (int64_t i = 0; i < w->leaves && start < share->end; start += w->sizes[i++]) {
        int64_t a = share->begin > start ? share->begin - start : 0;
        int64_t b = share->end - start < w->sizes[i] ? share->end - start : w->sizes[i];
        if (a < b)
            take(w, i, a, b - a, share);
    }
    return 0;
}

static double over_all(const Work *work, int64_t threads, int measures) {
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
        shares[t] = (Share){work, total * t / threads, total * (t + 1) / threads, measures, 0};
    for (int64_t t = 1; t < threads; t++)
        started[t] = !pthread_create(&others[t], 0, run, &shares[t]);
    run(&shares[0]);
    for (int64_t t = 1; t < threads; t++) {
        if (started[t])
            pthread_join(others[t], 0);
        else
            run(&shares[t]);
    }
    double squares = 0;
    for (int64_t t = 0; t < threads; t++)
        squares += shares[t].squares;
    return squares;
}

/* A step, and 1; 0 and none if the gradients are measured and not finite. */
int32_t step(const Work *work, int64_t threads) {
    if (work->kind == MEASURED && !isfinite(over_all(work, threads, 1)))
        return 0;
    over_all(work, threads, 0);
    return 1;
}
