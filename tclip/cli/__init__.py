"""The commands of tclip."""
