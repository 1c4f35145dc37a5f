/* The kept weights of a linear layer. The units are sorted by their number of weights, the largest first. Four of
   them at a time form a slice: the first weight of each, then the second of each, and so on, padded with zeros. */
struct linear {
    uint32_t units;
    const position *starts; /* of each slice, in quadruples of weights; the last entry is the end */
    const position *order;  /* the unit at each place */
    const position *columns;
    const float *weights;
    struct finish finish;   /* in the same order */
};

static float unit_at(const struct linear *l, uint32_t place, const float *x)
{
    uint32_t i = 4 * l->starts[place / 4] + place % 4, end = 4 * l->starts[place / 4 + 1];
    float sum = 0;
    for (; i < end; i += 4)
        sum += l->weights[i] * x[l->columns[i]];
    return finish(&l->finish, place, sum);
}

#if defined(__GNUC__) && (defined(__SSE__) || defined(__ARM_NEON))
#define SLICES /* the processor computes the four units of a slice at once */
typedef float quadruple __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t four_integers __attribute__((vector_size(16)));

static quadruple load(const float *x)
{
    return *(const quadruple *)x;
}

static quadruple products(const struct linear *l, uint32_t i, const float *x)
{
    const position *column = l->columns + 4 * i;
    quadruple values = {x[column[0]], x[column[1]], x[column[2]], x[column[3]]};
    return load(l->weights + 4 * i) * values;
}

static quadruple slice_at(const struct linear *l, uint32_t place, const float *x)
{
    const struct finish *f = &l->finish;
    uint32_t i = l->starts[place / 4], end = l->starts[place / 4 + 1];
    quadruple sum = {0, 0, 0, 0}, odd = sum; /* two sums, so that an addition need not wait for the one before */
    for (; i + 1 < end; i += 2) {
        sum += products(l, i, x);
        odd += products(l, i + 1, x);
    }
    if (i < end)
        sum += products(l, i, x);
    sum += odd;
    if (f->scale)
        sum *= load(f->scale + place);
    if (f->shift)
        sum += load(f->shift + place);
    quadruple scaled = f->slopes ? sum * load(f->slopes + place) : sum * f->slope;
    four_integers negative = sum < 0; /* a branch for each sign would often be predicted wrongly */
    return (quadruple)(((four_integers)sum & ~negative) | ((four_integers)scaled & negative));
}
#endif

static void linear(const struct linear *l, const float *x, float *y)
{
    uint32_t place = 0;
#if defined(SLICES)
    for (; place + 4 <= l->units; place += 4) {
        quadruple values = slice_at(l, place, x);
        for (int k = 0; k < 4; k++)
            y[l->order[place + k]] = values[k];
    }
#endif
    for (; place < l->units; place++)
        y[l->order[place]] = unit_at(l, place, x);
}
