/* A layer whose weights follow from a seed. The mask lists the kept weights column by column, for the columns that
   have any; weight (row, column) is number row * columns + column of the layer's random stream. */
struct drawn {
    uint32_t rows, columns;
    const uint8_t *mask; /* Rice codes of the gaps, see above */
    const uint8_t *live; /* one bit per column, lowest bit first: it has kept weights; null if all have */
    uint64_t key[2];
    struct law law;
};

struct walk {
    struct bits bits;
    uint32_t row, column;
};

static struct walk walk_from_start(const struct drawn *d)
{
    struct walk w = {{d->mask, 64, 0, 0}, d->rows - 1, (uint32_t)-1};
    return w;
}

/* Go to the next kept weight; return 0 after the last one. */
static int next(const struct drawn *d, struct walk *w)
{
    for (w->row += gap(&w->bits) + 1; w->row >= d->rows; w->row -= d->rows)
        do
            if (++w->column == d->columns)
                return 0;
        while (d->live && !(d->live[w->column >> 3] >> (w->column & 7) & 1));
    return 1;
}

static float weight(const struct drawn *d, const struct walk *w)
{
    uint64_t lanes[4];
    uint32_t number = w->row * d->columns + w->column;
    philox(d->key, number >> 2, lanes);
    return scaled(&d->law, lanes[number & 3]);
}
