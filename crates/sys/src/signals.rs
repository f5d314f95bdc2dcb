//! Signals as descriptors, and the set that a child starts with.
