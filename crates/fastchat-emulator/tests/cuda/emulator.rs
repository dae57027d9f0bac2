//! The emulator finds the mistakes it is there to find.

use std::ffi::c_void;
use std::ptr::null_mut;

unsafe extern "C" {
    fn fc_broken(x: *const f32, out: *mut f32, blocks: i32, mistake: i32, stream: *mut c_void) -> i32;
    fn fcc_broken(x: *const f32, out: *mut f32, blocks: i32, mistake: i32, stream: *mut c_void) -> i32;
    fn emu_allow(start: *const c_void, bytes: usize);
    fn emu_finish(out: *mut u8, room: usize) -> usize;
}

/// What the kernel with the given mistake is blamed for, and its results.
fn run(checked: bool, mistake: i32) -> (String, Vec<f32>) {
    let x: Vec<f32> = (0..128u8).map(f32::from).collect();
    // A place to either side, so that unchecked launches do no harm.
    let mut out = vec![0f32; 130];
    let mut message = vec![0; 512];
    let kernel = if checked { fcc_broken } else { fc_broken };
    // SAFETY: two blocks of 64, and what the mistakes write beyond them.
    unsafe {
        emu_allow(x.as_ptr().cast(), 512);
        emu_allow(out[1..].as_ptr().cast(), 512);
        let status = kernel(x.as_ptr(), out[1..].as_mut_ptr(), 2, mistake, null_mut());
        let length = emu_finish(message.as_mut_ptr(), message.len());
        message.truncate(length);
        assert_eq!(status != 0, length > 0);
    }
    (String::from_utf8(message).unwrap(), out[1..129].to_vec())
}

#[test]
fn a_kernel_without_mistakes_passes() {
    // Exact in f32, whatever the order.
    let sum = |start: u16| (start..start + 64).map(f32::from).sum::<f32>();
    for checked in [false, true] {
        let (message, out) = run(checked, 0);
        assert_eq!(message, "");
        assert_eq!(out, [vec![sum(0); 64], vec![sum(64); 64]].concat());
    }
}

#[test]
fn barriers_that_not_all_reach_are_found_without_checks() {
    for (mistake, expected) in [
        (2, "left the kernel before a barrier"),
        (3, "another at"),
        (4, "waits for the lanes of its warp"),
        (12, "without waiting for those before"),
    ] {
        let (message, _) = run(false, mistake);
        assert!(message.contains(expected) && message.starts_with("sum, block"), "{mistake}: {message}");
    }
}

#[test]
fn accesses_are_checked() {
    for (mistake, expected) in [
        (1, "which was never set"),
        (5, "which was never set"),
        (6, "out of bounds"),
        (7, "out of bounds"),
        (8, "out of bounds"),
        (9, "without a barrier between"),
        (10, "without a barrier between"),
        (11, "before the kernels before are over"),
    ] {
        let (message, _) = run(true, mistake);
        assert!(message.contains(expected), "{mistake}: {message}");
    }
}
