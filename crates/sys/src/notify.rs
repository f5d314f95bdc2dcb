//! Seccomp user notifications: receiving, reading arguments, answering.
