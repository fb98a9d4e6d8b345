//! Huge pages for large results.
//!
//! XLA takes large buffers fresh from the system for every execution, and whoever writes there first waits for each page. With pages
//! of 2 MiB instead of 4 KiB that is a few waits instead of many thousand: NumPy asks for them, XLA does not.

/// Results from this size on: with fewer bytes there is hardly a huge page among them.
#[cfg(target_os = "linux")]
const LARGE: usize = 1 << 22;

/// Ask the system to back the `bytes` bytes from `start` on, if they are many, with huge pages where it has not backed them yet.
///
/// # Safety
/// The bytes are memory that this process has mapped.
#[cfg(target_os = "linux")]
pub(super) unsafe fn ask_for_huge_pages(start: *mut u8, bytes: usize) {
    /// What addresses are to be multiples of, whatever the size of a small page.
    const ALIGNMENT: usize = 1 << 16;
    let before = start.align_offset(ALIGNMENT);
    if bytes >= LARGE && before < bytes {
        // SAFETY: these are some of the bytes; the call changes none of them, and if it fails the pages stay small.
        unsafe { libc::madvise(start.add(before).cast(), bytes - before, libc::MADV_HUGEPAGE) };
    }
}

/// Elsewhere it is the system that decides.
///
/// # Safety
/// None is needed.
#[cfg(not(target_os = "linux"))]
pub(super) unsafe fn ask_for_huge_pages(_: *mut u8, _: usize) {}
