"""The machine that we run on, and how its processors and memory are used.

starting.py         Ctrl-C while the program starts
limits.py           processors and memory that this process may use
threads.py          threads that share the blocks of one operation
helpers.py          the threads that do so, beside the one that calls
library_threads.py  the linear algebra library's own threads, kept at one meanwhile
workspaces.py       arrays that each thread uses over and over
pages.py            memory that the process keeps, in large pages
terminal.py         lines for whoever is watching
"""
