//! Pseudo-terminals and controlling terminals.
