"""What may touch bytes on disk: open files, windows and their memory, checksums, the place where an output grows."""
