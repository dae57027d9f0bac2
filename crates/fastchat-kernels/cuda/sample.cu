// Choosing a token from each row of logits, as engine/sampler.rs does: mask, barred stops, bias, penalties; then argmax, or
// temperature, top k, min p, top p and a draw by counter-based random numbers. Nothing is sorted: a limit is a key found
// digit by digit from histograms of counts and masses. Masses are 64-bit integers, so that sums have no order.
#include "rt.cuh"

namespace {

constexpr int THREADS = 1024;
constexpr int WARPS = THREADS / WARP;
/// Keys are searched four digits of eight bits deep.
constexpr int DIGITS = 256;
/// Masses are in units of 2^-45: fewer than 2^19 tokens of weight 1 fit 64 bits, and the largest error of a sum is 2^-26.
constexpr float UNIT = 35184372088832.f;
/// The host knows a sequence's token itself.
constexpr unsigned KNOWN = 0xffffffffu;

/// One row's parameters. Also Rust's, field by field.
struct Row {
    unsigned long long seed, position;
    float temperature, top_p, min_p;
    /// 0: none.
    int top_k;
    float repetition, frequency, presence;
    /// Pieces of the arrays below: (token, times generated)s, (token, bias)es, barred tokens.
    int counts, counts_end, biases, biases_end, barred, barred_end;
    /// Words of the row's grammar mask, or -1.
    int mask;
    /// Most likely tokens wanted, of the row before any change; -1: no logprobs.
    int logprobs;
    int unused;
};

/// Also Rust's, field by field.
struct Sampling {
    /// f32 [rows, vocab], changed in place.
    float* logits;
    const Row* rows;
    const unsigned* counts;
    const unsigned* bias_tokens;
    const float* bias_values;
    const unsigned* barred;
    /// [.., mask_words]; tokens past its end are barred.
    const unsigned* masks;
    /// [rows]; -1 where no token is left.
    int* tokens;
    /// The chosen token's logprob and rank, then the top ones: f32 [rows, 2 + room] and [rows, room].
    float* logprobs;
    int* top_tokens;
    int num_rows, vocab, mask_words, room;
};

/// Philox 4x32-10, two words of it.
__device__ __forceinline__ unsigned long long philox(unsigned long long seed, unsigned long long position) {
    unsigned c0 = static_cast<unsigned>(position), c1 = static_cast<unsigned>(position >> 32), c2 = 0, c3 = 0;
    unsigned k0 = static_cast<unsigned>(seed), k1 = static_cast<unsigned>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const unsigned high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const unsigned high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c0 | static_cast<unsigned long long>(c1) << 32;
}

/// Uniform in [0, 1) with 53 bits.
__device__ __forceinline__ double uniform(unsigned long long seed, unsigned long long position) {
    return static_cast<double>(philox(seed, position) >> 11) * (1.0 / 9007199254740992.0);
}

/// Integers that compare as the floats do.
__device__ __forceinline__ unsigned key_of(float x) {
    const unsigned bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// Everything that changes single logits, in the engine's order; lists name a token once.
__global__ void change(Sampling s) {
    wait_for_previous();
    const Row row = s.rows[blockIdx.x];
    float* const logits = s.logits + static_cast<size_t>(blockIdx.x) * s.vocab;
    const int t = threadIdx.x;
    if (row.mask >= 0) {
        const unsigned* const mask = s.masks + static_cast<size_t>(row.mask) * s.mask_words;
        for (int i = t; i < s.vocab; i += THREADS) {
            const bool allowed = i / 32 < s.mask_words && (mask[i / 32] >> (i % 32) & 1);
            if (!allowed) logits[i] = -INFINITY;
        }
        __syncthreads();
    }
    for (int i = row.barred + t; i < row.barred_end; i += THREADS) logits[s.barred[i]] = -INFINITY;
    __syncthreads();
    for (int i = row.biases + t; i < row.biases_end; i += THREADS) logits[s.bias_tokens[i]] += s.bias_values[i];
    __syncthreads();
    for (int i = row.counts + t; i < row.counts_end; i += THREADS) {
        const unsigned token = s.counts[2 * i], count = s.counts[2 * i + 1];
        float logit = logits[token];
        logit = logit > 0.f ? logit / row.repetition : logit * row.repetition;
        if (count > 0) logit -= __fadd_rn(__fmul_rn(row.frequency, static_cast<float>(count)), row.presence);
        logits[token] = logit;
    }
}

/// What a block of threads shares while it searches a row.
struct Search {
    unsigned long long* masses;
    unsigned* counts;
    unsigned long long* found;
    float* floats;
    unsigned* wholes;
};

/// A token's share of the row: e^((x - max) * scale) in units.
__device__ __forceinline__ unsigned long long mass_of(float x, float max, float scale) {
    return static_cast<unsigned long long>(expf((x - max) * scale) * UNIT);
}

/// The largest of a row, the lowest index of equals, for all threads; index `vocab` where nothing is above -inf.
__device__ __forceinline__ void row_best(const float* logits, int vocab, const Search& search, float& value, int& index) {
    value = -INFINITY;
    index = vocab;
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
        if (logits[i] > value) {
            value = logits[i];
            index = i;
        }
    }
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (int round = 0; round < 2; ++round) {
        for (int step = WARP / 2; step > 0; step /= 2) {
            const float other = __shfl_xor_sync(ALL_LANES, value, step);
            const int at = __shfl_xor_sync(ALL_LANES, index, step);
            if (other > value || (other == value && at < index)) {
                value = other;
                index = at;
            }
        }
        if (round == 1) break;
        if (lane == 0) {
            search.floats[warp] = value;
            search.wholes[warp] = static_cast<unsigned>(index);
        }
        __syncthreads();
        value = search.floats[lane];
        index = static_cast<int>(search.wholes[lane]);
    }
    __syncthreads();
}

/// Sum over the block, the same for all its threads.
__device__ __forceinline__ unsigned long long total_of(unsigned long long own, const Search& search) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (int step = WARP / 2; step > 0; step /= 2) own += __shfl_xor_sync(ALL_LANES, own, step);
    if (lane == 0) search.found[warp] = own;
    __syncthreads();
    own = search.found[lane];
    for (int step = WARP / 2; step > 0; step /= 2) own += __shfl_xor_sync(ALL_LANES, own, step);
    __syncthreads();
    return own;
}

/// A point of the row in descending order of keys.
struct Point {
    unsigned key;
    /// Mass and number of the tokens with larger keys, and the number with this one.
    unsigned long long above;
    unsigned count_above, ties;
};

/// The key of the token at which the descending sum, of masses or of ones, first exceeds `target`. Only keys from `floor`
/// on count. There must be such a token.
__device__ __forceinline__ Point find(const float* logits, int vocab, float max, float scale, unsigned floor, bool by_count,
                                      unsigned long long target, const Search& search) {
    Point point = {0, 0, 0, 0};
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < DIGITS; i += THREADS) {
            search.masses[i] = 0;
            search.counts[i] = 0;
        }
        __syncthreads();
        const unsigned long long prefix = static_cast<unsigned long long>(point.key) >> shift >> 8;
        for (int i = threadIdx.x; i < vocab; i += THREADS) {
            const float x = logits[i];
            const unsigned key = key_of(x);
            if (!(x > -INFINITY) || key < floor || (static_cast<unsigned long long>(key) >> shift >> 8) != prefix) continue;
            atomicAdd(&search.masses[key >> shift & (DIGITS - 1)], mass_of(x, max, scale));
            atomicAdd(&search.counts[key >> shift & (DIGITS - 1)], 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            unsigned long long sum = point.above, before = sum;
            unsigned count = point.count_above, count_before = count;
            int last = 0;
            // Past the end it is the smallest token there is.
            for (int digit = DIGITS - 1; digit >= 0; --digit) {
                if (search.counts[digit] == 0) continue;
                last = digit;
                before = sum;
                count_before = count;
                sum += search.masses[digit];
                count += search.counts[digit];
                if ((by_count ? count : sum) > target) break;
            }
            search.found[0] = before;
            search.wholes[0] = count_before;
            search.wholes[1] = point.key | static_cast<unsigned>(last) << shift;
            search.wholes[2] = count - count_before;
        }
        __syncthreads();
        point = {search.wholes[1], search.found[0], search.wholes[0], search.wholes[2]};
        __syncthreads();
    }
    return point;
}

/// The `wanted`-th (from 0) token with the key, in order of index.
__device__ __forceinline__ int nth_of_key(const float* logits, int vocab, unsigned key, unsigned wanted, const Search& search) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, piece = (vocab + WARPS - 1) / WARPS;
    const int start = warp * piece, end = min(vocab, start + piece);
    unsigned count = 0;
    for (int i = start; i < start + piece; i += WARP) {
        const bool mine = i + lane < end && key_of(logits[i + lane]) == key;
        count += __popc(__ballot_sync(ALL_LANES, mine));
    }
    if (lane == 0) search.wholes[warp] = count;
    if (threadIdx.x == 0) search.found[0] = vocab;
    __syncthreads();
    unsigned before = 0;
    for (int i = 0; i < warp; ++i) before += search.wholes[i];
    const bool here = wanted >= before && wanted < before + count;
    if (here) {
        for (int i = start; i < start + piece; i += WARP) {
            const bool mine = i + lane < end && key_of(logits[i + lane]) == key;
            const unsigned all = __ballot_sync(ALL_LANES, mine);
            if (mine && before + __popc(all & ((1u << lane) - 1)) == wanted) search.found[0] = i + lane;
            before += __popc(all);
        }
    }
    __syncthreads();
    const int found = static_cast<int>(search.found[0]);
    __syncthreads();
    return found;
}

/// The token at which the sum of masses in order of index first exceeds `target`.
__device__ __forceinline__ int find_in_order(const float* logits, int vocab, float max, float scale, unsigned long long target,
                                             const Search& search) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, piece = (vocab + WARPS - 1) / WARPS;
    const int start = warp * piece, end = min(vocab, start + piece);
    const auto mass = [&](int i) { return i < end && logits[i] > -INFINITY ? mass_of(logits[i], max, scale) : 0ull; };
    unsigned long long own = 0;
    for (int i = start; i < start + piece; i += WARP) own += mass(i + lane);
    for (int step = WARP / 2; step > 0; step /= 2) own += __shfl_xor_sync(ALL_LANES, own, step);
    if (lane == 0) search.masses[warp] = own;
    if (threadIdx.x == 0) search.found[0] = vocab;
    __syncthreads();
    unsigned long long before = 0;
    for (int i = 0; i < warp; ++i) before += search.masses[i];
    if (target >= before && target < before + own) {
        for (int i = start; i < start + piece; i += WARP) {
            const unsigned long long here = mass(i + lane);
            // Inclusive sums over the lanes.
            unsigned long long sum = here;
            for (int step = 1; step < WARP; step *= 2) {
                const unsigned long long lower = __shfl_up_sync(ALL_LANES, sum, step);
                if (lane >= step) sum += lower;
            }
            if (target >= before + sum - here && target < before + sum) search.found[0] = i + lane;
            before += __shfl_sync(ALL_LANES, sum, WARP - 1);
        }
    }
    __syncthreads();
    const int found = static_cast<int>(search.found[0]);
    __syncthreads();
    return found;
}

/// The draw of one row, which has something to draw from.
__device__ int draw(const float* logits, int vocab, const Row& row, float max, const Search& search) {
    const float scale = 1.f / row.temperature;
    const double random = uniform(row.seed, row.position);
    const bool limited = row.top_k > 0 && row.top_k < vocab;
    unsigned floor = 0;
    if (row.min_p > 0.f) floor = key_of(max + logf(row.min_p) / scale);
    // How many of the tokens with the lowest key are in, the first by index; all of them where there is no cut.
    unsigned kept_ties = 0xffffffffu, lowest = floor;
    if (limited) {
        const Point last = find(logits, vocab, max, scale, 0, true, row.top_k - 1, search);
        if (last.key >= floor) {
            lowest = last.key;
            kept_ties = min(row.top_k - last.count_above, last.ties);
        }
    }
    const auto mass_from = [&](unsigned from) {
        unsigned long long own = 0;
        for (int i = threadIdx.x; i < vocab; i += THREADS) {
            if (logits[i] > -INFINITY && key_of(logits[i]) > from) own += mass_of(logits[i], max, scale);
        }
        return total_of(own, search);
    };
    const auto one_of = [&](unsigned key) {
        const unsigned bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
        return mass_of(__uint_as_float(bits), max, scale);
    };
    // Mass of what is in so far: everything above the lowest key, and its ties.
    unsigned long long total;
    if (kept_ties != 0xffffffffu) {
        total = mass_from(lowest) + kept_ties * one_of(lowest);
    } else {
        total = mass_from(lowest == 0 ? 0 : lowest - 1);
    }
    // Rounding must not leave the mass.
    const auto part = [&](unsigned long long mass) {
        return min(static_cast<unsigned long long>(random * static_cast<double>(mass)), mass - 1);
    };
    if (!limited && !(row.min_p > 0.f) && !(row.top_p < 1.f)) {
        const unsigned long long target = part(total);
        return find_in_order(logits, vocab, max, scale, target, search);
    }
    unsigned long long mass = total;
    if (row.top_p < 1.f) {
        // The shortest descending prefix with at least this mass.
        const auto wanted = static_cast<unsigned long long>(ceil(static_cast<double>(row.top_p) * static_cast<double>(total)));
        const Point last = find(logits, vocab, max, scale, lowest, false, wanted > 0 ? wanted - 1 : 0, search);
        const unsigned long long one = one_of(last.key), missing = wanted > last.above ? wanted - last.above : 1;
        const unsigned long long ties = one > 0 ? (missing + one - 1) / one : 1;
        mass = min(total, last.above + (ties > 0 ? ties : 1) * one);
    }
    const unsigned long long target = part(mass);
    const Point chosen = find(logits, vocab, max, scale, lowest, false, target, search);
    const unsigned long long one = one_of(chosen.key);
    const unsigned tie = one > 0 ? static_cast<unsigned>((target - chosen.above) / one) : 0;
    return nth_of_key(logits, vocab, chosen.key, tie, search);
}

#define SEARCH(name)                                                        \
    SHARED(unsigned long long, name##_masses, DIGITS);                      \
    SHARED(unsigned, name##_counts, DIGITS);                                \
    SHARED(unsigned long long, name##_found, WARPS);                        \
    SHARED(float, name##_floats, WARPS);                                    \
    SHARED(unsigned, name##_wholes, WARPS);                                 \
    const Search name = {name##_masses, name##_counts, name##_found, name##_floats, name##_wholes}

/// A block per row.
__global__ void __launch_bounds__(THREADS) choose(Sampling s) {
    wait_for_previous();
    SEARCH(search);
    const Row row = s.rows[blockIdx.x];
    const float* const logits = s.logits + static_cast<size_t>(blockIdx.x) * s.vocab;
    float max;
    int best;
    row_best(logits, s.vocab, search, max, best);
    int token = best;
    // Below this 1 / temperature would overflow on ordinary logits.
    const bool greedy = row.temperature < 1e-5f;
    if (best == s.vocab || (!greedy && max == INFINITY)) {
        token = -1;
    } else if (!greedy) {
        token = draw(logits, s.vocab, row, max, search);
    }
    if (threadIdx.x == 0) s.tokens[blockIdx.x] = token;
}

/// A block per row of the logits before any change: the sum of exponentials, the chosen token's logprob and rank, and the
/// most likely tokens, each found as the best below the one before.
__global__ void __launch_bounds__(THREADS) report(Sampling s) {
    wait_for_previous();
    SEARCH(search);
    const Row row = s.rows[blockIdx.x];
    const int token = s.tokens[blockIdx.x];
    if (row.logprobs < 0 || token < 0) return;
    const float* const logits = s.logits + static_cast<size_t>(blockIdx.x) * s.vocab;
    float max;
    int best;
    row_best(logits, s.vocab, search, max, best);
    unsigned long long own = 0, larger = 0;
    for (int i = threadIdx.x; i < s.vocab; i += THREADS) {
        if (logits[i] > -INFINITY) own += mass_of(logits[i], max, 1.f);
        larger += logits[i] > logits[token];
    }
    const unsigned long long total = total_of(own, search), above = total_of(larger, search);
    const double normaliser = static_cast<double>(max) + log(static_cast<double>(total) / static_cast<double>(UNIT));
    float* const out = s.logprobs + static_cast<size_t>(blockIdx.x) * (2 + s.room);
    if (threadIdx.x == 0) {
        out[0] = static_cast<float>(static_cast<double>(logits[token]) - normaliser);
        out[1] = static_cast<float>(above + 1);
    }
    float value = INFINITY;
    int index = -1;
    for (int k = 0; k < row.logprobs && k < s.room; ++k) {
        float next = -INFINITY;
        int at = s.vocab;
        for (int i = threadIdx.x; i < s.vocab; i += THREADS) {
            const float x = logits[i];
            const bool later = x < value || (x == value && i > index);
            if (later && x > next) {
                next = x;
                at = i;
            }
        }
        const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
        for (int round = 0; round < 2; ++round) {
            for (int step = WARP / 2; step > 0; step /= 2) {
                const float other = __shfl_xor_sync(ALL_LANES, next, step);
                const int place = __shfl_xor_sync(ALL_LANES, at, step);
                if (other > next || (other == next && place < at)) {
                    next = other;
                    at = place;
                }
            }
            if (round == 1) break;
            if (lane == 0) {
                search.floats[warp] = next;
                search.wholes[warp] = static_cast<unsigned>(at);
            }
            __syncthreads();
            next = search.floats[lane];
            at = static_cast<int>(search.wholes[lane]);
        }
        __syncthreads();
        value = next;
        index = at;
        if (threadIdx.x == 0) {
            s.top_tokens[static_cast<size_t>(blockIdx.x) * s.room + k] = at == s.vocab ? -1 : at;
            out[2 + k] = static_cast<float>(static_cast<double>(next) - normaliser);
        }
    }
}

/// The best of each piece of a row; pieces make a long vocabulary the work of many blocks.
constexpr int PIECE = 8192;
__global__ void __launch_bounds__(THREADS) argmax_pieces(const float* logits, int vocab, int pieces, float* values, int* indices) {
    wait_for_previous();
    SEARCH(search);
    const int first = blockIdx.x * PIECE;
    float value;
    int index;
    row_best(logits + static_cast<size_t>(blockIdx.y) * vocab + first, min(PIECE, vocab - first), search, value, index);
    if (threadIdx.x == 0) {
        const size_t at = static_cast<size_t>(blockIdx.y) * pieces + blockIdx.x;
        values[at] = value;
        indices[at] = first + index;
    }
}

/// A warp per row: the best of its pieces; -1 where nothing is above -inf.
__global__ void argmax_rows(const float* values, const int* indices, int pieces, int vocab, int* tokens) {
    wait_for_previous();
    float value = -INFINITY;
    int index = vocab;
    for (int i = threadIdx.x; i < pieces; i += WARP) {
        const size_t at = static_cast<size_t>(blockIdx.x) * pieces + i;
        if (values[at] > value) {
            value = values[at];
            index = indices[at];
        }
    }
    for (int step = WARP / 2; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, value, step);
        const int at = __shfl_xor_sync(ALL_LANES, index, step);
        if (other > value || (other == value && at < index)) {
            value = other;
            index = at;
        }
    }
    if (threadIdx.x == 0) tokens[blockIdx.x] = value > -INFINITY ? index : -1;
}

/// Sequences whose token the step before has chosen get it; the others' is there.
__global__ void follow_tokens(unsigned* token_ids, const unsigned* follows, const int* chosen, int count) {
    wait_for_previous();
    const int i = blockIdx.x * WARP + threadIdx.x;
    if (i >= count) return;
    const unsigned row = follows[i];
    // Where there was nothing to choose the sequence ends, and its row is read by nobody.
    if (row != KNOWN) token_ids[i] = max(chosen[row], 0);
}

__global__ void uniforms(const unsigned long long* seeds, const unsigned long long* positions, double* out, int count) {
    wait_for_previous();
    const int i = blockIdx.x * WARP + threadIdx.x;
    if (i < count) out[i] = uniform(seeds[i], positions[i]);
}

}  // namespace

extern "C" int EXPORT(change_logits)(const Sampling* s, void* stream) {
    if (s->num_rows > 0) LAUNCH(change, s->num_rows, THREADS, 0, stream, *s);
    return launched();
}

extern "C" int EXPORT(choose)(const Sampling* s, void* stream) {
    if (s->num_rows > 0) LAUNCH(choose, s->num_rows, THREADS, 0, stream, *s);
    return launched();
}

extern "C" int EXPORT(report_logprobs)(const Sampling* s, void* stream) {
    if (s->num_rows > 0) LAUNCH(report, s->num_rows, THREADS, 0, stream, *s);
    return launched();
}

/// `values` and `indices` have room for rows * ceil(vocab / 8192).
extern "C" int EXPORT(argmax)(const float* logits, int rows, int vocab, float* values, int* indices, int* tokens, void* stream) {
    if (rows == 0) return launched();
    const int pieces = ceil_div(vocab, PIECE);
    LAUNCH(argmax_pieces, dim3(pieces, rows), THREADS, 0, stream, logits, vocab, pieces, values, indices);
    LAUNCH(argmax_rows, rows, WARP, 0, stream, values, indices, pieces, vocab, tokens);
    return launched();
}

extern "C" int EXPORT(follow_tokens)(unsigned* token_ids, const unsigned* follows, const int* chosen, int count, void* stream) {
    if (count > 0) LAUNCH(follow_tokens, ceil_div(count, WARP), WARP, 0, stream, token_ids, follows, chosen, count);
    return launched();
}

/// For tests: random numbers that must be those of src/random.rs.
extern "C" int EXPORT(uniforms)(const unsigned long long* seeds, const unsigned long long* positions, double* out, int count,
                                void* stream) {
    if (count > 0) LAUNCH(uniforms, ceil_div(count, WARP), WARP, 0, stream, seeds, positions, out, count);
    return launched();
}
