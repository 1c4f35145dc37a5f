/* CRBG's gated product on a CPU: noise, clip, product and rounding in one pass over memory.
 *
 * The noise is a function of (key, position): a 32-bit hash followed by the Box-Muller transform in
 * single precision. Only integer operations and + - * / sqrt are used, without fused multiply-adds, so
 * results are bit-identical on all instruction sets and equal to those of the torch version in
 * crbg/gates/kernels.py.
 *
 * Work is divided among the threads of torch's OpenMP runtime; the caller passes a pointer to the
 * runtime's entry point. A second runtime would start threads that compete with torch's.
 */
#include <stdint.h>
#include <string.h>

#define HALF 1024 /* pairs per block: elements j and j + HALF share one Box-Muller pair */
#define BLOCK (2 * HALF)
#define BLOCKS_AT_A_TIME 16
#define VERSION 2 /* increase it when a signature or a result changes; crbg/gates/kernels.py checks it */

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define EACH_INSTRUCTION_SET __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_INSTRUCTION_SET
#endif

typedef void (*parallel_region)(void (*body)(void *), void *data, unsigned threads, unsigned flags);

typedef struct {
    int32_t key0, key1;
    float noise;
    float leak;
    int bf16;         /* whether `out` (forward) or `grad` (backward) is bfloat16 */
    int hard;         /* forward: the gate is 1[mu > 1/2] */
    int64_t count;
    const float *mu;  /* forward only */
    const float *w;
    void *out;        /* forward: the gated weight; backward: the gradient of mu, float */
    const void *grad; /* backward only */
    const float *add; /* backward: a tensor to add to the gradient, or null */
    uint8_t *inside;  /* 1 where 0 < mu + noise * eps < 1, else 0 */
    int64_t next;     /* the first block that no thread has taken yet */
} Job;

/* Hash a position with a key: the rounds and multipliers of triple32 (C. Wellons), with a word of the key in each
 * round. Two keys that share one word still give independent samples. */
static inline uint32_t mix(uint32_t x, uint32_t key0, uint32_t key1) {
    x ^= key0;
    x ^= x >> 17;
    x *= 0xed5ad4bbU;
    x ^= key1;
    x ^= x >> 11;
    x *= 0xac4c1b51U;
    x += key0 * 0x9e3779b9U;
    x ^= x >> 15;
    x *= 0x31848babU;
    x ^= x >> 14;
    return x;
}

static inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

/* Map two words to two standard normals: radius sqrt(-2 ln u), and an angle reduced to an eighth of a turn. */
static inline void box_muller(uint32_t a, uint32_t b, float *first, float *second) {
    /* u = (i + 1/2) / 2^23 in (0, 1), exact in float. */
    float u = ((float)(int32_t)(a >> 9) + 0.5f) * 1.1920928955078125e-07f;
    /* ln u = e ln 2 + ln m with m in [sqrt(1/2), sqrt(2)); ln m = 2 artanh(s), s = (m - 1) / (m + 1). */
    uint32_t bits = as_bits(u) - 0x3f3504f3U;
    int32_t e = (int32_t)bits >> 23;
    float m = as_float((bits & 0x007fffffU) + 0x3f3504f3U);
    float s = (m - 1.0f) / (m + 1.0f);
    float q = s * s;
    float log_m = s * (2.0f + q * (0.66666669f + q * (0.4f + q * 0.28571430f)));
    float square = -2.0f * ((float)e * 0.69314718f + log_m);
    float radius = __builtin_sqrtf(square > 0.0f ? square : 0.0f);
    /* t in (-pi/4, pi/4); two more bits select the axis and the sign. */
    float t = ((float)(int32_t)(b >> 9) + (0.5f - 4194304.0f)) * 1.8725352e-07f;
    float p = t * t;
    float sine = t * (1.0f + p * (-0.16666667f + p * (0.0083333310f + p * -0.00019840874f)));
    float cosine = 1.0f + p * (-0.5f + p * (0.041666638f + p * (-0.0013888397f + p * 2.4760495e-05f)));
    uint32_t swap = b & 1U, sign = (b & 2U) << 30;
    float x = swap ? sine : cosine, y = swap ? cosine : sine;
    *first = as_float(as_bits(radius * x) ^ sign);
    *second = as_float(as_bits(radius * y) ^ sign);
}

static inline void normals(uint32_t block, uint32_t key0, uint32_t key1, float *eps) {
    uint32_t base = block * (uint32_t)BLOCK;
    for (uint32_t j = 0; j < HALF; j++)
        box_muller(mix(base + j, key0, key1), mix(base + HALF + j, key0, key1), &eps[j], &eps[j + HALF]);
}

/* Round to bfloat16, to nearest, ties to even; NaN stays NaN. */
static inline uint16_t to_bf16(float value) {
    uint32_t bits = as_bits(value);
    uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
    return (uint16_t)((bits & 0x7fffffffU) > 0x7f800000U ? 0x7fc0U : rounded);
}

EACH_INSTRUCTION_SET
static void forward_block(const Job *job, int64_t block) {
    float eps[BLOCK];
    int64_t start = block * BLOCK, size = job->count - start < BLOCK ? job->count - start : BLOCK;
    const float *restrict mu = job->mu + start, *restrict w = job->w + start;
    uint8_t *restrict inside = job->inside + start;
    float noise = job->noise, z[BLOCK];
    if (job->hard) {
        for (int64_t j = 0; j < size; j++) {
            z[j] = mu[j] > 0.5f ? 1.0f : 0.0f;
            inside[j] = 1;
        }
    } else {
        if (noise > 0.0f)
            normals((uint32_t)block, (uint32_t)job->key0, (uint32_t)job->key1, eps);
        else
            memset(eps, 0, sizeof eps);
        for (int64_t j = 0; j < size; j++) {
            float u = mu[j] + noise * eps[j];
            inside[j] = (u > 0.0f) & (u < 1.0f);
            u = u < 0.0f ? 0.0f : u; /* NaN stays NaN */
            z[j] = u > 1.0f ? 1.0f : u;
        }
    }
    if (job->bf16) {
        uint16_t *restrict out = (uint16_t *)job->out + start;
        for (int64_t j = 0; j < size; j++)
            out[j] = to_bf16(w[j] * z[j]);
    } else {
        float *restrict out = (float *)job->out + start;
        for (int64_t j = 0; j < size; j++)
            out[j] = w[j] * z[j];
    }
}

EACH_INSTRUCTION_SET
static void backward_block(const Job *job, int64_t block) {
    int64_t start = block * BLOCK, size = job->count - start < BLOCK ? job->count - start : BLOCK;
    const float *restrict w = job->w + start;
    const uint8_t *restrict inside = job->inside + start;
    float *restrict out = (float *)job->out + start;
    float leak = job->leak;
    if (job->bf16) {
        const uint16_t *restrict grad = (const uint16_t *)job->grad + start;
        for (int64_t j = 0; j < size; j++) {
            float through = as_float((uint32_t)grad[j] << 16) * w[j];
            out[j] = inside[j] ? through : leak == 0.0f ? 0.0f : leak * through;
        }
    } else {
        const float *restrict grad = (const float *)job->grad + start;
        for (int64_t j = 0; j < size; j++) {
            float through = grad[j] * w[j];
            out[j] = inside[j] ? through : leak == 0.0f ? 0.0f : leak * through;
        }
    }
    if (job->add) {
        const float *restrict add = job->add + start;
        for (int64_t j = 0; j < size; j++)
            out[j] += add[j];
    }
}

EACH_INSTRUCTION_SET
static void normal_block(const Job *job, int64_t block) {
    float eps[BLOCK];
    int64_t start = block * BLOCK, size = job->count - start < BLOCK ? job->count - start : BLOCK;
    normals((uint32_t)block, (uint32_t)job->key0, (uint32_t)job->key1, eps);
    memcpy((float *)job->out + start, eps, (size_t)size * sizeof(float));
}

static void take(Job *job, void (*each)(const Job *, int64_t)) {
    int64_t blocks = (job->count + BLOCK - 1) / BLOCK;
    for (;;) {
        int64_t first = __atomic_fetch_add(&job->next, BLOCKS_AT_A_TIME, __ATOMIC_RELAXED);
        if (first >= blocks)
            return;
        int64_t last = first + BLOCKS_AT_A_TIME < blocks ? first + BLOCKS_AT_A_TIME : blocks;
        for (int64_t block = first; block < last; block++)
            each(job, block);
    }
}

static void take_forward(void *job) { take((Job *)job, forward_block); }
static void take_backward(void *job) { take((Job *)job, backward_block); }
static void take_normal(void *job) { take((Job *)job, normal_block); }

static void run(Job *job, void (*body)(void *), parallel_region parallel, int threads) {
    if (parallel && threads > 1 && job->count > (int64_t)BLOCK * BLOCKS_AT_A_TIME)
        parallel(body, job, (unsigned)threads, 0);
    else
        body(job);
}

int crbg_gate_version(void) { return VERSION; }

void crbg_gate_forward(const float *mu, const float *w, void *out, uint8_t *inside, int64_t count, float noise,
                       int32_t key0, int32_t key1, int hard, int bf16, parallel_region parallel, int threads) {
    Job job = {.key0 = key0, .key1 = key1, .noise = noise, .hard = hard, .bf16 = bf16,
               .count = count, .mu = mu, .w = w, .out = out, .inside = inside};
    run(&job, take_forward, parallel, threads);
}

void crbg_gate_backward(const void *grad, const float *w, const uint8_t *inside, const float *add, float *out,
                        int64_t count, float leak, int bf16, parallel_region parallel, int threads) {
    Job job = {.leak = leak, .bf16 = bf16, .count = count, .w = w, .out = out, .grad = grad, .add = add,
               .inside = (uint8_t *)inside};
    run(&job, take_backward, parallel, threads);
}

void crbg_normal(float *out, int64_t count, int32_t key0, int32_t key1, parallel_region parallel, int threads) {
    Job job = {.key0 = key0, .key1 = key1, .count = count, .out = out};
    run(&job, take_normal, parallel, threads);
}
