// Threads that go through a chain of small pieces of work together, as the layers of one step are.
//
// A parallel loop of OpenMP for each piece would put threads to sleep and wake them some hundred times a step. Here
// they meet at a barrier at which they spin for a moment before they sleep: long enough for neighbours that run, and
// little enough where another program has the other core. Each begins with a share of its own, so that it knows what it
// does next and can have it read from memory; who is done helps the others from their ends, as other work may hold them
// up.

#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lanes.h"

namespace {

constexpr int SPINS = 500;  // pauses at a barrier before sleep, some 30 microseconds
constexpr int MOST_THREADS = 256;

// What all threads see.
class Team {
   public:
    int size = 1;  // threads, which all call the same functions in the same order

   private:
    friend class Member;

    // Items of a thread's share that were taken: from its start, and times BACK from its end.
    struct alignas(64) Taken {
        uint64_t counts;
    };
    static constexpr uint64_t BACK = 1ull << 32;

    Taken taken[MOST_THREADS] = {};
    alignas(64) int arrived = 0;
    alignas(64) int turn = 0;  // how often all have met
    alignas(64) int sleepers = 0;
};

// One thread of it.
class Member {
   public:
    Member(Team &team, int thread) : team(team), thread(thread) {}

    // The first item of a thread's share, or the end of them all.
    int64_t first(int64_t items, int thread) const { return items * thread / team.size; }
    int64_t first(int64_t items) const { return first(items, thread); }

    // Does one(0) .. one(items - 1), and returns on each thread when all are done. Before it waits, each does `last`.
    template <typename F, typename G>
    void share(int64_t items, F one, G last) {
        share_ahead(items, [&](int64_t i, int64_t) { one(i); }, last);
    }

    template <typename F>
    void share(int64_t items, F one) {
        share(items, one, [] {});
    }

    // The same by one(item, the thread's next one or -1).
    template <typename F, typename G>
    void share_ahead(int64_t items, F one, G last) {
        for (int k = 0; k < team.size; k++) {
            int whose = (thread + k) % team.size;
            int64_t from = first(items, whose), to = first(items, whose + 1);
            for (int64_t i; (i = take(whose, k == 0, to - from)) >= 0;) {
                int64_t item = k == 0 ? from + i : to - 1 - i, next = k == 0 ? item + 1 : item - 1;
                one(item, from <= next && next < to ? next : -1);
            }
        }
        last();
        wait();
    }

   private:
    // How many were taken from that end before, or -1 where none of the share's `items` is left.
    int64_t take(int whose, bool front, int64_t items) {
        uint64_t &counts = team.taken[whose].counts, now = __atomic_load_n(&counts, __ATOMIC_RELAXED);
        do {
            if ((int64_t)(now % Team::BACK + now / Team::BACK) >= items) return -1;
        } while (!__atomic_compare_exchange_n(&counts, &now, now + (front ? 1 : Team::BACK), true, __ATOMIC_RELAXED,
                                              __ATOMIC_RELAXED));
        return front ? now % Team::BACK : now / Team::BACK;
    }

    void wait() {
        int now = __atomic_load_n(&team.turn, __ATOMIC_ACQUIRE);
        if (__atomic_add_fetch(&team.arrived, 1, __ATOMIC_ACQ_REL) == team.size) {
            team.arrived = 0;
            for (int t = 0; t < team.size; t++) team.taken[t].counts = 0;
            __atomic_store_n(&team.turn, now + 1, __ATOMIC_SEQ_CST);
            // A thread that is about to sleep has said so first, and the kernel looks at `turn` again before it does.
            if (team.size > 1 && __atomic_load_n(&team.sleepers, __ATOMIC_SEQ_CST))
                syscall(SYS_futex, &team.turn, FUTEX_WAKE_PRIVATE, team.size, nullptr, nullptr, 0);
            return;
        }
        for (int i = 0; i < SPINS; i++) {
            if (__atomic_load_n(&team.turn, __ATOMIC_ACQUIRE) != now) return;
            _mm_pause();
        }
        __atomic_add_fetch(&team.sleepers, 1, __ATOMIC_SEQ_CST);
        while (__atomic_load_n(&team.turn, __ATOMIC_SEQ_CST) == now)
            syscall(SYS_futex, &team.turn, FUTEX_WAIT_PRIVATE, now, nullptr, nullptr, 0);
        __atomic_sub_fetch(&team.sleepers, 1, __ATOMIC_SEQ_CST);
    }

    Team &team;
    int thread;
};

}  // namespace
