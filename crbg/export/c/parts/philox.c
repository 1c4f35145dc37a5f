/* Random integers: Philox4x64-10 (Salmon et al. 2011). Block n of a stream has the counter (n + 1, 0, 0, 0). */
static uint64_t high_half(uint64_t a, uint64_t b)
{
    uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32, middle = a1 * b0 + (a0 * b0 >> 32);
    uint64_t other = a0 * b1 + (uint32_t)middle;
    return a1 * b1 + (middle >> 32) + (other >> 32);
}

static void philox(const uint64_t key[2], uint32_t block, uint64_t c[4])
{
    uint64_t k0 = key[0], k1 = key[1];
    c[0] = (uint64_t)block + 1;
    c[1] = c[2] = c[3] = 0;
    for (int round = 0; round < 10; round++) {
        uint64_t high0 = high_half(UINT64_C(0xD2E7470EE14C6C93), c[0]);
        uint64_t high1 = high_half(UINT64_C(0xCA5A826395121157), c[2]);
        uint64_t low0 = UINT64_C(0xD2E7470EE14C6C93) * c[0], low1 = UINT64_C(0xCA5A826395121157) * c[2];
        c[0] = high1 ^ c[1] ^ k0;
        c[1] = low1;
        c[2] = high0 ^ c[3] ^ k1;
        c[3] = low0;
        k0 += UINT64_C(0x9E3779B97F4A7C15);
        k1 += UINT64_C(0xBB67AE8584CAA73B);
    }
}
