/* Weights of one magnitude; the top bit is the sign. */
struct law {
    float magnitude;
};

static float scaled(const struct law *law, uint64_t random)
{
    return random >> 63 ? law->magnitude : -law->magnitude;
}
