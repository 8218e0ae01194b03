"""`make matrix`: every fault of the reliability table that is built so far, and whether anything was lost."""
