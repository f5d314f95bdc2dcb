//! Capabilities, securebits and no_new_privs.
