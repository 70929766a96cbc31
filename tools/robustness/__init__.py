"""Networks under controlled conditions: what is varied, the mixes, how they are scored, tables and picture."""
