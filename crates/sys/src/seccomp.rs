//! Seccomp filters: a small assembler and the load.
