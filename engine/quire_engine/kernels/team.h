// Threads that go through a chain of small pieces of work together, as the layers of one step are.
//
// A parallel loop of OpenMP for each piece would put threads to sleep and wake them some hundred times a step. Here they
// meet at a barrier at which they spin for a moment before they sleep: long enough for neighbours that run, and little
// enough where another program has the other core. What there is to do is not cut up beforehand: a thread that other
// work holds up takes less of it.

#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lanes.h"

namespace {

constexpr int SPINS = 500;  // pauses at a barrier before sleep, some 30 microseconds

class Team {
   public:
    int size = 1;  // threads, which all call the same functions in the same order

    // Does one(0) .. one(items - 1), and returns on each thread when all are done. Before it waits, each does `last`.
    template <typename F, typename G>
    void share(int64_t items, F one, G last) {
        for (int64_t from, to; take(items, from, to);)
            for (int64_t i = from; i < to; i++) one(i);
        last();
        wait();
    }

    template <typename F>
    void share(int64_t items, F one) {
        share(items, one, [] {});
    }

   private:
    // Half of an even share of what is left, so that neighbouring items mostly have one thread.
    bool take(int64_t items, int64_t &from, int64_t &to) {
        from = __atomic_load_n(&next, __ATOMIC_RELAXED);
        do {
            if (from >= items) return false;
            to = size == 1 ? items : from + most(1, (items - from) / (2 * size));
        } while (!__atomic_compare_exchange_n(&next, &from, to, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
        return true;
    }

    void wait() {
        int now = __atomic_load_n(&turn, __ATOMIC_ACQUIRE);
        if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == size) {
            arrived = 0;
            next = 0;
            __atomic_store_n(&turn, now + 1, __ATOMIC_SEQ_CST);
            // A thread that is about to sleep has said so first, and the kernel looks at `turn` again before it does.
            if (size > 1 && __atomic_load_n(&sleepers, __ATOMIC_SEQ_CST))
                syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, size, nullptr, nullptr, 0);
            return;
        }
        for (int i = 0; i < SPINS; i++) {
            if (__atomic_load_n(&turn, __ATOMIC_ACQUIRE) != now) return;
            _mm_pause();
        }
        __atomic_add_fetch(&sleepers, 1, __ATOMIC_SEQ_CST);
        while (__atomic_load_n(&turn, __ATOMIC_SEQ_CST) == now)
            syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, now, nullptr, nullptr, 0);
        __atomic_sub_fetch(&sleepers, 1, __ATOMIC_SEQ_CST);
    }

    alignas(64) int64_t next = 0;  // item that nobody has taken
    alignas(64) int arrived = 0;
    alignas(64) int turn = 0;  // how often all have met
    alignas(64) int sleepers = 0;
};

}  // namespace
