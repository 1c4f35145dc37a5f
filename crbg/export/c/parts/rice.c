/* The mask of a layer: the gaps between kept weights as Rice codes, most significant bit first. A gap g is coded as
   g >> k ones, a zero, and the k low bits of g. k follows from a running mean of the gaps, so it is not stored. */
struct bits {
    const uint8_t *next;
    uint32_t mean; /* 8 times the running mean */
    uint8_t byte, left;
};

static uint32_t bit(struct bits *b)
{
    if (!b->left) {
        b->byte = *b->next++;
        b->left = 8;
    }
    return (uint32_t)(b->byte >> --b->left) & 1;
}

static uint32_t gap(struct bits *b)
{
    uint32_t k = 0, g = 0;
    while (12u << k < b->mean)
        k++;
    while (bit(b))
        g++;
    while (k--)
        g = g << 1 | bit(b);
    b->mean += g - (b->mean >> 3);
    return g;
}
