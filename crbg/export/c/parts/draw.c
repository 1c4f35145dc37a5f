/* Draw the kept weights of a layer into its tables: count the weights of each unit, find the starts, fill in. The
   weights of a unit are padded to a multiple of `pad` with the zeros that are there already, and `starts` counts
   multiples of `pad`. Each group of `group` rows has columns of its own. */
static void draw(const struct drawn *d, uint32_t pad, uint32_t group, position *starts, position *columns, float *weights)
{
    struct walk walk = walk_from_start(d);
    uint32_t total = 0;
    while (next(d, &walk))
        starts[walk.row + 1]++;
    for (uint32_t row = 0; row < d->rows; row++) {
        starts[row] = (position)total;
        total += (starts[row + 1] + pad - 1) / pad * pad;
    }
    walk = walk_from_start(d);
    while (next(d, &walk)) {
        uint32_t i = starts[walk.row]++;
        columns[i] = (position)(walk.column + walk.row / group * d->columns);
        weights[i] = weight(d, &walk);
    }
    for (uint32_t row = d->rows; row > 0; row--)
        starts[row] = (position)((starts[row - 1] + pad - 1) / pad);
    starts[0] = 0;
}
