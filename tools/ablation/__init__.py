"""Train and compare IMSE with parts removed or exchanged."""
