//! Unix sockets through directory descriptors (no length limit), descriptor passing.
