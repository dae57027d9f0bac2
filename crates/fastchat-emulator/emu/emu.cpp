// The emulator's machinery: fibers, barriers, warp exchanges, and the shadow memory behind the checks. One launch runs at
// a time in a host thread; different host threads do not meet.
#include "emu.h"

#include <sys/mman.h>

#include <cstdio>
#include <string>
#include <unordered_map>
#include <vector>
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace {

constexpr size_t STACK = 64 << 10;
constexpr int MOST_THREADS = 1024;
/// Shared memory of a block: static, then dynamic, as much as an H100 has.
constexpr size_t STATIC_SHARED = 48 << 10, MOST_SHARED = 227 << 10, ARENA = STATIC_SHARED + MOST_SHARED;

enum class State { Ready, Barrier, Warp, Done };

/// Bytes on their way to shared memory; from nowhere come zeros.
struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    unsigned group;
};

struct Fiber {
#ifdef __x86_64__
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
    State state = State::Ready;
    const char* site = nullptr;
    size_t shared_used = 0;
    /// Whether it has waited for the kernels before.
    bool previous_is_over = false;
    /// Barriers of the warp passed.
    unsigned warp_epoch = 0;
    /// Warp operations begun, and what was brought to the last two.
    unsigned operations = 0;
    uint64_t value[2] = {};
    /// Of the last two products of the warp: four registers of a, two of b.
    unsigned fragments[2][6] = {};
    std::vector<Copy> copies;
    /// Groups of copies that were closed.
    unsigned groups = 0;
};

/// Warp operations of one warp.
struct Warp {
    /// Over all lanes: none begins an operation before all have begun the one before.
    unsigned begun = 0;
    /// Who came first to the last two, and where.
    unsigned first_lane[2] = {};
    const char* site[2] = {};
};

/// Who touched a byte last.
struct Touch {
    unsigned launch = 0, block = 0, thread = 0, epoch = 0, warp_epoch = 0;
    bool atomic = false;
    /// Of reads since the last barrier: by one thread, by several of its warp, or by several warps.
    uint8_t readers = ONE;
    static constexpr uint8_t ONE = 0, LANES = 1, WARPS = 2;
};
struct Cell {
    Touch read, write;
};

struct Range {
    uintptr_t start, end;
};

struct Machine {
    char* stacks = nullptr;
    char* arena = nullptr;
    std::vector<Fiber> fibers;
    Warp warps[MOST_THREADS / 32];
    /// Bytes of static shared memory that the last block used.
    size_t shared_used = 0;
    dim3 grid, block, block_index;
    unsigned block_number = 0, current = 0, epoch = 0, launches = 0;
    size_t dynamic = 0;
    bool checked = false, running = false, progress = false;
    const char* kernel = "";
    void (*body)(const void*) = nullptr;
    const void* arguments = nullptr;
    std::string message;
    std::vector<Range> allowed;
    size_t last_range = 0;
    Range host_stack = {};
    std::unordered_map<uintptr_t, std::vector<Cell>> shadow;
    /// Per block of the launch, the epoch of its last fence.
    std::unordered_map<unsigned, unsigned> fences;
    uintptr_t page = 0;
    std::vector<Cell>* page_cells = nullptr;
#ifdef __x86_64__
    void* scheduler = nullptr;
#else
    ucontext_t scheduler;
#endif
};

Machine& machine() {
    // A plain pointer is read without asking whether something must be constructed.
    thread_local Machine* own = nullptr;
    if (own == nullptr) {
        thread_local Machine machine;
        own = &machine;
    }
    return *own;
}

/// Books the first failure of a launcher.
void report(const std::string& what) {
    Machine& m = machine();
    if (!m.message.empty()) return;
    if (!m.running) {
        m.message = what;
        return;
    }
    const unsigned t = m.current;
    m.message = std::string(m.kernel) + ", block (" + std::to_string(m.block_index.x) + ", " +
                std::to_string(m.block_index.y) + ", " + std::to_string(m.block_index.z) + "), thread " +
                std::to_string(t) + ": " + what;
}

#ifdef __x86_64__
// Saves the registers that a call keeps, exchanges stacks, restores them.
extern "C" void emu_switch(void** save, void* load);
asm(R"(
.text
.globl emu_switch
.type emu_switch, @function
emu_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
.size emu_switch, .-emu_switch
)");
#endif

void give_way() {
    Machine& m = machine();
#ifdef __x86_64__
    emu_switch(&m.fibers[m.current].stack_pointer, m.scheduler);
#else
    swapcontext(&m.fibers[m.current].context, &m.scheduler);
#endif
}

void fiber_main() {
    Machine& m = machine();
    m.body(m.arguments);
    if (!m.fibers[m.current].previous_is_over) report("left the kernel without waiting for those before");
    m.fibers[m.current].state = State::Done;
    m.progress = true;
    give_way();
    __builtin_trap();
}

void start(Fiber& fiber, char* stack) {
    fiber = Fiber();
#ifdef __x86_64__
    // Six registers, the entry point, and a return address that is never used: the entry finds the stack as after a call.
    void** top = reinterpret_cast<void**>(stack + STACK) - 1;
    *top = nullptr;
    *--top = reinterpret_cast<void*>(&fiber_main);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber.stack_pointer = top;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack = {stack, 0, STACK};
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
#endif
}

void resume(unsigned thread) {
    Machine& m = machine();
    m.current = thread;
#ifdef __x86_64__
    emu_switch(&m.scheduler, m.fibers[thread].stack_pointer);
#else
    swapcontext(&m.scheduler, &m.fibers[thread].context);
#endif
}

/// Lets all threads go on when all wait at the same barrier.
void release(unsigned threads) {
    Machine& m = machine();
    unsigned waiting = 0, done = 0;
    for (unsigned t = 0; t < threads; ++t) {
        waiting += m.fibers[t].state == State::Barrier;
        done += m.fibers[t].state == State::Done;
    }
    if (waiting == 0 || waiting + done < threads) return;
    const Fiber* first = nullptr;
    for (unsigned t = 0; t < threads; ++t) {
        m.current = t;
        if (m.fibers[t].state == State::Done) return report("left the kernel before a barrier the others wait at");
        if (first == nullptr) first = &m.fibers[t];
        if (first->site != m.fibers[t].site) {
            return report(std::string("waits at ") + m.fibers[t].site + ", another at " + first->site);
        }
    }
    for (unsigned t = 0; t < threads; ++t) m.fibers[t].state = State::Ready;
    ++m.epoch;
    m.progress = true;
}

void run_block(unsigned threads) {
    Machine& m = machine();
    memset(m.arena, 0xcb, m.shared_used);
    memset(m.arena + STATIC_SHARED, 0xcb, m.dynamic);
    m.shared_used = 0;
    for (unsigned t = 0; t < threads; ++t) start(m.fibers[t], m.stacks + t * STACK);
    for (unsigned warp = 0; warp < threads / 32; ++warp) m.warps[warp] = Warp();
    for (;;) {
        m.progress = false;
        bool all_done = true;
        for (unsigned i = 0; i < threads; ++i) {
            const unsigned t = m.checked ? threads - 1 - i : i;
            const Fiber& fiber = m.fibers[t];
            const bool together = fiber.state == State::Warp && m.warps[t / 32].begun >= 32 * fiber.operations;
            if (fiber.state == State::Ready || together) resume(t);
            if (!m.message.empty()) return;
            all_done &= m.fibers[t].state == State::Done;
        }
        if (all_done) return;
        release(threads);
        if (!m.message.empty()) return;
        if (!m.progress) {
            for (unsigned t = 0; t < threads; ++t) {
                if (m.fibers[t].state != State::Warp) continue;
                m.current = t;
                return report(std::string("waits for the lanes of its warp at ") + m.fibers[t].site);
            }
            return report("no thread can go on");
        }
    }
}

bool ordered(const Touch& before, const Touch& now) {
    if (before.launch != now.launch) return true;
    if (before.block != now.block) {
        // Written, fenced, and read behind a fence.
        const auto& fences = machine().fences;
        const auto theirs = fences.find(before.block);
        return theirs != fences.end() && theirs->second >= before.epoch && fences.count(now.block) != 0;
    }
    if (before.thread == now.thread && before.readers == Touch::ONE) return true;
    if (before.epoch != now.epoch) return true;
    const bool one_warp = before.readers != Touch::WARPS && before.thread / 32 == now.thread / 32;
    return one_warp && before.warp_epoch != now.warp_epoch;
}

Cell& cell(uintptr_t address) {
    Machine& m = machine();
    const uintptr_t page = address >> 12;
    if (m.page != page || m.page_cells == nullptr) {
        auto& cells = m.shadow[page];
        if (cells.empty()) cells.resize(4096);
        m.page = page;
        m.page_cells = &cells;
    }
    return (*m.page_cells)[address & 4095];
}

std::string place(uintptr_t address) {
    Machine& m = machine();
    const uintptr_t arena = reinterpret_cast<uintptr_t>(m.arena);
    if (address >= arena && address < arena + ARENA) return "shared byte " + std::to_string(address - arena);
    for (size_t i = 0; i < m.allowed.size(); ++i) {
        if (address >= m.allowed[i].start && address < m.allowed[i].end) {
            return "byte " + std::to_string(address - m.allowed[i].start) + " of argument " + std::to_string(i);
        }
    }
    return "unknown memory";
}

// Where the library with the kernels lies, constants among them.
extern "C" __attribute__((visibility("hidden"))) char __ehdr_start, _end;

/// Whether the address may be touched at all; `own` where no other thread can see it or nobody writes.
bool known(uintptr_t address, size_t bytes, emu::Access access, bool& own) {
    Machine& m = machine();
    own = true;
    const uintptr_t stacks = reinterpret_cast<uintptr_t>(m.stacks), arena = reinterpret_cast<uintptr_t>(m.arena);
    if (address >= stacks && address < stacks + MOST_THREADS * STACK) return true;
    if (address >= m.host_stack.start && address < m.host_stack.end) return true;
    own = false;
    if (address >= arena && address < arena + ARENA) {
        const size_t at = address - arena, used = m.fibers[m.current].shared_used;
        return at + bytes <= used || (at >= STATIC_SHARED && at + bytes <= STATIC_SHARED + m.dynamic);
    }
    const auto inside = [&](const Range& range) { return address >= range.start && address + bytes <= range.end; };
    if (m.last_range < m.allowed.size() && inside(m.allowed[m.last_range])) return true;
    for (size_t i = 0; i < m.allowed.size(); ++i) {
        if (!inside(m.allowed[i])) continue;
        m.last_range = i;
        return true;
    }
    own = true;
    const uintptr_t image = reinterpret_cast<uintptr_t>(&__ehdr_start), end = reinterpret_cast<uintptr_t>(&_end);
    return access == emu::Access::Read && address >= image && address < end;
}

const char* const ACCESS[] = {"reads", "writes", "updates"};

void check(uintptr_t address, size_t bytes, emu::Access access) {
    Machine& m = machine();
    if (!m.running || !m.checked || !m.message.empty()) return;
    bool own;
    const auto verb = [&] { return std::string(ACCESS[static_cast<int>(access)]) + " "; };
    if (!known(address, bytes, access, own)) return report(verb() + std::to_string(bytes) + " bytes of " + place(address) + ", out of bounds");
    if (own) return;
    const Fiber& fiber = m.fibers[m.current];
    Touch now = {m.launches, m.block_number, m.current, m.epoch, fiber.warp_epoch, access == emu::Access::Atomic};
    const uintptr_t arena = reinterpret_cast<uintptr_t>(m.arena);
    const bool in_shared = address >= arena && address < arena + ARENA;
    if (!in_shared && !fiber.previous_is_over) return report(verb() + place(address) + " before the kernels before are over");
    for (size_t i = 0; i < bytes; ++i) {
        Cell& seen = cell(address + i);
        const bool both_atomic = now.atomic && seen.write.atomic;
        if (!ordered(seen.write, now) && !both_atomic && !(in_shared && seen.write.block != now.block)) {
            return report(verb() + place(address + i) + ", which thread " + std::to_string(seen.write.thread) +
                          " of block " + std::to_string(seen.write.block) + " wrote without a barrier between");
        }
        if (access == emu::Access::Read) {
            const bool set = seen.write.launch == now.launch && seen.write.block == now.block;
            if (in_shared && !set) return report("reads " + place(address + i) + ", which was never set");
            const Touch& read = seen.read;
            now.readers = Touch::ONE;
            if (read.launch == now.launch && read.block == now.block && read.epoch == now.epoch) {
                const bool one_warp = read.readers != Touch::WARPS && read.thread / 32 == now.thread / 32;
                const bool alone = read.readers == Touch::ONE && read.thread == now.thread;
                if (!one_warp) {
                    now.readers = Touch::WARPS;
                } else if (!alone && read.warp_epoch == now.warp_epoch) {
                    now.readers = Touch::LANES;
                }
            }
            seen.read = now;
            continue;
        }
        if (!ordered(seen.read, now) && !(in_shared && seen.read.block != now.block)) {
            return report(verb() + place(address + i) + ", which thread " + std::to_string(seen.read.thread) +
                          " of block " + std::to_string(seen.read.block) + " read without a barrier between");
        }
        seen.write = now;
    }
}

}  // namespace

namespace emu {

dim3 thread_index() { return dim3(machine().current, 0, 0); }
dim3 block_index() { return machine().block_index; }
dim3 block_size() { return machine().block; }
dim3 grid_size() { return machine().grid; }

void touch(const void* address, size_t bytes, Access access) {
    check(reinterpret_cast<uintptr_t>(address), bytes, access);
}

void* shared(size_t bytes) {
    Machine& m = machine();
    Fiber& fiber = m.fibers[m.current];
    void* const at = m.arena + fiber.shared_used;
    fiber.shared_used += (bytes + 15) / 16 * 16;
    if (fiber.shared_used > STATIC_SHARED) report("more than 48 KiB of static shared memory");
    if (fiber.shared_used > m.shared_used) m.shared_used = fiber.shared_used;
    return at;
}

void* dynamic_shared() { return machine().arena + STATIC_SHARED; }

void barrier(const char* site) {
    Machine& m = machine();
    Fiber& fiber = m.fibers[m.current];
    fiber.state = State::Barrier;
    fiber.site = site;
    m.progress = true;
    give_way();
}

void previous_is_over() {
    Machine& m = machine();
    m.fibers[m.current].previous_is_over = true;
}

uint64_t exchange(const char* site, unsigned mask, uint64_t bits, int source) {
    Machine& m = machine();
    if (mask != 0xffffffffu) report("a warp operation of a part of the warp");
    Warp& warp = m.warps[m.current / 32];
    Fiber& fiber = m.fibers[m.current];
    const unsigned now = ++fiber.operations;
    fiber.value[now & 1] = bits;
    fiber.site = site;
    m.progress = true;
    if (warp.begun++ == 32 * (now - 1)) {
        warp.site[now & 1] = site;
        warp.first_lane[now & 1] = m.current % 32;
    } else if (warp.site[now & 1] != site) {
        report(std::string("is at ") + site + ", lane " + std::to_string(warp.first_lane[now & 1]) + " at " +
               warp.site[now & 1]);
    }
    if (warp.begun < 32 * now) {
        fiber.state = State::Warp;
        give_way();
        fiber.state = State::Ready;
        m.progress = true;
    }
    return m.fibers[m.current / 32 * 32 + unsigned(source)].value[now & 1];
}

void warp_barrier(const char* site) {
    exchange(site, 0xffffffffu, 0, 0);
    Machine& m = machine();
    ++m.fibers[m.current].warp_epoch;
}

unsigned ballot(const char* site, unsigned mask, bool vote) {
    Machine& m = machine();
    exchange(site, mask, vote, 0);
    const unsigned first = m.current / 32 * 32, now = m.fibers[m.current].operations;
    unsigned out = 0;
    for (unsigned lane = 0; lane < 32; ++lane) out |= unsigned(m.fibers[first + lane].value[now & 1]) << lane;
    return out;
}

void mma(const char* site, float (*value)(unsigned bits), float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    Machine& m = machine();
    Fiber& own = m.fibers[m.current];
    const unsigned now = (own.operations + 1) & 1;
    memcpy(own.fragments[now], a, sizeof(a));
    memcpy(own.fragments[now] + 4, b, sizeof(b));
    exchange(site, 0xffffffffu, 0, 0);
    const unsigned first = m.current / 32 * 32, lane = m.current % 32;
    // Two numbers to a register, the lower first; a lane of a quad holds neighbours, and again eight further on.
    const auto take = [&](unsigned holder, unsigned index, float (&out)[16]) {
        for (unsigned quarter = 0; quarter < 4; ++quarter) {
            const unsigned* const held = m.fibers[first + 4 * holder + quarter].fragments[now];
            for (unsigned upper = 0; upper < 2; ++upper) {
                const unsigned bits = held[index < 4 ? index + 2 * upper : 4 + upper];
                out[8 * upper + 2 * quarter] = value(bits & 0xffff);
                out[8 * upper + 2 * quarter + 1] = value(bits >> 16);
            }
        }
    };
    float rows[2][16], columns[2][16];
    for (unsigned i = 0; i < 2; ++i) {
        take(lane / 4, i, rows[i]);
        take(lane % 4 * 2 + i, 4, columns[i]);
    }
    for (unsigned i = 0; i < 4; ++i) {
        for (unsigned k = 0; k < 16; ++k) d[i] += rows[i / 2][k] * columns[i % 2][k];
    }
}

void mma(const char* site, int halves, int (&d)[4], const unsigned* a, const unsigned* b) {
    Machine& m = machine();
    Fiber& own = m.fibers[m.current];
    const unsigned now = (own.operations + 1) & 1;
    memcpy(own.fragments[now], a, 8u * unsigned(halves));
    memcpy(own.fragments[now] + 4, b, 4u * unsigned(halves));
    exchange(site, 0xffffffffu, 0, 0);
    const unsigned first = m.current / 32 * 32, lane = m.current % 32;
    // Four bytes to a register; a lane of a quad holds neighbours, and again sixteen further on.
    for (unsigned i = 0; i < 4; ++i) {
        for (unsigned k = 0; k < 16u * unsigned(halves); ++k) {
            const unsigned quarter = k % 16 / 4, half = k / 16, shift = 8 * (k % 4);
            const unsigned row = m.fibers[first + lane / 4 * 4 + quarter].fragments[now][i / 2 + 2 * half];
            const unsigned column = m.fibers[first + (lane % 4 * 2 + i % 2) * 4 + quarter].fragments[now][4 + half];
            d[i] += int(row >> shift & 255) * int(int8_t(column >> shift));
        }
    }
}

void copy_later(void* to, const void* from, size_t bytes, bool inside) {
    const bool whole = ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) & (bytes - 1)) == 0;
    if (!whole) report("copies bytes that are not aligned");
    if (inside) touch(from, bytes, Access::Read);
    // Whoever reads what lay there must be done by now.
    touch(to, bytes, Access::Write);
    Fiber& fiber = machine().fibers[machine().current];
    fiber.copies.push_back({to, inside ? from : nullptr, bytes, fiber.groups});
}

void close_group() { ++machine().fibers[machine().current].groups; }

void wait_for_groups(int left) {
    Fiber& fiber = machine().fibers[machine().current];
    size_t come = 0;
    for (; come < fiber.copies.size() && fiber.copies[come].group + unsigned(left) < fiber.groups; ++come) {
        const Copy& copy = fiber.copies[come];
        touch(copy.to, copy.bytes, Access::Write);
        if (copy.from != nullptr) memcpy(copy.to, copy.from, copy.bytes);
        else memset(copy.to, 0, copy.bytes);
    }
    fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + long(come));
}

void fence() {
    Machine& m = machine();
    m.fences[m.block_number] = m.epoch;
}

void fail(const char* what) { report(what); }
void launch(const Launch& launch) {
    Machine& m = machine();
    if (!m.message.empty()) return;
    const dim3 grid = launch.grid, block = launch.block;
    const std::string kernel = launch.kernel;
    const unsigned threads = block.x;
    m.kernel = launch.kernel;
    if (block.y != 1 || block.z != 1 || threads == 0 || threads > MOST_THREADS || threads % 32 != 0) {
        return report(kernel + ": blocks are whole warps along x, at most 1024 threads");
    }
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
        return report(kernel + ": a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
                      std::to_string(grid.z) + " blocks");
    }
    if (launch.dynamic > MOST_SHARED) return report(kernel + ": too much shared memory");
    if (m.stacks == nullptr) {
        void* const memory = mmap(nullptr, MOST_THREADS * STACK + ARENA, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) return report("no memory for the emulator's stacks");
        m.stacks = static_cast<char*>(memory);
        m.arena = m.stacks + MOST_THREADS * STACK;
        memset(m.arena, 0xcb, ARENA);
        m.fibers.resize(MOST_THREADS);
    }
    m.grid = grid, m.block = block, m.body = launch.body, m.arguments = launch.arguments;
    m.dynamic = launch.dynamic, m.checked = launch.checked;
    // The caller's frames, where the arguments lie.
    const uintptr_t frame = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
    m.host_stack = {frame - 4096, frame + (64 << 10)};
    m.running = true;
    ++m.launches;
    m.fences.clear();
    const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
    for (uint64_t i = 0; i < blocks && m.message.empty(); ++i) {
        const uint64_t b = m.checked ? blocks - 1 - i : i;
        m.block_number = unsigned(b);
        m.block_index = dim3(unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y));
        ++m.epoch;
        run_block(threads);
    }
    m.running = false;
}

int status() { return machine().message.empty() ? 0 : 719; }

}  // namespace emu

extern "C" {

/// Declares memory that the next launches may touch.
void emu_allow(const void* start, size_t bytes) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(start);
    machine().allowed.push_back({at, at + bytes});
}

/// Forgets what was allowed; the message of the first failed check is copied out, its length returned.
size_t emu_finish(char* out, size_t room) {
    Machine& m = machine();
    m.allowed.clear();
    m.last_range = 0;
    // Shadow pages of buffers long gone.
    if (m.shadow.size() > 2048) {
        m.shadow.clear();
        m.page_cells = nullptr;
    }
    const size_t length = m.message.size() < room ? m.message.size() : room;
    memcpy(out, m.message.data(), length);
    m.message.clear();
    return length;
}

// What -fsanitize=thread calls; its own library is not linked.
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define EMU_HOOK(bytes)                                                                                               \
    void __tsan_read##bytes(void* at) { check(reinterpret_cast<uintptr_t>(at), bytes, emu::Access::Read); }             \
    void __tsan_write##bytes(void* at) { check(reinterpret_cast<uintptr_t>(at), bytes, emu::Access::Write); }           \
    void __tsan_unaligned_read##bytes(void* at) { check(reinterpret_cast<uintptr_t>(at), bytes, emu::Access::Read); }   \
    void __tsan_unaligned_write##bytes(void* at) { check(reinterpret_cast<uintptr_t>(at), bytes, emu::Access::Write); }
EMU_HOOK(1)
EMU_HOOK(2)
EMU_HOOK(4)
EMU_HOOK(8)
EMU_HOOK(16)
void __tsan_read_range(void* at, size_t bytes) { check(reinterpret_cast<uintptr_t>(at), bytes, emu::Access::Read); }
void __tsan_write_range(void* at, size_t bytes) { check(reinterpret_cast<uintptr_t>(at), bytes, emu::Access::Write); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
