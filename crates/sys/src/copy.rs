//! Copying file contents the cheapest way: reflink, `copy_file_range`, read and write.
