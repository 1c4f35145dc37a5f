#if defined(__GNUC__)
/* A tile holds TILE images; the values of one unit lie next to each other, in one vector. */
#define TILE 16
typedef float lanes __attribute__((vector_size(4 * TILE), may_alias));
typedef int32_t integers __attribute__((vector_size(4 * TILE)));

static void linear_tile(const struct linear *l, const lanes *x, lanes *y)
{
    const float *w = l->weights;
    const position *column = l->columns;
    for (uint32_t unit = 0; unit < l->units; unit++) {
        lanes a = {0}, b = {0};
        for (uint32_t i = l->starts[unit]; i < l->starts[unit + 1]; i++, w += 4, column += 4) {
            a += w[0] * x[column[0]];
            b += w[1] * x[column[1]];
            a += w[2] * x[column[2]];
            b += w[3] * x[column[3]];
        }
        a += b;
        if (l->finish.scale)
            a *= l->finish.scale[unit];
        if (l->finish.shift)
            a += l->finish.shift[unit];
        b = a * (l->finish.slopes ? l->finish.slopes[unit] : l->finish.slope);
        integers negative = a < 0;
        y[unit] = (lanes)(((integers)a & ~negative) | ((integers)b & negative));
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
