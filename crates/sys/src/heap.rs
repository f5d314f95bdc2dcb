//! The memory that the allocator keeps.

/// Gives back to the system what is free in the heap; where the C library cannot, nothing happens.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_in_use_stays() {
        let kept: Vec<Vec<u8>> = (0..2000usize).map(|n| vec![n as u8; n]).collect();
        drop((0..2000usize).map(|n| vec![1u8; n]).collect::<Vec<_>>());
        super::trim();
        assert!(kept.iter().enumerate().all(|(n, bytes)| bytes.iter().all(|byte| *byte == n as u8)));
    }
}
