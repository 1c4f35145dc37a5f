#if defined(__GNUC__)
/* A tile holds TILE images; the values of one unit lie next to each other, in one vector. */
#define TILE 16
typedef float lanes __attribute__((vector_size(4 * TILE), may_alias));
typedef int32_t integers __attribute__((vector_size(4 * TILE)));

static void finish_tile(const struct finish *f, uint32_t unit, const lanes *sum, lanes *y)
{
    lanes value = *sum;
    if (f->scale)
        value *= f->scale[unit];
    if (f->shift)
        value += f->shift[unit];
    lanes scaled = value * (f->slopes ? f->slopes[unit] : f->slope);
    integers negative = value < 0;
    *y = (lanes)(((integers)value & ~negative) | ((integers)scaled & negative));
}

static void linear_tile(const struct linear *l, const lanes *x, lanes *y)
{
    const float *w = l->weights;
    const position *column = l->columns;
    for (uint32_t place = 0; place < l->units; place += 4) {
        lanes sums[4] = {{0}, {0}, {0}, {0}};
        for (uint32_t i = l->starts[place / 4]; i < l->starts[place / 4 + 1]; i++, w += 4, column += 4) {
            sums[0] += w[0] * x[column[0]];
            sums[1] += w[1] * x[column[1]];
            sums[2] += w[2] * x[column[2]];
            sums[3] += w[3] * x[column[3]];
        }
        for (uint32_t k = 0; k < 4 && place + k < l->units; k++)
            finish_tile(&l->finish, place + k, &sums[k], &y[l->order[place + k]]);
    }
}

/* Copy 1 to TILE vectors of n values into a tile; if there are fewer, the last one fills the other lanes. */
static void into_tile(const float *x, size_t n, size_t images, lanes *tile)
{
    if (images == TILE)
        for (size_t j = 0; j < n; j++)
            for (size_t k = 0; k < TILE; k++)
                tile[j][k] = x[k * n + j];
    else
        for (size_t k = 0; k < TILE; k++)
            for (size_t j = 0; j < n; j++)
                tile[j][k] = x[(k < images ? k : images - 1) * n + j];
}
#endif
