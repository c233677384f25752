"""tclip."""
