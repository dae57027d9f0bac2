// Mixtures of experts around the products of linear.cu and dense.cu: which experts a token takes, the entries (token,
// choice) sorted by expert and cut into chunks, and the weighted sum of an entry's results per token.
#include "rt.cuh"

namespace {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;
constexpr int SORT_THREADS = 1024;
constexpr int MOST_EXPERTS = 1024;
constexpr int MOST_CHOICES = 32;

enum Score { SOFTMAX = 0, SOFTMAX_TOP_K = 1, SIGMOID = 2 };

/// Also Rust's, field by field.
struct Routing {
    /// f32 [tokens, experts].
    const float* logits;
    /// f32 [experts], or null.
    const float* bias;
    /// [tokens, top_k], best first.
    int* experts_of;
    float* factors;
    int tokens, experts, top_k, score, renormalize;
    float scaling;
    /// Groups of experts, and how many of them are kept; 0: no groups.
    int groups, kept;
};

/// The lane's best of all lanes: the larger value, of equals the lower index.
__device__ __forceinline__ void warp_best(float& value, int& index) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, value, step);
        const int at = __shfl_xor_sync(ALL_LANES, index, step);
        if (other > value || (other == value && at < index)) {
            value = other;
            index = at;
        }
    }
}

/// A warp per token.
__global__ void route(Routing r) {
    wait_for_previous();
    SHARED(float, all_scores, WARPS * MOST_EXPERTS);
    SHARED(float, all_ranks, WARPS * MOST_EXPERTS);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, token = blockIdx.x * WARPS + warp;
    // Warps leave as a whole, and meet in no barrier of the block.
    if (token >= r.tokens) return;
    float* const scores = all_scores + warp * MOST_EXPERTS;
    /// What the choice goes by; minus infinity once taken.
    float* const ranks = all_ranks + warp * MOST_EXPERTS;
    const float* const logits = r.logits + static_cast<size_t>(token) * r.experts;
    float top = -INFINITY, sum = 0.f;
    if (r.score == SOFTMAX) {
        for (int e = lane; e < r.experts; e += WARP) top = fmaxf(top, logits[e]);
        top = warp_max(top);
        for (int e = lane; e < r.experts; e += WARP) sum += expf(logits[e] - top);
        sum = warp_sum(sum);
    }
    for (int e = lane; e < r.experts; e += WARP) {
        const float x = logits[e];
        scores[e] = r.score == SOFTMAX ? expf(x - top) / sum : r.score == SIGMOID ? 1.f / (1.f + expf(-x)) : x;
        ranks[e] = scores[e] + (r.bias != nullptr ? r.bias[e] : 0.f);
    }
    __syncwarp();
    if (r.groups > 0) {
        // A lane has a group: as good as its best expert, or as its two best.
        const int size = r.experts / r.groups;
        float best = -INFINITY, second = -INFINITY;
        for (int e = lane * size; lane < r.groups && e < (lane + 1) * size; ++e) {
            second = fmaxf(second, fminf(best, ranks[e]));
            best = fmaxf(best, ranks[e]);
        }
        float goodness = r.score == SOFTMAX || size == 1 ? best : best + second;
        bool keep = false;
        for (int i = 0; i < r.kept; ++i) {
            float value = keep || lane >= r.groups ? -INFINITY : goodness;
            int index = keep || lane >= r.groups ? WARP + lane : lane;
            warp_best(value, index);
            keep |= index == lane;
        }
        for (int e = lane * size; lane < r.groups && !keep && e < (lane + 1) * size; ++e) ranks[e] = -INFINITY;
        __syncwarp();
    }
    // Lane i keeps choice i.
    int own_expert = 0;
    float own_factor = 0.f;
    for (int i = 0; i < r.top_k; ++i) {
        float value = -INFINITY;
        int index = MOST_EXPERTS;
        for (int e = lane; e < r.experts; e += WARP) {
            if (ranks[e] > value) {
                value = ranks[e];
                index = e;
            }
        }
        warp_best(value, index);
        // Only numbers that are none leave nothing to choose.
        if (index == MOST_EXPERTS) index = i;
        if (lane == i) {
            own_expert = index;
            own_factor = scores[index];
        }
        if (lane == index % WARP) ranks[index] = -INFINITY;
        __syncwarp();
    }
    const bool chosen = lane < r.top_k;
    if (r.score == SOFTMAX_TOP_K) {
        const float largest = warp_max(chosen ? own_factor : -INFINITY);
        const float weight = chosen ? expf(own_factor - largest) : 0.f;
        own_factor = weight / warp_sum(weight);
    }
    // The guard against a sum of zero is DeepSeek-V3's.
    const float total = warp_sum(chosen ? own_factor : 0.f) + 1e-20f;
    if (r.renormalize) own_factor /= total;
    if (chosen) {
        r.experts_of[static_cast<size_t>(token) * r.top_k + lane] = own_expert;
        r.factors[static_cast<size_t>(token) * r.top_k + lane] = own_factor * r.scaling;
    }
}

/// One block. Sorts entries by expert, of one expert in order of tokens: `tokens_of` and `place_of` say which token an
/// entry's place belongs to and where an entry went. Chunks have up to `most` places of one expert.
__global__ void __launch_bounds__(SORT_THREADS) sort_entries(const int* experts_of, int entries, int experts, int top_k, int most,
                                                             unsigned* tokens_of, int* place_of, int* chunks, int room) {
    wait_for_previous();
    SHARED(int, starts, MOST_EXPERTS + 1);
    SHARED(int, chunk_starts, MOST_EXPERTS + 1);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (int expert = warp; expert < experts; expert += SORT_THREADS / WARP) {
        int count = 0;
        for (int first = 0; first < entries; first += WARP) {
            const bool mine = first + lane < entries && experts_of[first + lane] == expert;
            count += __popc(__ballot_sync(ALL_LANES, mine));
        }
        if (lane == 0) starts[expert + 1] = count;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        starts[0] = 0;
        chunk_starts[0] = 0;
        for (int expert = 0; expert < experts; ++expert) {
            const int count = starts[expert + 1];
            chunk_starts[expert + 1] = chunk_starts[expert] + (count + most - 1) / most;
            starts[expert + 1] = starts[expert] + count;
        }
    }
    __syncthreads();
    for (int expert = warp; expert < experts; expert += SORT_THREADS / WARP) {
        int place = starts[expert];
        for (int first = 0; first < entries; first += WARP) {
            const int entry = first + lane;
            const bool mine = entry < entries && experts_of[entry] == expert;
            const unsigned all = __ballot_sync(ALL_LANES, mine);
            if (mine) {
                const int at = place + __popc(all & ((1u << lane) - 1));
                tokens_of[at] = entry / top_k;
                place_of[entry] = at;
            }
            place += __popc(all);
        }
        for (int i = chunk_starts[expert] + lane; i < chunk_starts[expert + 1]; i += WARP) {
            const int first = starts[expert] + (i - chunk_starts[expert]) * most;
            chunks[3 * i] = expert;
            chunks[3 * i + 1] = first;
            chunks[3 * i + 2] = min(most, starts[expert + 1] - first);
        }
    }
    for (int i = chunk_starts[experts] + threadIdx.x; i < room; i += SORT_THREADS) {
        chunks[3 * i] = -1;
        chunks[3 * i + 1] = 0;
        chunks[3 * i + 2] = 0;
    }
}

/// A block per token: the sum of its entries' rows of y, in ascending order of experts, whoever else is in the batch.
__global__ void combine(const float* y, const int* place_of, const float* factors, float* out, int top_k, int hidden) {
    wait_for_previous();
    SHARED(int, places, MOST_CHOICES);
    SHARED(float, weights, MOST_CHOICES);
    const size_t token = blockIdx.x;
    if (static_cast<int>(threadIdx.x) < top_k) {
        // Places ascend with experts: an entry's rank is the number of its siblings before it.
        const int own = place_of[token * top_k + threadIdx.x];
        int rank = 0;
        for (int i = 0; i < top_k; ++i) rank += place_of[token * top_k + i] < own;
        places[rank] = own;
        weights[rank] = factors[token * top_k + threadIdx.x];
    }
    __syncthreads();
    for (int d = threadIdx.x; d < hidden; d += THREADS) {
        float sum = 0.f;
        for (int i = 0; i < top_k; ++i) sum += y[static_cast<size_t>(places[i]) * hidden + d] * weights[i];
        out[token * hidden + d] = sum;
    }
}

}  // namespace

extern "C" int EXPORT(route)(const Routing* r, void* stream) {
    if (r->experts > MOST_EXPERTS || r->top_k > MOST_CHOICES || r->groups > WARP) return INVALID_VALUE;
    if (r->tokens > 0) LAUNCH(route, ceil_div(r->tokens, WARPS), THREADS, 0, stream, *r);
    return launched();
}

/// `chunks` has room for `room` chunks: entries / most + experts.
extern "C" int EXPORT(sort_entries)(const int* experts_of, int entries, int experts, int top_k, int most, unsigned* tokens_of,
                                    int* place_of, int* chunks, int room, void* stream) {
    if (experts > MOST_EXPERTS) return INVALID_VALUE;
    LAUNCH(sort_entries, 1, SORT_THREADS, 0, stream, experts_of, entries, experts, top_k, most, tokens_of, place_of, chunks, room);
    return launched();
}

extern "C" int EXPORT(combine)(const float* y, const int* place_of, const float* factors, float* out, int tokens, int top_k,
                               int hidden, void* stream) {
    if (top_k > MOST_CHOICES) return INVALID_VALUE;
    if (tokens > 0) LAUNCH(combine, tokens, THREADS, 0, stream, y, place_of, factors, out, top_k, hidden);
    return launched();
}
