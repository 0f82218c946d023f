"""The systems that khop comes with, one file or folder per family."""
