/* Normal weights: the inverse CDF by Wichura's algorithm AS 241 (1988) in double, with + - * / and a square root only. */
#if defined(__FAST_MATH__)
#error "-ffast-math changes the weights; compile this file without it"
#endif

struct law {
    double scale;
    float gain;
};

/* A product that no compiler fuses with the next addition, which would save a rounding and change the weights. */
static double times(double a, double b)
{
    volatile double product = a * b;
    return product;
}

static double horner(double r, const double *coefficients, int count)
{
    double total = coefficients[count - 1];
    for (int i = count - 2; i >= 0; i--)
        total = times(total, r) + coefficients[i];
    return total;
}

/* The square root, bit by bit, rounded correctly; x in [2^-1, 2^6). */
static double square_root(double x)
{
    double unit = 1.0 / (1 << 26);
    for (; x >= 4; x /= 4)
        unit *= 2;
    for (; x < 1; x *= 4)
        unit /= 2;
    uint64_t rest = (uint64_t)(x * 4503599627370496.0) << 1, sum = 0, root = 0;
    for (uint64_t bit = UINT64_C(1) << 53; bit; bit >>= 1, rest <<= 1)
        if (sum + bit <= rest) {
            rest -= sum + bit;
            sum += 2 * bit;
            root += bit;
        }
    root += rest ? root & 1 : 0;
    return (double)(root >> 1) * (unit / (1 << 26));
}

/* The natural logarithm of n / 2^53: e ln 2 + 2 artanh(s) with s = (m - 1) / (m + 1). */
static double logarithm(uint64_t n)
{
    static const double series[12] = {1.0 / 1,  1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11,
                                      1.0 / 13, 1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21, 1.0 / 23};
    int exponent = 0;
    for (; !(n >> 52); n <<= 1)
        exponent--;
    double m = (double)n / 9007199254740992.0; /* in [1/2, 1) */
    if (m < 0.70710678118654757) {
        m *= 2;
        exponent--;
    }
    double s = (m - 1) / (m + 1);
    return times(exponent, 0.6931471805599453) + times(2 * s, horner(times(s, s), series, 12));
}

static double inverse_normal(uint64_t random)
{
    static const double centre[2][8] = {
        {3.3871328727963666080, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
         4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3},
        {1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
         2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3}};
    static const double tail[2][8] = {
        {1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504,
         1.27045825245236838258, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4},
        {1.0, 2.05319162663775882187, 1.67638483018380384940, 6.89767334985100004550e-1,
         1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9}};
    static const double far[2][8] = {
        {6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580, 2.96560571828504891230e-1,
         2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7},
        {1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
         7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15}};
    uint64_t n = 2 * (random >> 12) + 1; /* u = n / 2^53 */
    double q = (double)n / 9007199254740992.0 - 0.5, r;
    const double(*ratio)[8] = centre;
    if (q >= -0.425 && q <= 0.425) {
        r = 0.180625 - times(q, q);
        return times(q, horner(r, ratio[0], 8) / horner(r, ratio[1], 8));
    }
    r = square_root(-logarithm(q < 0 ? n : (UINT64_C(1) << 53) - n));
    ratio = r <= 5 ? tail : far;
    r -= r <= 5 ? 1.6 : 5.0;
    r = horner(r, ratio[0], 8) / horner(r, ratio[1], 8);
    return q < 0 ? -r : r;
}

static float scaled(const struct law *law, uint64_t random)
{
    return (float)(times(inverse_normal(random), law->scale)) * law->gain;
}
