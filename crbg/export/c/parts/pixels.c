/* Pixels as bytes: the input of the network is pixel * scale + shift, with one scale and shift per channel. */
struct pixels {
    uint32_t channels, size; /* of a channel */
    const float *scale, *shift;
};
