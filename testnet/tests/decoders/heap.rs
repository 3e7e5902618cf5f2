//! Counts what a thread has on the heap, so that a test can say how much a decoder takes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn count(change: isize) {
    let live = LIVE.get() + change;
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

fn bytes(size: usize) -> isize {
    isize::try_from(size).unwrap_or(isize::MAX)
}

#[expect(unsafe_code, reason = "an allocator is unsafe by its nature; this one passes everything on to the system's")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(bytes(layout.size()));
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(bytes(layout.size()));
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-bytes(layout.size()));
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // both stand for a moment
        count(bytes(size));
        count(-bytes(layout.size()));
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Counts from here, on this thread.
pub fn begin() {
    LIVE.set(0);
    PEAK.set(0);
}

/// Bytes that this thread had more at a time than when it began to count.
pub fn peak() -> usize {
    usize::try_from(PEAK.get()).unwrap_or(0)
}

#[test]
fn the_heap_is_counted() {
    begin();
    drop(std::hint::black_box(vec![1u8; 3 << 20]));
    assert!((3 << 20..4 << 20).contains(&peak()), "{}", peak());
}
