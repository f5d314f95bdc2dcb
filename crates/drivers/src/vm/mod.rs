//! What drivers that boot a guest of their own share.
pub mod accel;
pub mod cpio;
pub mod kernel_package;
