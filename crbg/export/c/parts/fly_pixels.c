/* A first linear layer that reads each pixel when it is needed, so that no array of floats is needed for the input. */
struct linear_of_pixels {
    struct linear linear;
    struct pixels pixels;
};

static void linear_of_pixels(const struct linear_of_pixels *l, const uint8_t *x, float *y)
{
    const struct drawn *d = &l->linear.drawn;
    struct walk walk = walk_from_start(d);
    clear(y, d->rows);
    while (next(d, &walk)) {
        uint32_t channel = walk.column / l->pixels.size;
        float value = x[walk.column] * l->pixels.scale[channel] + l->pixels.shift[channel];
        y[walk.row] += weight(d, &walk) * value;
    }
    finish_all(&l->linear, y);
}
