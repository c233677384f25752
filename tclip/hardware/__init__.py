"""What accelerators can do, and their compilers, which need no accelerator."""
