/* What follows the sum of a unit: y = sum * scale + shift, then the activation y < 0 ? slope * y : y. */
struct finish {
    const float *scale;  /* one per unit, or null for 1 */
    const float *shift;  /* one per unit, or null for 0 */
    const float *slopes; /* one per unit, or null for the same slope everywhere */
    float slope;         /* 1 without activation */
};

static float finish(const struct finish *f, uint32_t unit, float sum)
{
    float y = f->scale ? sum * f->scale[unit] : sum;
    if (f->shift)
        y += f->shift[unit];
    return y < 0 ? y * (f->slopes ? f->slopes[unit] : f->slope) : y;
}
