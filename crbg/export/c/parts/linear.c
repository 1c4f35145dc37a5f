/* The kept weights of a linear layer, unit by unit. The weights of a unit are padded to a multiple of 4 with zeros. */
struct linear {
    uint32_t units;
    const position *starts; /* of each unit, in quadruples of weights; the last entry is the end */
    const position *columns;
    const float *weights;
    struct finish finish;
};

static void linear(const struct linear *l, const float *x, float *y)
{
    const float *w = l->weights;
    const position *column = l->columns;
    for (uint32_t unit = 0; unit < l->units; unit++) {
        float a = 0, b = 0, c = 0, d = 0;
        for (uint32_t i = l->starts[unit]; i < l->starts[unit + 1]; i++, w += 4, column += 4) {
            a += w[0] * x[column[0]];
            b += w[1] * x[column[1]];
            c += w[2] * x[column[2]];
            d += w[3] * x[column[3]];
        }
        y[unit] = finish(&l->finish, unit, (a + b) + (c + d));
    }
}
