/* Uniform weights: (2 u - 1) * scale in double, with u = (i + 1/2) / 2^23 for the top 23 bits i. */
struct law {
    double scale;
    float gain;
};

static float scaled(const struct law *law, uint64_t random)
{
    int32_t m = 2 * (int32_t)(random >> 41) + 1 - (1 << 23);
    return (float)(m / 8388608.0 * law->scale) * law->gain;
}
