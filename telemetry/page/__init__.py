"""The page: runs in a browser, served by a process of its own, and the same as one file."""
