//! New namespaces and id maps.
