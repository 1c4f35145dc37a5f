"""A decoder of packed masks in plain Python, written from `docs/ticket-format.md`: slow, one weight at a time."""

import math

ONE = 65536


def log2(x):
    """Return 256 log2(x), rounded down after reducing x to its leading 11 bits."""
    length = x.bit_length()
    lead = x >> (length - 11) if length > 11 else x << (11 - length)
    return 256 * (length - 1) + (lead**256).bit_length() - 1 - 2560


EXP = [
    next(v for v in range(round(2 ** (15 + i / 256)) + 1, 0, -1) if v**256 <= 1 << (15 * 256 + i)) for i in range(256)
]
LOG = {}


def log_odds(kept, pruned, density):
    pair = (kept, pruned, density)
    if pair not in LOG:
        LOG[pair] = log2((kept << 16) + 16 * density) - log2((pruned << 16) + 16 * (ONE - density))
    return LOG[pair]


def probability(z):
    z = max(-3840, min(3839, z))
    odds = EXP[z % 256] << (z // 256 + 16)
    return max(1, min(ONE - 1, (odds << 16) // (odds + (1 << 31))))


def lanes(total):
    return max(1, min(256, total // 2**18))


def unpack(data, shapes, contexts):
    """Decode a packed mask; `contexts` are lists of integers by name. Return lists of bits by name."""
    total, place, kept = sum(math.prod(s) for s in shapes.values()), 0, {}
    for name in sorted(shapes):
        value = shift = 0
        while True:
            byte, place = data[place], place + 1
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                break
        kept[name] = value
    states = []
    for _ in range(lanes(total)):
        states.append(int.from_bytes(data[place : place + 5], "little"))
        place += 5
    out = {}
    for name in sorted(shapes):
        count = math.prod(shapes[name])
        bits = out[name] = [kept[name] > 0] * count
        if 0 < kept[name] < count:
            place = matrix(data, place, states, shapes[name], contexts[name], kept[name], bits)
    assert states == [1 << 24] * len(states)
    assert data[place:] == bytes(max(0, -(-total // 1024) - place))
    return out


def matrix(data, place, states, shape, contexts, kept, bits):
    rows, columns = shape[0], math.prod(shape[1:])
    position = lambda r, c: r * columns + c  # noqa: E731
    if rows > columns:
        rows, columns, position = columns, rows, lambda r, c, columns=columns: c * columns + r
    density = max(1, min(ONE - 1, (kept << 16) // len(bits)))
    k = [[0] * rows, [0] * columns, [0] * 32]  # kept and pruned by row, column, context
    p = [[0] * rows, [0] * columns, [0] * 32]
    weights, base = [ONE] * 3, log_odds(0, 0, density)
    for t in range(rows):
        for start in range(0, columns, 1024):
            block = [((j + t) % rows, j) for j in range(start, min(columns, start + 1024))]
            smooth_k, smooth_p = (
                [c[max(0, i - 1)] + 2 * c[i] + c[min(31, i + 1)] for i in range(32)] for c in (k[2], p[2])
            )
            steps, trace, found = [0, 0, 0], 0, []
            for q, (r, c) in enumerate(block):
                context = contexts[position(r, c)]
                x = [
                    log_odds(k[0][r], p[0][r], density) - base,
                    log_odds(k[1][c], p[1][c], density) - base,
                    log_odds(smooth_k[context], smooth_p[context], density) - base,
                ]
                chance = probability(base + (sum(w * v for w, v in zip(weights, x, strict=True)) >> 16))
                state = states[q % len(states)]
                low = state % ONE
                bit = low < chance
                state = chance * (state >> 16) + low if bit else (ONE - chance) * (state >> 16) + low - chance
                if state < 1 << 24:
                    state = state << 16 | int.from_bytes(data[place : place + 2], "little")
                    place += 2
                states[q % len(states)] = state
                found.append(bit)
                steps = [s + v * ((bit << 16) - chance) for s, v in zip(steps, x, strict=True)]
                trace += sum(v * v for v in x) * (chance * (ONE - chance) >> 16)
            for (r, c), bit in zip(block, found, strict=True):
                bits[position(r, c)] = bit
                for i, index in enumerate((r, c, contexts[position(r, c)])):
                    (k if bit else p)[i][index] += 1
            steps = [(s << 20) // max(trace, 1 << 33) for s in steps]
            weights = [max(-4 * ONE, min(4 * ONE, w + s)) for w, s in zip(weights, steps, strict=True)]
    return place
