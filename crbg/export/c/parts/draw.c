/* Draw the kept weights of a layer into its tables. `lanes` is 4 for linear layers and 1 for convolutions, which have no
   order. Each group of `group` rows has columns of its own. `next_place` is memory for one number per row. */
static void draw(const struct drawn *d, uint32_t lanes, uint32_t group, const position *starts, const position *order,
                 position *next_place, position *columns, float *weights)
{
    struct walk walk = walk_from_start(d);
    for (uint32_t place = 0; place < d->rows; place++)
        next_place[order ? order[place] : place] = (position)(starts[place / lanes] * lanes + place % lanes);
    while (next(d, &walk)) {
        uint32_t i = next_place[walk.row];
        next_place[walk.row] = (position)(i + lanes);
        columns[i] = (position)(walk.column + walk.row / group * d->columns);
        weights[i] = weight(d, &walk);
    }
}
