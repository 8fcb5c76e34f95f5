// Python's arenas of small objects side by side, in large pages of a room that is reserved once.
//
// Python asks the system for each arena of 1 MiB by itself, and these come to lie between whatever else is mapped: a third
// of them in no whole large page. All calls come with the interpreter's lock held.

#include <stdint.h>
#include <sys/mman.h>

#define ARENA ((size_t)1 << 20)
#define LARGE_PAGE (2 * ARENA)
#define ARENAS 16384 // 16 GiB, of which only what is written to takes memory

// PyObjectArenaAllocator
struct allocator {
    void *context;
    void *(*take)(void *context, size_t size);
    void (*give)(void *context, void *arena, size_t size);
};

static char *room;
static uint64_t taken[ARENAS / 64]; // a bit for each arena

static void *take(void *context, size_t size) {
    (void)context;
    if (size == ARENA) // the first that is free, so that pages fill up
        for (size_t word = 0; word < ARENAS / 64; word++)
            if (taken[word] != UINT64_MAX) {
                int bit = __builtin_ctzll(~taken[word]);
                taken[word] |= 1ull << bit;
                return room + (64 * word + bit) * ARENA;
            }
    void *alone = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return alone == MAP_FAILED ? 0 : alone;
}

static void give(void *context, void *arena, size_t size) {
    (void)context;
    uintptr_t offset = (uintptr_t)arena - (uintptr_t)room;
    if (offset >= ARENAS * ARENA) { // taken before there was a room, or when it was full
        munmap(arena, size);
        return;
    }
    size_t which = offset / ARENA, neighbour = which ^ 1;
    taken[which / 64] &= ~(1ull << which % 64);
    if (!(taken[neighbour / 64] >> neighbour % 64 & 1)) madvise(room + which / 2 * LARGE_PAGE, LARGE_PAGE, MADV_DONTNEED);
}

// Has `set`, which is PyObject_SetArenaAllocator, take arenas from here on. Returns whether there is room.
int lay_arenas_together(void (*set)(struct allocator *)) {
    if (room) return 1;
    size_t size = ARENAS * ARENA;
    char *found = mmap(0, size + LARGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) return 0;
    room = (char *)(((uintptr_t)found + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE);
    if (madvise(room, size, MADV_HUGEPAGE)) { // a kernel without large pages
        munmap(found, size + LARGE_PAGE);
        room = 0;
        return 0;
    }
    struct allocator ours = {0, take, give};
    set(&ours);
    return 1;
}
