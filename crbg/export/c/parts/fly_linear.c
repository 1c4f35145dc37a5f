/* A linear layer whose weights are drawn each time they are used. */
struct linear {
    struct drawn drawn;
    struct finish finish;
};

static void finish_all(const struct linear *l, float *y)
{
    for (uint32_t row = 0; row < l->drawn.rows; row++)
        y[row] = finish(&l->finish, row, y[row]);
}

static void linear(const struct linear *l, const float *x, float *y)
{
    const struct drawn *d = &l->drawn;
    struct walk walk = walk_from_start(d);
    clear(y, d->rows);
    while (next(d, &walk))
        y[walk.row] += weight(d, &walk) * x[walk.column];
    finish_all(l, y);
}
