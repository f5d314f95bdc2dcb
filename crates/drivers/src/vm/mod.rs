//! What drivers that boot a guest of their own share.
//!
//! ```text
//!   host                                              guest
//!   ────                                              ─────
//!   supervisor ── control ──────────────────────────► first process (init) ─► agent ─► sessions
//!     ├─ VMM                                              │
//!     └─ file server (virtio-fs, read-only) ◄── layers ───┘
//!        disk (a file that no kernel of the host mounts) ── uppers, home, /tmp
//! ```
//!
//! | module | |
//! |---|---|
//! | `accel` | whether the processor runs it, or it is emulated |
//! | `kernel`, `kernel_package` | which kernel boots, and where one comes from |
//! | `modules` | which modules it loads, in which order |
//! | `cpio`, `initramfs` | its first files |
//! | `guest` | what it is told, as a value |
//! | `init` | its first process |
//! | `disk` | its disk |
//! | `console` | what it prints |
//! | `boot` | its start, seen from the host |

pub mod accel;
pub mod boot;
pub mod check;
pub mod console;
pub mod cpio;
pub mod disk;
pub mod guest;
pub mod init;
pub mod initramfs;
pub mod kernel;
pub mod kernel_package;
pub mod modules;
