//! Mounts: binds, tmpfs, proc, devpts, overlay, pivot_root.
