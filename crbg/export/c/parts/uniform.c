/* Uniform weights in integers: m * factor * unit, rounded once to float, with m = 2 i + 1 - 2^23 for the top 23 bits i.
   `factor` has at most 41 bits and `unit` is a power of two. */
struct law {
    uint64_t factor;
    float unit, gain;
};

static float scaled(const struct law *law, uint64_t random)
{
    int32_t m = 2 * (int32_t)(random >> 41) + 1 - (1 << 23);
    uint64_t product = (uint64_t)(m < 0 ? -m : m) * law->factor;
    float unit = m < 0 ? -law->unit : law->unit;
    for (; product >> 32; unit *= 2)
        product = product >> 1 | (product & 1); /* the lowest bit says whether a lost bit was set, for the rounding */
    return (float)(uint32_t)product * unit * law->gain;
}
